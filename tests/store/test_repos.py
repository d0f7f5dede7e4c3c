"""Rows of repos: heads, nodes, generations and their deletion."""

from pathlib import Path

import pytest

from pds.protocol import cbor
from pds.protocol.cid import Cid
from pds.protocol.data import BlobRef
from pds.protocol.mst.node import EMPTY_NODE
from pds.protocol.mst.tree import MissingBlock, build_tree
from pds.protocol.repo import Head
from pds.protocol.syntax import Did, Handle
from pds.protocol.tid import encode_tid
from pds.store.accounts import AccountStatus, insert_account
from pds.store.blobs import claim_blobs, insert_upload
from pds.store.records import (
    Backlink,
    find_backlinks,
    find_record_block,
    get_record,
    insert_backlinks,
    list_collections,
    measure_page,
    measure_records,
    page_records,
    upsert_records,
)
from pds.store.repos import (
    PATH_NODES,
    StoredNodes,
    delete_garbage,
    delete_nodes,
    discard_repo,
    find_account_repo,
    get_account_repo,
    insert_nodes,
    insert_repo,
    list_account_repos,
    list_garbage,
    list_nodes,
    read_nodes,
    swap_repo,
    update_head,
)
from tests.services.account_host import SettableClock, open_engine

DID = Did("did:plc:aliceaaaaaaaaaaaaaaaaaaa")
REV = encode_tid(1_760_000_000_000_000, 1)
LATER = encode_tid(1_760_000_000_000_001, 1)
HEAD = Head(DID, Cid.of_data(b"commit"), REV, EMPTY_NODE.cid)


@pytest.fixture
async def engine(tmp_path: Path):
    async with open_engine(tmp_path, SettableClock()) as engine:
        yield engine


def add_account(txn, did=DID, handle="alice.test") -> int:
    return insert_account(
        txn, did=did, handle=Handle(handle), email=None, password_hash=None, now_us=1
    )


def add_generation(txn, aid: int, count: int) -> int:
    """Insert a generation with `count` records, their tree, and a backlink each."""
    repo_id = insert_repo(txn, aid, HEAD, b"block", now_us=1, record_count=count)
    blocks = [cbor.encode({"n": number}) for number in range(count)]
    records = [(f"com.example.r/{at:05}", Cid.of_data(b), b) for at, b in enumerate(blocks)]
    upsert_records(txn, repo_id, REV, records)
    nodes = build_tree((path.encode(), cid) for path, cid, _block in records)
    insert_nodes(txn, repo_id, REV, {node.cid: node.block for node in nodes})
    insert_backlinks(txn, repo_id, [Backlink("com.example.r", "x", path) for path, _, _ in records])
    return repo_id


async def test_an_account_is_read_together_with_its_live_repo(engine):
    def job(txn):
        aid = add_account(txn)
        assert get_account_repo(txn, aid).repo is None
        assert list_account_repos(txn, after_aid=0, limit=5) == []
        repo_id = insert_repo(txn, aid, HEAD, b"block", now_us=1)
        swap_repo(txn, aid, repo_id, now_us=1)
        for found in (
            get_account_repo(txn, aid),
            find_account_repo(txn, DID),
            find_account_repo(txn, "alice.test"),
            list_account_repos(txn, after_aid=0, limit=5)[0],
        ):
            assert (found.aid, found.did, found.handle) == (aid, DID, "alice.test")
            assert (found.repo.repo_id, found.repo.head) == (repo_id, HEAD)
            assert found.status is AccountStatus.ACTIVE
        assert find_account_repo(txn, "other.test") is None
        assert list_account_repos(txn, after_aid=aid, limit=5) == []
        new = Head(DID, Cid.of_data(b"new"), LATER, Cid.of_data(b"data"))
        update_head(txn, repo_id, new, b"new", more_records=3, more_nodes=2, now_us=2)
        update_head(txn, repo_id, new, b"new", more_records=-1, more_nodes=-1, now_us=2)
        repo = get_account_repo(txn, aid).repo
        assert (repo.head, repo.commit_block) == (new, b"new")
        assert (repo.record_count, repo.node_count) == (2, 1)

    await engine.transact("test", job)


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ("deactivated_at = 1", AccountStatus.DEACTIVATED),
        ("deactivated_at = 1, suspended_at = 1", AccountStatus.SUSPENDED),
        ("deactivated_at = 1, suspended_at = 1, takedown_ref = 'x'", AccountStatus.TAKENDOWN),
    ],
)
async def test_the_status_is_derived_in_order_of_precedence(engine, columns, status):
    """SYNC-83, ACC-3."""

    def job(txn):
        aid = add_account(txn)
        txn.write(f"UPDATE account SET {columns} WHERE aid = ?", (aid,))
        return get_account_repo(txn, aid)

    found = await engine.transact("test", job)
    assert (found.status, found.is_active) == (status, False)


async def test_nodes_are_read_one_by_one_and_in_batches(engine):
    def job(txn):
        blocks = {Cid.of_data(b"%d" % n): b"%d" % n for n in range(100)}
        insert_nodes(txn, 1, REV, blocks)
        insert_nodes(txn, 2, LATER, {Cid.of_data(b"0"): b"0"})
        cids = list(blocks)
        for count in (0, 1, 32, 33, 100):
            expected = {cid: (REV, blocks[cid]) for cid in cids[:count]}
            assert read_nodes(txn, 1, cids[:count]) == expected
        assert read_nodes(txn, 2, cids) == {cids[0]: (LATER, b"0")}
        assert StoredNodes(txn, 1).get(cids[5]) == b"5"
        delete_nodes(txn, 1, cids[:99])
        with pytest.raises(MissingBlock):
            StoredNodes(txn, 1).get(cids[5])
        assert len(read_nodes(txn, 1, cids)) == 1

    await engine.transact("test", job)


@pytest.mark.parametrize("count", [0, 1, 2, PATH_NODES, PATH_NODES + 1])
async def test_any_number_of_nodes_is_stored_and_deleted(engine, count):
    def job(txn):
        blocks = {Cid.of_data(b"%d" % n): b"%d" % n for n in range(count)}
        other = {Cid.of_data(b"other"): b"other"}
        insert_nodes(txn, 1, REV, other)
        insert_nodes(txn, 2, REV, blocks)
        insert_nodes(txn, 1, REV, blocks)
        assert list_nodes(txn, 1) == {bytes(cid): block for cid, block in (other | blocks).items()}
        delete_nodes(txn, 1, blocks.keys())
        assert list_nodes(txn, 1) == {bytes(cid): block for cid, block in other.items()}
        assert list_nodes(txn, 2) == {bytes(cid): block for cid, block in blocks.items()}

    await engine.transact("test", job)


async def test_a_new_generation_replaces_the_old_one_which_goes_in_small_steps(engine):
    def build(txn):
        aid = add_account(txn)
        old, new = add_generation(txn, aid, 300), add_generation(txn, aid, 20)
        unfinished = add_generation(txn, aid, 5)
        swap_repo(txn, aid, old, now_us=1)
        assert list_garbage(txn) == []
        swap_repo(txn, aid, new, now_us=2)
        swap_repo(txn, aid, new, now_us=3)
        discard_repo(txn, unfinished, now_us=4)
        discard_repo(txn, unfinished, now_us=5)
        return aid, old, new, unfinished

    aid, old, new, unfinished = await engine.transact("test", build)
    assert await engine.read("test", list_garbage) == [old, unfinished]

    def step(txn, repo_id):
        before = count(txn, repo_id)
        done = delete_garbage(txn, repo_id, max_rows=100)
        assert before - count(txn, repo_id) <= 100
        return done

    steps = 1
    while not await engine.transact("test", step, old, bulk=True):
        steps += 1
    assert 6 <= steps <= 9
    while not await engine.transact("test", step, unfinished, bulk=True):
        pass

    def check(txn):
        assert list_garbage(txn) == []
        assert count(txn, old) == count(txn, unfinished) == 0
        assert get_account_repo(txn, aid).repo.repo_id == new
        assert txn.read("SELECT repo_id FROM repo") == [(new,)]
        assert txn.read_one("SELECT count(*) FROM record WHERE repo_id = ?", (new,)) == (20,)

    await engine.read("test", check)


def count(txn, repo_id: int) -> int:
    return sum(
        txn.read_one(f"SELECT count(*) FROM {table} WHERE repo_id = ?", (repo_id,))[0]
        for table in ("record", "node", "backlink", "blob_ref")
    )


async def test_blobs_of_a_deleted_generation_go_with_it(engine):
    """XRPC-85."""
    blobs = [Cid.of_raw(b"%d" % number) for number in range(3)]

    def job(txn):
        aid = add_account(txn)
        old, new = add_generation(txn, aid, 0), add_generation(txn, aid, 0)
        for number, cid in enumerate(blobs):
            insert_upload(txn, aid, cid=cid, mime_type="a/b", size=1, now_us=1)
            claim_blobs(
                txn, aid, old, f"a.b.c/{number}", [BlobRef(cid, "a/b", 1)], now_us=1, rev=REV
            )
        claim_blobs(txn, aid, new, "a.b.c/kept", [BlobRef(blobs[0], "a/b", 1)], now_us=1, rev=REV)
        swap_repo(txn, aid, old, now_us=1)
        swap_repo(txn, aid, new, now_us=2)
        assert not delete_garbage(txn, old, max_rows=2)
        assert delete_garbage(txn, old, max_rows=50)
        assert txn.read("SELECT cid FROM blob") == [(blobs[0],)]
        assert {row[0] for row in txn.read("SELECT cid FROM blob_garbage")} == set(blobs[1:])
        assert count(txn, old) == 0

    await engine.transact("test", job)


async def test_records_are_scanned_in_path_order_within_bounds(engine):
    def job(txn):
        repo_id = add_generation(txn, 1, 30)
        add_generation(txn, 1, 30)
        sizes = measure_records(txn, repo_id, after="com.example.r/00009", limit=5)
        assert [path[-2:] for path, _size in sizes] == ["10", "11", "12", "13", "14"]
        page = page_records(txn, repo_id, after="com.example.r/00009", last=sizes[-1][0])
        assert [len(block) for _cid, block in page] == [size for _path, size in sizes]
        assert [cid for cid, _block in page] == [Cid.of_data(block) for _cid, block in page]
        measured = measure_page(txn, repo_id, after="com.example.r/00009", limit=5)
        assert measured == (sizes[-1][0], sum(size for _path, size in sizes))
        assert measure_page(txn, repo_id, after="z", limit=5) == (None, 0)
        block = cbor.encode({"n": 7})
        assert find_record_block(txn, repo_id, Cid.of_data(block)) == block
        assert find_record_block(txn, repo_id, Cid.of_data(b"x")) is None
        assert get_record(txn, repo_id, "com.example.r/00007").block == block
        assert len(find_backlinks(txn, repo_id, "com.example.r", "x", limit=99)) == 30
        assert find_backlinks(txn, repo_id, "com.example.r", "y", limit=99) == []

    await engine.transact("test", job)


async def test_collections_that_share_a_beginning_are_told_apart(engine):
    names = ["a.b.c", "a.b.c-d.e", "a.b.c.d", "a.b.cc", "z.y.x"]

    def job(txn):
        for name in names:
            upsert_records(txn, 1, REV, [(f"{name}/{n}", HEAD.commit, b"") for n in range(3)])
        return list_collections(txn, 1)

    assert sorted(await engine.transact("test", job)) == sorted(names)
