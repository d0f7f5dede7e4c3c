"""Reading in other processes: the contract of `stream`, and what becomes of the processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pds.errors import StoreError, Unavailable
from pds.store import read_processes
from pds.store.engine import HealthStatus, Interrupted
from pds.store.maintenance import MaintenanceSettings
from pds.store.sqlite import SqliteConnection, SqliteEngine
from pds.store.stream import StreamOutput, run_here
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import put
from tests.suites.engine_streams import (
    StreamSuite,
    read_for_ever,
    write_for_ever,
    write_pieces,
)
from tests.suites.engines import SqliteBackend


class TestStreamsInProcesses(StreamSuite):
    apart = True

    @pytest.fixture
    def backend(self, tmp_path: Path) -> SqliteBackend:
        return SqliteBackend(tmp_path)


@pytest.fixture
async def engine(tmp_path: Path):
    settings = SqliteBackend(tmp_path).settings(read_processes=1)
    engine = SqliteEngine(settings, FakeClock())
    await engine.start()
    yield engine
    await engine.close()


async def collect(engine: SqliteEngine, fn, *args) -> bytes:
    pieces: list[bytes] = []
    await engine.stream("test", pieces.append, fn, *args, apart=True)
    return b"".join(pieces)


async def start_endless(engine: SqliteEngine, fn=write_for_ever):
    """Start an endless job; return its task, and its pieces once the first has come."""
    began = threading.Event()
    pieces: list[bytes] = []

    def take(piece: bytes) -> None:
        pieces.append(piece[:10])
        began.set()

    task = asyncio.create_task(engine.stream("test", take, fn, apart=True))
    assert await asyncio.to_thread(began.wait, 60)
    return task, pieces


def pids(engine: SqliteEngine) -> list[int]:
    return engine._read_processes.pids


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(*pids: int, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while any(map(is_running, pids)):
            await asyncio.sleep(0.02)


# --- lives ------------------------------------------------------------------------------------


async def test_a_process_is_started_when_needed_kept_and_ended_with_the_engine(engine):
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    (pid,) = pids(engine)
    for _ in range(3):
        await collect(engine, write_pieces, [3])
    assert pids(engine) == [pid]
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    await engine.close()
    assert not is_running(pid)


async def test_no_process_is_started_for_what_stays_here(engine):
    pieces: list[bytes] = []
    await engine.stream("test", pieces.append, write_pieces, [3])
    assert (pieces, pids(engine)) == ([b"aaa"], [])


async def test_an_idle_process_is_ended_and_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        read_processes.ReadProcesses.__init__, "__kwdefaults__", {"limit": 9, "idle_s": 0.1}
    )
    engine = SqliteEngine(SqliteBackend(tmp_path).settings(), FakeClock())
    await engine.start()
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    async with asyncio.timeout(60):
        while pids(engine):
            await asyncio.sleep(0.02)
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    await engine.close()


async def test_signals_to_the_group_leave_it_alone(engine):
    """The terminal and systemd send them to all; the server says when it is time."""
    await collect(engine, write_pieces, [3])
    (pid,) = pids(engine)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    assert pids(engine) == [pid]


# --- deaths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [write_for_ever, read_for_ever])
async def test_a_killed_process_fails_its_job_and_the_next_one_works(engine, fn):
    task, _pieces = await start_endless(engine, fn)
    (pid,) = pids(engine)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="in the middle"):
        await task
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    assert pids(engine) not in ([], [pid])
    assert await engine.transact("put", put, "a") == "a"
    assert engine.health().status is HealthStatus.OK


async def test_one_that_died_while_idle_is_replaced_without_a_word_to_the_caller(engine):
    await collect(engine, write_pieces, [3])
    os.kill(pids(engine)[0], signal.SIGKILL)
    assert await collect(engine, write_pieces, [3]) == b"aaa"


def die(txn, write, folder: str) -> None:
    (Path(folder) / f"{time.monotonic_ns()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_job_that_kills_is_tried_twice_and_not_here(engine, tmp_path):
    folder = tmp_path / "tries"
    folder.mkdir()
    with pytest.raises(Unavailable, match="before it wrote"):
        await collect(engine, die, str(folder))
    assert len(list(folder.iterdir())) == 2
    assert await collect(engine, write_pieces, [3]) == b"aaa"


async def test_without_processes_the_readers_do_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    engine = SqliteEngine(SqliteBackend(tmp_path).settings(), FakeClock())
    await engine.start()
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    await engine.close()
    assert "store.read_process_failed" in caplog.text


def fail_to_connect(path: str) -> SqliteConnection:
    raise Unavailable(f"no {path}")


async def test_a_process_that_cannot_connect_says_why(caplog):
    pool = read_processes.ReadProcesses(
        partial(fail_to_connect, "database"), asyncio.get_running_loop(), processes=1
    )
    output = StreamOutput(lambda _piece: None)
    with pytest.raises(read_processes.CannotStart, match="no database"):
        await pool.submit("test", output, write_pieces, ([3],))
    await asyncio.to_thread(pool.join)


async def test_what_cannot_travel_is_refused(engine):
    with pytest.raises(StoreError, match="cannot be sent"):
        await collect(engine, lambda txn, write: None)
    assert await collect(engine, write_pieces, [3]) == b"aaa"


# --- limits -----------------------------------------------------------------------------------


@pytest.fixture
async def watched(tmp_path: Path):
    """An engine that looks for old reads again and again."""
    maintenance = MaintenanceSettings(free_warning_bytes=0, max_read_s=600, interval_s=0.05)
    settings = SqliteBackend(tmp_path).settings(read_processes=1, maintenance=maintenance)
    engine = SqliteEngine(settings, FakeClock())
    await engine.start()
    yield engine
    await engine.close()


def set_limit(engine: SqliteEngine, max_read_s: float) -> None:
    """Let reads last so long from now on; a test sets it once its read has begun."""
    maintenance = engine._maintenance
    maintenance._settings = replace(maintenance._settings, max_read_s=max_read_s)


@pytest.fixture
def patient(monkeypatch):
    """On a busy machine a process may be slow to obey; here it is not killed for that."""
    monkeypatch.setattr(read_processes, "GRACE_S", 60)


@pytest.mark.parametrize("fn", [write_for_ever, read_for_ever])
@pytest.mark.usefixtures("patient")
async def test_a_job_over_the_limit_is_ended_and_its_process_stays(watched, fn):
    task, _pieces = await start_endless(watched, fn)
    before = pids(watched)
    set_limit(watched, 0.01)
    with pytest.raises(Unavailable, match="ended after"):
        await task
    set_limit(watched, 600)
    assert await collect(watched, write_pieces, [3]) == b"aaa"
    assert pids(watched) == before


async def test_a_process_that_does_not_obey_is_killed(watched, monkeypatch):
    monkeypatch.setattr(read_processes, "GRACE_S", 0.5)
    task, _pieces = await start_endless(watched, read_for_ever)
    (pid,) = pids(watched)
    os.kill(pid, signal.SIGSTOP)
    set_limit(watched, 0.01)
    with pytest.raises(Unavailable, match="ended after"):
        await task
    await gone(pid)
    set_limit(watched, 600)
    assert await collect(watched, write_pieces, [3]) == b"aaa"


@pytest.mark.usefixtures("patient")
async def test_a_cancelled_caller_ends_a_job_that_only_reads(engine):
    task, _pieces = await start_endless(engine, read_for_ever)
    before = pids(engine)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await collect(engine, write_pieces, [3]) == b"aaa"
    assert pids(engine) == before


async def test_the_log_can_be_reused_while_a_process_is_idle(engine):
    """Between jobs no snapshot is held."""
    await collect(engine, write_pieces, [3])
    await engine.transact("put", put, "a")
    connection = SqliteConnection(engine._settings.path, cache_bytes=1 << 20, writable=True)
    assert connection.checkpoint(truncate=True)
    connection.close()


# --- no orphans -------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from pathlib import Path
from pds.store.sqlite import SqliteEngine, SqliteSettings
from pds.store.clock import SystemClock
from tests.suites.engine_streams import write_for_ever

async def main():
    engine = SqliteEngine(SqliteSettings(Path(sys.argv[1])), SystemClock())
    await engine.start()
    def say(piece):
        print(*engine._read_processes.pids, flush=True)
    jobs = [engine.stream("x", say, write_for_ever, apart=True) for _ in range(2)]
    await asyncio.gather(*jobs)

asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_process_behind(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path / "db.sqlite")],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        found: list[int] = []
        while len(found) < 2:
            line = await asyncio.to_thread(process.stdout.readline)
            assert line
            found = [int(text) for text in line.split()]
        assert all(map(is_running, found))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    await gone(*found)


# --- on a reader thread -----------------------------------------------------------------------


def interrupted(txn, write, content: bytes) -> None:
    if content:
        write(content)
    raise Interrupted("the connection was lost")


async def test_what_was_written_is_never_written_again():
    """A reader runs an interrupted job once more, but not after it has put something out."""
    for content, kind in ((b"", Interrupted), (b"half", Unavailable)):
        output = StreamOutput(lambda _piece: None)
        with pytest.raises(Unavailable) as info:
            run_here(None, output, interrupted, (content,))
        assert type(info.value) is kind
