"""Exports: consistent, in streamable order, and never a burden on the database."""

import asyncio
import random
import tempfile
import threading
from pathlib import Path

import pytest

from pds.errors import Corrupt, RequestError
from pds.protocol.car import read_car
from pds.protocol.cid import Cid
from pds.protocol.repo_verify import StreamedBlocks, verify_record_proof, verify_repo
from pds.services.export_car import write_repo
from pds.services.principal import ADMIN
from pds.services.records_prepare import RecordWrite
from pds.services.repo_txn import emit_account
from pds.services.spool import ReaderGone, Spool, SpoolBudget, SpoolFull, SpoolSettings
from pds.store.accounts import AccountStatus
from tests.services.repo_host import ALICE, BOB, RepoHost, repo_host

THING = "com.example.thing"
UNKNOWN = "did:plc:unknownnnnnnnnnnnnnnnnnn"


@pytest.fixture
async def host(tmp_path: Path):
    async with repo_host(tmp_path) as host:
        await host.add_account()
        yield host


async def fill(host: RepoHost, count: int, *, size: int = 0, start: int = 0):
    for first in range(start, start + count, 100):
        host.clock.advance(1)
        batch = [
            RecordWrite("create", THING, f"{number:06}", {"n": number, "fill": "x" * size})
            for number in range(first, min(first + 100, start + count))
        ]
        result = await host.repos.write(host.aids[ALICE], batch)
    return result


async def collect(opened) -> bytes:
    async with opened as chunks:
        return b"".join([chunk async for chunk in chunks])


# --- whole repos ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 30, 1500])
async def test_an_export_verifies_while_it_streams(host, count):
    """REPO-43, REPO-44: a reader needs to keep nothing."""
    if count:
        await fill(host, count)
    content = await collect(host.exports.repo(ALICE))
    roots, blocks = read_car(content)
    source = StreamedBlocks(blocks.items(), max_waiting_bytes=0)
    verified = list(verify_repo(roots[0], source, did=ALICE, key=host.key()))
    assert sum(item.kind == "record" for item in verified) == count
    assert len(verified) == len(blocks)
    assert roots == ((await host.exports.head(ALICE))[0],)


async def test_an_export_is_one_consistent_commit_while_writes_go_on(host):
    """REPO-44."""
    await fill(host, 400)
    head, rev = await host.exports.head(ALICE)
    async with host.exports.repo(ALICE) as chunks:
        first = await anext(chunks)
        await fill(host, 50, start=400)
        content = first + b"".join([chunk async for chunk in chunks])
    roots, blocks = read_car(content)
    assert roots == (head,)
    assert sum(1 for _ in verify_repo(head, StreamedBlocks(blocks.items()))) == len(blocks)
    assert (await host.exports.head(ALICE))[1] > rev


async def test_records_with_the_same_content_are_all_there(host):
    writes = [RecordWrite("create", THING, str(number), {"same": 1}) for number in range(20)]
    await host.repos.write(host.aids[ALICE], writes)
    assert len(await host.verify_stored()) == 20


async def test_since_leaves_out_what_was_there_before(host):
    """REPO-45."""
    await fill(host, 300)
    _head, since = await host.exports.head(ALICE)
    _roots, before, _order = await host.export(ALICE)
    host.clock.advance(1)
    rng = random.Random(3)
    changed = {f"{rng.randrange(300):06}" for _ in range(5)}
    writes = [RecordWrite("put", THING, rkey, {"changed": rkey}) for rkey in changed]
    await host.repos.write(host.aids[ALICE], [*writes, RecordWrite("delete", THING, "000000")])
    roots, newer, order = await host.export(ALICE, since=since)
    _roots, after, _order = await host.export(ALICE)
    assert newer.keys() == after.keys() - before.keys()
    assert order[0] == roots[0]
    for rev in (host.frames()[0].payload["rev"], "2222222222222"):
        assert (await host.export(ALICE, since=rev))[1].keys() >= newer.keys()
    now = (await host.exports.head(ALICE))[1]
    for rev in (now, "jzzzzzzzzzzzz"):
        assert (await host.export(ALICE, since=rev))[1].keys() == {roots[0]}
    with pytest.raises(RequestError, match="since"):
        await host.export(ALICE, since="not a tid")


async def test_large_records_are_read_in_small_pages(host, monkeypatch):
    monkeypatch.setattr("pds.services.export_car._PAGE_BYTES", 5_000)
    await fill(host, 20, size=2_000)
    _roots, blocks, _order = await host.export()
    assert sum(len(block) > 2_000 for block in blocks.values()) == 20


async def test_an_answer_begins_before_the_tree_is_read(host):
    """The first bytes of a large repo must not wait for the rest."""
    await fill(host, 500)
    pieces: list[bytes] = []

    await host.engine.stream("test", pieces.append, write_repo, ALICE, None, None)
    roots, blocks = read_car(pieces[0])
    assert list(blocks) == list(roots)


@pytest.mark.parametrize("table", ["record", "node"])
async def test_a_damaged_repo_is_never_exported_as_whole(host, table):
    """Promise A7."""
    await fill(host, 200)
    rows = await host.rows(f"SELECT cid FROM {table}")
    victim = rows[len(rows) // 2][0]

    def damage(txn):
        txn.write(f"UPDATE {table} SET cid = ? WHERE cid = ?", (Cid.of_data(b"other"), victim))

    await host.engine.transact("test.damage", damage)
    with pytest.raises(Corrupt):
        await host.export(ALICE)


# --- availability -----------------------------------------------------------------------------


READS = {
    "repo": lambda host, who: collect(host.exports.repo(ALICE, principal=who)),
    "blocks": lambda host, who: collect(host.exports.blocks(ALICE, [], principal=who)),
    "record": lambda host, who: host.exports.record_proof(ALICE, THING, "x", principal=who),
    "head": lambda host, who: host.exports.head(ALICE, principal=who),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"takedown_ref": "ref", "deactivated_at": 1}, "RepoTakendown"),
        ({"suspended_at": 1}, "RepoSuspended"),
        ({"deactivated_at": 1}, "RepoDeactivated"),
    ],
)
async def test_hidden_repos_are_shown_to_owner_and_operator_only(host, read, columns, name):
    """SYNC-70, SYNC-80."""
    await host.add_account(BOB, "bob.test")
    await host.update_account(**columns)
    for stranger in (None, host.principal(BOB)):
        with pytest.raises(RequestError) as info:
            await read(host, stranger)
        assert (info.value.name, info.value.status) == (name, 400)
    assert await read(host, host.principal(ALICE))
    assert await read(host, ADMIN)


async def test_unknown_accounts_have_no_repo(host):
    """SYNC-70, SYNC-71."""
    for did in (UNKNOWN, "alice.test"):
        for read in (
            collect(host.exports.repo(did)),
            collect(host.exports.blocks(did, [])),
            host.exports.record_proof(did, THING, "x"),
            host.exports.head(did),
            host.exports.status(did),
        ):
            with pytest.raises(RequestError) as info:
                await read
            assert (info.value.name, info.value.status) == ("RepoNotFound", 400)


async def test_the_status_is_told_in_every_state(host):
    """SYNC-71."""
    rev = (await host.exports.head(ALICE))[1]
    found = await host.exports.status(ALICE)
    assert (found.active, found.status, found.rev) == (True, None, rev)
    await host.update_account(deactivated_at=1)
    found = await host.exports.status(ALICE)
    assert (found.active, found.status, found.rev) == (False, AccountStatus.DEACTIVATED, None)


async def test_the_status_is_ours_alone(host):
    """SYNC-81: neither the owner's consent nor what the DID document says comes into it."""
    host.documents.by_did.clear()
    await host.update_account(takedown_ref="case 1", deactivated_at=1)
    found = await host.exports.status(ALICE)
    assert (found.active, found.status) == (False, AccountStatus.TAKENDOWN)
    aid, hidden = host.aids[ALICE], ("takendown", False)
    await host.engine.transact(
        "test.announce",
        lambda txn: emit_account(txn, aid, ALICE, active=False, status=found.status.value),
    )
    announced = host.frames()[-1].payload
    assert (announced["status"], announced["active"]) == hidden


async def test_all_repos_are_listed_in_order_of_creation(host):
    """SYNC-72, SYNC-73."""
    dids = [ALICE, *(f"did:plc:{name * 24}" for name in "cba")]
    for number, did in enumerate(dids[1:]):
        await host.add_account(did, f"user{number}.test")
    await host.update_account(takedown_ref="ref")
    seen, cursor = [], None
    for _ in range(4):
        page, cursor = await host.exports.list_repos(limit=1, cursor=cursor)
        seen += page
    assert cursor is None
    assert [repo.did for repo in seen] == dids
    assert [repo.active for repo in seen] == [False, True, True, True]
    assert seen[0].status is AccountStatus.TAKENDOWN
    assert (seen[1].head, seen[1].rev) == await host.exports.head(dids[1])
    assert await host.exports.list_repos() == (seen, None)
    for bad in ("x", "-1", "1.5", "9" * 30, "\u0663"):
        with pytest.raises(RequestError, match="cursor"):
            await host.exports.list_repos(cursor=bad)


# --- proofs and blocks ------------------------------------------------------------------------


async def test_record_proofs_verify_for_records_and_gaps(host):
    """REPO-50, REPO-51."""
    await fill(host, 200)
    for rkey in ("000007", "000199", "missing", "000007x"):
        roots, blocks = read_car(await host.exports.record_proof(ALICE, THING, rkey))
        path = f"{THING}/{rkey}"
        found = verify_record_proof(roots[0], blocks, path, did=ALICE, key=host.key())
        assert (found is not None) == rkey.isdigit()
        assert len(blocks) < 12
    for collection, rkey in (("x", "a"), (THING, "a/b")):
        with pytest.raises(RequestError, match="InvalidRequest"):
            await host.exports.record_proof(ALICE, collection, rkey)


async def test_blocks_are_given_without_roots_or_not_at_all(host):
    """REPO-46."""
    await fill(host, 50)
    _roots, everything, order = await host.export(ALICE)
    wanted = [str(cid) for cid in (order[0], order[1], order[-1], order[0])]
    roots, blocks = read_car(await collect(host.exports.blocks(ALICE, wanted)))
    assert roots == ()
    assert blocks == {cid: everything[cid] for cid in (order[0], order[1], order[-1])}
    missing = str(Cid.of_data(b"missing"))
    with pytest.raises(RequestError) as info:
        await collect(host.exports.blocks(ALICE, [*wanted, missing]))
    assert (info.value.name, info.value.status) == ("BlockNotFound", 400)
    assert missing in info.value.message
    for bad in (["x"], wanted * 300):
        with pytest.raises(RequestError, match="InvalidRequest"):
            await collect(host.exports.blocks(ALICE, bad))


async def test_blocks_of_other_accounts_are_not_given(host):
    await host.add_account(BOB, "bob.test")
    await fill(host, 1)
    _roots, _blocks, order = await host.export(ALICE)
    with pytest.raises(RequestError, match="BlockNotFound"):
        await collect(host.exports.blocks(BOB, [str(order[-1])]))


# --- slow clients -----------------------------------------------------------------------------


async def test_a_stalled_client_holds_no_snapshot_and_little_memory(tmp_path):
    """What does not fit in memory waits in a file, and the reader has long ended."""
    folder = tmp_path / "spool"
    folder.mkdir()
    async with repo_host(tmp_path, memory_bytes=100_000, folder=folder) as host:
        await host.add_account()
        for start in range(0, 400, 100):
            await fill(host, 100, size=5000, start=start)
        async with host.exports.repo(ALICE) as chunks:
            content = await anext(chunks)
            while not host.exports.budget.used_bytes or host.engine.health().waiting_reads:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(60):
                while host.exports.budget.used_bytes <= 1_500_000:
                    await asyncio.sleep(0.01)
            assert await host.rows("SELECT count(*) FROM record") == [(400,)]
            content += b"".join([chunk async for chunk in chunks])
        assert host.exports.budget.used_bytes == 0
        roots, blocks = read_car(content)
        assert len(list(verify_repo(roots[0], StreamedBlocks(blocks.items())))) == len(blocks)
        assert not list(folder.iterdir())


async def test_a_client_that_leaves_frees_everything(tmp_path):
    """SYNC-74."""
    async with repo_host(tmp_path, memory_bytes=1000) as host:
        await host.add_account()
        await fill(host, 200, size=5000)
        for _ in range(5):
            async with host.exports.repo(ALICE) as chunks:
                await anext(chunks)
        assert host.exports.budget.used_bytes == 0
        assert len(await host.verify_stored()) == 200


async def test_a_client_that_takes_too_long_is_cut_off(tmp_path):
    async with repo_host(tmp_path, send_limit_s=0.2) as host:
        await host.add_account()
        with pytest.raises(ConnectionAbortedError):
            async with host.exports.repo(ALICE):
                await asyncio.Event().wait()


async def test_a_client_that_takes_nothing_is_cut_off_sooner(tmp_path):
    """A stalled client must not keep disk from others for the whole time limit."""
    async with repo_host(tmp_path, memory_bytes=1000, stall_limit_s=0.2) as host:
        await host.add_account()
        await fill(host, 200, size=5000)
        assert len(await host.verify_stored()) == 200
        with pytest.raises(ConnectionAbortedError):
            async with host.exports.repo(ALICE) as chunks:
                await anext(chunks)
                await asyncio.Event().wait()
        assert host.exports.budget.used_bytes == 0


async def test_a_spool_folder_that_cannot_be_written_costs_no_budget(tmp_path):
    async with repo_host(tmp_path, memory_bytes=0, folder=tmp_path / "absent") as host:
        await host.add_account()
        with pytest.raises(OSError, match="absent"):
            await host.export(ALICE)
        assert host.exports.budget.used_bytes == 0


async def test_pieces_that_come_between_two_looks_stay_in_order():
    """The reader finds memory empty; before it looks at the file, both get something."""
    spool = Spool(SpoolSettings(memory_bytes=4), SpoolBudget(100, 100))
    take_memory = spool._take_memory

    def take_memory_then_be_overtaken():
        chunk = take_memory()
        if not spool.file_bytes:
            spool.write(b"first")
            spool.write(b"second")
            spool.finish()
        return chunk

    spool._take_memory = take_memory_then_be_overtaken
    content = b"".join([chunk async for chunk in spool.chunks()])
    await spool.close()
    assert content == b"firstsecond"


async def test_a_slow_disk_does_not_hold_the_event_loop(monkeypatch):
    """B5: the disk works under a lock that the loop never waits for."""
    spool = Spool(SpoolSettings(memory_bytes=1), SpoolBudget(100, 100))
    spool.write(b"x")
    entered, go_on = threading.Event(), threading.Event()
    make_file = tempfile.TemporaryFile

    def slow(**options):
        entered.set()
        go_on.wait(60)
        return make_file(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", slow)
    writing = asyncio.create_task(asyncio.to_thread(spool.write, b"y"))
    await asyncio.to_thread(entered.wait, 60)
    chunks = spool.chunks()
    assert await anext(chunks) == b"x"
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    await asyncio.gather(writing, closing, return_exceptions=True)
    assert spool._file is None


async def test_the_disk_budget_is_shared_and_refuses_before_the_first_byte(tmp_path):
    async with repo_host(tmp_path, memory_bytes=0, file_budget_bytes=1000) as host:
        await host.add_account()
        await fill(host, 100)
        with pytest.raises(SpoolFull) as info:
            await host.export(ALICE)
        assert info.value.status == 503
        assert host.exports.budget.used_bytes == 0


async def test_a_spool_gives_back_exactly_what_was_put_in():
    budget = SpoolBudget(10_000_000, 1_000_000)
    spool = Spool(SpoolSettings(memory_bytes=1000), budget)
    rng = random.Random(2)
    pieces = [rng.randbytes(rng.randrange(1, 5000)) for _ in range(300)]

    def produce():
        for piece in pieces:
            spool.write(piece)
        spool.finish()

    producing = asyncio.create_task(asyncio.to_thread(produce))
    content = b"".join([chunk async for chunk in spool.chunks()])
    await producing
    assert content == b"".join(pieces)
    assert budget.used_bytes == spool.file_bytes > 0
    await spool.close()
    await spool.close()
    assert (budget.used_bytes, budget.memory_bytes) == (0, 0)
    with pytest.raises(ReaderGone):
        spool.write(b"x")


async def test_all_spools_together_stay_within_the_memory_budget():
    """A thousand stalled clients cost disk, not memory."""
    budget = SpoolBudget(10_000_000, 100_000)
    spools = [Spool(SpoolSettings(), budget) for _ in range(20)]
    for spool in spools:
        spool.write(bytes(30_000))
        spool.finish()
    assert budget.memory_bytes <= 100_000
    assert budget.memory_bytes + budget.used_bytes == 20 * 30_000
    for spool in spools:
        assert sum([len(chunk) async for chunk in spool.chunks()]) == 30_000
        await spool.close()
    assert (budget.used_bytes, budget.memory_bytes) == (0, 0)


async def test_a_failure_in_the_middle_reaches_the_client_as_one():
    """Nobody may take half an export for the whole."""
    spool = Spool(SpoolSettings(), SpoolBudget(1, 1000))
    spool.write(b"half")
    await spool.wait_for_first()
    spool.finish(Corrupt("damaged"))
    chunks = spool.chunks()
    assert await anext(chunks) == b"half"
    with pytest.raises(Corrupt):
        await anext(chunks)
    await spool.close()
