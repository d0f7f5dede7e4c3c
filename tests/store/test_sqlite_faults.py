"""The SQLite engine on a full, failing or suddenly gone disk: promises A1, A2 and A6."""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from pds.errors import Corrupt, StoreError, Unavailable
from pds.store.base import QueueLimits
from pds.store.engine import HealthStatus, Txn
from pds.store.replay import WriteLog, compare
from pds.store.sqlite import SqliteEngine, SqliteWriteConnection, migrate_connection
from tests.fakes.clock import FakeClock
from tests.fakes.disk import FaultyDisk
from tests.suites.engine_jobs import (
    PUT,
    Gate,
    count,
    get,
    put_with_event,
    queue_jobs,
    settle,
    wait_until_writable,
)
from tests.suites.engines import SqliteBackend

ROOT = Path(__file__).parents[2]
BIG = b"x" * 40_000


def put_big(txn: Txn, name: str) -> None:
    txn.write(PUT, (name, BIG))
    put_with_event(txn, f"{name} event")


def facts_and_events(txn: Txn) -> tuple[set[str], set[str]]:
    """Names of facts, and names that events tell of."""
    facts = {row[0] for row in txn.read("SELECT name FROM fact")}
    frames = txn.read("SELECT frame FROM event ORDER BY seq")
    return facts, {frame.decode().rsplit(" ", 2)[0] for (frame,) in frames}


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    return SqliteBackend(tmp_path)


@pytest.fixture
def disk(backend: SqliteBackend) -> Iterator[FaultyDisk]:
    with FaultyDisk(backend.path.parent).installed() as disk:
        yield disk


@pytest.fixture
def log() -> WriteLog:
    return WriteLog()


@pytest.fixture
async def engine(
    backend: SqliteBackend, disk: FaultyDisk, log: WriteLog
) -> AsyncIterator[SqliteEngine]:
    """An engine on the faulty disk; at the end its log must replay to what is in the file."""
    limits = QueueLimits(reopen_interval_s=0.01)
    engine = backend.engine(FakeClock(), recorder=log, limits=limits)
    await engine.start()
    yield engine
    disk.heal()
    await engine.close()
    assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


async def test_a_full_disk_refuses_writes_and_serves_reads_until_there_is_space(
    engine: SqliteEngine, disk: FaultyDisk
) -> None:
    await engine.transact("put", put_with_event, "before")
    disk.fill()
    for _ in range(3):
        with pytest.raises(Unavailable):
            await engine.transact("put", put_with_event, "during")
    assert await engine.read("get", get, "before") == b"v"
    assert engine.health().status is HealthStatus.FAILED
    assert any("full" in problem for problem in engine.health().problems)
    disk.heal()
    await wait_until_writable(engine)
    await engine.transact("put", put_with_event, "after")
    assert engine.health().status is HealthStatus.OK
    assert await engine.read("all", facts_and_events) == ({"before", "after"},) * 2


async def test_everyone_who_waits_when_writes_stop_is_refused(
    engine: SqliteEngine, disk: FaultyDisk
) -> None:
    gate = Gate()
    held = await gate.hold(engine)
    user = await queue_jobs(engine, *[partial(put_with_event, name=f"f{n}") for n in range(150)])
    bulk = await queue_jobs(engine, partial(put_with_event, name="bulk"), bulk=True)
    disk.fill()
    gate.opened.set()
    _, *results = await settle(held, *user, *bulk)
    assert {type(result) for result in results} == {Unavailable}
    disk.heal()
    await wait_until_writable(engine)
    health = engine.health()
    assert (health.waiting_jobs, health.waiting_bulk_jobs) == (0, 0)
    assert await engine.read("count", count) == 0


@pytest.mark.parametrize("fail_after", range(0, 30, 2))
async def test_an_io_error_at_any_write_loses_nothing_acknowledged(
    engine: SqliteEngine, disk: FaultyDisk, fail_after: int
) -> None:
    await engine.transact("put", put_with_event, "before")
    told: set[str] = set()
    engine.add_event_hook(
        lambda events: told.update(e.frame.decode().rsplit(" ", 2)[0] for e in events)
    )
    disk.fail(after=fail_after)
    results = await asyncio.gather(
        engine.transact("a", put_with_event, "a"),
        engine.transact("b", put_big, "b"),
        engine.transact("c", put_with_event, "c"),
        return_exceptions=True,
    )
    assert disk.failed == 1
    disk.heal()
    await wait_until_writable(engine)
    await engine.transact("put", put_with_event, "after")
    facts, events = await engine.read("all", facts_and_events)
    for name, result in zip(("a", "b", "c"), results, strict=True):
        assert result is None or isinstance(result, Unavailable)
        assert (name in facts) == (result is None)
    assert facts - {"b"} == events  # job b tells of "b event"
    assert told == events - {"before"}


async def test_a_failed_sync_stops_writes_until_the_database_is_checked(
    engine: SqliteEngine, disk: FaultyDisk
) -> None:
    await engine.transact("put", put_with_event, "before")
    told: list[object] = []
    engine.add_event_hook(told.extend)
    disk.lose_syncs()
    with pytest.raises(Unavailable, match="commit failed"):
        await engine.transact("put", put_with_event, "lost")
    disk.heal()
    await wait_until_writable(engine)
    assert told == []
    assert await engine.read("all", facts_and_events) == ({"before"},) * 2
    await engine.transact("put", put_with_event, "after")
    assert len(told) == 1
    assert await engine.read("all", facts_and_events) == ({"before", "after"},) * 2


async def test_a_group_whose_sync_failed_cannot_come_back_after_a_crash(
    engine: SqliteEngine, disk: FaultyDisk, backend: SqliteBackend, tmp_path: Path
) -> None:
    """The frames reached the log, only the sync failed: the next commit must overwrite them."""
    await engine.transact("put", put_with_event, "before")
    disk.lose_syncs(keep_writes=True)
    with pytest.raises(Unavailable, match="commit failed"):
        await engine.transact("put", put_with_event, "phantom")
    disk.heal()
    await wait_until_writable(engine)
    crashed = SqliteBackend(tmp_path / "crashed")
    crashed.path.parent.mkdir(parents=True)
    for suffix in ("", "-wal"):  # what a machine finds after it lost power now
        shutil.copy(f"{backend.path}{suffix}", f"{crashed.path}{suffix}")
    dump = crashed.dump()
    assert [row[0] for row in dump["fact"]] == ["before"]
    assert len(dump["event"]) == 1


def test_a_database_that_went_on_without_us_is_not_reopened(backend: SqliteBackend) -> None:
    backend.path.parent.mkdir()
    ours, other = (
        SqliteWriteConnection(backend.path, cache_bytes=1 << 20, on_log=lambda _pages: None)
        for _ in range(2)
    )
    migrate_connection(ours, now_us=0)
    ours.load_seq()
    assert len(ours.reopen()) == 1
    other.execute("UPDATE seq SET last_seq = last_seq + 1 WHERE id = 1")
    with pytest.raises(Unavailable, match="restart"):
        ours.reopen()
    ours.close()
    other.close()


async def test_jobs_that_do_not_fit_fail_alone_and_the_others_of_the_group_succeed(
    engine: SqliteEngine,
) -> None:
    await engine.transact("put", put_with_event, "before")

    def limit_pages(_txn: Txn) -> None:
        connection = engine._sqlite
        assert connection is not None
        connection.pragma("max_page_count", connection.pragma("page_count") + 4)

    await engine.transact("limit", limit_pages)
    results = await asyncio.gather(
        engine.transact("small", put_with_event, "small1"),
        engine.transact("big", put_big, "big"),
        engine.transact("small", put_with_event, "small2"),
        return_exceptions=True,
    )
    assert isinstance(results[1], Unavailable)
    assert (results[0], results[2]) == (None, None)
    names = {"before", "small1", "small2"}
    assert await engine.read("all", facts_and_events) == (names, names)


@pytest.mark.parametrize("small_pages", range(6))
async def test_a_full_file_at_any_statement_leaves_the_job_undone(
    engine: SqliteEngine, small_pages: int
) -> None:
    def job(txn: Txn) -> None:
        for step in range(4):
            txn.write(PUT, (f"step{step}", b"x" * 5_000))
            txn.emit("commit", 1, lambda _seq, _at: b"y" * 5_000)

    def limit_pages(_txn: Txn, extra: int) -> None:
        connection = engine._sqlite
        assert connection is not None
        connection.pragma("max_page_count", connection.pragma("page_count") + extra)

    await engine.transact("limit", limit_pages, small_pages)
    with pytest.raises(Unavailable, match="full"):
        await engine.transact("job", job)
    assert await engine.read("count", count) == 0
    assert engine.last_seq == 0
    assert await engine.transact("read only", count) == 0  # which proves nothing
    assert engine.health().status is HealthStatus.FAILED
    await engine.transact("limit", limit_pages, 1 << 20)
    await engine.transact("job", job)
    assert await engine.read("count", count) == 4
    assert engine.health().status is HealthStatus.OK


async def test_damage_is_reported_and_never_served(
    backend: SqliteBackend,
) -> None:
    engine = backend.engine(FakeClock())
    await engine.start()
    for number in range(50):
        await engine.transact("put", put_big, f"f{number}")
    await engine.close()
    with backend.path.open("r+b") as file:
        content = file.read()
        for at in range(0, len(content), 4096):
            if content[at + 100 : at + 4000] == b"x" * 3900:  # an overflow page: break its chain
                file.seek(at)
                file.write(b"\xff\xff\xff\xff")
    engine = backend.engine(FakeClock())
    await engine.start()
    with pytest.raises(Corrupt):
        await engine.read("all", lambda txn: txn.read("SELECT name, value FROM fact"))
    assert engine.health().status is HealthStatus.FAILED
    with pytest.raises(Corrupt):
        await engine.transact("all", lambda txn: txn.read("SELECT name, value FROM fact"))
    assert engine.health().status is HealthStatus.FAILED
    await engine.close()


async def test_a_file_that_is_no_database_is_refused(backend: SqliteBackend) -> None:
    backend.path.parent.mkdir()
    backend.path.write_bytes(b"something else entirely" * 1000)
    with pytest.raises(StoreError):
        await backend.engine(FakeClock()).start()


WRITER = """
import asyncio, sys
from pathlib import Path
from pds.store.clock import SystemClock
from tests.suites.engine_jobs import put_with_event
from tests.suites.engines import SqliteBackend

async def write(engine, worker):
    step = 0
    while True:
        name = f"{worker}/{step}"
        await engine.transact("put", put_with_event, name)
        print("acked", name, flush=True)
        step += 1

async def main():
    engine = SqliteBackend(Path(sys.argv[1])).engine(SystemClock())
    engine.add_event_hook(
        lambda events: [print("told", e.seq, str(e.frame.split()[0], "ascii")) for e in events]
    )
    await engine.start()
    await asyncio.gather(*(write(engine, worker) for worker in range(4)))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged_or_told(
    tmp_path: Path, backend: SqliteBackend
) -> None:
    """Killed three times on one database; numbers rise over all of it."""
    told_seqs: list[int] = []
    promised: set[str] = set()
    for lines_before_kill in (60, 7, 201):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER.replace('f"{worker}/{step}"', f'f"{lines_before_kill}/{{worker}}/{{step}}"'),
                str(tmp_path),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            for number, line in enumerate(process.stdout):
                if number == lines_before_kill:
                    process.send_signal(signal.SIGKILL)  # what it had said is still read
                if line.endswith("\n"):
                    kind, *rest = line.split()
                    promised.add(rest[-1])
                    if kind == "told":
                        told_seqs.append(int(rest[0]))
        dump = backend.dump()
        facts = {row[0] for row in dump["fact"]}
        events = {row[4].decode().split()[0] for row in dump["event"]}
        seqs = [row[0] for row in dump["event"]]
        assert promised <= facts
        assert facts == events
        assert set(told_seqs) <= set(seqs)
        assert dump["seq"] == [(1, max(seqs))]
    assert told_seqs == sorted(set(told_seqs))
    assert len(promised) > 100
