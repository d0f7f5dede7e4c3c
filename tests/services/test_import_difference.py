"""What is new of a repo, imported at the cost of what is new: the same rows as a whole import.

Spec: (REPO-28, REPO-29, REPO-45, REPO-90, REPO-92, ACC-53, ACC-54)
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pds.errors import RequestError, Unavailable
from pds.protocol import cbor
from pds.protocol.car import encode_car
from pds.protocol.cid import Cid
from pds.protocol.commit import sign_commit
from pds.protocol.mst.node import Node, decode_node, key_depth, make_node
from pds.services import import_difference
from pds.services.import_difference import (
    DIFFERENCE,
    SMALL_DIFFERENCE,
    DifferenceLimits,
    NoDifference,
    read_difference,
)
from tests.services.life_host import life_host
from tests.services.test_repo_import import (
    LIKE,
    OLD,
    PICTURE,
    POST,
    RECORDS,
    STRANGER,
    Moving,
    like,
    pieces,
    post,
    texts,
)
from tests.support_repo import ForeignRepo

FOLLOW = "app.bsky.graph.follow"


@pytest.fixture
async def moving(tmp_path: Path) -> AsyncIterator[Moving]:
    """An account that has taken in `RECORDS`, by one whole import."""
    async with life_host(tmp_path) as host:
        moving = Moving(host, tmp_path, await host.open("alice", is_active=False))
        await moving.take(moving.repo().car())
        await host.collect_garbage()
        host.clock.advance(600)
        yield moving


async def held(moving: Moving) -> dict[Cid, bytes]:
    repo_id = (await moving.live()).repo.repo_id
    found = await moving.host.rows_of("SELECT cid, bytes FROM node WHERE repo_id = ?", repo_id)
    return {Cid(cid): block for cid, block in found}


def difference(new: ForeignRepo, old: ForeignRepo) -> bytes:
    return new.car(without=[cid for cid in old.blocks if cid != new.root])


async def content_of(moving: Moving) -> dict[str, Any]:
    """All rows of the live repo, without what is another each time."""
    repo_id = (await moving.live()).repo.repo_id
    found = {
        table: sorted(
            await moving.host.rows_of(f"SELECT {columns} FROM {table} WHERE repo_id = ?", repo_id)
        )
        for table, columns in (
            ("record", "path, cid, bytes"),
            ("node", "cid, bytes"),
            ("blob_ref", "path, cid"),
            ("backlink", "collection, subject, path"),
            ("repo", "data_cid, record_count, node_count"),
        )
    }
    assert found["repo"][0][1:] == (len(found["record"]), len(found["node"]))
    return found


async def test_what_is_new_costs_no_second_look_at_the_rest(moving: Moving) -> None:
    """(REPO-45, REPO-92, ACC-41)"""
    old = moving.repo()
    records = {
        **RECORDS,
        f"{POST}/new": post(5),
        f"{POST}/0001": post(6),
        f"{LIKE}/1": like("at://did:web:b.test/app.bsky.feed.post/2"),
        f"{LIKE}/2": like("at://did:web:a.test/app.bsky.feed.post/1"),
    }
    for number in range(300, 340):
        del records[f"{POST}/{number:04}"]
    newer = moving.repo(records, ago_s=30)
    before, heard = await moving.live(), len(moving.host.heard)
    await moving.take(difference(newer, old))
    live = await moving.live()
    assert await moving.verify() == texts(newer)
    assert moving.checks.count == 1
    assert live.repo.repo_id == before.repo.repo_id
    assert live.repo.head.rev > max(newer.rev, before.repo.head.rev)
    assert len(moving.host.heard) == heard
    assert moving.imports.files.used_bytes == 0
    # A reader that asks since the rev before is told what has changed, and no more.
    async with moving.host.exports.repo(
        moving.account.did, since=before.repo.head.rev, principal=moving.principal
    ) as chunks:
        told = b"".join([chunk async for chunk in chunks])
    assert len(told) < len(await moving.export()) / 2
    after = await moving.rows()
    await moving.take(difference(newer, old))
    assert await moving.rows() == after
    moving.host.clock.advance(5)
    again = moving.repo(records, ago_s=1)
    await moving.take(difference(again, newer))
    assert (await moving.live()).repo.head.rev > live.repo.head.rev
    assert moving.checks.count == 1


async def test_blobs_follow_the_records(moving: Moving) -> None:
    """(XRPC-85, XRPC-86): one stays, one moves, one goes, one is not here yet."""

    def with_blob(content: bytes, number: int = 1) -> dict[str, Any]:
        ref = Cid.of_raw(content)
        blob = {"$type": "blob", "ref": ref, "mimeType": "image/png", "size": len(content)}
        return post(number, embed=blob)

    aid = moving.account.aid
    moves, goes = b"\x89PNG it moves", b"\x89PNG it goes"
    first = moving.repo(
        {**RECORDS, f"{POST}/a": with_blob(moves), f"{POST}/b": with_blob(goes)}, ago_s=500
    )
    await moving.take(difference(first, moving.repo()))
    for content in (PICTURE, moves, goes):
        await moving.blobs.upload(aid, pieces(content), declared_type="image/png")
    records = {**RECORDS, f"{POST}/picture": with_blob(PICTURE, 2)}
    records |= {f"{POST}/b": with_blob(moves), f"{POST}/c": with_blob(b"not here")}
    await moving.take(difference(moving.repo(records, ago_s=400), first))
    moving.host.clock.advance(2 * 86_400)
    await moving.blobs.collect()
    kept = await moving.host.rows_of("SELECT cid FROM blob WHERE aid = ?", aid)
    assert {Cid(row[0]) for row in kept} == {Cid.of_raw(PICTURE), Cid.of_raw(moves)}
    missing, _ = await moving.blobs.list_missing(aid)
    assert [blob.cid for _, blob in missing] == [Cid.of_raw(b"not here")]
    assert moving.checks.count == 1


async def test_a_record_that_is_here_under_another_key_need_not_be_sent(moving: Moving) -> None:
    newer = moving.repo({**RECORDS, f"{POST}/copy": post(7)}, ago_s=30)
    await moving.take(difference(newer, moving.repo()))
    assert await moving.verify() == texts(newer)
    assert moving.checks.count == 1


async def test_a_subtree_alone_is_a_tree_like_any_other(moving: Moving) -> None:
    """Most of the repo is gone, and nothing but the commit is sent."""
    nodes = {cid: decode_node(cid, block) for cid, block in (await held(moving)).items()}
    root = nodes[(await moving.live()).repo.head.data]
    part = next(cid for cid in root.children if cid is not None and nodes[cid].keys)
    signed = sign_commit(OLD, did=moving.account.did, data=part, rev=moving.repo(ago_s=30).rev)
    await moving.take(encode_car((signed.cid,), [(signed.cid, signed.block)]))
    found = await moving.verify()
    assert 0 < len(found) < len(RECORDS)
    assert (await moving.live()).repo.head.data == part


NUMBERS = st.integers(0, 400)
VALUES = st.integers(0, 3)
CHANGES = st.lists(
    st.dictionaries(NUMBERS, st.none() | VALUES, max_size=40), min_size=1, max_size=4
)


def record_of(number: int, value: int) -> tuple[str, Any]:
    """A record; some kinds leave traces beside the record itself."""
    match number % 7:
        case 0:
            return f"{LIKE}/{number}", like(f"at://did:web:a.test/app.bsky.feed.post/{value}")
        case 1:
            return f"{FOLLOW}/{number}", {"$type": FOLLOW, "subject": f"did:web:b{value}.test"}
        case 2:
            blob = {"$type": "blob", "ref": Cid.of_raw(bytes([value])), "mimeType": "a/b"}
            return f"{POST}/{number}", post(value, embed={**blob, "size": 1})
        case _:
            return f"{POST}/{number}", post(value)


def records_of(numbers: Mapping[int, int]) -> dict[str, Any]:
    return dict(record_of(number, value) for number, value in numbers.items())


class Twins:
    """One account that catches up again and again, and one that takes the end result whole."""

    def __init__(self, host: Any, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.count = 0

    async def open(self) -> Moving:
        self.count += 1
        name = f"twin{self.count}"
        return Moving(self.host, self.folder, await self.host.open(name, is_active=False))

    async def compare(self, first: dict[int, int], changes: list[dict[int, int | None]]) -> None:
        follower, newcomer = await self.open(), await self.open()
        numbers = dict(first)
        old = follower.repo(records_of(numbers))
        await follower.take(old.car())
        was_empty = False  # Of nothing there is no difference.
        for batch in changes:
            was_empty = was_empty or not numbers
            for number, value in batch.items():
                if value is None:
                    numbers.pop(number, None)
                else:
                    numbers[number] = value
            self.host.clock.advance(1)
            new = follower.repo(records_of(numbers))
            await follower.take(difference(new, old))
            old = new
        assert was_empty or follower.checks.count == 1
        await newcomer.take(newcomer.repo(records_of(numbers)).car())
        assert await content_of(follower) == await content_of(newcomer)
        assert await follower.verify() == texts(old)


def test_many_differences_make_the_same_repo_as_one_whole_import(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        host = runner.run(stack.enter_async_context(life_host(tmp_path)))
        twins = Twins(host, tmp_path)

        @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(NUMBERS, VALUES, min_size=1, max_size=80), CHANGES)
        def compare(first: dict[int, int], changes: list[dict[int, int | None]]) -> None:
            runner.run(twins.compare(first, changes))

        try:
            compare()
            runner.run(twins.compare({0: 0}, [{0: None}, {}, {1: 1}]))
            rng = random.Random(7)
            large = {number: rng.randrange(4) for number in range(3000)}
            batches: list[dict[int, int | None]] = [
                {rng.randrange(4000): rng.choice([None, 1, 5, 6]) for _ in range(250)}
                for _ in range(3)
            ]
            runner.run(twins.compare(large, batches))
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("name", [field.name for field in fields(DifferenceLimits)])
async def test_what_is_over_a_limit_is_imported_whole(
    moving: Moving, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is over the limit of small ones is a larger one first."""
    if name not in ("blocks", "ref_bytes"):  # These are the same for both.
        tight = replace(SMALL_DIFFERENCE, **{name: 1})
        monkeypatch.setattr(import_difference, "SMALL_DIFFERENCE", tight)
    picture = RECORDS[f"{POST}/picture"]["embed"]
    records = {
        **RECORDS,
        f"{POST}/new": post(5, embed=picture),
        f"{LIKE}/2": like("at://did:web:a.test/app.bsky.feed.post/9"),
    }
    newer = moving.repo(records, ago_s=30)
    await moving.take(difference(newer, moving.repo()))
    assert await moving.verify() == texts(newer)
    assert moving.checks.count == 1
    for size in ("SMALL_DIFFERENCE", "DIFFERENCE"):
        limits = getattr(import_difference, size)
        monkeypatch.setattr(import_difference, size, replace(limits, **{name: 1}))
    newest = moving.repo(
        records | {f"{POST}/a": post(7, embed=picture), f"{POST}/b": post(8)}, ago_s=10
    )
    await moving.take(difference(newest, newer))
    assert await moving.verify() == texts(newest)
    assert moving.checks.count > 1


async def test_a_larger_difference_is_judged_in_another_process(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    engine = moving.host.engine
    stream = engine.stream

    async def watched(*args: Any, apart: bool = False) -> None:
        asked.append(apart)
        await stream(*args, apart=apart)

    monkeypatch.setattr(engine, "stream", watched)
    text = "x" * 2000
    records = {**RECORDS, **{f"{POST}/n{number}": post(number, more=text) for number in range(100)}}
    newer = moving.repo(records, ago_s=30)
    await moving.take(difference(newer, moving.repo()))
    assert asked == [True]
    assert moving.checks.count == 1
    assert await moving.verify() == texts(newer)
    assert DIFFERENCE.car_bytes > SMALL_DIFFERENCE.car_bytes


def signed_car(moving: Moving, root: Node | Cid, *more: tuple[Cid, bytes]) -> bytes:
    """A CAR with a good commit of whatever tree, and these blocks."""
    data = root if isinstance(root, Cid) else root.cid
    blocks = [] if isinstance(root, Cid) else [(root.cid, root.block)]
    signed = sign_commit(OLD, did=moving.account.did, data=data, rev=moving.repo(ago_s=30).rev)
    return encode_car((signed.cid,), [(signed.cid, signed.block), *blocks, *more])


async def refused(moving: Moving, car: bytes) -> str:
    """Check that it is refused, and by the whole check: a difference refuses nothing."""
    count = moving.checks.count
    error = await moving.refused(car)
    assert moving.checks.count > count
    return error.message


def blocks_of(*nodes: Node) -> list[tuple[Cid, bytes]]:
    return [(node.cid, node.block) for node in nodes]


async def test_held_subtrees_in_places_that_are_not_theirs_are_refused(moving: Moving) -> None:
    """(REPO-28)"""
    nodes = {cid: decode_node(cid, block) for cid, block in (await held(moving)).items()}
    root = nodes[(await moving.live()).repo.head.data]
    places = [at for at, child in enumerate(root.children) if child is not None]
    one, other = places[:2]

    def with_children(changes: dict[int, Cid | None]) -> Node:
        children = [changes.get(at, child) for at, child in enumerate(root.children)]
        return make_node(root.keys, root.values, children)

    swapped = with_children({one: root.children[other], other: root.children[one]})
    assert "order" in await refused(moving, signed_car(moving, swapped))
    # The same subtree once more, below another node.
    parent = nodes[root.children[other]]
    inner = next(child for child in nodes[root.children[one]].children if child is not None)
    doubled = make_node(parent.keys, parent.values, [inner, *parent.children[1:]])
    above = with_children({other: doubled.cid})
    await refused(moving, signed_car(moving, above, *blocks_of(doubled)))
    # One level too high, one too low, and the whole tree below itself.
    grandchild = with_children({one: inner})
    await refused(moving, signed_car(moving, grandchild))
    wrapped = make_node((), (), (root.cid,))
    await refused(moving, signed_car(moving, wrapped))
    tail = make_node((b"app.bsky.feed.post/~",), (root.values[0],), (root.cid, None))
    await refused(moving, signed_car(moving, tail))
    deep: Node = make_node((b"app.bsky.feed.post/~",), (root.values[0],), (None, None))
    chain = [deep]
    for _ in range(5):
        deep = make_node((), (), (deep.cid,))
        chain.append(deep)
    await refused(moving, signed_car(moving, chain[-1], *blocks_of(*chain[:-1])))


async def test_trees_that_are_not_in_the_one_form_are_refused(moving: Moving) -> None:
    """(REPO-21, REPO-28): what would sort right, but is not how a tree is made."""
    key = next(
        f"{POST}/z{number}".encode()
        for number in range(1000)
        if key_depth(f"{POST}/z{number}".encode()) == 0
    )
    nodes = {cid: decode_node(cid, block) for cid, block in (await held(moving)).items()}
    root = nodes[(await moving.live()).repo.head.data]
    high = make_node((*root.keys, key), (*root.values, root.values[0]), (*root.children, None))
    assert "depth" in await refused(moving, signed_car(moving, high))
    empty = make_node((), (), (None,))
    at = root.children.index(None) if None in root.children else 0
    hollow = make_node(
        root.keys,
        root.values,
        [empty.cid if place == at else child for place, child in enumerate(root.children)],
    )
    await refused(moving, signed_car(moving, hollow, *blocks_of(empty)))


async def test_one_subtree_at_very_many_places_is_given_up_soon(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(REPO-29): 120 nodes that a walk would meet 2^60 times."""
    value = next(iter(moving.repo().records.values()))
    left = make_node((b"app.bsky.feed.post/a",), (value,), (None, None))
    right = make_node((b"app.bsky.feed.post/b",), (value,), (None, None))
    made = [left, right]
    key = next(
        f"{POST}/m{number}".encode()
        for number in range(10**6)
        if key_depth(f"{POST}/m{number}".encode()) >= 6
    )
    for _ in range(60):
        above = make_node((key,), (value,), (left.cid, right.cid))
        beside = make_node((key,), (value,), (right.cid, left.cid))
        left, right = above, beside
        made += [left, right]
    engine, stream = moving.host.engine, moving.host.engine.stream
    told: list[str] = []

    async def watched(label: str, write: Any, *args: Any, **options: Any) -> None:
        content = bytearray()
        await stream(label, content.extend, *args, **options)
        if label == "repo.import_difference":
            with pytest.raises(NoDifference) as info:
                read_difference(bytes(content))
            told.append(str(info.value))
        write(bytes(content))

    monkeypatch.setattr(engine, "stream", watched)
    await refused(moving, signed_car(moving, left, *blocks_of(*made)))
    assert len(told) == 1
    assert "takes too long" in told[0] or "lowest" in told[0]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (cbor.encode([1]), "not a map"),
        (b"\xa1\x61a\x18\x01", "canonical"),
        (b"\xa1\x61a\xf9\x3c\x00", "canonical"),
        (cbor.encode({"$type": POST, "text": "x" * 1_000_001}), "too large"),
    ],
)
async def test_records_that_are_none_are_refused(moving: Moving, block: bytes, reason: str) -> None:
    """(REPO-92): by the same rules as in a whole repo."""
    newer = moving.repo({**RECORDS, f"{POST}/new": block}, ago_s=30)
    assert reason in await refused(moving, difference(newer, moving.repo()))


@pytest.mark.parametrize("path", ["no-slash", f"{POST}/", f"{POST}/a/b", f"{POST}/..", "a/b c"])
async def test_paths_that_are_none_are_refused(moving: Moving, path: str) -> None:
    newer = moving.repo({**RECORDS, path: post(1)}, ago_s=30)
    await refused(moving, difference(newer, moving.repo()))


async def test_anything_that_is_missing_or_wrong_is_refused(moving: Moving) -> None:
    """(REPO-5, REPO-6, REPO-90, ACC-53)"""
    old = moving.repo()
    newer = moving.repo({**RECORDS, f"{POST}/new": post(12345)}, ago_s=30)
    fresh = [cid for cid in newer.blocks if cid not in old.blocks]
    for gap in fresh:
        car = newer.car(without=[gap, *old.blocks])
        assert "missing" in await refused(moving, car)
        # The same with other bytes under that CID: a block that is not what it says is none.
        other = [(cid, b"\xa0" if cid == gap else newer.blocks[cid]) for cid in fresh]
        assert "does not match" in await refused(moving, encode_car((newer.root,), other))
    strangers = moving.repo({**RECORDS, f"{POST}/new": post(1)}, signer=STRANGER, ago_s=30)
    assert "not signed" in await refused(moving, difference(strangers, old))
    future = moving.repo({**RECORDS, f"{POST}/new": post(1)}, ago_s=-600)
    assert "future" in await refused(moving, difference(future, old))
    bobs = Moving(moving.host, moving.folder, await moving.host.open("bob", is_active=False))
    of_bob = bobs.repo({**RECORDS, f"{POST}/new": post(1)}, ago_s=30)
    assert "another account" in await refused(moving, difference(of_bob, old))
    assert "middle" in await refused(moving, difference(newer, old)[:-7])


async def test_an_account_that_changes_while_it_is_judged_keeps_what_it_has(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(ACC-52)"""
    newer = moving.repo({**RECORDS, f"{POST}/new": post(5)}, ago_s=30)
    engine, stream = moving.host.engine, moving.host.engine.stream

    async def slow(label: str, *args: Any, **options: Any) -> None:
        await stream(label, *args, **options)
        await moving.host.life.activate(moving.account.aid)

    monkeypatch.setattr(engine, "stream", slow)
    with pytest.raises(RequestError, match="changed"):
        await moving.take(difference(newer, moving.repo()))
    monkeypatch.undo()
    assert await moving.verify() == texts(moving.repo())


async def test_a_transaction_that_fails_leaves_nothing_and_may_be_tried_again(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(promise A8): after the last statement, too."""
    newer = moving.repo({**RECORDS, f"{POST}/new": post(5)}, ago_s=30)
    car = difference(newer, moving.repo())
    engine, transact = moving.host.engine, moving.host.engine.transact
    before = await moving.rows()

    async def failing(name: str, fn: Any, *args: Any, **options: Any) -> Any:
        def fail(txn: Any, *given: Any) -> None:
            fn(txn, *given)
            raise Unavailable("the disk is full")

        return await transact(name, fail, *args, **options)

    monkeypatch.setattr(engine, "transact", failing)
    with pytest.raises(Unavailable):
        await moving.take(car)
    monkeypatch.undo()
    assert await moving.rows() == before
    await moving.take(car)
    assert await moving.verify() == texts(newer)
