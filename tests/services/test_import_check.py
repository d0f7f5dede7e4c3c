"""Judging a repo that somebody wants to import: the good comes out in rows, the bad is refused."""

import os
import sys
import tempfile
from dataclasses import replace

import pytest

from pds.errors import Unavailable
from pds.protocol import cbor
from pds.protocol.car import encode_car, encode_car_header, encode_varint
from pds.protocol.cid import Cid
from pds.protocol.commit import sign_commit
from pds.protocol.keys import make_signer
from pds.protocol.mst.node import EMPTY_NODE, MAX_ENTRIES, key_depth, make_node
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from pds.services.import_check import (
    CheckJob,
    InvalidImport,
    RowBatch,
    check_import,
    read_batches,
)
from pds.services.import_process import check_apart
from tests.support_repo import make_repo

ALICE = "did:plc:aliceaaaaaaaaaaaaaaaaaaa"
BOB = "did:plc:bobbbbbbbbbbbbbbbbbbbbbb"
SIGNER = make_signer("k256", bytes(31) + b"\x07")
STRANGER = make_signer("p256", bytes(31) + b"\x08")
REV = encode_tid(1_700_000_000_000_000, 1)
LATER = encode_tid(1_700_000_000_000_001, 1)
POST = "app.bsky.feed.post"
BLOB = Cid.of_raw(b"a picture")
OLD_BLOB = Cid.of_raw(b"an old picture")


def post(number: int, **more: object) -> dict[str, object]:
    return {"$type": POST, "text": f"number {number}", **more}


RECORDS = {
    **{f"{POST}/{number:04}": post(number) for number in range(300)},
    f"{POST}/with-blob": post(
        1, embed={"$type": "blob", "ref": BLOB, "mimeType": "image/png", "size": 9}
    ),
    f"{POST}/old-blob": post(1, image={"cid": str(OLD_BLOB), "mimeType": "image/png"}),
    "app.bsky.feed.like/1": {"$type": "app.bsky.feed.like", "subject": {"uri": f"at://{BOB}/a/b"}},
    "app.bsky.graph.follow/1": {"$type": "app.bsky.graph.follow", "subject": BOB},
    "app.bsky.graph.follow/2": {"$type": "app.bsky.graph.follow", "subject": "\0" * 5},
    "app.bsky.graph.follow/3": {"$type": "app.bsky.graph.follow", "subject": 7},
}
REPO = make_repo(ALICE, SIGNER, RECORDS, rev=REV)


def job_of(car: bytes, *more: bytes, **changes: object) -> tuple[CheckJob, list[int]]:
    files = []
    for content in (car, *more, b""):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            files.append(os.dup(file.fileno()))
    os.lseek(files[-1], 0, os.SEEK_SET)
    job = CheckJob(
        did=ALICE,
        keys=(STRANGER.public_key.did_key, SIGNER.public_key.did_key),
        max_rev=REV,
        sources=tuple(files[:-1]),
        output=files[-1],
        max_blocks=10_000,
        max_bytes=10_000_000,
    )
    return replace(job, **changes), files  # type: ignore[arg-type]


def check(car: bytes, *more: bytes, **changes: object):
    """Check a CAR; return the outcome and all rows in one batch."""
    job, files = job_of(car, *more, **changes)
    try:
        checked = check_import(job)
        return checked, rows_of(job.output)
    finally:
        for file in files:
            os.close(file)


def rows_of(descriptor: int) -> RowBatch:
    total = RowBatch()
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        for batch in read_batches(stream):
            total.nodes += batch.nodes
            total.records += batch.records
            total.blob_refs += batch.blob_refs
            total.backlinks += batch.backlinks
    return total


def refusal(car: bytes, *more: bytes, **changes: object) -> InvalidImport:
    with pytest.raises(InvalidImport) as info:
        check(car, *more, **changes)
    return info.value


def tree_car(*nodes, more: tuple[bytes, ...] = ()) -> bytes:
    """A CAR whose commit has the first of `nodes` as its root."""
    signed = sign_commit(SIGNER, did=Did(ALICE), data=nodes[0].cid, rev=REV)
    blocks = [(signed.cid, signed.block), *((node.cid, node.block) for node in nodes)]
    return encode_car((signed.cid,), [*blocks, *((Cid.of_data(block), block) for block in more)])


@pytest.mark.parametrize("order", [None, lambda item: item[0]], ids=["streamable", "by hash"])
def test_a_good_repo_comes_out_in_rows_whatever_the_order(order) -> None:
    """(REPO-42, REPO-92)"""
    checked, rows = check(REPO.car(order=order))
    assert (checked.rev, checked.data, checked.key) == (
        REV,
        REPO.data,
        SIGNER.public_key.did_key,
    )
    assert checked.records == len(RECORDS) == len(rows.records)
    assert {path: cid for path, cid, _ in rows.records} == REPO.records
    assert all(REPO.blocks[cid] == block for _, cid, block in rows.records)
    assert (
        len(rows.nodes) == checked.nodes == len(REPO.blocks) - 1 - len(set(REPO.records.values()))
    )
    assert all(REPO.blocks[cid] == block for cid, block in rows.nodes)


def test_references_take_no_more_room_than_records_may() -> None:
    """ACC-53: one record under many keys refers to everything many times, and each is a row."""
    blobs = [Cid.of_raw(bytes([number])) for number in range(200)]
    refs = [{"$type": "blob", "ref": cid, "mimeType": "a/b", "size": 1} for cid in blobs]
    records = {f"{POST}/{number:0500}": post(0, refs=refs) for number in range(50)}
    car = make_repo(ALICE, SIGNER, records, rev=REV).car()
    _, rows = check(car, max_bytes=10_000_000)
    assert len(rows.blob_refs) == 50 * 200
    assert "refers to more than the limit" in str(refusal(car, max_bytes=2_000_000))


def test_what_records_refer_to_comes_out() -> None:
    """(DM-41, DM-42, XRPC-86, XRPC-95)"""
    _, rows = check(REPO.car())
    assert set(rows.blob_refs) == {(BLOB, f"{POST}/with-blob"), (OLD_BLOB, f"{POST}/old-blob")}
    assert set(rows.backlinks) == {
        ("app.bsky.feed.like", f"at://{BOB}/a/b", "app.bsky.feed.like/1"),
        ("app.bsky.graph.follow", BOB, "app.bsky.graph.follow/1"),
    }


def test_the_empty_repo_is_one() -> None:
    checked, rows = check(make_repo(ALICE, SIGNER, {}, rev=REV).car())
    assert (checked.records, checked.nodes) == (0, 1)
    assert rows.nodes == [(EMPTY_NODE.cid, EMPTY_NODE.block)]


def test_blocks_that_the_commit_does_not_reach_are_left_out() -> None:
    """(REPO-90)"""
    stray = cbor.encode({"$type": POST, "text": "of somebody else"})
    other = make_repo(BOB, STRANGER, {f"{POST}/x": post(1)}, rev=REV)
    blocks = [(Cid.of_data(stray), stray), *other.blocks.items(), *REPO.blocks.items()]
    checked, rows = check(encode_car((REPO.root,), [*blocks, *blocks]))
    assert checked.records == len(RECORDS)
    assert {path for path, _, _ in rows.records} == set(RECORDS)


def test_missing_blocks_may_come_from_what_is_here_already() -> None:
    """(REPO-92, ACC-55)"""
    newer = make_repo(ALICE, SIGNER, {**RECORDS, f"{POST}/zzz": post(999)}, rev=REV)
    partial = newer.car(without=REPO.blocks)
    assert len(partial) < len(newer.car()) / 10
    assert refusal(partial).is_incomplete
    checked, rows = check(partial, REPO.car())
    assert checked.data == newer.data
    assert {path: cid for path, cid, _ in rows.records} == newer.records


def test_another_accounts_repo_is_refused() -> None:
    """(REPO-92)"""
    text = str(refusal(make_repo(BOB, SIGNER, RECORDS, rev=REV).car()))
    assert "another account" in text


def test_an_unknown_signature_is_refused() -> None:
    assert "not signed" in str(refusal(REPO.car(), keys=(STRANGER.public_key.did_key,)))
    assert "not signed" in str(refusal(REPO.car(), keys=()))
    odd = ("did:key:zNonsense", SIGNER.public_key.did_key)
    assert check(REPO.car(), keys=odd)[0].records == len(RECORDS)


def test_a_rev_from_the_future_is_refused() -> None:
    """(REPO-6)"""
    future = make_repo(ALICE, SIGNER, RECORDS, rev=LATER)
    assert "future" in str(refusal(future.car()))


@pytest.mark.parametrize("which", ["commit", "root", "node", "record"])
def test_one_missing_block_is_enough_to_refuse(which: str) -> None:
    nodes = [cid for cid in REPO.blocks if cid not in REPO.records.values() and cid != REPO.root]
    missing = {
        "commit": REPO.root,
        "root": REPO.data,
        "node": nodes[-1],
        "record": REPO.records[f"{POST}/0150"],
    }[which]
    error = refusal(REPO.car(without=[missing]))
    assert error.is_incomplete
    assert str(missing) in str(error)


def test_a_block_that_is_not_what_its_cid_says_is_refused() -> None:
    for cid in (REPO.root, REPO.data, REPO.records[f"{POST}/0000"]):
        blocks = {**REPO.blocks, cid: b"\xa0"}
        error = refusal(encode_car((REPO.root,), blocks.items()))
        assert "does not match" in str(error)
        assert not error.is_incomplete


def test_a_cycle_cannot_be_followed() -> None:
    """A node can name itself only under a false hash."""
    key = _key_of_depth(1)
    first = make_node([key], [Cid.of_data(b"\xa0")], [None, None])
    looped = make_node([key], [Cid.of_data(b"\xa0")], [first.cid, None])
    signed = sign_commit(SIGNER, did=Did(ALICE), data=first.cid, rev=REV)
    blocks = [(signed.cid, signed.block), (first.cid, looped.block)]
    assert "does not match" in str(refusal(encode_car((signed.cid,), blocks)))


def test_the_same_subtree_at_two_places_is_refused() -> None:
    """What a few blocks unfold to stays bounded: each key may come once."""
    low = _keys_of_depth(0, 1)[0]
    record = cbor.encode(post(1))
    cid = Cid.of_data(record)
    leaf = make_node([low], [cid], [None, None])
    highs = _keys_of_depth(1, 2)
    assert low < highs[0]
    root = make_node(highs, [cid, cid], [leaf.cid, None, leaf.cid])
    assert "comes twice" in str(refusal(tree_car(root, leaf, more=(record,))))
    inner = make_node([highs[0]], [cid], [leaf.cid, None])
    top = _keys_of_depth(2, 1)
    other = make_node([highs[1]], [cid], [leaf.cid, None])
    root = make_node(top, [cid], [inner.cid, other.cid])
    assert "order" in str(refusal(tree_car(root, inner, leaf, other, more=(record,))))


def test_a_tree_that_is_too_wide_is_refused() -> None:
    """(REPO-29)"""
    record = cbor.encode(post(1))
    keys = _keys_of_depth(0, MAX_ENTRIES + 1)
    cids = [Cid.of_data(record)] * len(keys)
    good = make_node(keys[:-1], cids[:-1], [None] * len(keys))
    assert check(tree_car(good, more=(record,)))[0].records == MAX_ENTRIES
    wide = make_node(keys, cids, [None] * (len(keys) + 1))
    assert "too many entries" in str(refusal(tree_car(wide, more=(record,))))


def test_a_tree_that_is_too_deep_is_refused() -> None:
    """(REPO-29)"""
    depth = max(key_depth(path.encode()) for path in RECORDS)
    assert check(REPO.car(), max_depth=depth)
    assert "too deep" in str(refusal(REPO.car(), max_depth=depth - 1))


def test_keys_out_of_order_or_twice_are_refused() -> None:
    record = cbor.encode(post(1))
    cid = Cid.of_data(record)
    first, second = _keys_of_depth(0, 2)
    for keys in ([second, first], [first, first]):
        node = make_node(keys, [cid, cid], [None, None, None])
        assert "order" in str(refusal(tree_car(node, more=(record,))))


def test_keys_at_the_wrong_depth_are_refused() -> None:
    record = cbor.encode(post(1))
    cid = Cid.of_data(record)
    keys = sorted([_key_of_depth(0), _key_of_depth(1)])
    node = make_node(keys, [cid, cid], [None, None, None])
    assert "depth" in str(refusal(tree_car(node, more=(record,))))


@pytest.mark.parametrize("path", ["no-slash", "a/b", f"{POST}/..", f"{POST}/a/b", f"{POST}/a b"])
def test_paths_that_are_none_are_refused(path: str) -> None:
    """(REPO-12)"""
    assert refusal(make_repo(ALICE, SIGNER, {path: post(1)}, rev=REV).car())


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (cbor.encode([1, 2]), "not a map"),
        (bytes.fromhex("a161611800"), "canonical"),
        (bytes.fromhex("a16161fb3ff8000000000000"), "canonical"),
        (bytes.fromhex("a16161") + b"\x81" * 40 + b"\x00", "canonical"),
        (bytes.fromhex("a16161") + b"\x9a\x00\x98\x96\x80", "canonical"),
        (bytes.fromhex("a16161") + b"\x9a\x00\x01\xff\xff" + b"\x80" * 131_071, "canonical"),
        (cbor.encode({"text": "x" * 1_000_000}), "too large"),
    ],
    ids=["list", "long number", "float", "nesting", "claims ten million", "containers", "size"],
)
def test_records_outside_of_the_data_model_are_refused(block: bytes, reason: str) -> None:
    """(DM-1, DM-13, ACC-53)"""
    assert reason in str(refusal(make_repo(ALICE, SIGNER, {f"{POST}/a": block}, rev=REV).car()))


@pytest.mark.parametrize(
    "block",
    [
        b"\xa2\x61e\x9a\x00\x98\x96\x80",
        b"\xa2\x61e\x9b" + b"\xff" * 8,
        b"\xa2\x61e\x99\xff\xff" + EMPTY_NODE.block,
        b"",
        b"\xa0",
        EMPTY_NODE.block + b"\x00",
    ],
)
def test_nodes_that_lie_about_their_size_are_refused(block: bytes) -> None:
    cid = Cid.of_data(block)
    signed = sign_commit(SIGNER, did=Did(ALICE), data=cid, rev=REV)
    assert refusal(encode_car((signed.cid,), [(signed.cid, signed.block), (cid, block)]))


def test_more_blocks_than_the_limit_are_refused() -> None:
    """Ten million entries end the same way, at the limit."""
    assert "too many blocks" in str(refusal(REPO.car(), max_blocks=len(REPO.blocks) - 1))
    assert check(REPO.car(), max_blocks=len(REPO.blocks))


def test_one_large_record_under_many_keys_is_bounded() -> None:
    block = cbor.encode({"$type": POST, "text": "x" * 900_000})
    repo = make_repo(ALICE, SIGNER, {f"{POST}/{n:03}": block for n in range(40)}, rev=REV)
    car = repo.car()
    assert len(car) < 1_000_000
    assert "limit" in str(refusal(car))
    assert check(car, max_bytes=40_000_000)[0].records == 40


@pytest.mark.parametrize("size", [0, 1, 30, 58, 100, 10_000, -1])
def test_a_truncated_car_is_refused(size: int) -> None:
    assert "ends in the middle" in str(refusal(REPO.car()[:size]))


def test_headers_that_lie_are_refused() -> None:
    content = REPO.car()[len(encode_car_header((REPO.root,))) :]
    two_roots = encode_car_header((REPO.root, REPO.data))
    unknown_root = encode_car_header((BLOB,))
    no_root = encode_car_header(())
    version = cbor.encode({"roots": [REPO.root], "version": 2})
    assert "one root" in str(refusal(two_roots + content))
    assert "one root" in str(refusal(no_root + content))
    assert refusal(unknown_root + content).is_incomplete
    assert "version" in str(refusal(encode_varint(len(version)) + version + content))
    assert "too large" in str(refusal(encode_varint(1 << 40) + content))
    assert "too many bytes" in str(refusal(b"\xff" * 20 + content))
    assert "shortest" in str(refusal(b"\x80\x00" + content))
    assert refusal(b"\x00" + content)
    long_entry = encode_car_header((REPO.root,)) + encode_varint(3_000_000) + bytes(3_000_000)
    assert "too large" in str(refusal(long_entry))
    no_cid = encode_car_header((REPO.root,)) + encode_varint(10) + bytes(10)
    assert "without a CID" in str(refusal(no_cid))


async def test_a_process_of_its_own_finds_the_same() -> None:
    """(promise B5)"""
    for car in (REPO.car(), REPO.car(without=[REPO.data])):
        job, files = job_of(car)
        try:
            try:
                expected: object = check_import(job)
            except InvalidImport as error:
                expected = (str(error), error.is_incomplete)
            os.ftruncate(job.output, 0)
            os.lseek(job.output, 0, os.SEEK_SET)
            try:
                found: object = await check_apart(job)
                assert {path for path, _, _ in rows_of(job.output).records} == set(RECORDS)
            except InvalidImport as error:
                found = (str(error), error.is_incomplete)
            assert found == expected
        finally:
            for file in files:
                os.close(file)


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false", "/bin/echo"])
async def test_a_process_that_fails_is_no_refusal(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    job, files = job_of(REPO.car())
    try:
        with pytest.raises(Unavailable):
            await check_apart(job)
    finally:
        for file in files:
            os.close(file)


async def test_a_full_disk_is_no_refusal() -> None:
    job, files = job_of(REPO.car())
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(Unavailable, match="No space left"):
            await check_apart(replace(job, output=full))
    finally:
        for file in (*files, full):
            os.close(file)


async def test_a_check_without_end_is_ended() -> None:
    job, files = job_of(REPO.car())
    try:
        with pytest.raises(InvalidImport, match="too long"):
            await check_apart(job, time_limit_s=0.0)
    finally:
        for file in files:
            os.close(file)


def _key_of_depth(depth: int) -> bytes:
    return _keys_of_depth(depth, 1)[0]


def _keys_of_depth(depth: int, count: int) -> list[bytes]:
    """The first `count` record paths of a depth, sorted."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = f"{POST}/{number:06}".encode()
        if key_depth(key) == depth:
            found.append(key)
        number += 1
    return found
