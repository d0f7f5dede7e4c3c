"""Proofs: enough for every way of undoing a commit, and nothing taken on trust."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.cid import Cid, parse_cid
from pds.protocol.mst.node import EMPTY_NODE, InvalidNode
from pds.protocol.mst.proof import check_path, covering_proof, invert_changes, path_nodes
from pds.protocol.mst.tree import (
    ForeignNodes,
    InvalidTree,
    KeyExists,
    MissingBlock,
    TreeEditor,
    build_tree,
)
from pds.protocol.repo_verify import BlockMap
from tests.protocol.mst import reference
from tests.protocol.mst.reference import Nodes
from tests.support import interop_dir

VALUES = [Cid.of_data(cbor.encode({"n": number})) for number in range(3)]
BY_DEPTH = reference.keys_by_depth(4, 15)
KEYS = [key for keys in BY_DEPTH.values() for key in keys]
SETS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=30)
CHANGES = st.dictionaries(
    st.sampled_from(KEYS), st.sampled_from([None, *VALUES]), min_size=1, max_size=10
)


def built(records) -> tuple[Cid, Nodes]:
    nodes = list(build_tree(sorted(records.items())))
    return nodes[-1].cid, Nodes(nodes)


def apply(records, wanted):
    """Return the tree before, the tree after, the changes, and the editor's new nodes."""
    root, nodes = built(records)
    editor = TreeEditor(root, nodes)
    changes = []
    for key, after in wanted.items():
        before = records.get(key)
        if before == after:
            continue
        changes.append((key, before, after))
        if before is None:
            editor.insert(key, after)
        elif after is None:
            editor.delete(key)
        else:
            editor.update(key, after)
    return root, editor.flush(), changes, editor


def relay_order(changes):
    return sorted(changes, key=lambda change: (change[2] is not None, change[0]))


@given(SETS, CHANGES, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_inversion_from_the_proof_alone_returns_the_previous_root_in_any_order(
    records, wanted, rng
):
    """REPO-63, REPO-65, REPO-66: relay order, its reverse, and shuffled."""
    before, after, changes, editor = apply(records, wanted)
    proof = covering_proof(after, changes, editor)
    blocks = BlockMap({cid: node.block for cid, node in (proof | editor.created).items()})
    shuffled = list(changes)
    rng.shuffle(shuffled)
    for order in (relay_order(changes), relay_order(changes)[::-1], shuffled):
        assert invert_changes(after, order, ForeignNodes(blocks)) == before


@given(SETS, CHANGES)
@settings(max_examples=50, deadline=None)
def test_the_proof_is_a_part_of_the_new_tree(records, wanted):
    """REPO-64: nothing of the previous tree travels along."""
    _before, after, changes, editor = apply(records, wanted)
    new = dict(records) | wanted
    _root, blocks = reference.build({key: value for key, value in new.items() if value})
    assert covering_proof(after, changes, editor).keys() <= blocks.keys()


def test_the_proof_does_not_grow_with_the_repo():
    records = {b"com.example.record/%d" % number: VALUES[0] for number in range(3000)}
    rng = random.Random(1)
    for _ in range(20):
        key = rng.choice(list(records))
        _before, after, changes, editor = apply(records, {key: None})
        assert len(covering_proof(after, changes, editor)) <= 12


@pytest.mark.parametrize("number", range(6))
def test_proofs_of_the_interop_fixtures(number):
    """REPO-65: exactly the published set."""
    text = (interop_dir() / "firehose" / "commit-proof-fixtures.json").read_text()
    case = json.loads(text)[number]
    value = parse_cid(case["leafValue"])
    wanted = {key.encode(): value for key in case["adds"]}
    wanted |= {key.encode(): None for key in case["dels"]}
    before, after, changes, editor = apply({key.encode(): value for key in case["keys"]}, wanted)
    assert str(before) == case["rootBeforeCommit"]
    assert str(after) == case["rootAfterCommit"]
    proof = covering_proof(after, changes, editor) | editor.created
    assert sorted(map(str, proof)) == sorted(case["blocksInProof"])


def test_inversion_notices_operations_that_do_not_match_the_tree():
    """REPO-66."""
    key, other = BY_DEPTH[1][:2]
    root, nodes = built({key: VALUES[0]})
    with pytest.raises(InvalidTree):
        invert_changes(root, [(key, None, VALUES[1])], nodes)
    with pytest.raises(InvalidTree):
        invert_changes(root, [(key, VALUES[2], VALUES[1])], nodes)
    with pytest.raises(InvalidTree):
        invert_changes(root, [(other, None, None)], nodes)
    with pytest.raises(KeyExists):
        invert_changes(root, [(key, VALUES[0], None)], nodes)
    assert invert_changes(root, [(key, None, VALUES[0])], nodes) == EMPTY_NODE.cid


@given(SETS, st.sampled_from(KEYS))
@settings(max_examples=60, deadline=None)
def test_a_record_proof_shows_existence_and_absence(records, key):
    """REPO-50, REPO-51."""
    root, nodes = built(records)
    path = path_nodes(root, key, nodes)
    proof = {node.cid: node.block for node in path}
    assert check_path(root, key, ForeignNodes(BlockMap(proof))) == records.get(key)
    for cid in proof:
        partial = {other: block for other, block in proof.items() if other != cid}
        with pytest.raises(MissingBlock):
            check_path(root, key, ForeignNodes(BlockMap(partial)))
    last = path[-1]
    damaged = proof | {last.cid: last.block[:-1] + b"\xf5"}
    with pytest.raises(InvalidNode):
        check_path(root, key, ForeignNodes(BlockMap(damaged)))
