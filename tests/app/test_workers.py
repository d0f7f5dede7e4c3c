"""The parent of workers, with workers that are small scripts: what it starts, restarts and ends."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pds.app.workers import (
    Supervisor,
    SupervisorSettings,
    WorkerPlace,
    bind_socket,
    check_can_share,
    serve_command,
)
from pds.cli import run
from pds.cli.dev import dev_config
from pds.errors import ConfigError

WORKER = """
import os, signal, socket, sys
number, link_fd, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
link = socket.socket(fileno=link_fd)
def note(what):
    with open(os.path.join(folder, "book"), "a") as book:
        book.write(f"{what} {number} {os.getpid()}\\n")
def stop(*_):
    note("stopped")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
if os.path.exists(os.path.join(folder, "broken")):
    sys.exit(int(open(os.path.join(folder, "broken")).read()))
note("ready")
link.send(b"R")
if not link.recv(1):
    note("alone")
"""
QUICK = SupervisorSettings(
    start_timeout_s=60, stop_timeout_s=60, first_pause_s=0.01, max_pause_s=0.05, max_deaths=3
)


class Family:
    """A parent, and the book in which its workers write."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        self.script = folder / "worker.py"
        self.script.write_text(WORKER)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.supervisor = Supervisor(self.command, self.sock, workers=workers, settings=QUICK)

    def command(self, number: int, sock_fd: int, link_fd: int) -> list[str]:
        assert sock_fd == self.sock.fileno()
        return [sys.executable, "-S", str(self.script), str(number), str(link_fd), str(self.folder)]

    def book(self) -> list[tuple[str, int, int]]:
        """(what, number, pid) of all that the workers noted."""
        file = self.folder / "book"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(line.split()[0], int(line.split()[1]), int(line.split()[2])) for line in lines]

    def pids(self, what: str = "ready") -> list[int]:
        return [pid for noted, _, pid in self.book() if noted == what]

    def set_broken(self, code: int) -> None:
        (self.folder / "broken").write_text(str(code))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


@asynccontextmanager
async def running(family: Family) -> AsyncIterator["asyncio.Task[int]"]:
    task = asyncio.create_task(family.supervisor.run())
    try:
        await family.until(lambda: len(family.pids()) == 2)
        yield task
    finally:
        family.supervisor.stop()
        await asyncio.wait([task])
        family.sock.close()


async def test_all_are_started_and_asked_to_stop(family: Family) -> None:
    async with running(family) as task:
        assert sorted(number for _, number, _ in family.book()) == [1, 2]
        family.supervisor.stop()
        assert await task == 0
    assert sorted(family.pids("stopped")) == sorted(family.pids("ready"))


async def test_one_that_is_killed_is_started_again(family: Family) -> None:
    async with running(family):
        for round_ in range(3, 7):  # more than `max_deaths`: the other one lives
            number, pid = next((n, p) for what, n, p in reversed(family.book()) if n == 1)
            os.kill(pid, signal.SIGKILL)
            await family.until(lambda n=round_: len(family.pids()) == n)
            assert family.book()[-1][1] == number
    assert len(family.pids("stopped")) == 2


async def test_workers_that_cannot_start_end_the_whole_with_their_code(family: Family) -> None:
    family.set_broken(2)
    async with asyncio.timeout(60):
        assert await family.supervisor.run() == 2
    family.sock.close()


async def test_when_all_keep_dying_the_parent_gives_up(family: Family) -> None:
    async with running(family) as task:
        family.set_broken(1)
        for pid in family.pids():
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert await task == 1


async def test_a_roll_replaces_one_after_another(family: Family) -> None:
    async with running(family):
        first, second = (pid for _, _, pid in sorted(family.book(), key=lambda line: line[1]))
        family.supervisor.roll()
        await family.until(lambda: len(family.book()) == 6)
        assert [line[:2] for line in family.book()[2:]] == [
            ("ready", 1),
            ("stopped", 1),
            ("ready", 2),
            ("stopped", 2),
        ]
        assert family.pids("stopped") == [first, second]


async def test_a_roll_that_fails_leaves_the_old_ones_alone(family: Family) -> None:
    async with running(family):
        family.set_broken(2)
        family.supervisor.roll()
        await family.until(lambda: not family.supervisor._roll.is_set())
        slot = family.supervisor._slots[0]
        async with slot.lock:
            assert family.pids("stopped") == []
        (family.folder / "broken").unlink()
        family.supervisor.roll()
        await family.until(lambda: len(family.pids("stopped")) == 2)
        assert len(family.pids()) == 4


async def test_workers_notice_when_their_parent_is_gone(tmp_path: Path) -> None:
    family = Family(tmp_path)
    async with running(family) as task:
        for worker in family.supervisor._workers():
            worker._link.close()
        await family.until(lambda: len(family.pids("alone")) == 2)
        assert not task.done()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = dev_config(tmp_path, port=taken.getsockname()[1], plc_port=1)
        with pytest.raises(ConfigError, match="set PDS_BIND and PDS_PORT"):
            bind_socket(config)


def test_sqlite_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dev_config(tmp_path, port=1, plc_port=1)
    with pytest.raises(ConfigError, match="belongs to one process"):
        check_can_share(config)
    shared = replace(config, data=replace(config.data, database_url="postgresql://x/y"))
    check_can_share(shared)
    for name in [name for name in os.environ if name.startswith("PDS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PDS_DATA_DIRECTORY": str(tmp_path),
        "PDS_JWT_SECRET": "x" * 32,
        "PDS_ADMIN_PASSWORD": "x",
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "17" * 32,
    }.items():
        monkeypatch.setenv(name, value)
    assert run(["serve", "--workers", "2"]) == 2
    assert "--workers needs PostgreSQL" in capsys.readouterr().err


def test_a_worker_takes_no_place_that_was_not_given() -> None:
    for text in ("", "1,2", "a,b,c", "1,900,901"):
        with pytest.raises(ConfigError):
            WorkerPlace.parse(text)
    assert serve_command(1, 5, 6, file="x.toml")[-4:] == ["--worker", "1,5,6", "--config", "x.toml"]
