"""What relays, mirrors and owners fetch of repos: whole CARs, proofs, blocks, heads, lists.

Every answer is one short snapshot of the database. CARs go through a `Spool`, so that no snapshot
ever waits for a client and nothing large is held in memory. A full export is in streamable order
(commit, then each node before what it links to: REPO-43), which lets a reader check it on the fly.

Few exports are read at the same time (`max_readers`): each keeps a reader thread and a core busy,
and the other readers must stay free for everybody else.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from pds.errors import Corrupt, RequestError
from pds.protocol.car import encode_car, encode_car_header, encode_varint
from pds.protocol.cid import BLESSED_CID_BYTES, Cid, InvalidCid, parse_cid
from pds.protocol.mst.node import InvalidNode, Node, decode_own_node, read_links
from pds.protocol.mst.proof import path_nodes
from pds.protocol.mst.tree import DEFAULT_CACHE_NODES, MissingBlock, NodeCache
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_nsid, parse_record_key, parse_tid
from pds.services.availability import check_available, repo_not_found
from pds.services.principal import Principal
from pds.services.spool import DEFAULT_SPOOL, ReaderGone, Spool, SpoolBudget, SpoolSettings
from pds.store.accounts import AccountStatus
from pds.store.engine import Engine, Txn
from pds.store.records import (
    find_record_block,
    get_record,
    get_record_with_rev,
    measure_page,
    measure_records,
    page_records,
)
from pds.store.repos import (
    AccountRepo,
    Repo,
    StoredNodes,
    find_account_repo,
    list_account_repos,
    list_nodes,
    read_nodes,
)

MAX_BLOCKS: Final = 1000
"""Most blocks of one getBlocks call."""
_PREFETCH_LEVELS: Final = 5
_PREFETCH_NODES: Final = 1024
_SMALL_REPO_NODES: Final = 3000
_PAGE_RECORDS: Final = 512
_PAGE_BYTES: Final = 1_000_000
_FLUSH_BYTES: Final = 64 * 1024


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
        async with self._spooled(partial(_write_repo, did, since, principal)) as chunks:
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
        async with self._spooled(partial(_write_blocks, did, wanted, principal)) as chunks:
            yield chunks

    @asynccontextmanager
    async def _spooled(
        self, produce: "Callable[[Txn, _Output], None]"
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        spool = Spool(self._settings, self.budget)
        reading = asyncio.create_task(self._read(spool, produce))
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

    async def _read(self, spool: Spool, produce: "Callable[[Txn, _Output], None]") -> None:
        try:
            async with self._readers:
                await self._engine.read("sync.export", _produce, spool, produce)
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
        account, repo = _find(txn, did, principal)
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


def _find(txn: Txn, did: str, principal: Principal | None) -> tuple[AccountRepo, Repo]:
    account = find_account_repo(txn, did) if did.startswith("did:") else None
    if account is None:
        raise repo_not_found(did)
    check_available(account, principal)
    if account.repo is None:
        raise repo_not_found(did)
    return account, account.repo


def _read_head(txn: Txn, did: str, principal: Principal | None) -> tuple[Cid, Tid]:
    head = _find(txn, did, principal)[1].head
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


class _Output:
    """Collects small pieces into larger ones on their way to the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, content: bytes) -> None:
        self._parts.append(content)
        self._size += len(content)

    def block(self, cid: bytes, block: bytes) -> None:
        size = len(cid) + len(block)
        self._parts += (encode_varint(size), cid, block)
        self._size += size
        if self._size >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            self._spool.write(b"".join(self._parts))
        self._parts.clear()
        self._size = 0


def _produce(txn: Txn, spool: Spool, produce: Callable[[Txn, _Output], None]) -> None:
    output = _Output(spool)
    produce(txn, output)
    output.flush()


def _write_repo(
    did: str, since: str | None, principal: Principal | None, txn: Txn, output: _Output
) -> None:
    account, repo = _find(txn, did, principal)
    output.add(encode_car_header((repo.head.commit,)))
    output.block(repo.head.commit, repo.commit_block)
    output.flush()  # The client has its first bytes while the first nodes are read.
    try:
        if since is None:
            _write_all(txn, repo, output)
        elif since < repo.head.rev:
            _write_newer(txn, repo, Tid(since), output)
    except (MissingBlock, InvalidNode) as error:
        raise Corrupt(f"the tree of {account.did} is damaged: {error}") from error


def _write_all(txn: Txn, repo: Repo, output: _Output) -> None:
    """Write the whole tree in streamable order, records taken from one ordered scan (REPO-43)."""
    records = chain.from_iterable(_scan_records(txn, repo.repo_id))
    nodes = _NodeReader(txn, repo.repo_id)
    if repo.node_count <= _SMALL_REPO_NODES:
        nodes.read_all()
    stack: list[Cid | bytes] = [repo.head.data]
    parts: list[bytes] = []
    add, pop = parts.append, stack.pop
    size = 0
    while stack:
        cid = pop()
        if type(cid) is Cid:
            _rev, block, links = nodes.take(cid)
            stack += links
        else:
            found, block = next(records, (b"", b""))
            if cid != found:
                raise Corrupt(f"record index and tree of {repo.head.did} differ")
        # Written out for the usual lengths: this loop runs for every block of every export.
        length = BLESSED_CID_BYTES + len(block)
        if 127 < length < 16_384:
            add(bytes((length & 127 | 128, length >> 7)))
        else:
            add(encode_varint(length))
        add(cid)
        add(block)
        size += length
        if size >= _FLUSH_BYTES:
            output.add(b"".join(parts))
            output.flush()
            parts.clear()
            size = 0
    output.add(b"".join(parts))
    if next(records, None) is not None:
        raise Corrupt(f"record index of {repo.head.did} has more than its tree")


def _write_newer(txn: Txn, repo: Repo, since: Tid, output: _Output) -> None:
    """Write what was stored after `since`: an older node has nothing newer below it (REPO-45)."""
    source = _NodeReader(txn, repo.repo_id, newer_than=since)
    stack: list[Cid | tuple[bytes, Cid]] = [repo.head.data]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            found = get_record_with_rev(txn, repo.repo_id, item[0].decode("ascii"))
            if found is None or found[0] != item[1]:
                raise Corrupt(f"record index and tree of {repo.head.did} differ")
            if found[1] > since:
                output.block(item[1], found[2])
            continue
        stored = source.take(item)
        if stored.rev > since:
            node = decode_own_node(item, stored.block)
            output.block(item, node.block)
            _push(stack, node)


def _push(stack: list[Cid | tuple[bytes, Cid]], node: Node) -> None:
    children, keys, values = node.children, node.keys, node.values
    for at in range(len(keys) - 1, -1, -1):
        child = children[at + 1]
        if child is not None:
            stack.append(child)
        stack.append((keys[at], values[at]))
    if children[0] is not None:
        stack.append(children[0])


class _StoredNode(NamedTuple):
    rev: Tid
    block: bytes
    links: list[Cid | bytes]


class _NodeReader:
    """Reads nodes ahead: a wanted one with some levels below it, a few statements for many."""

    def __init__(self, txn: Txn, repo_id: int, *, newer_than: Tid | None = None) -> None:
        self._txn = txn
        self._repo_id = repo_id
        self._newer_than = newer_than
        self._ready: dict[Cid, _StoredNode] = {}

    def take(self, cid: Cid) -> _StoredNode:
        """Return a node. Each is handed out once. Raises: MissingBlock, InvalidNode."""
        node = self._ready.pop(cid, None)
        if node is None:
            self._read_ahead(cid)
            node = self._ready.pop(cid, None)
            if node is None:
                raise MissingBlock(cid)
        return node

    def read_all(self) -> None:
        """Read all nodes by one statement: half the time, for repos that are not large."""
        for cid, (rev, block) in list_nodes(self._txn, self._repo_id).items():
            self._ready[cid] = _StoredNode(rev, block, read_links(cid, block))

    def _read_ahead(self, cid: Cid) -> None:
        frontier = [cid]
        for _ in range(_PREFETCH_LEVELS):
            below: list[Cid] = []
            for found, (rev, block) in read_nodes(self._txn, self._repo_id, frontier).items():
                links = read_links(found, block)
                self._ready[found] = _StoredNode(rev, block, links)
                if self._newer_than is None or rev > self._newer_than:
                    below += [link for link in links if type(link) is Cid]
            if not below or len(self._ready) + len(below) > _PREFETCH_NODES:
                return
            frontier = below


def _scan_records(txn: Txn, repo_id: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield pages of `(cid, block)` of all records in path order, of about `_PAGE_BYTES` each."""
    after = ""
    while True:
        last, total = measure_page(txn, repo_id, after=after, limit=_PAGE_RECORDS)
        if last is None:
            return
        if total > _PAGE_BYTES:
            last = _end_of_page(measure_records(txn, repo_id, after=after, limit=_PAGE_RECORDS))
        yield page_records(txn, repo_id, after=after, last=last)
        after = last


def _end_of_page(sizes: Sequence[tuple[str, int]]) -> str:
    """Return the path up to which records fit into a page: at least the first."""
    total, last = 0, sizes[0][0]
    for path, size in sizes:
        total += size
        if total > _PAGE_BYTES and path != last:
            break
        last = path
    return last


def _write_blocks(
    did: str, cids: Sequence[Cid], principal: Principal | None, txn: Txn, output: _Output
) -> None:
    _account, repo = _find(txn, did, principal)
    wanted = list(dict.fromkeys(cids))
    missing = [cid for cid in wanted if not _has_block(txn, repo, cid)]
    if missing:
        names = ", ".join(map(str, missing[:10]))
        raise RequestError("BlockNotFound", f"Could not find blocks: {names}")
    output.add(encode_car_header(()))
    for cid in wanted:
        output.block(cid, _find_block(txn, repo, cid) or b"")


def _has_block(txn: Txn, repo: Repo, cid: Cid) -> bool:
    return _find_block(txn, repo, cid) is not None


def _find_block(txn: Txn, repo: Repo, cid: Cid) -> bytes | None:
    """Return a block of the current repo: its commit, a node or a record."""
    if cid == repo.head.commit:
        return repo.commit_block
    try:
        return StoredNodes(txn, repo.repo_id).get(cid)
    except MissingBlock:
        return find_record_block(txn, repo.repo_id, cid)
