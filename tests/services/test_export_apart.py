"""Exports that another process reads: the same bytes, the same rules, and clean ends."""

import asyncio
import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from pds.errors import Corrupt, RequestError, Unavailable
from pds.protocol.car import read_car
from pds.protocol.repo_verify import StreamedBlocks, verify_repo
from pds.services.export import Exports
from pds.services.principal import ADMIN
from pds.services.records_prepare import RecordWrite
from pds.services.spool import Spool, SpoolFull, SpoolSettings
from tests.services.repo_host import ALICE, RepoHost, repo_host
from tests.support_postgres import is_chosen

pytestmark = pytest.mark.skipif(is_chosen(), reason="on PostgreSQL exports are read by threads")

THING = "com.example.thing"


@pytest.fixture
async def host(tmp_path: Path):
    """A host whose repos are all large."""
    async with repo_host(tmp_path, large_records=0) as host:
        await host.add_account()
        yield host


async def fill(host: RepoHost, count: int, *, size: int = 0, start: int = 0) -> None:
    for first in range(start, start + count, 100):
        host.clock.advance(1)
        batch = [
            RecordWrite("create", THING, f"{number:06}", {"n": number, "fill": "x" * size})
            for number in range(first, min(first + 100, start + count))
        ]
        await host.repos.write(host.aids[ALICE], batch)


async def collect(opened) -> bytes:
    async with opened as chunks:
        return b"".join([chunk async for chunk in chunks])


def pids(host: RepoHost) -> list[int]:
    return host.engine._read_processes.pids


class Held:
    """Holds what comes from the process after the first piece, so that it waits in the middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._pieces = 0
        self._write = Spool.write
        hold = self.write
        monkeypatch.setattr(Spool, "write", lambda spool, content: hold(spool, content))  # noqa: PLW0108

    def write(self, spool: Spool, content: bytes) -> None:
        self._pieces += 1
        if self._pieces == 2:
            self.entered.set()
            assert self.go_on.wait(60)
        self._write(spool, content)


async def test_both_ways_give_the_same_bytes(host):
    """REPO-43: random repos, whole and in part."""
    threads = Exports(engine=host.engine, settings=SpoolSettings(large_records=10**9))
    rng = random.Random(11)
    revs: list[str | None] = [None]
    there: set[str] = set()
    for round_ in range(8):
        host.clock.advance(1)
        writes = {}
        for _ in range(rng.choice([0, 1, 150])):
            rkey = f"{rng.randrange(400):x}"
            gone = rkey in there and rng.random() < 0.5
            value = {"n": rng.randrange(9), "fill": "y" * rng.choice([0, 10, 200, 20_000])}
            writes[rkey] = RecordWrite("delete" if gone else "put", THING, rkey, value)
        if writes:
            await host.repos.write(host.aids[ALICE], list(writes.values()))
        for rkey, write in writes.items():
            (there.add if write.action == "put" else there.discard)(rkey)
        revs.append((await host.exports.head(ALICE))[1])
        for since in (None, rng.choice(revs), revs[-1]):
            here = await collect(threads.repo(ALICE, since=since))
            assert await collect(host.exports.repo(ALICE, since=since)) == here, round_
    assert pids(host)


async def test_a_snapshot_is_one_commit_while_writes_go_on(host, monkeypatch):
    """REPO-44."""
    await fill(host, 400, size=5000)
    head, rev = await host.exports.head(ALICE)
    held = Held(monkeypatch)
    async with host.exports.repo(ALICE) as chunks:
        first = await anext(chunks)
        assert await asyncio.to_thread(held.entered.wait, 60)
        await fill(host, 100, start=400)
        held.go_on.set()
        content = first + b"".join([chunk async for chunk in chunks])
    roots, blocks = read_car(content)
    assert roots == (head,)
    assert sum(1 for _ in verify_repo(head, StreamedBlocks(blocks.items()))) == len(blocks)
    assert (await host.exports.head(ALICE))[1] > rev


async def test_the_rules_are_asked_where_the_rows_are_read(host):
    """SYNC-70: what is shown to whom."""
    await host.update_account(suspended_at=1)
    with pytest.raises(RequestError) as info:
        await collect(host.exports.repo(ALICE))
    assert (info.value.name, info.value.status) == ("RepoSuspended", 400)
    for who in (host.principal(), ADMIN):
        assert read_car(await collect(host.exports.repo(ALICE, principal=who)))
    with pytest.raises(RequestError, match="RepoNotFound"):
        await collect(host.exports.repo("did:plc:unknownnnnnnnnnnnnnnnnnn"))
    assert pids(host)


async def test_a_damaged_repo_is_never_exported_as_whole(host):
    """Promise A7."""
    await fill(host, 200)

    def damage(txn):
        txn.write("DELETE FROM record WHERE path = ?", (f"{THING}/000100",))

    await host.engine.transact("test.damage", damage)
    with pytest.raises(Corrupt):
        await collect(host.exports.repo(ALICE))


async def test_only_large_repos_start_a_process(tmp_path):
    async with repo_host(tmp_path, large_records=100) as host:
        await host.add_account()
        await fill(host, 99)
        await host.export()
        await collect(host.exports.blocks(ALICE, []))
        assert not pids(host)
        await fill(host, 1, start=99)
        await host.export()
        assert len(pids(host)) == 1


async def test_a_killed_process_cuts_the_answer_and_the_next_one_is_whole(host, monkeypatch):
    """Nobody may take half an export for the whole."""
    await fill(host, 1400, size=5000)  # More than the buffers between the processes hold.
    whole = await collect(host.exports.repo(ALICE))
    with monkeypatch.context() as patch:
        held = Held(patch)
        got = b""
        with pytest.raises(Unavailable):
            async with host.exports.repo(ALICE) as chunks:
                got += await anext(chunks)
                assert await asyncio.to_thread(held.entered.wait, 60)
                # All there are: the first may not have been free again when this one began.
                killed = set(pids(host))
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                held.go_on.set()
                async for chunk in chunks:
                    got += chunk
    assert whole.startswith(got)
    assert len(got) < len(whole)
    assert host.exports.budget.used_bytes == host.exports.budget.memory_bytes == 0
    assert await collect(host.exports.repo(ALICE)) == whole
    assert not killed & set(pids(host))


async def test_a_client_that_leaves_ends_the_job_and_keeps_the_process(host, monkeypatch):
    """SYNC-74."""
    await fill(host, 400, size=5000)
    whole = await collect(host.exports.repo(ALICE))
    before = pids(host)
    for _ in range(4):
        with monkeypatch.context() as patch:
            held = Held(patch)
            async with host.exports.repo(ALICE) as chunks:
                await anext(chunks)
                assert await asyncio.to_thread(held.entered.wait, 60)
                held.go_on.set()
    assert host.exports.budget.used_bytes == host.exports.budget.memory_bytes == 0
    assert await collect(host.exports.repo(ALICE)) == whole
    assert set(before) <= set(pids(host))
    assert host.engine.health().waiting_reads == 0


async def test_the_disk_budget_refuses(tmp_path):
    async with repo_host(tmp_path, large_records=0, memory_bytes=0, file_budget_bytes=1000) as host:
        await host.add_account()
        await fill(host, 100)
        with pytest.raises(SpoolFull) as info:
            await host.export(ALICE)
        assert info.value.status == 503
        assert host.exports.budget.used_bytes == 0
        assert len(await host.rows("SELECT path FROM record")) == 100


async def test_an_engine_closes_during_an_export(tmp_path, monkeypatch):
    async with repo_host(tmp_path, large_records=0) as host:
        await host.add_account()
        await fill(host, 400, size=5000)
        held = Held(monkeypatch)
        export = asyncio.create_task(collect(host.exports.repo(ALICE)))
        assert await asyncio.to_thread(held.entered.wait, 60)
        (pid,) = pids(host)
        export.cancel()
        held.go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await export
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
