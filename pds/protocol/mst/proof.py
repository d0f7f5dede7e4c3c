"""Which nodes prove something about a tree.

* A *record proof* is the path from the root to a key, or to the gap where it would be: whoever
  holds the commit can check from it that a record is, or is not, in the repo (REPO-50, REPO-51).
* A *covering proof* lets a relay, which keeps no trees, take the operations of a commit back and
  arrive at the previous root (REPO-63). For every key it holds the path to the key or its gap and,
  for a created key, the inner edges of the two subtrees beside it: taking the key out joins them.
  With the paths to both neighbours of every key the operations can be undone in any order, so
  relays that undo deletions first and those that go backwards are both served (REPO-65, REPO-66).
"""

from bisect import bisect_left
from collections.abc import Iterable

from pds.protocol.cid import Cid
from pds.protocol.mst.node import Node
from pds.protocol.mst.tree import ForeignNodes, InvalidTree, NodeSource, TreeEditor, find_record

Change = tuple[bytes, Cid | None, Cid | None]
"""One changed key: `(key, record before, record after)`; None where there is none."""


def path_nodes(root: Cid, key: bytes, nodes: NodeSource) -> list[Node]:
    """Return the nodes from the root to `key`, or to the gap where it would be (REPO-50)."""
    path: list[Node] = []
    cid: Cid | None = root
    while cid is not None:
        node = nodes.node(cid)
        path.append(node)
        at = bisect_left(node.keys, key)
        if at < len(node.keys) and node.keys[at] == key:
            break
        cid = node.children[at]
    return path


def check_path(root: Cid, key: bytes, nodes: ForeignNodes) -> Cid | None:
    """Return what a record proof says about `key`: its record, None for proven absence.

    Raises: MissingBlock when the proof is incomplete, InvalidNode. Spec: REPO-51
    """
    return find_record(root, key, nodes)


def covering_proof(root: Cid, changes: Iterable[Change], nodes: NodeSource) -> dict[Cid, Node]:
    """Return the nodes of the new tree at `root` that inversion of `changes` reads (REPO-65).

    `nodes` serves the new tree. Cost: one path per change, no hashing.
    """
    proof: dict[Cid, Node] = {}
    for key, before, _after in changes:
        cid: Cid | None = root
        while cid is not None:
            node = proof.get(cid)
            if node is None:
                node = proof[cid] = nodes.node(cid)
            keys = node.keys
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                if before is None:
                    _add_edge(node.children[at], -1, nodes, proof)
                    _add_edge(node.children[at + 1], 0, nodes, proof)
                break
            cid = node.children[at]
    return proof


def _add_edge(cid: Cid | None, side: int, nodes: NodeSource, proof: dict[Cid, Node]) -> None:
    """Add the last (`side` -1) or first (0) nodes of every level of a subtree."""
    while cid is not None:
        node = proof.get(cid)
        if node is None:
            node = proof[cid] = nodes.node(cid)
        cid = node.children[side]


def invert_changes(root: Cid, changes: Iterable[Change], nodes: NodeSource) -> Cid:
    """Undo `changes` one by one, in the order given, and return the root before them.

    Raises: InvalidTree when a change does not match the tree; MissingBlock when the proof is
    incomplete; KeyExists, KeyMissing, InvalidNode.
    Spec: sync#message-validation-checklist (REPO-66)
    """
    editor = TreeEditor(root, nodes)
    for key, before, after in changes:
        if after is None:
            if before is None:
                raise InvalidTree("a change from nothing to nothing")
            editor.insert(key, before)
            continue
        found = editor.delete(key) if before is None else editor.update(key, before)
        if found != after:
            raise InvalidTree("the tree holds another record than the operation says")
    return editor.flush()
