"""Planning and finishing commits, and what a strict relay says to them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol import cbor
from pds.protocol.car import encode_car, read_car
from pds.protocol.cid import Cid
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.frames import (
    MAX_COMMIT_CAR_BYTES,
    RepoOp,
    decode_frame,
    encode_commit_frame,
)
from pds.protocol.keys import make_signer
from pds.protocol.mst.node import EMPTY_NODE, MAX_ENTRIES, decode_node
from pds.protocol.mst.tree import MissingBlock, TreeLimit, build_tree
from pds.protocol.repo import (
    CommitTooLarge,
    Head,
    RecordExists,
    RecordMissing,
    SwapMismatch,
    Write,
    empty_repo,
    finish_commit,
    plan_writes,
    restate,
)
from pds.protocol.repo_verify import verify_commit_event
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from tests.protocol.mst import reference
from tests.protocol.mst.reference import Nodes

DID = Did("did:plc:abcdefghijklmnopqrstuvwx")
SIGNER = make_signer("k256", bytes(31) + b"\x07")
PATHS = [key.decode() for keys in reference.keys_by_depth(3, 8).values() for key in keys]


def record(number: int, *, size: int = 0) -> bytes:
    return cbor.encode({"$type": "com.example.record", "n": number, "fill": "x" * size})


def put(path: str, number: int, action="put", **options) -> Write:
    block = record(number)
    return Write(action, path, Cid.of_data(block), block, **options)


def delete(path: str, **options) -> Write:
    return Write("delete", path, **options)


class Repo:
    """A repo kept the way the store keeps it: by the sets that the plans name."""

    def __init__(self):
        self.nodes = Nodes()
        self.records = {}
        self.clock = 0
        self.head: Head | None = None
        self.frames = []
        self.keep(empty_repo(DID, self.rev()))

    def rev(self):
        self.clock += 1
        return encode_tid(1_700_000_000_000_000 + self.clock, 1)

    def plan(self, *writes):
        return plan_writes(self.head, writes, self.nodes, did=DID, rev=self.rev())

    def keep(self, plan):
        finished = finish_commit(plan, SIGNER)
        for cid in plan.removed_nodes:
            del self.nodes[cid]
        for cid, block in plan.new_nodes.items():
            assert cid not in self.nodes
            self.nodes[cid] = decode_node(cid, block)
        for op in plan.ops:
            if op.cid is None:
                del self.records[op.path]
            else:
                self.records[op.path] = op.cid
        self.head = finished.head
        self.frames.append(frame(finished, seq=self.clock))
        return finished

    def write(self, *writes):
        return self.keep(self.plan(*writes))


def frame(finished, seq=1, **changes):
    plan = finished.plan
    fields = {
        "seq": seq,
        "at_us": 1_700_000_000_000_000,
        "did": plan.did,
        "commit": finished.signed.cid,
        "rev": plan.rev,
        "since": plan.since,
        "blocks": finished.car,
        "ops": plan.ops,
        "prev_data": plan.prev_data,
    }
    return encode_commit_frame(**(fields | changes))


def verify(content: bytes, previous: Head | None) -> Head:
    return verify_commit_event(decode_frame(content).payload, SIGNER.public_key, previous=previous)


WRITES = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from([None, 0, 1, 2])), min_size=1, max_size=12
)


@given(st.lists(WRITES, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_random_batches_keep_the_tree_of_the_definition_and_pass_the_relay(batches):
    """REPO-30, REPO-60..REPO-70: one chain, each link verified from its own blocks."""
    repo = Repo()
    for batch in batches:
        wanted = dict(repo.records)
        writes = []
        for path, number in batch:
            if number is None and path in wanted:
                del wanted[path]
                writes.append(delete(path))
            elif number is not None:
                writes.append(put(path, number))
                wanted[path] = writes[-1].cid
        plan = repo.plan(*writes)
        assert plan.is_empty == (wanted == repo.records)
        if plan.is_empty:
            continue
        repo.keep(plan)
        assert repo.records == wanted
        root, blocks = reference.build({path.encode(): cid for path, cid in wanted.items()})
        assert (repo.head.data, repo.nodes.keys()) == (root, blocks.keys())
    previous = None
    for content in repo.frames:
        previous = verify(content, previous)
    assert previous == repo.head


def test_the_first_commit_is_the_empty_tree():
    """REPO-24, REPO-70."""
    finished = finish_commit(empty_repo(DID, encode_tid(1, 1)), SIGNER)
    plan = finished.plan
    assert (plan.since, plan.prev_data, plan.data, plan.ops) == (None, None, EMPTY_NODE.cid, ())
    roots, blocks = read_car(finished.car)
    assert roots == (finished.signed.cid,)
    assert blocks.keys() == {finished.signed.cid, EMPTY_NODE.cid}
    commit = decode_commit(finished.signed.block)
    assert verify_commit(commit, SIGNER.public_key)
    assert verify(frame(finished), None) == finished.head


def test_a_first_commit_may_hold_records():
    plan = plan_writes(None, [put(PATHS[0], 1)], Nodes(), did=DID, rev=encode_tid(1, 1))
    finished = finish_commit(plan, SIGNER)
    assert (plan.since, plan.removed_nodes, len(plan.new_nodes)) == (None, frozenset(), 1)
    assert verify(frame(finished), None).data == plan.data


def test_a_batch_is_brought_to_its_net_effect():
    """REPO-68, REPO-69."""
    repo = Repo()
    repo.write(put(PATHS[0], 0), put(PATHS[1], 0))
    plan = repo.plan(
        put(PATHS[0], 1),
        put(PATHS[0], 2),
        delete(PATHS[1]),
        put(PATHS[1], 0, "create"),
        put(PATHS[2], 1, "create"),
        delete(PATHS[2]),
        put(PATHS[3], 1, "create"),
        put(PATHS[3], 2, "update"),
    )
    new = Cid.of_data(record(2))
    assert plan.ops == (
        RepoOp("update", PATHS[0], new, Cid.of_data(record(0))),
        RepoOp("create", PATHS[3], new, None),
    )
    assert plan.record_blocks == {new: record(2)}


def test_no_operation_at_all_makes_no_commit():
    """REPO-68."""
    repo = Repo()
    repo.write(put(PATHS[0], 0))
    assert repo.plan(put(PATHS[0], 0)).is_empty
    assert repo.plan().is_empty
    assert not empty_repo(DID, repo.rev()).is_empty


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (put(PATHS[0], 1, "create"), RecordExists),
        (put(PATHS[1], 1, "update"), RecordMissing),
        (delete(PATHS[1]), RecordMissing),
        (put(PATHS[0], 1, swap=None), SwapMismatch),
        (put(PATHS[0], 1, swap=Cid.of_data(record(5))), SwapMismatch),
        (put(PATHS[1], 1, swap=Cid.of_data(record(5))), SwapMismatch),
        (delete(PATHS[0], swap=Cid.of_data(record(5))), SwapMismatch),
    ],
)
def test_a_write_that_does_not_fit_is_refused_by_name(write, error):
    """XRPC-95."""
    repo = Repo()
    repo.write(put(PATHS[0], 0))
    with pytest.raises(error) as refused:
        repo.plan(put(PATHS[2], 1), write)
    assert refused.value.path == write.path
    assert repo.head.data == repo.plan().data


def test_swaps_that_fit_pass():
    repo = Repo()
    repo.write(put(PATHS[0], 0, swap=None))
    current = Cid.of_data(record(0))
    plan = repo.plan(put(PATHS[0], 1, swap=current), delete(PATHS[0], swap=Cid.of_data(record(1))))
    assert [op.action for op in plan.ops] == ["delete"]


@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_nodes_that_were_not_there_before_are_new_and_all_travel(seed):
    """REPO-61, REPO-64: held against both trees built from scratch."""
    rng = random.Random(seed)
    repo = Repo()
    for _ in range(10):
        paths = rng.sample(PATHS, 6)
        held = [path for path in paths[:3] if path in repo.records]
        before = dict(repo.records)
        finished = repo.write(
            *(put(path, rng.randrange(10_000)) for path in paths[3:]), *map(delete, held)
        )
        old = reference.build({path.encode(): cid for path, cid in before.items()})[1]
        new = reference.build({path.encode(): cid for path, cid in repo.records.items()})[1]
        assert finished.plan.new_nodes.keys() == new.keys() - old.keys()
        assert finished.plan.removed_nodes == old.keys() - new.keys()
        sent = read_car(finished.car)[1]
        assert new.keys() - old.keys() <= sent.keys()
        assert not sent.keys() & (old.keys() - new.keys())
        assert not sent.keys() & (set(before.values()) - set(repo.records.values()))


def test_a_record_block_always_travels_with_its_operation():
    """REPO-62: also when another record has the same bytes."""
    repo = Repo()
    repo.write(put(PATHS[0], 0))
    finished = repo.write(put(PATHS[1], 0), delete(PATHS[0]))
    assert Cid.of_data(record(0)) in read_car(finished.car)[1]


def test_a_deleted_record_does_not_travel():
    """REPO-64."""
    repo = Repo()
    repo.write(put(PATHS[0], 0), put(PATHS[1], 1))
    finished = repo.write(delete(PATHS[0]))
    assert Cid.of_data(record(0)) not in read_car(finished.car)[1]


def test_a_commit_that_no_relay_accepts_is_never_finished():
    """REPO-80, REPO-81."""
    repo = Repo()

    def large(number, size):
        block = record(number, size=size)
        return Write("create", f"com.example.record/{number}", Cid.of_data(block), block)

    with pytest.raises(CommitTooLarge):
        finish_commit(repo.plan(large(1, 1_000_001)), SIGNER)
    with pytest.raises(CommitTooLarge):
        finish_commit(repo.plan(*(large(number, 690_000) for number in range(3))), SIGNER)
    tight = [large(number, 666_470) for number in range(3)]
    assert sum(len(write.block) for write in tight) < MAX_COMMIT_CAR_BYTES
    with pytest.raises(CommitTooLarge):
        finish_commit(repo.plan(*tight), SIGNER)
    with pytest.raises(CommitTooLarge):
        finish_commit(repo.plan(*(large(number, 0) for number in range(201))), SIGNER)
    finish_commit(repo.plan(*(large(number, 0) for number in range(200))), SIGNER)


def test_mined_keys_cannot_make_a_node_grow_over_the_cap():
    """REPO-29."""
    keys = reference.keys_by_depth(0, MAX_ENTRIES + 1)[0]
    records = {key: Cid.of_data(b"x") for key in keys[:-1]}
    nodes = Nodes(build_tree(sorted(records.items())))
    head = Head(DID, Cid.of_data(b"commit"), encode_tid(1, 1), list(nodes)[-1])
    with pytest.raises(TreeLimit):
        plan_writes(head, [put(keys[-1].decode(), 1)], nodes, did=DID, rev=encode_tid(2, 1))


def test_a_restated_head_has_a_new_rev_and_the_same_tree():
    """REPO-4, REPO-7."""
    repo = Repo()
    repo.write(put(PATHS[0], 0))
    before = repo.head
    finished = finish_commit(restate(before, repo.nodes, rev=repo.rev()), SIGNER)
    assert finished.head.data == before.data
    assert verify(frame(finished), before) == finished.head


def rewritten(content: bytes, **changes) -> dict:
    payload = dict(decode_frame(content).payload)
    for name, value in changes.items():
        if value is ...:
            del payload[name]
        else:
            payload[name] = value
    return payload


def test_the_relay_refuses_every_wrong_event():
    """SYNC-30, REPO-5, REPO-6, REPO-66, REPO-67, REPO-70."""
    repo = Repo()
    repo.write(put(PATHS[0], 0), put(PATHS[1], 0), put(PATHS[9], 0))
    before = repo.head
    finished = repo.write(put(PATHS[2], 0), put(PATHS[0], 1), delete(PATHS[9]))
    good = repo.frames[-1]
    key = SIGNER.public_key
    verify_commit_event(rewritten(good), key, previous=before)
    ops = decode_frame(good).payload["ops"]
    roots, blocks = read_car(finished.car)
    other = Cid.of_data(b"other")

    def without(cid):
        return encode_car(roots, [(c, b) for c, b in blocks.items() if c != cid])

    def op(at, **changes):
        changed = [dict(item) for item in ops]
        for name, value in changes.items():
            if value is ...:
                changed[at].pop(name, None)
            else:
                changed[at][name] = value
        return changed

    bad = [
        {"blocks": ...},
        {"blocks": b""},
        {"blocks": bytes(MAX_COMMIT_CAR_BYTES + 1)},
        {"commit": other},
        {"commit": "x"},
        {"tooBig": True},
        {"rebase": True},
        {"rebase": ...},
        {"blobs": ...},
        {"blobs": [other]},
        {"repo": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"rev": before.rev},
        {"since": ...},
        {"since": None},
        {"since": finished.plan.rev},
        {"prevData": ...},
        {"prevData": other},
        {"ops": ...},
        {"ops": ops[:-1]},
        {"ops": [*ops, ops[0]]},
        {"ops": [*ops, 1]},
        {"ops": op(0, cid=other)},
        {"ops": op(0, prev=None)},
        {"ops": op(0, prev=other)},
        {"ops": op(0, path="no-collection")},
        {"ops": op(1, prev=other)},
        {"ops": op(1, prev=...)},
        {"ops": op(1, prev=ops[1]["cid"])},
        {"ops": op(2, cid=other)},
        {"ops": op(2, cid=...)},
        {"ops": op(2, prev=...)},
        {"ops": op(0, action="move")},
        {"blocks": without(Cid.of_data(record(1)))},
        {"blocks": without(finished.signed.cid)},
        {"blocks": without(finished.plan.data)},
    ]
    for changes in bad:
        with pytest.raises(ValueError):
            verify_commit_event(rewritten(good, **changes), key, previous=before)
    with pytest.raises(ValueError, match="signature"):
        verify_commit_event(rewritten(good), make_signer("k256", b"\x01" * 32).public_key)
    with pytest.raises(ValueError, match="future"):
        verify_commit_event(rewritten(good), key, max_rev=before.rev)
    with pytest.raises(ValueError, match="continue"):
        verify_commit_event(rewritten(good), key, previous=repo.head)


def test_every_proof_node_is_needed_or_new():
    """REPO-63: a proof with a new node missing is noticed."""
    repo = Repo()
    repo.write(*(put(path, 0) for path in PATHS))
    before = repo.head
    finished = repo.write(delete(PATHS[-1]))
    roots, blocks = read_car(finished.car)
    for cid in finished.plan.new_nodes:
        fewer = encode_car(roots, [(c, b) for c, b in blocks.items() if c != cid])
        with pytest.raises(MissingBlock):
            verify_commit_event(
                rewritten(repo.frames[-1], blocks=fewer), SIGNER.public_key, previous=before
            )
