"""Takes over one account of a stopped reference PDS: checked, stored, counted, then shown.

1. Check the key, the commit and the tree while their rows go into a generation that nobody sees.
2. Copy the blobs, each held against its CID, several at once.
3. In one transaction: the account with its key, passwords, sessions, preferences and takedowns.
4. Read back what is stored and compare it.

Head and rev stay the same: there is no new commit, no event and no PLC operation. A run that was
killed leaves no account; the next one begins this account anew, and finds the blobs it had copied.

Spec: (ACC-30, ACC-33, ACC-44, XRPC-25, XRPC-86)
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from pds.blobstore.base import BlobKey, BlobStore
from pds.blobstore.copying import CopyState, check_copy
from pds.blobstore.reference import Place, SourceBlobMissing, SourceBlobs
from pds.errors import ConfigError, Corrupt, ProtocolError
from pds.protocol.keys import InvalidKey, make_signer
from pds.protocol.syntax import (
    Did,
    Handle,
    InvalidSyntax,
    format_datetime,
    parse_did,
    parse_handle,
)
from pds.services.reference_import_repo import Batch, Commit, Takedown, read_batches, read_commit
from pds.services.reference_import_rows import (
    NO_REF,
    AccountRest,
    delete_after,
    finish_account,
)
from pds.store.accounts import AccountStatus, get_account_by_did
from pds.store.blobs import Blob
from pds.store.engine import Engine, Txn
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore
from pds.store.preferences import Preference
from pds.store.records import insert_backlinks
from pds.store.reference_reader import (
    ReferenceAccount,
    ReferenceBlob,
    ReferenceHost,
    ReferenceStore,
)
from pds.store.repos import get_account_repo
from pds.store.takeover import (
    Incoming,
    begin_incoming,
    count_rows,
    insert_blob_refs_as_they_were,
    insert_nodes_as_they_were,
    insert_records_as_they_were,
    is_blob_referenced,
    put_blobs,
)

BLOBS_AT_ONCE: Final = 4
BLOB_BATCH: Final = 100


class Outcome(StrEnum):
    """What became of an account."""

    IMPORTED = "imported"
    PRESENT = "present"
    """It was taken over before."""
    CHECKED = "checked"
    """Only looked at (`--dry-run`)."""
    FAILED = "failed"
    LEFT_OUT = "left out"


@dataclass(slots=True)
class AccountReport:
    """What was found of one account, and what became of it."""

    did: str
    handle: str | None
    outcome: Outcome = Outcome.FAILED
    status: str = AccountStatus.ACTIVE.value
    head: str | None = None
    rev: str | None = None
    records: int = 0
    nodes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    temporary_blobs: int = 0
    missing_blobs: list[str] = field(default_factory=list)
    damaged_blobs: list[str] = field(default_factory=list)
    app_passwords: int = 0
    sessions: int = 0
    preferences: int = 0
    record_takedowns: int = 0
    blob_takedowns: int = 0
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return asdict(self)


Advance = Callable[[str, int], None]
"""Called with `records` or `blobs`, and how many more of them are done."""


def _nothing(_what: str, _count: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSource:
    """Where accounts come from."""

    host: ReferenceHost
    blobs: SourceBlobs


class AccountImport:
    """Takes over accounts, one after another."""

    def __init__(
        self,
        source: AccountSource,
        *,
        engine: Engine,
        keystore: Keystore,
        blobstore: BlobStore,
        now_us: Callable[[], int],
        advance: Advance = _nothing,
    ) -> None:
        self._source = source
        self._engine = engine
        self._keystore = keystore
        self._blobstore = blobstore
        self._now_us = now_us
        self._advance = advance

    async def run(self, account: ReferenceAccount) -> AccountReport:
        """Take over one account, unless it is here already; what is wrong stands in the report.

        Raises: Unavailable and the like when our own side fails: nothing is wrong with the account.
        """
        report = _new_report(account)
        if await self._engine.read("takeover.known", get_account_by_did, account.did) is not None:
            report.outcome = Outcome.PRESENT
            return report
        with _failures_in(report):
            did, handle = _parse_names(account, report)
            store = self._source.host.open_store(did)
            try:
                await self._take(account, did, handle, store, report)
            finally:
                store.close()
        return report

    async def _take(
        self,
        account: ReferenceAccount,
        did: Did,
        handle: Handle | None,
        store: ReferenceStore,
        report: AccountReport,
    ) -> None:
        commit, secret = _read_head(store, did, report)
        incoming = await self._engine.transact(
            "takeover.begin", _begin, did, commit, self._now_us()
        )
        takedowns: list[Takedown] = []
        batches = read_batches(store, commit.head)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            await self._engine.transact("takeover.rows", _store, incoming, batch, bulk=True)
            takedowns += batch.takedowns
            _count(report, batch)
            self._advance("records", len(batch.records))
        _check_index(store, report)
        await self._copy_blobs(did, incoming, store, report)
        host = self._source.host
        rows = AccountRest(
            account=account,
            did=did,
            handle=handle,
            secret=secret,
            entropy=secrets.token_bytes(KEY_ENTROPY_BYTES),
            app_passwords=host.list_app_passwords(did),
            tokens=host.list_refresh_tokens(did),
            preferences=[Preference(n, text.encode()) for n, text in store.list_preferences()],
            takedowns=takedowns,
            commit=commit,
            records=report.records,
            nodes=report.nodes,
        )
        report.app_passwords = len(rows.app_passwords)
        report.preferences = len(rows.preferences)
        now_us = self._now_us()
        if (at := delete_after(account, now_us)) is not None:
            report.notes.append(f"it will be deleted after {format_datetime(at)}")
        report.sessions = await self._engine.transact(
            "takeover.account", finish_account, self._keystore, incoming, rows, now_us
        )
        await self._read_back(incoming, commit, report)
        report.outcome = Outcome.IMPORTED

    # Blobs

    async def _copy_blobs(
        self, did: Did, incoming: Incoming, store: ReferenceStore, report: AccountReport
    ) -> None:
        for batch in _in_batches(store.list_blobs(), BLOB_BATCH):
            copied: list[Blob] = []
            for start in range(0, len(batch), BLOBS_AT_ONCE):
                some = batch[start : start + BLOBS_AT_ONCE]
                results = await asyncio.gather(
                    *(self._copy(did, incoming.aid, blob) for blob in some), return_exceptions=True
                )
                for blob, result in zip(some, results, strict=True):
                    if isinstance(result, BaseException):
                        raise result
                    _note_copy(report, blob, result, copied)
                self._advance("blobs", len(some))
            await self._engine.transact(
                "takeover.blobs", _put_blobs, incoming, copied, self._now_us(), bulk=True
            )

    async def _copy(self, did: Did, aid: int, blob: ReferenceBlob) -> "_Copied | CopyState":
        """Bring the bytes of one blob over, and say how many or what is wrong with them."""
        key = BlobKey(aid, blob.cid)
        known = await self._blobstore.stat(key)
        if known is not None and await check_copy(self._blobstore, key) is CopyState.GOOD:
            return _Copied(known.size)
        try:
            async with self._blobstore.stage(self._bytes_of(did, blob)) as staged:
                if staged.cid != blob.cid:
                    return CopyState.DAMAGED
                await staged.store(aid)
                return _Copied(staged.size)
        except SourceBlobMissing:
            return CopyState.MISSING

    def _bytes_of(self, did: Did, blob: ReferenceBlob) -> AsyncIterator[bytes]:
        return self._source.blobs.open(did, _place(blob))

    # Rows

    async def _read_back(self, incoming: Incoming, commit: Commit, report: AccountReport) -> None:
        """Compare what is stored with what was read. Raises: Corrupt."""
        repo = await self._engine.read("takeover.check", get_account_repo, incoming.aid)
        if repo is None or repo.repo is None or repo.repo.head != commit.head:
            raise Corrupt("the head that is stored is not the one that was read")
        counted = await self._engine.read("takeover.count", count_rows, incoming.repo_id)
        if counted != (report.records, report.nodes):
            raise Corrupt("not all that was read is stored")


async def check_account(
    source: AccountSource, account: ReferenceAccount, advance: Advance = _nothing
) -> AccountReport:
    """Check one account and change nothing; blobs are looked for, not read."""
    report = _new_report(account)
    with _failures_in(report):
        did, _ = _parse_names(account, report)
        store = source.host.open_store(did)
        try:
            commit, _ = _read_head(store, did, report)
            for batch in read_batches(store, commit.head):
                _count(report, batch)
                advance("records", len(batch.records))
            _check_index(store, report)
            for blob in store.list_blobs():
                if not await source.blobs.has(did, _place(blob)):
                    _note_missing(report, blob)
                else:
                    _note_blob(report, blob, blob.size)
                advance("blobs", 1)
            report.preferences = len(store.list_preferences())
        finally:
            store.close()
        report.app_passwords = len(source.host.list_app_passwords(did))
        report.sessions = len(source.host.list_refresh_tokens(did))
        report.outcome = Outcome.CHECKED
    return report


@dataclass(frozen=True, slots=True)
class _Copied:
    """A blob that is here, with its size."""

    size: int


class _failures_in:  # noqa: N801 - used as a statement
    """Turns what is wrong with an account into its report; errors of our own side pass."""

    def __init__(self, report: AccountReport) -> None:
        self._report = report

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, ProtocolError | Corrupt | ConfigError):
            self._report.outcome = Outcome.FAILED
            self._report.error = str(error)
            return True
        return False


def _new_report(account: ReferenceAccount) -> AccountReport:
    report = AccountReport(account.did, account.handle)
    if account.takedown_ref is not None:
        report.status = AccountStatus.TAKENDOWN.value
    elif account.deactivated_at is not None:
        report.status = AccountStatus.DEACTIVATED.value
    return report


def _parse_names(account: ReferenceAccount, report: AccountReport) -> tuple[Did, Handle | None]:
    did = parse_did(account.did)
    if account.email is None:
        report.notes.append("it has no e-mail address and no password")
    if account.handle is None:
        return did, None
    try:
        return did, parse_handle(account.handle)
    except InvalidSyntax:
        report.notes.append(f"its handle {account.handle!r} is none, and was dropped")
        return did, None


def _read_head(store: ReferenceStore, did: Did, report: AccountReport) -> tuple[Commit, bytes]:
    """Return the checked commit and the secret of the key that signed it."""
    secret = store.signing_key()
    try:
        key = make_signer("k256", secret).public_key
    except InvalidKey as error:
        raise Corrupt("the signing key is none") from error
    commit = read_commit(store, did, key)
    report.head, report.rev = str(commit.head.commit), commit.head.rev
    return commit, secret


def _count(report: AccountReport, batch: Batch) -> None:
    report.nodes += len(batch.nodes)
    report.records += len(batch.records)
    report.record_takedowns += len(batch.takedowns)


def _check_index(store: ReferenceStore, report: AccountReport) -> None:
    indexed = store.count_records()
    if indexed != report.records:
        report.notes.append(
            f"its index has {indexed} records, its repo {report.records}: the repo counts"
        )


def _place(blob: ReferenceBlob) -> Place:
    if blob.takedown_ref is not None and blob.temp_key is None:
        return Place("quarantine", str(blob.cid))
    if blob.temp_key is not None:
        return Place("temporary", blob.temp_key)
    return Place("kept", str(blob.cid))


def _note_copy(
    report: AccountReport,
    blob: ReferenceBlob,
    result: "_Copied | CopyState",
    copied: list[Blob],
) -> None:
    if isinstance(result, _Copied):
        _note_blob(report, blob, result.size)
        kept_at = None if blob.temp_key is not None else blob.created_at
        hidden = None if blob.takedown_ref is None else blob.takedown_ref or NO_REF
        copied.append(Blob(blob.cid, blob.mime_type, result.size, blob.created_at, kept_at, hidden))
    elif result is CopyState.MISSING:
        _note_missing(report, blob)
    else:
        report.damaged_blobs.append(str(blob.cid))


def _note_missing(report: AccountReport, blob: ReferenceBlob) -> None:
    if blob.temp_key is None:
        report.missing_blobs.append(str(blob.cid))


def _note_blob(report: AccountReport, blob: ReferenceBlob, size: int) -> None:
    report.blobs += 1
    report.blob_bytes += size
    report.temporary_blobs += blob.temp_key is not None
    report.blob_takedowns += blob.takedown_ref is not None


def _in_batches(blobs: Iterable[ReferenceBlob], size: int) -> Iterator[list[ReferenceBlob]]:
    batch: list[ReferenceBlob] = []
    for blob in blobs:
        batch.append(blob)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _begin(txn: Txn, did: Did, commit: Commit, now_us: int) -> Incoming:
    return begin_incoming(txn, did, commit.head, commit.block, now_us=now_us)


def _store(txn: Txn, incoming: Incoming, batch: Batch) -> None:
    insert_nodes_as_they_were(txn, incoming.repo_id, batch.nodes)
    insert_records_as_they_were(txn, incoming.repo_id, batch.records)
    insert_blob_refs_as_they_were(txn, incoming.repo_id, batch.blob_refs)
    insert_backlinks(txn, incoming.repo_id, batch.backlinks)


def _put_blobs(txn: Txn, incoming: Incoming, blobs: Sequence[Blob], now_us: int) -> None:
    """Note blobs; one that was kept though no record refers to it ends like an upload (XRPC-82)."""
    put_blobs(
        txn,
        incoming.aid,
        [
            blob
            if blob.is_temporary or is_blob_referenced(txn, incoming.repo_id, blob.cid)
            else replace(blob, created_at=now_us, stored_at=None)
            for blob in blobs
        ],
    )
