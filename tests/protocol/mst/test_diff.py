"""Comparing trees, and checking a whole foreign tree."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.mst.diff import diff_trees, walk_verified
from pds.protocol.mst.node import EMPTY_NODE, InvalidNode, make_node
from pds.protocol.mst.tree import InvalidTree, MissingBlock, TreeLimit, build_tree, walk_preorder
from pds.protocol.repo_verify import BlockMap
from tests.protocol.mst import reference
from tests.protocol.mst.reference import Nodes

VALUES = [Cid.of_data(cbor.encode({"n": number})) for number in range(3)]
BY_DEPTH = reference.keys_by_depth(3, 15)
KEYS = [key for keys in BY_DEPTH.values() for key in keys]
SETS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=30)


def built(records) -> tuple[Cid, Nodes]:
    nodes = list(build_tree(sorted(records.items())))
    return nodes[-1].cid, Nodes(nodes)


@given(SETS, SETS)
@settings(max_examples=80, deadline=None)
def test_a_diff_is_the_difference_of_the_maps(left, right):
    before, old = built(left)
    after, new = built(right)
    diff = diff_trees(before, after, old, new)
    assert list(diff.changes) == [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
    assert diff.created.keys() == new.keys() - old.keys()
    assert diff.removed == old.keys() - new.keys()


def test_a_diff_with_nothing_is_the_whole_tree():
    after, new = built(dict.fromkeys(KEYS, VALUES[0]))
    diff = diff_trees(None, after, new, new)
    assert [change[0] for change in diff.changes] == sorted(KEYS)
    assert diff.created.keys() == new.keys()


def test_equal_subtrees_are_not_read():
    records = {b"com.example.record/%d" % number: VALUES[0] for number in range(2000)}
    before, old = built(records)
    after, new = built(records | {b"com.example.record/7": VALUES[1]})
    assert len(diff_trees(before, after, old, new).changes) == 1
    assert len(old.asked) < 15


@given(SETS)
@settings(max_examples=60, deadline=None)
def test_every_valid_tree_passes(records):
    """REPO-28."""
    root, nodes = built(records)
    blocks = BlockMap({cid: node.block for cid, node in nodes.items()})
    walked = [getattr(item, "cid", item) for item in walk_verified(root, blocks)]
    assert walked == [getattr(item, "cid", item) for item in walk_preorder(root, nodes)]


def source(*nodes) -> BlockMap:
    return BlockMap({node.cid: node.block for node in nodes})


def node(entries=(), left=None):
    """Make a node of `(key, child to the right)` entries, whatever it breaks."""
    return make_node(
        [key for key, _child in entries],
        [VALUES[0]] * len(entries),
        [left, *(child.cid if child else None for _key, child in entries)],
    )


LOW, MIDDLE, HIGH = sorted(BY_DEPTH[0]), sorted(BY_DEPTH[1]), sorted(BY_DEPTH[2])
LEAF = node([(LOW[0], None)])
EARLY = next(key for key in MIDDLE if key > LOW[0])


def wrong_trees():
    yield "root is a bare pointer", [node(left=LEAF.cid), LEAF], InvalidTree
    yield (
        "root is a pointer to the empty tree",
        [node(left=EMPTY_NODE.cid), EMPTY_NODE],
        InvalidTree,
    )
    yield "an empty child", [node([(MIDDLE[0], None)], EMPTY_NODE.cid), EMPTY_NODE], InvalidTree
    yield (
        "a key too high",
        [node([(key, None) for key in sorted([LOW[0], MIDDLE[0]])])],
        InvalidTree,
    )
    child = node([(MIDDLE[-1], None)])
    yield "a child of the same depth", [node([(MIDDLE[0], child)]), child], InvalidTree
    top = next(key for key in HIGH if key > LOW[0])
    yield "a skipped level", [node([(top, None)], LEAF.cid), LEAF], InvalidTree
    below = node([(LOW[1], None)])
    yield "a child below the lowest level", [node([(LOW[0], below)]), below], InvalidTree
    bottom = node(left=LEAF.cid)
    yield (
        "an empty chain below the lowest",
        [node([(EARLY, None)], bottom.cid), bottom, LEAF],
        InvalidTree,
    )
    late = node([(LOW[-1], None)])
    first = next(key for key in MIDDLE if key < LOW[-1])
    yield "a left child with later keys", [node([(first, None)], late.cid), late], InvalidTree
    last = next(key for key in reversed(MIDDLE) if key > LOW[0])
    yield "a right child with earlier keys", [node([(last, LEAF)]), LEAF], InvalidTree
    yield "the same child twice", [node([(EARLY, LEAF)], LEAF.cid), LEAF], InvalidNode
    yield "a missing child", [node([(EARLY, None)], LEAF.cid)], MissingBlock


@pytest.mark.parametrize(("_name", "nodes", "error"), list(wrong_trees()))
def test_every_kind_of_wrong_tree_is_refused(_name, nodes, error):
    """REPO-22, REPO-23, REPO-28."""
    with pytest.raises(error):
        list(walk_verified(nodes[0].cid, source(*nodes)))


def test_a_damaged_block_is_refused():
    """REPO-42."""
    with pytest.raises(InvalidNode):
        list(walk_verified(LEAF.cid, BlockMap({LEAF.cid: EMPTY_NODE.block})))


def test_a_tree_over_the_depth_cap_is_refused():
    """REPO-29."""
    root, nodes = built({BY_DEPTH[3][0]: VALUES[0]})
    with pytest.raises(TreeLimit):
        list(walk_verified(root, source(*nodes.values()), max_depth=2))
