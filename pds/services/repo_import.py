"""Takes in a whole repo from another host: all of it, checked, or nothing.

The way of an import:

1. only the owner may, with the main password, and only while the account is deactivated (ACC-5);
2. the CAR is written to a file as it arrives (`import_files`);
3. a process of its own checks every block of it (`import_check`): the account's DID, the signature
   by a key that its identity has or had, the whole tree, every record. Blocks that the CAR lacks
   may be in the repo that is here already;
4. what was found good is stored as a new generation, some hundred rows at a time, which nobody
   sees (`store/repo_staging`);
5. one transaction makes it the live one, under a commit that we have signed, with a rev above the
   imported one and ours. So head, the `#sync` of the activation and the key agree (ACC-41).

A small CAR, such as an export since some rev, goes a shorter way after 2, which costs what is new
and not what is there: the difference to the repo that is here is judged (`import_difference`), and
one transaction stores it as a commit of ours (`import_apply`). What cannot go that way goes the
long one, and only that refuses anything.

An import that ends before 5, however it does, leaves nothing but garbage that is collected. Once
the CAR is here, the rest goes on even if the client has left.

Spec: (REPO-3, REPO-90, REPO-92, REPO-93, ACC-41, ACC-52, ACC-53, ACC-54)
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pds.errors import RequestError, StoreError, Unreachable
from pds.log import get_logger
from pds.protocol.commit import SignedCommit, sign_commit
from pds.protocol.diddoc import DidDocument
from pds.protocol.plc_log import PlcLog
from pds.protocol.repo import Head
from pds.protocol.syntax import Did, Tid
from pds.protocol.tid import MAX_CLOCK_ID, encode_tid
from pds.services.account_cache import AccountCache
from pds.services.account_states import account_not_found
from pds.services.export_car import write_repo_whole
from pds.services.import_apply import apply_difference
from pds.services.import_check import (
    CheckedRepo,
    CheckJob,
    InvalidImport,
    RowBatch,
    check_age,
    read_batches,
)
from pds.services.import_difference import (
    DIFFERENCE,
    Difference,
    DifferenceJob,
    NoDifference,
    find_difference,
)
from pds.services.import_files import BUDGET_BYTES, ImportFile, ImportFiles
from pds.services.import_process import check_apart
from pds.services.principal import Principal
from pds.services.repo_txn import Moment
from pds.store.accounts import AccountStatus
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import KeyMissing, Keystore
from pds.store.records import Backlink, insert_backlinks, upsert_records
from pds.store.repo_staging import (
    ImportLost,
    ImportUnderWay,
    Staging,
    begin_staging,
    check_staging,
    end_staging,
    give_up_lapsed,
    give_up_staging,
    insert_blob_refs,
    list_stagings,
)
from pds.store.repos import AccountRepo, Repo, get_account_repo, insert_nodes, swap_repo

MAX_BLOCKS: Final = 4_000_000
"""Most blocks of one CAR. Ours: the largest that is taken (1 GB) has so many of usual size, and the
table of them takes 64 MB."""
MIN_WALK_BYTES: Final = 64 << 20
WALK_FACTOR: Final = 4
"""A record may stand under many keys, and each of them becomes a row: so much more than the size of
the CAR may come out of it, or `MIN_WALK_BYTES`."""
MAX_UPLOADS: Final = 32
MAX_CHECKS: Final = 2
"""Imports that are checked and stored at one time; others wait with their CAR on the disk."""
MAX_DIFFERENCES: Final = 4
"""The same of those that only bring what is new: they wait for no whole repo."""
UPLOAD_LIMIT_S: Final = 7200.0
ASK_TIMEOUT_S: Final = 10.0
FUTURE_TOLERANCE_US: Final = 300 * 1_000_000
"""Relays drop commits that are further ahead (REPO-6)."""
MAX_KEYS: Final = 100
"""Most keys of an identity's history that are tried, newest first."""
LARGE_RECORDS: Final = 2000

_log: Final = get_logger(__name__)


CheckRepo = Callable[[CheckJob], Awaitable[CheckedRepo]]
"""Judges a repo; raises InvalidImport, Unavailable."""


class PlcHistory(Protocol):
    """What this needs of the directory (`pds.identity.did_plc.PlcClient`)."""

    async def get_audit_log(self, did: Did) -> PlcLog:
        """Return the verified log; raises NotResolvable, Unreachable, BadAnswer."""


class Documents(Protocol):
    """What this needs of `pds.identity.resolver.IdentityResolver`."""

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        """Return the document of a DID; raises NotResolvable or Unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What the operator and tests can set. `is_alone`: no other node uses the database."""

    accepting: bool = True
    folder: Path | None = None
    budget_bytes: int = BUDGET_BYTES
    max_blocks: int = MAX_BLOCKS
    is_alone: bool = True


@dataclass(frozen=True, slots=True)
class _Subject:
    """The account as it was when the import began; it must be the same at its end."""

    aid: int
    did: Did
    key_id: int
    repo: Repo
    principal: Principal


@dataclass(frozen=True, slots=True)
class _Staged:
    staging: Staging
    signed: SignedCommit

    @property
    def head(self) -> Head:
        commit = self.signed.commit
        return Head(commit.did, self.signed.cid, commit.rev, commit.data)


class RepoImports:
    """Imports repos."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        clock_id: int,
        keystore: Keystore,
        cache: AccountCache,
        plc: PlcHistory,
        documents: Documents,
        settings: ImportSettings,
        check: CheckRepo = check_apart,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._clock_id = clock_id
        self._keystore = keystore
        self._cache = cache
        self._plc = plc
        self._documents = documents
        self._settings = settings
        self._check_job = check
        self._under_way: set[int] = set()
        self._slots = asyncio.Semaphore(MAX_CHECKS)
        self._difference_slots = asyncio.Semaphore(MAX_DIFFERENCES)
        self.files = ImportFiles(settings.folder, budget_bytes=settings.budget_bytes)

    async def import_repo(
        self,
        principal: Principal,
        chunks: AsyncIterator[bytes],
        *,
        former_key: str | None = None,
        min_rev: str | None = None,
    ) -> None:
        """Replace the repo of the caller by the one in the CAR that `chunks` bring.

        The size limit is the stream's to keep. The same CAR again changes nothing. `former_key` is
        one that the caller has seen in the identity: the document of a did:web has no history. With
        `min_rev` a repo that is older is refused, however good it is.

        Raises: ImportOutdated; RequestError `InvalidRequest` with what is wrong, `AccountNotFound`,
        `AccountTakedown`, `RequestTimeout`, `NotEnoughResources`; RemoteError when the keys of the
        identity could not be found out; Unavailable.
        """
        if not self._settings.accepting:
            raise RequestError("InvalidRequest", "Service is not accepting repo imports")
        aid = principal.aid
        if aid is None:
            raise account_not_found()
        with self._claimed(aid):
            subject = await self._engine.read("repo.import", _read_subject, aid, principal)
            with self.files.open() as car:
                try:
                    async with asyncio.timeout(UPLOAD_LIMIT_S):
                        await car.take(chunks)
                except TimeoutError:
                    raise RequestError(
                        "RequestTimeout", "The repo arrived too slowly", 408
                    ) from None
                keys = await self._find_keys(subject, former_key)
                await self._import(subject, keys, car, min_rev)

    async def compare(
        self,
        principal: Principal,
        car: bytes,
        *,
        former_key: str | None = None,
        min_rev: str | None = None,
    ) -> Difference:
        """Return how the repo of the caller would become the one in a CAR; nothing is stored.

        The account may be active. The rules for the CAR are those of an import, and it must be
        small. Raises: ImportOutdated, as `import_repo`; RequestError `InvalidRequest`,
        `AccountNotFound`; RemoteError; Unavailable.
        """
        aid = principal.aid
        if aid is None:
            raise account_not_found()
        account = await self._engine.read("repo.compare", get_account_repo, aid)
        if account is None or account.repo is None or account.key_id is None:
            raise account_not_found()
        subject = _Subject(account.aid, account.did, account.key_id, account.repo, principal)
        keys = await self._find_keys(subject, former_key)
        async with self._difference_slots:
            try:
                found = await self._judge_difference(subject, keys, car)
            except NoDifference as error:
                raise RequestError(
                    "InvalidRequest", f"The repos cannot be compared: {error}"
                ) from error
        check_age(found.rev, min_rev)
        return found

    async def recover(self) -> int:
        """Give up imports that nobody works on any more; return how many there were."""
        given_up = 0
        for row in await self._engine.read("repo.import", list_stagings):
            if int(row.subject) in self._under_way:
                continue
            given_up += await self._engine.transact(
                "repo.import_lapsed", self._give_up_lapsed, row.journal_id, self._clock.now_us()
            )
        return given_up

    def _give_up_lapsed(self, txn: Txn, journal_id: int, now_us: int) -> bool:
        return give_up_lapsed(txn, journal_id, now_us=now_us, is_alone=self._settings.is_alone)

    @contextmanager
    def _claimed(self, aid: int) -> Iterator[None]:
        if aid in self._under_way:
            raise ImportUnderWay
        if len(self._under_way) >= MAX_UPLOADS:
            raise RequestError(
                "NotEnoughResources",
                "Too many imports are under way",
                503,
                headers={"Retry-After": "60"},
            )
        self._under_way.add(aid)
        try:
            yield
        finally:
            self._under_way.discard(aid)

    async def _import(
        self, subject: _Subject, keys: tuple[str, ...], car: ImportFile, min_rev: str | None
    ) -> None:
        if not await self._import_difference(subject, keys, car, min_rev):
            async with self._slots:
                await self._import_whole(subject, keys, car, min_rev)

    async def _import_difference(
        self, subject: _Subject, keys: tuple[str, ...], car: ImportFile, min_rev: str | None
    ) -> bool:
        """Import what is new, if the CAR is small and the rest is here; return whether it was."""
        if not subject.repo.record_count or car.size > DIFFERENCE.car_bytes:
            return False
        async with self._difference_slots:
            content = await asyncio.to_thread(car.read)
            try:
                found = await self._judge_difference(subject, keys, content)
            except NoDifference as error:
                _log.info("repo.import_whole", did=subject.did, reason=str(error))
                return False
            check_age(found.rev, min_rev)
            before = subject.repo.head
            if found.data == before.data and found.rev <= before.rev:
                _log.info("repo.import_unchanged", did=subject.did)
                return True
            moment = Moment(self._clock.now_us(), self._clock_id)
            head = await self._engine.transact(
                "repo.import_difference",
                self._apply,
                subject,
                found,
                moment.rev_after(max(found.rev, before.rev)),
                moment.now_us,
                accounts=(subject.aid,),
            )
        _log.info(
            "repo.imported_difference",
            did=subject.did,
            rev=head.rev,
            imported_rev=found.rev,
            ops=len(found.ops),
            size_bytes=len(content),
            key=found.key,
        )
        return True

    async def _judge_difference(
        self, subject: _Subject, keys: tuple[str, ...], content: bytes
    ) -> Difference:
        job = DifferenceJob(
            did=subject.did,
            keys=keys,
            max_rev=self._max_rev(),
            repo_id=subject.repo.repo_id,
            held=subject.repo.head.data,
        )
        return await find_difference(self._engine, job, content)

    def _apply(
        self, txn: Txn, subject: _Subject, difference: Difference, rev: Tid, now_us: int
    ) -> Head:
        if not _is_unchanged(get_account_repo(txn, subject.aid), subject):
            raise ImportLost
        signer = self._keystore.signer(txn, subject.key_id)
        signed = sign_commit(signer, did=subject.did, data=difference.data, rev=rev)
        return apply_difference(
            txn, subject.aid, subject.repo.repo_id, difference, signed, now_us=now_us
        )

    def _max_rev(self) -> Tid:
        return encode_tid(self._clock.now_us() + FUTURE_TOLERANCE_US, MAX_CLOCK_ID)

    async def _import_whole(
        self, subject: _Subject, keys: tuple[str, ...], car: ImportFile, min_rev: str | None
    ) -> None:
        with self.files.open() as rows:
            checked = await self._check(subject, keys, car, rows)
            check_age(checked.rev, min_rev)
            before = subject.repo.head
            if checked.data == before.data and checked.rev <= before.rev:
                _log.info("repo.import_unchanged", did=subject.did)
                return
            rows.count_again()
            head = await self._store(subject, checked, rows)
        _log.info(
            "repo.imported",
            did=subject.did,
            rev=head.rev,
            imported_rev=checked.rev,
            records=checked.records,
            size_bytes=checked.size_bytes,
            key=checked.key,
        )

    async def _find_keys(self, subject: _Subject, former_key: str | None) -> tuple[str, ...]:
        """Return the keys that may have signed the repo, ours among them, the likeliest first."""
        try:
            ours = await self._engine.read("account.key", self._keystore.did_key, subject.key_id)
        except KeyMissing as error:  # Deleted since the account was read.
            raise account_not_found() from error
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                theirs = await self._ask_keys(subject.did)
        except TimeoutError as error:
            raise Unreachable("the identity could not be looked up in time") from error
        former = () if former_key is None else (former_key,)
        return tuple(dict.fromkeys((*theirs[:MAX_KEYS], *former, ours)))

    async def _ask_keys(self, did: Did) -> list[str]:
        """Return the keys of a did:plc that were ever valid, newest first; of a did:web the one.

        Keys of operations that were nullified are left out: they were never the owner's.
        """
        if did.startswith("did:plc:"):
            log = await self._plc.get_audit_log(did)
            states = (entry.operation.state for entry in reversed(log.active))
            found = [s.verification_methods.get("atproto") for s in states if s is not None]
            return list(dict.fromkeys(key for key in found if key is not None))
        document = await self._documents.resolve_did(did, refresh=True)
        key = document.signing_key
        return [] if key is None else [key.did_key]

    async def _check(
        self, subject: _Subject, keys: tuple[str, ...], car: ImportFile, rows: ImportFile
    ) -> CheckedRepo:
        """Have the CAR checked, if need be together with the repo that is here (REPO-92)."""
        try:
            return await self._check_files(subject, keys, (car,), rows)
        except InvalidImport as error:
            is_small = car.size <= DIFFERENCE.car_bytes  # Of an empty repo the root may be needed.
            if not error.is_incomplete or not (subject.repo.record_count or is_small):
                raise _refused(error) from error
        with self.files.open() as held:
            await self._engine.stream(
                "repo.import_held",
                held.write,
                write_repo_whole,
                subject.did,
                None,
                subject.principal,
                apart=subject.repo.record_count >= LARGE_RECORDS,
            )
            rows.clear()
            try:
                return await self._check_files(subject, keys, (car, held), rows)
            except InvalidImport as error:
                raise _refused(error) from error

    async def _check_files(
        self,
        subject: _Subject,
        keys: tuple[str, ...],
        sources: tuple[ImportFile, ...],
        rows: ImportFile,
    ) -> CheckedRepo:
        size = sum(source.size for source in sources)
        job = CheckJob(
            did=subject.did,
            keys=keys,
            max_rev=self._max_rev(),
            sources=tuple(source.descriptor for source in sources),
            output=rows.descriptor,
            max_blocks=self._settings.max_blocks,
            max_bytes=max(MIN_WALK_BYTES, WALK_FACTOR * size),
        )
        return await self._check_job(job)

    async def _store(self, subject: _Subject, checked: CheckedRepo, rows: ImportFile) -> Head:
        """Store a checked repo beside the live one, and put it into its place."""
        moment = Moment(self._clock.now_us(), self._clock_id)
        rev = moment.rev_after(max(Tid(checked.rev), subject.repo.head.rev))
        aid = subject.aid
        staged = await self._engine.transact(
            "repo.import_begin",
            self._begin,
            subject,
            checked,
            rev,
            moment.now_us,
            accounts=(aid,),
        )
        try:
            with os.fdopen(os.dup(rows.descriptor), "rb") as stream:
                stream.seek(0)
                batches = read_batches(stream)
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    await self._engine.transact(
                        "repo.import",
                        _store_batch,
                        staged.staging,
                        batch,
                        self._clock.now_us(),
                        accounts=(aid,),
                        bulk=True,
                    )
            await self._engine.transact(
                "repo.import_end",
                self._end,
                subject,
                staged,
                checked,
                self._clock.now_us(),
                accounts=(aid,),
            )
        except BaseException:
            await self._give_up(staged.staging)
            raise
        return staged.head

    async def _give_up(self, staging: Staging) -> None:
        """Leave what was stored to the garbage; if that fails too, `recover` will."""
        with suppress(StoreError):
            giving_up = self._engine.transact(
                "repo.import_failed",
                _give_up,
                staging,
                self._clock.now_us(),
                accounts=(staging.aid,),
            )
            await asyncio.shield(asyncio.ensure_future(giving_up))

    def _begin(
        self, txn: Txn, subject: _Subject, checked: CheckedRepo, rev: Tid, now_us: int
    ) -> _Staged:
        if not _is_unchanged(get_account_repo(txn, subject.aid), subject):
            raise ImportLost
        signer = self._keystore.signer(txn, subject.key_id)
        signed = sign_commit(signer, did=subject.did, data=checked.data, rev=rev)
        head = Head(subject.did, signed.cid, rev, checked.data)
        # This node has one import of an account at a time, so any other is another node's.
        staging = begin_staging(
            txn,
            subject.aid,
            head,
            signed.block,
            now_us=now_us,
            is_alone=self._settings.is_alone,
        )
        return _Staged(staging, signed)

    def _end(
        self, txn: Txn, subject: _Subject, staged: _Staged, checked: CheckedRepo, now_us: int
    ) -> None:
        check_staging(txn, staged.staging, now_us=now_us)
        if not _is_unchanged(get_account_repo(txn, subject.aid), subject):
            raise ImportLost
        end_staging(
            txn,
            staged.staging,
            staged.head,
            staged.signed.block,
            records=checked.records,
            nodes=checked.nodes,
            now_us=now_us,
        )
        swap_repo(txn, subject.aid, staged.staging.repo_id, now_us=now_us)
        self._cache.forget_after(txn, subject.aid)


def _read_subject(txn: Txn, aid: int, principal: Principal) -> _Subject:
    account = get_account_repo(txn, aid)
    if account is None or account.repo is None or account.key_id is None:
        raise account_not_found()
    match account.status:
        case AccountStatus.DEACTIVATED:
            return _Subject(aid, account.did, account.key_id, account.repo, principal)
        case AccountStatus.ACTIVE:
            raise RequestError(
                "InvalidRequest", "A repo can be imported only while the account is deactivated"
            )
        case AccountStatus.TAKENDOWN:
            raise RequestError("AccountTakedown", "Account has been taken down", 401)
        case AccountStatus.SUSPENDED:
            raise RequestError("AccountTakedown", "Account has been suspended", 401)


def _is_unchanged(account: AccountRepo | None, subject: _Subject) -> bool:
    """Whether an account still is as the import found it: deactivated, same key, same head."""
    return (
        account is not None
        and account.status is AccountStatus.DEACTIVATED
        and account.key_id == subject.key_id
        and account.repo is not None
        and account.repo.repo_id == subject.repo.repo_id
        and account.repo.head == subject.repo.head
    )


def _store_batch(txn: Txn, staging: Staging, batch: RowBatch, now_us: int) -> None:
    check_staging(txn, staging, now_us=now_us)
    repo_id, rev = staging.repo_id, staging.rev
    if batch.nodes:
        insert_nodes(txn, repo_id, rev, dict(batch.nodes))
    if batch.records:
        upsert_records(txn, repo_id, rev, batch.records)
    if batch.blob_refs:
        insert_blob_refs(txn, staging.aid, repo_id, batch.blob_refs, rev=rev, now_us=now_us)
    if batch.backlinks:
        insert_backlinks(txn, repo_id, (Backlink(*row) for row in batch.backlinks))


def _give_up(txn: Txn, staging: Staging, now_us: int) -> None:
    give_up_staging(txn, staging, now_us=now_us)


def _refused(error: InvalidImport) -> RequestError:
    return RequestError("InvalidRequest", f"Invalid repo: {error}")
