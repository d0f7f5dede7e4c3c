"""What relays, mirrors and owners fetch of repos: whole CARs, proofs, blocks, heads, lists.

Every answer is one short snapshot of the database. CARs go through a `Spool`, so that no snapshot
ever waits for a client and nothing large is held in memory. `export_car` writes them: those of
large repos in a process of their own where the engine has one, because a thread that reads a large
repo makes everybody's writes wait for the interpreter.

Few exports are read at the same time (`max_readers`): each keeps a reader and a core busy, and the
other readers must stay free for everybody else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from pds.errors import Corrupt, RequestError
from pds.protocol.car import encode_car
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.mst.node import InvalidNode
from pds.protocol.mst.proof import path_nodes
from pds.protocol.mst.tree import DEFAULT_CACHE_NODES, MissingBlock, NodeCache
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_nsid, parse_record_key, parse_tid
from pds.services.availability import repo_not_found, sees_hidden
from pds.services.export_car import find_repo, write_blocks, write_repo, write_repo_whole
from pds.services.principal import Principal
from pds.services.spool import DEFAULT_SPOOL, ReaderGone, Spool, SpoolBudget, SpoolSettings
from pds.store.accounts import AccountStatus
from pds.store.engine import Engine, Txn, Write
from pds.store.moderation import is_record_hidden
from pds.store.records import get_record
from pds.store.repos import (
    AccountRepo,
    Repo,
    StoredNodes,
    find_account_repo,
    list_account_repos,
)

MAX_BLOCKS: Final = 1000
"""Most blocks of one getBlocks call."""


@dataclass(frozen=True, slots=True)
class RepoStatus:
    """The state of an account as `getRepoStatus` tells it to anybody (SYNC-71)."""

    did: Did
    active: bool
    status: AccountStatus | None
    rev: Tid | None


@dataclass(frozen=True, slots=True)
class ListedRepo:
    """One line of `listRepos` (SYNC-72)."""

    did: Did
    head: Cid
    rev: Tid
    active: bool
    status: AccountStatus | None


class Exports:
    """Serves the reading half of `com.atproto.sync`."""

    def __init__(
        self,
        *,
        engine: Engine,
        cache: NodeCache | None = None,
        settings: SpoolSettings = DEFAULT_SPOOL,
        max_readers: int = 2,
    ) -> None:
        self._engine = engine
        self._cache = cache or NodeCache(DEFAULT_CACHE_NODES)
        self._settings = settings
        self._readers = asyncio.Semaphore(max_readers)
        self.budget = SpoolBudget(settings.file_budget_bytes, settings.memory_budget_bytes)

    @asynccontextmanager
    async def repo(
        self, did: str, *, since: str | None = None, principal: Principal | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the CAR of a repo: all of it, or what is newer than the rev `since`.

        Raises: RequestError `RepoNotFound` and those of `check_available`, `InvalidRequest`.
        Spec: sync#repository-exports (REPO-43, REPO-44, REPO-45)
        """
        if since is not None:
            try:
                parse_tid(since)
            except InvalidSyntax as error:
                raise RequestError("InvalidRequest", f"Invalid since: {error}") from error
        async with self._spooled(partial(self._read_repo, did, since, principal)) as chunks:
            yield chunks

    @asynccontextmanager
    async def blocks(
        self, did: str, cids: Sequence[str], *, principal: Principal | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a CAR without roots of the given blocks.

        Raises: RequestError `BlockNotFound` when one is not there; see `repo`. Spec: REPO-46
        """
        if len(cids) > MAX_BLOCKS:
            raise RequestError("InvalidRequest", f"At most {MAX_BLOCKS} blocks at once")
        try:
            wanted = [parse_cid(cid) for cid in cids]
        except InvalidCid as error:
            raise RequestError("InvalidRequest", f"Invalid cid: {error}") from error
        async with self._spooled(partial(self._read_blocks, did, wanted, principal)) as chunks:
            yield chunks

    async def _read_repo(
        self, did: str, since: str | None, principal: Principal | None, write: Write
    ) -> None:
        # Only where it is read depends on this; what may be shown is asked in the snapshot itself.
        records = await self._engine.read("sync.export_size", _count_records, did)
        is_large = records >= self._settings.large_records
        write_car = write_repo_whole if self._settings.with_hidden_records else write_repo
        await self._engine.stream(
            "sync.export", write, write_car, did, since, principal, apart=is_large
        )

    async def _read_blocks(
        self, did: str, wanted: Sequence[Cid], principal: Principal | None, write: Write
    ) -> None:
        await self._engine.stream("sync.blocks", write, write_blocks, did, wanted, principal)

    @asynccontextmanager
    async def _spooled(
        self, read: Callable[[Write], Awaitable[None]]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        spool = Spool(self._settings, self.budget)
        reading = asyncio.create_task(self._read(spool, read))
        try:
            async with asyncio.timeout(self._settings.send_limit_s) as limit:
                await spool.wait_for_first()
                yield _unstalled(spool.chunks(), limit, self._settings.stall_limit_s)
        except TimeoutError as error:
            raise ConnectionAbortedError("the client took too long") from error
        finally:
            await spool.close()
            reading.cancel()
            await asyncio.wait([reading])

    async def _read(self, spool: Spool, read: Callable[[Write], Awaitable[None]]) -> None:
        try:
            async with self._readers:
                await read(spool.write)
        except ReaderGone:
            return
        except Exception as error:
            # The consumer raises it; this task only carries it there.
            spool.finish(error)
        else:
            spool.finish()

    async def record_proof(
        self, did: str, collection: str, rkey: str, *, principal: Principal | None = None
    ) -> bytes:
        """Return a CAR that proves what is under a path, or that nothing is.

        Raises: RequestError, see `repo`. Spec: sync#record-level-synchronization (REPO-50)
        """
        try:
            path = f"{parse_nsid(collection)}/{parse_record_key(rkey)}"
        except InvalidSyntax as error:
            raise RequestError("InvalidRequest", f"Invalid record path: {error}") from error
        return await self._engine.read("sync.record", self._read_proof, did, path, principal)

    def _read_proof(self, txn: Txn, did: str, path: str, principal: Principal | None) -> bytes:
        account, repo = find_repo(txn, did, principal)
        if is_record_hidden(txn, account.aid, path) and not sees_hidden(account.did, principal):
            raise RequestError("RecordNotFound", f"Could not locate record: at://{did}/{path}")
        head = repo.head
        nodes = self._cache.over(StoredNodes(txn, repo.repo_id))
        try:
            proof = path_nodes(head.data, path.encode("ascii"), nodes)
        except (MissingBlock, InvalidNode) as error:
            raise Corrupt(f"the tree of {account.did} is damaged: {error}") from error
        blocks = [(head.commit, repo.commit_block), *((node.cid, node.block) for node in proof)]
        record = get_record(txn, repo.repo_id, path)
        if record is not None:
            blocks.append((record.cid, record.block))
        return encode_car((head.commit,), blocks)

    async def head(self, did: str, *, principal: Principal | None = None) -> tuple[Cid, Tid]:
        """Return commit CID and rev of a repo. Raises: RequestError, see `repo`."""
        return await self._engine.read("sync.head", _read_head, did, principal)

    async def status(self, did: str) -> RepoStatus:
        """Return the state of an account, whatever it is (SYNC-71, SYNC-51).

        Raises: RequestError `RepoNotFound`.
        """
        return await self._engine.read("sync.status", _read_status, did)

    async def list_repos(
        self, *, limit: int = 500, cursor: str | None = None
    ) -> tuple[list[ListedRepo], str | None]:
        """Return repos in any state in the order of creation, and the cursor if more follow.

        Raises: RequestError `InvalidRequest` for a cursor that is not ours. Spec: SYNC-72, SYNC-73
        """
        after = 0
        if cursor is not None:
            if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
                raise RequestError("InvalidRequest", "Malformed cursor")
            after = int(cursor)
        rows = await self._engine.read("sync.list_repos", _read_repos, after, limit + 1)
        more = str(rows[limit - 1].aid) if len(rows) > limit else None
        return [_listed(row, row.repo) for row in rows[:limit] if row.repo is not None], more


async def _unstalled(
    chunks: AsyncIterator[bytes], limit: asyncio.Timeout, stall_limit_s: float
) -> AsyncIterator[bytes]:
    """Pass on `chunks`; each must be taken within `stall_limit_s`, or `limit` ends."""
    loop = asyncio.get_running_loop()
    end = limit.when()
    async for chunk in chunks:
        stalled = loop.time() + stall_limit_s
        limit.reschedule(stalled if end is None else min(stalled, end))
        yield chunk
        limit.reschedule(end)


def _count_records(txn: Txn, did: str) -> int:
    account = find_account_repo(txn, did) if did.startswith("did:") else None
    return account.repo.record_count if account is not None and account.repo is not None else 0


def _read_head(txn: Txn, did: str, principal: Principal | None) -> tuple[Cid, Tid]:
    head = find_repo(txn, did, principal)[1].head
    return head.commit, head.rev


def _read_status(txn: Txn, did: str) -> RepoStatus:
    account = find_account_repo(txn, did) if did.startswith("did:") else None
    if account is None:
        raise repo_not_found(did)
    if not account.is_active:
        return RepoStatus(account.did, active=False, status=account.status, rev=None)
    rev = account.repo.head.rev if account.repo else None
    return RepoStatus(account.did, active=True, status=None, rev=rev)


def _read_repos(txn: Txn, after_aid: int, limit: int) -> list[AccountRepo]:
    return list_account_repos(txn, after_aid=after_aid, limit=limit)


def _listed(account: AccountRepo, repo: Repo) -> ListedRepo:
    status = None if account.is_active else account.status
    return ListedRepo(account.did, repo.head.commit, repo.head.rev, account.is_active, status)
