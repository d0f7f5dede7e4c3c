"""Writes CARs of repos out of one snapshot of the database, piece by piece.

The functions here run on a reader thread, or in a process of their own when a repo is large
(`Engine.stream`): they know neither client nor event loop, and hand what they read to `write`. What
they import, that process imports too, so it is kept little.

A full export is in streamable order (commit, then each node before what it links to: REPO-43),
which lets a reader check it on the fly.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

from pds.errors import Corrupt, RequestError
from pds.protocol.car import encode_car_header, encode_varint
from pds.protocol.cid import BLESSED_CID_BYTES, Cid
from pds.protocol.mst.node import InvalidNode, Node, decode_own_node, read_links
from pds.protocol.mst.tree import MissingBlock
from pds.protocol.syntax import Tid
from pds.services.availability import check_available, repo_not_found, sees_hidden
from pds.services.principal import Principal
from pds.store.engine import Txn, Write
from pds.store.moderation import NOTHING_HIDDEN, hidden_record_cids
from pds.store.records import (
    find_record_block,
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
    list_nodes,
    read_nodes,
)

_PREFETCH_LEVELS: Final = 5
_PREFETCH_NODES: Final = 1024
_MAX_NODES_AT_ONCE: Final = 20_000
"""Up to so many nodes are read by one statement, which halves their cost: about 10 MB."""
_PAGE_RECORDS: Final = 512
_PAGE_BYTES: Final = 1_000_000
_FLUSH_BYTES: Final = 64 * 1024


def find_repo(txn: Txn, did: str, principal: Principal | None) -> tuple[AccountRepo, Repo]:
    """Return an account and its repo. Raises: RequestError, as `check_available` (SYNC-70)."""
    account = find_account_repo(txn, did) if did.startswith("did:") else None
    if account is None:
        raise repo_not_found(did)
    check_available(account, principal)
    if account.repo is None:
        raise repo_not_found(did)
    return account, account.repo


def _hidden_cids(
    txn: Txn, account: AccountRepo, repo: Repo, principal: Principal | None
) -> frozenset[bytes]:
    """Return the CIDs of records whose content this caller may not have (ACC-44)."""
    if sees_hidden(account.did, principal):
        return NOTHING_HIDDEN
    return hidden_record_cids(txn, account.aid, repo.repo_id)


class _Output:
    """Collects small pieces into larger ones on their way out."""

    def __init__(self, write: Write) -> None:
        self._write = write
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
            self._write(b"".join(self._parts))
        self._parts.clear()
        self._size = 0


def write_repo(
    txn: Txn, write: Write, did: str, since: str | None, principal: Principal | None
) -> None:
    """Write the CAR of a repo: all of it, or what is newer than the rev `since`.

    Records that were taken down are left out for strangers; the nodes still name them.

    Raises: RequestError, see `find_repo`, before the first byte; Corrupt.
    Spec: sync#repository-exports (REPO-43, REPO-44, REPO-45, ACC-44)
    """
    account, repo = find_repo(txn, did, principal)
    _write_repo(txn, write, repo, since, hidden=_hidden_cids(txn, account, repo, principal))


def write_repo_whole(
    txn: Txn, write: Write, did: str, since: str | None, principal: Principal | None
) -> None:
    """As `write_repo`, but leave nothing out."""
    _account, repo = find_repo(txn, did, principal)
    _write_repo(txn, write, repo, since, hidden=NOTHING_HIDDEN)


def _write_repo(
    txn: Txn, write: Write, repo: Repo, since: str | None, *, hidden: frozenset[bytes]
) -> None:
    output = _Output(write)
    output.add(encode_car_header((repo.head.commit,)))
    output.block(repo.head.commit, repo.commit_block)
    output.flush()  # The client has its first bytes while the first nodes are read.
    try:
        if since is None:
            _write_all(txn, repo, output, hidden)
        elif since < repo.head.rev:
            _write_newer(txn, repo, Tid(since), output, hidden)
    except (MissingBlock, InvalidNode) as error:
        raise Corrupt(f"the tree of {repo.head.did} is damaged: {error}") from error
    output.flush()


def _write_all(txn: Txn, repo: Repo, output: _Output, hidden: frozenset[bytes]) -> None:
    """Write the whole tree in streamable order, records taken from one ordered scan (REPO-43).

    Records in `hidden` are left out; the nodes still name them.
    """
    records = chain.from_iterable(_scan_records(txn, repo.repo_id))
    nodes = _NodeReader(txn, repo.repo_id)
    if repo.node_count <= _MAX_NODES_AT_ONCE:
        nodes.read_all()
    stack: list[Cid | bytes] = [repo.head.data]
    parts: list[bytes] = []
    prefixes: dict[int, bytes] = {}
    pop = stack.pop
    size = 0
    while stack:
        cid = pop()
        if type(cid) is Cid:
            block, links = nodes.take_links(cid)
            stack += links
        else:
            found, block = next(records, (b"", b""))
            if cid != found:
                raise Corrupt(f"record index and tree of {repo.head.did} differ")
            if hidden and cid in hidden:
                continue
        # Lengths repeat, and this loop runs for every block of every export.
        length = BLESSED_CID_BYTES + len(block)
        prefix = prefixes.get(length)
        if prefix is None:
            prefix = prefixes[length] = encode_varint(length)
        parts += (prefix, cid, block)
        size += length
        if size >= _FLUSH_BYTES:
            output.add(b"".join(parts))
            output.flush()
            parts.clear()
            size = 0
    output.add(b"".join(parts))
    if next(records, None) is not None:
        raise Corrupt(f"record index of {repo.head.did} has more than its tree")


def _write_newer(
    txn: Txn, repo: Repo, since: Tid, output: _Output, hidden: frozenset[bytes]
) -> None:
    """Write what was stored after `since`: an older node has nothing newer below it (REPO-45)."""
    source = _NodeReader(txn, repo.repo_id, newer_than=since)
    stack: list[Cid | tuple[bytes, Cid]] = [repo.head.data]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            found = get_record_with_rev(txn, repo.repo_id, item[0].decode("ascii"))
            if found is None or found[0] != item[1]:
                raise Corrupt(f"record index and tree of {repo.head.did} differ")
            if found[1] > since and item[1] not in hidden:
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
        self._all: dict[bytes, bytes] = {}

    def take(self, cid: Cid) -> _StoredNode:
        """Return a node. Each is handed out once. Raises: MissingBlock, InvalidNode."""
        node = self._ready.pop(cid, None)
        if node is None:
            self._read_ahead(cid)
            node = self._ready.pop(cid, None)
            if node is None:
                raise MissingBlock(cid)
        return node

    def take_links(self, cid: Cid) -> tuple[bytes, list[Cid | bytes]]:
        """Return bytes and links of a node; as `take`."""
        block = self._all.pop(cid, None)
        if block is not None:
            return block, read_links(cid, block)
        node = self.take(cid)
        return node.block, node.links

    def read_all(self) -> None:
        """Read all nodes by one statement, for `take_links`."""
        self._all = list_nodes(self._txn, self._repo_id)

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


def write_blocks(
    txn: Txn, write: Write, did: str, cids: Sequence[Cid], principal: Principal | None
) -> None:
    """Write a CAR without roots of the given blocks (REPO-46).

    Raises: RequestError `BlockNotFound`, see `find_repo`, before the first byte.
    """
    account, repo = find_repo(txn, did, principal)
    hidden = _hidden_cids(txn, account, repo, principal)
    output = _Output(write)
    wanted = list(dict.fromkeys(cids))
    missing = [cid for cid in wanted if cid in hidden or not _has_block(txn, repo, cid)]
    if missing:
        names = ", ".join(map(str, missing[:10]))
        raise RequestError("BlockNotFound", f"Could not find blocks: {names}")
    output.add(encode_car_header(()))
    for cid in wanted:
        output.block(cid, _find_block(txn, repo, cid) or b"")
    output.flush()


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
