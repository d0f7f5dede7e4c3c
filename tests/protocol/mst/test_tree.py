"""Editing, walking and building trees: always the tree of the definition."""

import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.mst.node import EMPTY_NODE, InvalidNode, Node, decode_node, make_node
from pds.protocol.mst.tree import (
    ForeignNodes,
    InvalidTree,
    KeyExists,
    KeyMissing,
    MissingBlock,
    NodeCache,
    TreeEditor,
    TreeLimit,
    build_tree,
    find_record,
    iter_records,
    walk_preorder,
)
from pds.protocol.repo_verify import BlockMap
from tests.protocol.mst import reference
from tests.protocol.mst.reference import Nodes
from tests.support import interop_dir

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "mst.json").read_text())
VALUES = [Cid.of_data(cbor.encode({"n": number})) for number in range(4)]
BY_DEPTH = reference.keys_by_depth(4, 12)
KEYS = [key for keys in BY_DEPTH.values() for key in keys]


def source(records) -> tuple[Cid, Nodes]:
    root, blocks = reference.build(records)
    return root, Nodes(decode_node(cid, block) for cid, block in blocks.items())


def test_trees_of_our_own_vectors():
    """REPO-21, REPO-22, REPO-23, REPO-24."""
    for case in VECTORS["trees"]:
        keys = [key.encode() for key in case["keys"]]
        records = {key: Cid.of_data(cbor.encode({"n": at})) for at, key in enumerate(keys)}
        nodes = list(build_tree(sorted(records.items())))
        assert str(nodes[-1].cid) == case["root"]
        assert sorted(str(node.cid) for node in nodes) == case["nodes"]
        editor = TreeEditor(EMPTY_NODE.cid, Nodes([EMPTY_NODE]))
        for key in reversed(keys):
            editor.insert(key, records[key])
        assert str(editor.flush()) == case["root"]


def test_example_keys_of_the_interop_files_build_the_tree_of_the_definition():
    """REPO-21."""
    lines = (interop_dir() / "mst" / "example_keys.txt").read_text().split()
    records = {line.encode(): VALUES[at % 4] for at, line in enumerate(sorted(lines))}
    root, blocks = reference.build(records)
    assert {node.cid: node.block for node in build_tree(sorted(records.items()))} == blocks
    editor = TreeEditor(EMPTY_NODE.cid, Nodes([EMPTY_NODE]))
    for key, value in records.items():
        editor.insert(key, value)
    assert editor.flush() == root


SETS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=25)


@given(SETS)
@settings(max_examples=60, deadline=None)
def test_building_from_sorted_records_equals_the_definition(records):
    """REPO-21."""
    root, blocks = reference.build(records)
    nodes = list(build_tree(sorted(records.items())))
    assert nodes[-1].cid == root
    assert {node.cid: node.block for node in nodes} == blocks
    assert len(nodes) == len(blocks)


@given(
    SETS,
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([*VALUES, None])), max_size=30),
    st.sets(st.integers(0, 29), max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_random_histories_end_in_the_tree_built_from_scratch(start, history, flushes):
    """REPO-30; the sets of made and replaced nodes are exactly what the store must change."""
    records = dict(start)
    root, nodes = source(records)
    before = set(nodes)
    editor = TreeEditor(root, nodes)
    for at, (key, value) in enumerate(history):
        if value is None:
            if key in records:
                assert editor.delete(key) == records.pop(key)
        elif key in records:
            assert editor.update(key, value) == records[key]
            records[key] = value
        else:
            editor.insert(key, value)
            records[key] = value
        assert editor.get(key) == records.get(key)
        if at in flushes:
            assert editor.flush() == reference.build(records)[0]
    expected, blocks = reference.build(records)
    assert editor.flush() == expected
    assert editor.created.keys() == blocks.keys() - before
    assert editor.replaced == before - blocks.keys()
    assert all(node.block == blocks[cid] for cid, node in editor.created.items())


@given(SETS)
@settings(max_examples=40, deadline=None)
def test_walks_yield_nodes_before_their_content_and_records_in_order(records):
    """REPO-43."""
    root, nodes = source(records)
    assert list(iter_records(root, nodes)) == sorted(records.items())
    walk = list(walk_preorder(root, nodes))
    assert {item.cid for item in walk if isinstance(item, Node)} == set(nodes)
    announced = {root}
    for item in walk:
        cid = item.cid if isinstance(item, Node) else item[1]
        assert cid in announced
        if isinstance(item, Node):
            announced |= {*item.values, *(child for child in item.children if child)}


def test_one_changed_key_touches_one_path_only():
    """Copy on write: nothing but the path is read or made."""
    records = {b"com.example.record/%d" % number: VALUES[0] for number in range(2000)}
    built = list(build_tree(sorted(records.items())))
    nodes = Nodes(built)
    editor = TreeEditor(built[-1].cid, nodes)
    editor.insert(b"com.example.record/new", VALUES[1])
    editor.flush()
    assert len(editor.created) <= 10
    assert len(nodes.asked) <= 12


def test_errors_name_the_kind():
    root, nodes = source({BY_DEPTH[0][0]: VALUES[0]})
    with pytest.raises(KeyExists):
        TreeEditor(root, nodes).insert(BY_DEPTH[0][0], VALUES[1])
    with pytest.raises(KeyMissing):
        TreeEditor(root, nodes).delete(BY_DEPTH[0][1])
    with pytest.raises(KeyMissing):
        TreeEditor(root, nodes).update(BY_DEPTH[2][1], VALUES[1])
    with pytest.raises(KeyMissing):
        TreeEditor(EMPTY_NODE.cid, Nodes([EMPTY_NODE])).delete(BY_DEPTH[0][0])
    with pytest.raises(MissingBlock) as missing:
        find_record(VALUES[0], b"a/a", nodes)
    assert missing.value.cid == VALUES[0]


def test_a_root_without_keys_is_refused():
    """REPO-23."""
    pointer = make_node([], [], [source({BY_DEPTH[0][0]: VALUES[0]})[0]])
    with pytest.raises(InvalidTree):
        TreeEditor(pointer.cid, Nodes([pointer])).insert(b"a/a", VALUES[0])


def test_a_node_does_not_grow_over_the_cap_by_insertion_or_by_merging():
    """REPO-29."""
    low = sorted(BY_DEPTH[0])
    root, nodes = source(dict.fromkeys(low[:-1], VALUES[0]))
    with pytest.raises(TreeLimit):
        TreeEditor(root, nodes, max_entries=len(low) - 1).insert(low[-1], VALUES[0])
    TreeEditor(root, nodes, max_entries=len(low)).insert(low[-1], VALUES[0])
    high = BY_DEPTH[2][0]
    root, nodes = source(dict.fromkeys([*low, high], VALUES[0]))
    assert low[0] < high < low[-1]
    with pytest.raises(TreeLimit):
        TreeEditor(root, nodes, max_entries=len(low) - 1).delete(high)


def test_a_key_below_the_depth_cap_only():
    """REPO-29."""
    editor = TreeEditor(EMPTY_NODE.cid, Nodes([EMPTY_NODE]), max_depth=2)
    editor.insert(BY_DEPTH[2][0], VALUES[0])
    with pytest.raises(TreeLimit):
        editor.insert(BY_DEPTH[3][0], VALUES[0])


def test_the_builder_refuses_unsorted_records():
    with pytest.raises(InvalidTree):
        list(build_tree([(b"b", VALUES[0]), (b"a", VALUES[0])]))
    with pytest.raises(InvalidTree):
        list(build_tree([(b"a", VALUES[0]), (b"a", VALUES[0])]))


def test_the_cache_is_bounded_and_keeps_what_is_used():
    records = {b"com.example.record/%d" % number: VALUES[0] for number in range(300)}
    built = list(build_tree(sorted(records.items())))
    blocks = {node.cid: node.block for node in built}
    reads = []

    class Blocks:
        def get(self, cid):
            reads.append(cid)
            return blocks[cid]

    cache = NodeCache(20)
    nodes = cache.over(Blocks())
    root = built[-1].cid
    for node in built:
        nodes.node(node.cid)
        nodes.node(root)
        assert len(cache) <= 20
    assert reads.count(root) == 1


def test_the_cache_is_bounded_in_bytes_whatever_the_keys():
    """Long record keys must not make the memory of all repos many times larger."""

    def memory(node):
        parts = (node, node.block, node.cid, node.keys, node.values, node.children)
        inner = (*node.keys, *node.values, *filter(None, node.children))
        return sum(map(sys.getsizeof, (*parts, *inner)))

    rng = random.Random(1)
    for size in (13, 512):
        keys = {b"com.example.r/" + rng.randbytes(size // 2).hex().encode() for _ in range(3000)}
        cache = NodeCache(max_bytes=1_000_000)
        built = list(build_tree((key, VALUES[0]) for key in sorted(keys)))
        for node in (*built, *built[-1:] * 10_000):
            cache.add(node)
        held = [node for node in built if cache.find(node.cid) is not None]
        assert 250_000 < sum(map(memory, held)) < 1_300_000
        assert built[-1] in held


def test_a_damaged_stored_node_is_never_used():
    node = make_node([b"a/a"], [VALUES[0]], [None, None])
    nodes = NodeCache().over(BlockMap({node.cid: node.block[:-1] + b"\xf7"}))
    with pytest.raises(InvalidNode):
        nodes.node(node.cid)


def test_foreign_nodes_are_decoded_once():
    node = make_node([b"a/a"], [VALUES[0]], [None, None])
    nodes = ForeignNodes(BlockMap({node.cid: node.block}))
    assert nodes.node(node.cid) is nodes.node(node.cid)


def test_another_implementation_builds_the_same_trees():
    """REPO-21, against the package atmst."""
    pytest.importorskip("atmst", reason="the package atmst is not installed")
    from atmst.blockstore import MemoryBlockStore
    from atmst.mst.node_store import NodeStore
    from atmst.mst.node_wrangler import NodeWrangler
    from cbrrr import CID

    store = NodeStore(MemoryBlockStore())
    wrangler = NodeWrangler(store)
    theirs = store.get_node(None).cid
    ours = TreeEditor(EMPTY_NODE.cid, Nodes([EMPTY_NODE]))
    for at, key in enumerate(KEYS):
        value = VALUES[at % 4]
        theirs = wrangler.put_record(theirs, key.decode(), CID(bytes(value)))
        ours.insert(key, value)
        if at % 7 == 3:
            theirs = wrangler.del_record(theirs, KEYS[at // 2].decode())
            ours.delete(KEYS[at // 2])
        assert bytes(theirs) == ours.flush()
