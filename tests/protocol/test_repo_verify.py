"""Checking a whole foreign repo: everything valid passes, every kind of damage is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.errors import ProtocolError
from pds.protocol import cbor
from pds.protocol.car import CarReader, encode_car
from pds.protocol.cid import Cid, decode_cid
from pds.protocol.commit import InvalidCommit, sign_commit
from pds.protocol.keys import make_signer
from pds.protocol.mst.node import Node
from pds.protocol.mst.proof import path_nodes
from pds.protocol.mst.tree import MissingBlock, build_tree, walk_preorder
from pds.protocol.repo_verify import (
    BlockMap,
    InvalidRepo,
    RepoLimits,
    StreamedBlocks,
    check_record_block,
    verify_record_proof,
    verify_repo,
)
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from tests.protocol.mst import reference
from tests.protocol.mst.reference import Nodes

DID = Did("did:plc:abcdefghijklmnopqrstuvwx")
OTHER = Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
REV = encode_tid(1_700_000_000_000_000, 1)
SIGNER = make_signer("p256", bytes(31) + b"\x07")
STRANGER = make_signer("p256", bytes(31) + b"\x08")
PATHS = [key.decode() for keys in reference.keys_by_depth(3, 10).values() for key in keys]


def record(number: int) -> bytes:
    return cbor.encode({"$type": "com.example.record", "n": number})


def make_repo(records: dict[str, bytes], *, did=DID, signer=SIGNER, rev=REV):
    """Return the commit's CID and all blocks in streamable order."""
    cids = {path.encode(): Cid.of_data(block) for path, block in records.items()}
    nodes = Nodes(build_tree(sorted(cids.items())))
    root = list(nodes)[-1]
    signed = sign_commit(signer, did=did, data=root, rev=rev)
    blocks = [(signed.cid, signed.block)]
    for item in walk_preorder(root, nodes):
        if isinstance(item, Node):
            blocks.append((item.cid, item.block))
        else:
            blocks.append((item[1], records[item[0].decode()]))
    return signed.cid, blocks


FULL = {path: record(number) for number, path in enumerate(PATHS)}


@given(st.dictionaries(st.sampled_from(PATHS), st.integers(0, 3).map(record), max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_valid_repo_comes_out_whole_and_in_streamable_order(records):
    """REPO-28, REPO-43."""
    root, blocks = make_repo(records)
    verified = list(
        verify_repo(root, BlockMap(dict(blocks)), did=DID, key=SIGNER.public_key, max_rev=REV)
    )
    assert [(item.cid, item.block) for item in verified] == blocks
    assert {item.path: item.block for item in verified if item.kind == "record"} == records
    assert verified[0].kind == "commit"


def test_a_streamed_car_is_verified_without_keeping_it():
    """REPO-43, REPO-93."""
    root, blocks = make_repo(FULL)
    content = encode_car((root,), blocks)
    reader = CarReader()

    def stream():
        for at in range(0, len(content), 100):
            yield from reader.feed(content[at : at + 100])

    source = StreamedBlocks(stream(), max_waiting_bytes=0)
    assert len(list(verify_repo(root, source))) == len(blocks)


def test_another_order_is_streamed_only_within_the_allowance():
    root, blocks = make_repo(FULL)
    backwards = list(reversed(blocks))
    assert len(list(verify_repo(root, StreamedBlocks(backwards)))) == len(blocks)
    with pytest.raises(InvalidRepo, match="streamable"):
        list(verify_repo(root, StreamedBlocks(backwards, max_waiting_bytes=1000)))
    with pytest.raises(MissingBlock):
        list(verify_repo(root, StreamedBlocks(blocks[:-1])))


def test_blocks_that_the_commit_does_not_reach_are_never_asked_for():
    """REPO-90."""
    root, blocks = make_repo({PATHS[0]: record(0)})
    extra = {Cid.of_data(record(99)): record(99)}
    verified = list(verify_repo(root, BlockMap(dict(blocks) | extra)))
    assert [item.cid for item in verified] == [cid for cid, _block in blocks]


@pytest.mark.parametrize("at", range(len(make_repo(FULL)[1])))
def test_every_block_is_needed_and_every_block_is_checked(at):
    """REPO-28, REPO-42."""
    root, blocks = make_repo(FULL)
    cid, block = blocks[at]
    fewer = {other: content for other, content in blocks if other != cid}
    with pytest.raises(MissingBlock):
        list(verify_repo(root, BlockMap(fewer)))
    damaged = bytearray(block)
    damaged[len(block) // 2] ^= 0x10
    with pytest.raises(ProtocolError):
        list(verify_repo(root, BlockMap(fewer | {cid: bytes(damaged)})))


@pytest.mark.parametrize(
    ("checks", "word"),
    [
        ({"did": OTHER}, "another account"),
        ({"key": STRANGER.public_key}, "signature"),
        ({"max_rev": encode_tid(1_600_000_000_000_000, 1)}, "future"),
        ({"limits": RepoLimits(max_blocks=5)}, "larger"),
        ({"limits": RepoLimits(max_bytes=2000)}, "larger"),
    ],
)
def test_a_repo_that_does_not_fit_the_account_or_the_limits_is_refused(checks, word):
    """REPO-29, REPO-92, REPO-6."""
    root, blocks = make_repo(FULL)
    with pytest.raises(InvalidRepo, match=word):
        list(verify_repo(root, BlockMap(dict(blocks)), **checks))


def test_a_root_that_is_not_a_commit_is_refused():
    """REPO-5."""
    block = record(1)
    with pytest.raises(InvalidCommit):
        list(verify_repo(Cid.of_data(block), BlockMap({Cid.of_data(block): block})))


@pytest.mark.parametrize("path", ["nocollection", "a/b/c", "com.example.record/", "not an nsid/a"])
def test_a_path_that_is_not_a_record_path_is_refused(path):
    """REPO-10."""
    root, blocks = make_repo({path: record(1)})
    with pytest.raises(ProtocolError):
        list(verify_repo(root, BlockMap(dict(blocks))))


@pytest.mark.parametrize(
    "block",
    [
        cbor.encode([1]),
        b"\xbf\xff",
        b"",
        cbor.encode({"fill": "x" * 1_000_000}),
        cbor.encode({}) + b"\x00",
        b"\xa1\x61a\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00",
    ],
    ids=["not a map", "indefinite", "nothing", "too large", "trailing", "float"],
)
def test_a_block_that_is_not_a_record_is_refused(block):
    """REPO-92, DM-1, DM-11."""
    with pytest.raises(InvalidRepo):
        check_record_block(Cid.of_data(block), block)


def test_a_record_whose_hash_cannot_be_checked_is_refused():
    """DM-31: links are kept as they are, but nothing unverified is stored."""
    sha_512 = decode_cid(bytes([1, 0x71, 0x13, 64]) + bytes(64))
    with pytest.raises(InvalidRepo):
        check_record_block(sha_512, record(1))
    assert check_record_block(Cid.of_raw(record(1)), record(1))["n"] == 1


@pytest.mark.parametrize("path", PATHS[::7])
def test_a_record_proof_verifies_with_only_its_own_blocks(path):
    """REPO-50, REPO-51."""
    records = {other: block for other, block in FULL.items() if other != PATHS[7]}
    root, blocks = make_repo(records)
    everything = dict(blocks)
    cids = {key.encode(): Cid.of_data(block) for key, block in records.items()}
    nodes = Nodes(build_tree(sorted(cids.items())))
    proof = {root: everything[root]}
    for node in path_nodes(list(nodes)[-1], path.encode(), nodes):
        proof[node.cid] = node.block
    if path in records:
        proof[cids[path.encode()]] = records[path]
    key = SIGNER.public_key
    assert verify_record_proof(root, proof, path, did=DID, key=key) == records.get(path)
    for cid in proof:
        fewer = {other: block for other, block in proof.items() if other != cid}
        with pytest.raises(MissingBlock):
            verify_record_proof(root, fewer, path, did=DID, key=key)
