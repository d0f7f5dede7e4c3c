"""Look up, walk, edit and build trees.

Nodes are content-addressed and never change, so editing copies the nodes on the path from the root
to the key and nothing else. `TreeEditor` holds those copies as *drafts* (mutable, not hashed yet)
until `flush`, so a batch of writes hashes each changed node once. While editing it notes which
stored nodes were replaced and which were made: these two sets are exactly what a commit deletes and
inserts, and no second walk over both trees is ever needed.

Nodes come from a `NodeSource`. `NodeCache` keeps decoded nodes of all repos by CID in bounded
memory; since a CID names one content, it can never be stale, whatever is rolled back.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol, final

from pds.errors import ProtocolError
from pds.protocol.cid import Cid
from pds.protocol.mst.node import (
    EMPTY_NODE,
    MAX_DEPTH,
    MAX_ENTRIES,
    Node,
    decode_node,
    decode_own_node,
    key_depth,
    make_node,
    relink,
)


class MissingBlock(ProtocolError):
    """A block that is needed is not in the source."""

    def __init__(self, cid: Cid) -> None:
        super().__init__(f"missing block {cid}")
        self.cid = cid


class InvalidTree(ProtocolError):
    """The nodes are well formed but do not make a valid tree."""


class TreeLimit(ProtocolError):
    """The change would make a node too wide or the tree too deep (REPO-29)."""


class KeyExists(ProtocolError):
    """The key to insert is in the tree."""


class KeyMissing(ProtocolError):
    """The key to update or delete is not in the tree."""


class BlockSource(Protocol):
    """Where blocks come from."""

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block. Raises: MissingBlock."""


class NodeSource(Protocol):
    """Where decoded nodes come from."""

    def node(self, cid: Cid) -> Node:
        """Return a node. Raises: MissingBlock, InvalidNode."""


@final
class ForeignNodes:
    """Nodes of somebody else's blocks, checked strictly one by one; keeps what it decoded."""

    def __init__(self, blocks: BlockSource) -> None:
        self._blocks = blocks
        self._nodes: dict[Cid, Node] = {}

    def node(self, cid: Cid) -> Node:
        """Return a node. Raises: MissingBlock, InvalidNode."""
        node = self._nodes.get(cid)
        if node is None:
            node = self._nodes[cid] = decode_node(cid, self._blocks.get(cid))
        return node


@final
class NodeCache:
    """Decoded nodes by CID in two generations, bounded in number and in memory.

    A hit in the old generation moves the node to the young one; a full young generation becomes the
    old one. Every step is one dictionary operation, so threads may share a cache without a lock: at
    worst a node is decoded twice, or a generation ends a little early or late.
    """

    def __init__(self, capacity: int = 65_536, *, max_bytes: int = 128_000_000) -> None:
        self._half = max(1, capacity // 2)
        self._half_bytes = max_bytes // 2
        self._young: dict[Cid, Node] = {}
        self._young_bytes = 0
        self._old: dict[Cid, Node] = {}

    def find(self, cid: Cid) -> Node | None:
        """Return the node if it is cached."""
        node = self._young.get(cid)
        if node is None:
            node = self._old.get(cid)
            if node is not None:
                self.add(node)
        return node

    def add(self, node: Node) -> None:
        """Remember `node`."""
        young = self._young
        if node.cid in young:
            return
        young[node.cid] = node
        self._young_bytes += _memory_of(node)
        if len(young) >= self._half or self._young_bytes >= self._half_bytes:
            self._old = young
            self._young = {}
            self._young_bytes = 0

    def over(self, blocks: BlockSource) -> "CachedNodes":
        """Return a source that answers from this cache, else from `blocks` (our own store)."""
        return CachedNodes(self, blocks)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def _memory_of(node: Node) -> int:
    """Return about how many bytes a decoded node takes: 1.5 KB usually, more for long keys."""
    keys = node.keys
    return 400 + len(node.block) + 180 * len(keys) + sum(map(len, keys))


@final
class CachedNodes:
    """Our own stored nodes, through a `NodeCache`."""

    __slots__ = ("_blocks", "_cache")

    def __init__(self, cache: NodeCache, blocks: BlockSource) -> None:
        self._cache = cache
        self._blocks = blocks

    def node(self, cid: Cid) -> Node:
        """Return a node. Raises: MissingBlock, InvalidNode (our own store is damaged)."""
        node = self._cache.find(cid)
        if node is None:
            node = decode_own_node(cid, self._blocks.get(cid))
            self._cache.add(node)
        return node


@final
class _Draft:
    """A node that is being changed. Child slots hold stored nodes' CIDs, drafts, or nothing.

    `base` is the stored node as long as only child slots differ from it: most nodes of a path. Then
    the new bytes are the old ones with a link replaced, which is ten times cheaper than encoding.
    """

    __slots__ = ("base", "children", "keys", "values")

    def __init__(
        self,
        keys: Sequence[bytes],
        values: Sequence[Cid],
        children: "list[_Slot]",
        base: Node | None = None,
    ) -> None:
        self.keys = keys
        self.values = values
        self.children = children
        self.base = base

    def edit(self) -> tuple[list[bytes], list[Cid]]:
        """Return keys and values for changing."""
        if isinstance(self.keys, list) and isinstance(self.values, list):
            return self.keys, self.values
        self.base = None
        self.keys, self.values = keys, values = list(self.keys), list(self.values)
        return keys, values

    def seal(self) -> Node:
        """Return the finished node; all children are hashed."""
        children: tuple[Cid | None, ...] = tuple(self.children)  # type: ignore[arg-type]
        base = self.base
        if base is None:
            return make_node(self.keys, self.values, children)
        block = relink(base, children)
        return Node(Cid.of_data(block), block, base.keys, base.values, children)


_Slot = Cid | _Draft | None


@final
class TreeEditor:
    """A tree under change. `flush` returns the new root; `created` and `replaced` are net sets.

    Keys are full record paths as bytes. After an exception the editor must be thrown away.
    Costs about two microseconds per changed entry and one node read per level when cold.
    Spec: repository#mst-structure (REPO-30)
    """

    def __init__(
        self,
        root: Cid,
        nodes: NodeSource,
        *,
        max_entries: int = MAX_ENTRIES,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        self._nodes = nodes
        self._root: _Slot = root
        self._max_entries = max_entries
        self._max_depth = max_depth
        self._made: dict[Cid, Node] = {}
        self.created: dict[Cid, Node] = {}
        self.replaced: set[Cid] = set()

    def node(self, cid: Cid) -> Node:
        """Return a stored node, or one made by this editor."""
        return self._made.get(cid) or self._nodes.node(cid)

    def get(self, key: bytes) -> Cid | None:
        """Return the record CID under `key`."""
        slot = self._root
        while slot is not None:
            node = slot if type(slot) is _Draft else self.node(slot)
            keys = node.keys
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                return node.values[at]
            slot = node.children[at]
        return None

    def insert(self, key: bytes, value: Cid) -> None:
        """Add a key. Raises: KeyExists, TreeLimit."""
        depth = key_depth(key)
        if depth > self._max_depth:
            raise TreeLimit("key lies too deep in the tree")
        node = self._open_root()
        if node is None:
            self._root = _Draft([key], [value], [None, None])
            return
        level = key_depth(node.keys[0])
        if depth > level:
            left, right = self._split(self._root, key)
            wraps = depth - level - 1
            self._root = _Draft([key], [value], [_wrap(left, wraps), _wrap(right, wraps)])
            return
        self._root = node
        while level > depth:
            at = bisect_left(node.keys, key)
            level -= 1
            child = node.children[at]
            if child is None:
                leaf = _Draft([key], [value], [None, None])
                node.children[at] = _wrap(leaf, level - depth)
                return
            draft = self._draft(child)
            node.children[at] = draft
            node = draft
        at = bisect_left(node.keys, key)
        if at < len(node.keys) and node.keys[at] == key:
            raise KeyExists("key is in the tree")
        if len(node.keys) >= self._max_entries:
            raise TreeLimit("too many keys of one depth side by side")
        node.children[at : at + 1] = self._split(node.children[at], key)
        keys, values = node.edit()
        keys.insert(at, key)
        values.insert(at, value)

    def update(self, key: bytes, value: Cid) -> Cid:
        """Change the record of a key and return the one before. Raises: KeyMissing."""
        node, at, _path = self._descend(key)
        before = node.values[at]
        node.edit()[1][at] = value
        return before

    def delete(self, key: bytes) -> Cid:
        """Remove a key and return its record. Raises: KeyMissing, TreeLimit."""
        node, at, path = self._descend(key)
        before = node.values[at]
        merged = self._merge(node.children[at], node.children[at + 1])
        keys, values = node.edit()
        del keys[at], values[at]
        node.children[at : at + 2] = [merged]
        while not node.keys and node.children[0] is None:
            if not path:
                self._root = None
                return before
            node, at = path.pop()
            node.children[at] = None
        self._trim()
        return before

    def flush(self) -> Cid:
        """Encode and hash every draft and return the root's CID."""
        root = self._root
        if type(root) is _Draft:
            root = self._flush(root)
        elif root is None:
            root = self._keep(EMPTY_NODE)
        self._root = root
        return root

    def _flush(self, draft: _Draft) -> Cid:
        children = draft.children
        for at, child in enumerate(children):
            if type(child) is _Draft:
                children[at] = self._flush(child)
        return self._keep(draft.seal())

    def _keep(self, node: Node) -> Cid:
        cid = node.cid
        if cid in self.replaced:
            self.replaced.discard(cid)
        else:
            self.created[cid] = node
        self._made[cid] = node
        return cid

    def _drop(self, cid: Cid) -> None:
        if self.created.pop(cid, None) is None:
            self.replaced.add(cid)

    def _draft(self, slot: _Slot) -> _Draft:
        """Return `slot` as a draft; a stored node counts as replaced from here on."""
        if type(slot) is _Draft:
            return slot
        node = self.node(slot)  # type: ignore[arg-type]
        self._drop(node.cid)
        return _Draft(node.keys, node.values, list(node.children), node)

    def _open_root(self) -> _Draft | None:
        """Return the root as a draft, None for the empty tree."""
        slot = self._root
        if slot is None:
            return None
        draft = self._draft(slot)
        self._root = draft
        if draft.keys:
            return draft
        if draft.children[0] is not None:
            raise InvalidTree("the root has no keys")
        self._root = None
        return None

    def _descend(self, key: bytes) -> tuple[_Draft, int, list[tuple[_Draft, int]]]:
        """Make drafts down to the node that holds `key`."""
        node = self._open_root()
        path: list[tuple[_Draft, int]] = []
        while node is not None:
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                return node, at, path
            child = node.children[at]
            if child is None:
                break
            draft = self._draft(child)
            node.children[at] = draft
            path.append((node, at))
            node = draft
        raise KeyMissing("key is not in the tree")

    def _split(self, slot: _Slot, key: bytes) -> tuple[_Slot, _Slot]:
        """Cut a subtree into the parts before and after `key`, which is not in it."""
        if slot is None:
            return None, None
        node = slot if type(slot) is _Draft else self.node(slot)
        keys = node.keys
        at = bisect_left(keys, key)
        left, right = self._split(node.children[at], key)
        if at == 0 and left is None:
            return None, slot
        if at == len(keys) and right is None:
            return slot, None
        draft = self._draft(slot)
        return (
            _Draft(draft.keys[:at], draft.values[:at], [*draft.children[:at], left]),
            _Draft(draft.keys[at:], draft.values[at:], [right, *draft.children[at + 1 :]]),
        )

    def _merge(self, left: _Slot, right: _Slot) -> _Slot:
        """Join two neighbouring subtrees of one depth after the key between them is gone."""
        if left is None:
            return right
        if right is None:
            return left
        head, tail = self._draft(left), self._draft(right)
        if len(head.keys) + len(tail.keys) > self._max_entries:
            raise TreeLimit("too many keys of one depth side by side")
        middle = self._merge(head.children[-1], tail.children[0])
        return _Draft(
            [*head.keys, *tail.keys],
            [*head.values, *tail.values],
            [*head.children[:-1], middle, *tail.children[1:]],
        )

    def _trim(self) -> None:
        """Drop nodes without keys from the top (REPO-23)."""
        slot = self._root
        while slot is not None:
            node = slot if type(slot) is _Draft else self.node(slot)
            if node.keys:
                break
            if type(slot) is not _Draft:
                self._drop(slot)
            slot = node.children[0]
        self._root = slot


def _wrap(slot: _Slot, times: int) -> _Slot:
    """Put `times` nodes without keys above `slot` (REPO-22)."""
    if slot is not None:
        for _ in range(times):
            slot = _Draft([], [], [slot])
    return slot


def find_record(root: Cid, key: bytes, nodes: NodeSource) -> Cid | None:
    """Return the record CID under `key` in the tree at `root`."""
    return TreeEditor(root, nodes).get(key)


def walk_preorder(root: Cid, nodes: NodeSource) -> Iterator[Node | tuple[bytes, Cid]]:
    """Yield the tree in streamable order: each node, then its children and records from the left.

    A node is yielded as `Node`, a record as `(key, cid)`. Memory: the nodes of one path.
    Spec: sync#repository-exports (REPO-43)
    """
    stack: list[Cid | tuple[bytes, Cid]] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            yield item
            continue
        node = nodes.node(item)
        yield node
        for at in range(len(node.keys) - 1, -1, -1):
            child = node.children[at + 1]
            if child is not None:
                stack.append(child)
            stack.append((node.keys[at], node.values[at]))
        if node.children[0] is not None:
            stack.append(node.children[0])


def iter_records(root: Cid, nodes: NodeSource) -> Iterator[tuple[bytes, Cid]]:
    """Yield `(key, record CID)` in key order."""
    for item in walk_preorder(root, nodes):
        if isinstance(item, tuple):
            yield item


def build_tree(records: Iterable[tuple[bytes, Cid]]) -> Iterator[Node]:
    """Build the tree of sorted, distinct `records` from below and yield each node once made.

    The last node is the root. Memory: one unfinished node per level, so a repo of any size can be
    rebuilt from its record index.

    Raises: InvalidTree for keys out of order, TreeLimit.
    Spec: repository#mst-structure (REPO-21)
    """
    levels: list[_Level] = []
    previous: bytes | None = None
    for key, value in records:
        if previous is not None and key <= previous:
            raise InvalidTree("keys are not in increasing order")
        previous = key
        depth = key_depth(key)
        if depth > MAX_DEPTH:
            raise TreeLimit("key lies too deep in the tree")
        while len(levels) <= depth:
            levels.append(_Level())
        child: Cid | None = None
        for level in levels[:depth]:
            level.children.append(child)
            node = level.close()
            if node is not None:
                yield node
            child = node.cid if node else None
        levels[depth].add(key, value, child)
    root: Cid | None = None
    for level in levels:
        level.children.append(root)
        node = level.close()
        if node is not None:
            yield node
        root = node.cid if node else None
    if root is None:
        yield EMPTY_NODE


@final
class _Level:
    """The unfinished node of one depth while a tree is built from below."""

    __slots__ = ("children", "keys", "values")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: list[Cid] = []
        self.children: list[Cid | None] = []

    def add(self, key: bytes, value: Cid, child: Cid | None) -> None:
        if len(self.keys) >= MAX_ENTRIES:
            raise TreeLimit("too many keys of one depth side by side")
        self.children.append(child)
        self.keys.append(key)
        self.values.append(value)

    def close(self) -> Node | None:
        """Return the finished node, None if it would be empty, and start the next."""
        keys, values, children = self.keys, self.values, self.children
        self.keys, self.values, self.children = [], [], []
        if not keys and children[-1] is None:
            return None
        return make_node(keys, values, children)


DEFAULT_CACHE_NODES: Final = 65_536
"""Nodes kept by default: about 90 MB, the working paths of some thousand active repos."""
