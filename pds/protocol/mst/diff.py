"""Compare two trees, and check a whole tree that somebody else made.

Comparing is for readers (resynchronisation, tests, tools): the write path never compares trees, it
collects the changed nodes while it edits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from pds.protocol.cid import Cid
from pds.protocol.mst.node import MAX_DEPTH, InvalidNode, Node, decode_node, key_depth
from pds.protocol.mst.proof import Change
from pds.protocol.mst.tree import BlockSource, InvalidTree, NodeSource, TreeLimit


@final
@dataclass(frozen=True, slots=True)
class TreeDiff:
    """What turns one tree into another: changed keys in order, nodes to add and to remove."""

    changes: tuple[Change, ...]
    created: dict[Cid, Node]
    removed: frozenset[Cid]


_Record = tuple[bytes, Cid]
_Subtree = tuple[int, Cid]


class _Cursor:
    """Stands before the next record or unopened subtree of a tree, in key order."""

    def __init__(self, root: Cid | None, nodes: NodeSource) -> None:
        self._nodes = nodes
        self._stack: list[_Record | _Subtree] = []
        self.opened: dict[Cid, Node] = {}
        if root is not None:
            node = nodes.node(root)
            self._stack.append((key_depth(node.keys[0]) if node.keys else 0, root))

    def peek(self) -> _Record | _Subtree | None:
        return self._stack[-1] if self._stack else None

    def skip(self) -> None:
        self._stack.pop()

    def open(self) -> None:
        """Replace the subtree in front by its records and children."""
        level, cid = self._stack.pop()
        node = self.opened[cid] = self._nodes.node(cid)
        below = int(level) - 1
        if below < 0 and any(node.children):
            raise InvalidTree("a child below the lowest level")
        for at in range(len(node.keys) - 1, -1, -1):
            child = node.children[at + 1]
            if child is not None:
                self._stack.append((below, child))
            self._stack.append((node.keys[at], node.values[at]))
        if node.children[0] is not None:
            self._stack.append((below, node.children[0]))


def _is_subtree(item: _Record | _Subtree | None) -> bool:
    return item is not None and isinstance(item[0], int)


def diff_trees(before: Cid | None, after: Cid, old: NodeSource, new: NodeSource) -> TreeDiff:
    """Compare the tree at `before` (None: no tree) with the tree at `after`.

    Equal subtrees are skipped unread where both trees have them at the same place. Of a foreign
    tree nothing is checked but what `new` checks: the changes have to be tried. It may have one
    subtree at many places, so `new` has to end a walk that is too long.

    Raises: MissingBlock, InvalidNode, InvalidTree.
    """
    left, right = _Cursor(before, old), _Cursor(after, new)
    changes: list[Change] = []
    while True:
        a, b = left.peek(), right.peek()
        if a is None and b is None:
            break
        if _is_subtree(a) or _is_subtree(b):
            _advance(left, right)
        elif b is None or (a is not None and a[0] < b[0]):  # type: ignore[operator]
            changes.append((*_record(a), None))
            left.skip()
        elif a is None or a[0] > b[0]:  # type: ignore[operator]
            key, cid = _record(b)
            changes.append((key, None, cid))
            right.skip()
        else:
            key, cid = _record(a)
            if cid != b[1]:
                changes.append((key, cid, b[1]))
            left.skip()
            right.skip()
    return TreeDiff(
        tuple(changes),
        {cid: node for cid, node in right.opened.items() if cid not in left.opened},
        frozenset(cid for cid in left.opened if cid not in right.opened),
    )


def _record(item: _Record | _Subtree | None) -> _Record:
    return item  # type: ignore[return-value]


def _advance(left: _Cursor, right: _Cursor) -> None:
    """Skip an equal pair of subtrees, or open what stands in front, the higher one first."""
    a, b = left.peek(), right.peek()
    if a == b:
        left.skip()
        right.skip()
        return
    a_level = a[0] if _is_subtree(a) and a is not None else -1
    b_level = b[0] if _is_subtree(b) and b is not None else -1
    if a_level >= b_level:  # type: ignore[operator]
        left.open()
    if b_level >= a_level:  # type: ignore[operator]
        right.open()


def walk_verified(
    root: Cid, blocks: BlockSource, *, max_depth: int = MAX_DEPTH
) -> Iterator[Node | tuple[bytes, Cid]]:
    """Walk a foreign tree in streamable order and check all of it on the way.

    Every node is checked by itself (`decode_node`) and in its place: keys increase over the whole
    walk, each key has the depth of its level, children are exactly one level lower, nothing is
    empty but the empty tree, the root has keys. Memory: the nodes of one path.

    Raises: InvalidNode, InvalidTree, TreeLimit, MissingBlock. Spec: REPO-28, REPO-29
    """
    top = decode_node(root, blocks.get(root))
    if not top.keys:
        if top.children[0] is not None:
            raise InvalidTree("the root has no keys")
        yield top
        return
    level = key_depth(top.keys[0])
    if level > max_depth:
        raise TreeLimit("tree is too deep")
    previous = b""
    stack: list[_Record | _Subtree] = [(level, root)]
    while stack:
        item = stack.pop()
        if isinstance(item[0], bytes):
            if item[0] <= previous:
                raise InvalidTree("keys are not in increasing order")
            previous = item[0]
            yield item[0], item[1]
            continue
        level, cid = item[0], item[1]
        node = top if cid == root else decode_node(cid, blocks.get(cid))
        _check_place(node, level)
        yield node
        for at in range(len(node.keys) - 1, -1, -1):
            child = node.children[at + 1]
            if child is not None:
                stack.append((level - 1, child))
            stack.append((node.keys[at], node.values[at]))
        if node.children[0] is not None:
            stack.append((level - 1, node.children[0]))


def _check_place(node: Node, level: int) -> None:
    if not node.keys and node.children[0] is None:
        raise InvalidTree("an empty node inside a tree")
    if level == 0 and any(node.children):
        raise InvalidTree("a child below the lowest level")
    if any(key_depth(key) != level for key in node.keys):
        raise InvalidTree("a key stands at the wrong depth")


__all__ = ["InvalidNode", "TreeDiff", "diff_trees", "walk_verified"]
