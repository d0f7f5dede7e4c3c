"""Repos as clients use them: write batches of records, read records, describe a repo.

A write is prepared outside (`records_prepare`) and carried out by one transaction
(`repo_txn.commit_writes`), which reads account state, head and tree itself, so that nothing that
was true before the transaction is relied upon. Reads take one snapshot and render on the reader
thread, off the event loop.

Decoded tree nodes of all repos are kept in one bounded cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pds.errors import RemoteError, RequestError
from pds.protocol.cbor import decode_json
from pds.protocol.cid import Cid
from pds.protocol.data import Json, dump_json
from pds.protocol.diddoc import DidDocument
from pds.protocol.lexicon.catalog import Catalog
from pds.protocol.mst.tree import DEFAULT_CACHE_NODES, NodeCache, TreeLimit
from pds.protocol.repo import CommitTooLarge, RecordExists, RecordMissing, SwapMismatch
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_nsid, parse_record_key
from pds.protocol.tid import TidClock
from pds.services.account_cache import AccountCache
from pds.services.availability import check_available, check_may_write
from pds.services.principal import Principal
from pds.services.records_prepare import (
    PreparedWrite,
    RecordWrite,
    ValidationStatus,
    prepare_writes,
)
from pds.services.repo_txn import Moment, commit_writes
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore
from pds.store.records import Record, get_record, list_collections, list_records
from pds.store.repos import AccountRepo, find_account_repo, get_account_repo

MAX_WRITES: Final = 200
"""Most writes of one batch (XRPC-95)."""
PAGE_RECORDS: Final = 50
PAGE_BYTES: Final = 4_000_000
"""Records read by one statement, and size at which a page of records ends early: a page of large
records would otherwise fill 100 MB."""


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of one write of a batch; `cid` is None for a delete."""

    uri: str
    cid: Cid | None
    validation_status: ValidationStatus | None


@dataclass(frozen=True, slots=True)
class WriteResult:
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


class DidDocuments(Protocol):
    """Where DID documents come from (`pds.identity.resolver.IdentityResolver`)."""

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        """Return the document of a DID; raises NotResolvable or Unreachable."""


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
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._catalog = catalog
        self._accounts = accounts
        self._documents = documents
        self._clock_id = clock_id
        self._rkeys = TidClock(clock_id)
        self.cache = NodeCache(cache_nodes)

    async def check_owner(self, repo: str, principal: Principal) -> int:
        """Return the account number of `repo`, which the caller must own.

        Raises: RequestError `AuthenticationRequired` 401, or `InvalidRequest` when there is no such
        account. Spec: XRPC-95
        """
        if principal.aid is not None and repo == principal.did:
            return principal.aid
        account = await self._accounts.get(_normalize(repo))
        if account is None:
            raise RepoUnknown(repo)
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
        prepared = prepare_writes(
            writes,
            catalog=self._catalog,
            validate=validate,
            next_rkey=lambda: self._rkeys.next(now_us),
            replace_duplicates=replace_duplicates,
        )
        moment = Moment(now_us, self._clock_id)
        try:
            return await self._engine.transact(
                "repo.write", self._write, aid, prepared, swap_commit, moment, accounts=(aid,)
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
        return await self._engine.read(
            "repo.get_record",
            _read_record,
            _normalize(repo),
            f"{_check_collection(collection)}/{_check_rkey(rkey)}",
            cid,
            principal,
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

        Raises: RepoUnknown; RequestError when the DID document is not to be had. Spec: XRPC-95
        """
        account, collections = await self._engine.read(
            "repo.describe", _read_description, _normalize(repo), principal
        )
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
    txn: Txn, repo: str, path: str, cid: str | None, principal: Principal | None
) -> bytes:
    account, repo_id = _find(txn, repo, principal)
    record = get_record(txn, repo_id, path)
    if record is None or (cid is not None and cid != str(record.cid)):
        uri = f"at://{account.did}/{path}"
        raise RequestError("RecordNotFound", f"Could not locate record: {uri}")
    return dump_json(_view(account.did, record))


def _view(did: Did, record: Record) -> Json:
    return {
        "uri": f"at://{did}/{record.path}",
        "cid": str(record.cid),
        "value": decode_json(record.block),
    }


def _read_page(txn: Txn, page: _Page, principal: Principal | None) -> bytes:
    account, repo_id = _find(txn, page.repo, principal)
    views: list[Json] = []
    cursor, size, more = page.cursor, 0, True
    while more and len(views) < page.limit and size < PAGE_BYTES:
        wanted = min(page.limit - len(views), PAGE_RECORDS)
        records = list_records(
            txn,
            repo_id,
            page.collection,
            cursor=cursor,
            limit=wanted + 1,
            reverse=page.reverse,
        )
        more = len(records) > wanted
        for record in records[:wanted]:
            views.append(_view(account.did, record))
            size += len(record.block)
            cursor = record.path.split("/", 1)[1]
    return dump_json({"records": views, "cursor": cursor} if more else {"records": views})


def _read_description(
    txn: Txn, repo: str, principal: Principal | None
) -> tuple[AccountRepo, list[str]]:
    account, repo_id = _find(txn, repo, principal)
    return account, list_collections(txn, repo_id)


__all__ = [
    "DidDocuments",
    "RecordWrite",
    "RepoDescription",
    "RepoUnknown",
    "Repos",
    "WriteOutcome",
    "WriteResult",
]
