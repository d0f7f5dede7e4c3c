"""Repos as clients use them: write batches of records, read records, describe a repo.

A write is prepared outside (`records_prepare`) and carried out by one transaction
(`repo_txn.commit_writes`), which reads account state, head and tree itself, so that nothing that
was true before the transaction is relied upon. Reads take one snapshot and render on the reader
thread, off the event loop.

Decoded tree nodes of all repos are kept in one bounded cache.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from pds.errors import RemoteError, RequestError
from pds.protocol.cbor import decode_json, link_text
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.data import Json, dump_json
from pds.protocol.frames import MAX_COMMIT_OPS
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.mst.tree import DEFAULT_CACHE_NODES, NodeCache, TreeLimit
from pds.protocol.repo import CommitTooLarge, RecordExists, RecordMissing, SwapMismatch
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_nsid, parse_record_key
from pds.protocol.tid import TidClock
from pds.services.account_cache import AccountCache
from pds.services.availability import (
    check_available,
    check_may_write,
    repo_not_found,
    sees_hidden,
)
from pds.services.principal import Principal
from pds.services.records_prepare import (
    NO_SCHEMAS,
    PreparedWrite,
    RecordWrite,
    ValidationStatus,
    prepare_writes,
    unknown_collections,
)
from pds.services.repo_txn import Moment, commit_writes
from pds.services.resolving import DidDocuments
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore
from pds.store.moderation import get_record_and_hidden, hidden_paths
from pds.store.records import (
    Record,
    list_collections,
    list_record_sizes,
    list_records,
)
from pds.store.repos import (
    AccountRepo,
    account_repo_read,
    find_account_repo,
    get_account_repo,
)

MAX_WRITES: Final = MAX_COMMIT_OPS
"""Most writes of one batch: as many as fit one commit if each changes something (XRPC-95)."""
PAGE_BYTES: Final = 4_000_000
"""Size of records beyond which a page ends early: one of large records would fill 100 MB."""
LIGHT_WEIGHT: Final = 2000
"""Up to this weight (see `_is_heavy`) a batch is checked at once, in 2 ms or so; heavier ones are
checked on a thread, because 1 MB of JSON can take 100 ms (promise B5)."""


class WriteOutcome(NamedTuple):
    """What became of one write of a batch; `cid` is None for a delete."""

    uri: str
    cid: Cid | None
    validation_status: ValidationStatus | None


class WriteResult(NamedTuple):
    """What became of a batch. `commit` and `rev` are None when nothing changed."""

    outcomes: tuple[WriteOutcome, ...]
    commit: Cid | None
    rev: Tid | None


@dataclass(frozen=True, slots=True)
class RepoDescription:
    """What `describeRepo` answers."""

    did: Did
    handle: str
    did_document: Json
    collections: tuple[str, ...]
    handle_is_correct: bool


class OtherSchemas(Protocol):
    """Where schemas come from that are not bundled (`pds.services.lexicon_resolution`)."""

    async def schemas(
        self, collections: Collection[str], *, must_know: bool
    ) -> Mapping[str, Catalog]:
        """Return what judges records of these collections, as far as it is known."""


class RepoUnknown(RequestError):
    """The repo does not live on this host; a reader may be sent to another service."""

    def __init__(self, repo: str) -> None:
        super().__init__("InvalidRequest", f"Could not find repo: {repo}")


class Repos:
    """Writes and reads the repos of this host's accounts."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        catalog: Catalog,
        accounts: AccountCache,
        documents: DidDocuments,
        clock_id: int,
        cache_nodes: int = DEFAULT_CACHE_NODES,
        lexicons: OtherSchemas | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._catalog = catalog
        self._lexicons = lexicons
        self._accounts = accounts
        self._documents = documents
        self._clock_id = clock_id
        self._rkeys = TidClock(clock_id)
        self.cache = NodeCache(cache_nodes)

    async def check_owner(self, repo: str, principal: Principal) -> int:
        """Return the account number of `repo`, which the caller must own.

        Raises: RequestError `AuthenticationRequired` 401, or `AccountNotFound` 403 when there is no
        such account. Spec: XRPC-95
        """
        if principal.aid is not None and repo == principal.did:
            return principal.aid
        account = await self._accounts.get(_normalize(repo))
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        if principal.aid != account.aid:
            raise RequestError("AuthenticationRequired", "The repo belongs to another account", 401)
        return account.aid

    async def write(
        self,
        aid: int,
        writes: Sequence[RecordWrite],
        *,
        swap_commit: Cid | None = None,
        validate: bool | None = None,
        replace_duplicates: bool = False,
    ) -> WriteResult:
        """Carry out a batch as one commit, all of it or nothing.

        Raises: RequestError `InvalidRequest`, `InvalidSwap`, `BlobNotFound`, `InvalidMimeType`,
        `InvalidSize`, `AccountTakedown`, `AccountDeactivated`; Unavailable; Corrupt.
        Spec: sync#commit-events (XRPC-95, LEX-60..LEX-67, REPO-80)
        """
        if len(writes) > MAX_WRITES:
            raise RequestError("InvalidRequest", f"Too many writes. Max: {MAX_WRITES}")
        now_us = self._clock.now_us()
        # The clock of record keys belongs to the event loop, so all are drawn here.
        writes = [
            write._replace(rkey=self._rkeys.next(now_us)) if write.rkey is None else write
            for write in writes
        ]
        others = NO_SCHEMAS
        if self._lexicons is not None and validate is not False:
            unknown = unknown_collections(writes, self._catalog)
            if unknown:
                others = await self._lexicons.schemas(unknown, must_know=validate is True)
        prepare = partial(
            prepare_writes,
            writes,
            catalog=self._catalog,
            validate=validate,
            replace_duplicates=replace_duplicates,
            others=others,
        )
        prepared = await asyncio.to_thread(prepare) if _is_heavy(writes) else prepare()
        moment = Moment(now_us, self._clock_id)
        try:
            return await self._engine.transact(
                "repo.write",
                self._write,
                aid,
                prepared,
                swap_commit,
                moment,
                accounts=(aid,),
                first_read=account_repo_read(aid),
            )
        except RecordExists as error:
            raise RequestError("InvalidRequest", f"Record already exists: {error.path}") from error
        except RecordMissing as error:
            raise RequestError("InvalidRequest", f"Could not find record: {error.path}") from error
        except SwapMismatch as error:
            raise RequestError("InvalidSwap", f"Record was at {error.current or 'null'}") from error
        except (CommitTooLarge, TreeLimit) as error:
            raise RequestError("InvalidRequest", f"Write refused: {error}") from error

    def _write(
        self,
        txn: Txn,
        aid: int,
        writes: Sequence[PreparedWrite],
        swap_commit: Cid | None,
        moment: Moment,
    ) -> WriteResult:
        account = get_account_repo(txn, aid)
        if account is None or account.repo is None or account.key_id is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        check_may_write(account)
        head = account.repo.head
        if swap_commit is not None and swap_commit != head.commit:
            raise RequestError("InvalidSwap", f"Commit was at {head.commit}")
        finished = commit_writes(
            txn,
            account,
            account.repo,
            writes,
            self._keystore.signer(txn, account.key_id),
            moment=moment,
            cache=self.cache,
        )
        return WriteResult(
            tuple(
                WriteOutcome(
                    f"at://{account.did}/{write.path}", write.write.cid, write.validation_status
                )
                for write in writes
            ),
            finished.signed.cid if finished else None,
            finished.plan.rev if finished else None,
        )

    async def delete(
        self, aid: int, write: RecordWrite, *, swap_commit: Cid | None = None
    ) -> WriteResult:
        """Delete one record; one that is not there is no error and makes no commit (XRPC-95)."""
        try:
            return await self.write(aid, [write], swap_commit=swap_commit)
        except RequestError as error:
            if isinstance(error.__cause__, RecordMissing):
                return WriteResult((), None, None)
            raise

    async def get_record(
        self,
        repo: str,
        collection: str,
        rkey: str,
        *,
        cid: str | None = None,
        principal: Principal | None = None,
    ) -> bytes:
        """Return the JSON answer of `getRecord`.

        Raises: RepoUnknown; RequestError `RecordNotFound` with the text that clients match, and
        those of `check_available`. Spec: XRPC-95, SYNC-84
        """
        path = f"{_check_collection(collection)}/{_check_rkey(rkey)}"
        try:
            wanted = None if cid is None else parse_cid(cid)
        except InvalidCid as error:
            raise RequestError("InvalidRequest", f"Invalid cid: {error}") from error
        return await self._engine.read(
            "repo.get_record", _read_record, _normalize(repo), path, wanted, principal
        )

    async def list_records(
        self,
        repo: str,
        collection: str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        reverse: bool = False,
        principal: Principal | None = None,
    ) -> bytes:
        """Return the JSON answer of `listRecords`, newest rkey first.

        Raises: RepoUnknown; RequestError `InvalidRequest` for a bad cursor, and those of
        `check_available`. Spec: XRPC-95, XRPC-13, SYNC-84
        """
        _check_collection(collection)
        if cursor is not None:
            _check_rkey(cursor, "cursor")
        page = _Page(_normalize(repo), collection, limit, cursor, reverse)
        return await self._engine.read("repo.list_records", _read_page, page, principal)

    async def describe(self, repo: str, *, principal: Principal | None = None) -> RepoDescription:
        """Return what `describeRepo` answers.

        Raises: RequestError `RepoNotFound`, and when the DID document is not to be had.
        Spec: XRPC-95
        """
        try:
            account, collections = await self._engine.read(
                "repo.describe", _read_description, _normalize(repo), principal
            )
        except RepoUnknown as error:
            raise repo_not_found(repo) from error
        try:
            document = await self._documents.resolve_did(account.did)
        except RemoteError as error:
            raise RequestError(
                "InvalidRequest", f"Could not resolve DID document: {account.did}"
            ) from error
        return RepoDescription(
            account.did,
            account.handle or "handle.invalid",
            dict(document.source),
            tuple(collections),
            account.handle is not None and document.handle == account.handle,
        )


def _is_heavy(writes: Sequence[RecordWrite]) -> bool:
    """Whether the values together weigh more than `LIGHT_WEIGHT`.

    A value weighs one, and a string one more for each 256 characters.
    """
    left = LIGHT_WEIGHT
    waiting: list[Json] = [write.value for write in writes]
    while waiting:
        value = waiting.pop()
        left -= 1
        if isinstance(value, str):
            left -= len(value) >> 8
        elif isinstance(value, dict):
            left -= len(value)
            if left > 0:
                waiting += value.values()
        elif isinstance(value, list):
            left -= len(value)
            if left > 0:
                waiting += value
        if left <= 0:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Page:
    repo: str
    collection: str
    limit: int
    cursor: str | None
    reverse: bool


def _normalize(repo: str) -> str:
    return repo if repo.startswith("did:") else repo.lower()


def _check_collection(collection: str) -> str:
    try:
        return parse_nsid(collection)
    except InvalidSyntax as error:
        raise RequestError("InvalidRequest", f"Invalid collection: {error}") from error


def _check_rkey(rkey: str, name: str = "rkey") -> str:
    try:
        return parse_record_key(rkey)
    except InvalidSyntax as error:
        raise RequestError("InvalidRequest", f"Invalid {name}: {error}") from error


def _find(txn: Txn, repo: str, principal: Principal | None) -> tuple[AccountRepo, int]:
    account = find_account_repo(txn, repo)
    if account is None or account.repo is None:
        raise RepoUnknown(repo)
    check_available(account, principal)
    return account, account.repo.repo_id


def _read_record(
    txn: Txn, repo: str, path: str, cid: Cid | None, principal: Principal | None
) -> bytes:
    account, repo_id = _find(txn, repo, principal)
    found = get_record_and_hidden(txn, account.aid, repo_id, path)
    if (
        found is None
        or (cid is not None and cid != found[0].cid)  # bytes, not texts (DM-33)
        or (found[1] and not sees_hidden(account.did, principal))
    ):
        uri = f"at://{account.did}/{path}"
        raise RequestError("RecordNotFound", f"Could not locate record: {uri}")
    return dump_json(_view(account.did, found[0]))


def _view(did: Did, record: Record) -> Json:
    return {
        "uri": f"at://{did}/{record.path}",
        "cid": link_text(record.cid),
        "value": decode_json(record.block),
    }


def _read_page(txn: Txn, page: _Page, principal: Principal | None) -> bytes:
    account, repo_id = _find(txn, page.repo, principal)
    sizes = list_record_sizes(
        txn,
        repo_id,
        page.collection,
        cursor=page.cursor,
        limit=page.limit + 1,
        reverse=page.reverse,
    )
    count = _fitting(sizes[: page.limit])
    records = list_records(
        txn, repo_id, page.collection, cursor=page.cursor, limit=count, reverse=page.reverse
    )
    hidden = hidden_paths(txn, account.aid, page.collection)
    if hidden and sees_hidden(account.did, principal):
        hidden = frozenset()
    # Each record is rendered by itself, so that only one is in memory as objects.
    views = b",".join(
        [dump_json(_view(account.did, record)) for record in records if record.path not in hidden]
    )
    if count == len(sizes):
        return b'{"records":[%b]}' % views
    cursor = records[-1].path.split("/", 1)[1]
    return b'{"records":[%b],"cursor":%b}' % (views, dump_json(cursor))


def _fitting(sizes: Sequence[int]) -> int:
    """Return how many records fit on a page, at least one if there is one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > PAGE_BYTES:
            return count
    return len(sizes)


def _read_description(
    txn: Txn, repo: str, principal: Principal | None
) -> tuple[AccountRepo, list[str]]:
    account, repo_id = _find(txn, repo, principal)
    return account, list_collections(txn, repo_id)


__all__ = [
    "RecordWrite",
    "RepoDescription",
    "RepoUnknown",
    "Repos",
    "WriteOutcome",
    "WriteResult",
]
