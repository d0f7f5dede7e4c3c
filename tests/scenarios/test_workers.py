"""`pds serve --workers 2` over real HTTP: one server, whichever process answers."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp

from tests.fakes.plc import running_plc
from tests.independent import check_export, cid_text
from tests.scenarios.test_two_nodes import SHARED, Reader, sign_up
from tests.support_load import Failed, Writer
from tests.support_postgres import database_url
from tests.support_process import ServerProcess, free_port

__all__ = ["database_url"]

GONE = (aiohttp.ClientError, ConnectionError, TimeoutError, Failed)


class Load:
    """Writers and readers that take whatever process answers, and come back when it goes."""

    def __init__(self, server: ServerProcess, writers: list[Writer], keys: dict[str, str]) -> None:
        self.server = server
        self.writers = writers
        self.did_keys = keys
        self.readers = [Reader(server.url, keys) for _ in range(6)]
        self.failures = 0
        self.stop = asyncio.Event()

    async def write(self, writer: Writer) -> None:
        """Every request on a connection of its own."""
        while not self.stop.is_set():
            async with aiohttp.ClientSession() as session:
                try:
                    await writer.step(session)
                except GONE:
                    self.failures += 1
                    writer.settle(await self.export(writer))

    async def export(self, writer: Writer) -> dict[str, str]:
        async with asyncio.timeout(20):
            while True:
                try:
                    async with (
                        aiohttp.ClientSession() as session,
                        session.get(
                            f"{self.server.url}/xrpc/com.atproto.sync.getRepo",
                            params={"did": writer.did},
                        ) as answer,
                    ):
                        if answer.status == 200:
                            car = await answer.read()
                            break
                except GONE:
                    await asyncio.sleep(0.02)
        found = check_export(car, did=writer.did, did_key=self.did_keys[writer.did])
        return {path: cid_text(cid) for path, cid in found.items()}

    async def follow(self, reader: Reader) -> None:
        while True:
            async with aiohttp.ClientSession() as session:
                try:
                    await reader.read(session)
                except GONE:
                    await asyncio.sleep(0.02)

    async def acknowledge(self, count: int) -> None:
        """Wait for so many more acknowledged writes."""
        goal = self.total + count
        await until(lambda: self.total >= goal)

    @property
    def total(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def answers(url: str) -> None:
    """Wait until somebody answers there, and well."""
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    assert answer.status == 200
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


def pids(server: ServerProcess) -> dict[int, int]:
    """The newest process of each worker, as the parent's log has it."""
    text = (server.folder / "server.log").read_text()
    found: dict[int, int] = {}
    for line in text.splitlines():
        if "worker.started" in line:
            number = re.search(r'"?number"?[=:]\s*(\d+)', line)
            pid = re.search(r'"?pid"?[=:]\s*(\d+)', line)
            assert number is not None
            assert pid is not None
            found[int(number[1])] = int(pid[1])
    return found


async def test_workers_die_and_are_replaced_under_load(tmp_path: Path, database_url: str) -> None:
    """kill -9, then SIGHUP: no acknowledged write is lost, all readers see one order."""
    metrics_port = free_port()
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        server = ServerProcess(
            tmp_path,
            plc.url,
            **SHARED,
            PDS_DATABASE_URL=database_url,
            PDS_METRICS_PORT=str(metrics_port),
        )
        server.arguments = ("--workers", "2")
        await server.start()
        try:
            made = [await sign_up(session, server, plc.url, f"writer{n}") for n in range(3)]
            load = Load(server, [w for w, _ in made], {w.did: key for w, key in made})
            tasks = [asyncio.create_task(load.follow(reader)) for reader in load.readers]
            writing = [asyncio.create_task(load.write(writer)) for writer in load.writers]
            await load.acknowledge(50)
            first = pids(server)
            assert sorted(first) == [1, 2]
            os.kill(first[1], signal.SIGKILL)
            await until(lambda: pids(server)[1] != first[1])
            await load.acknowledge(50)
            # A worker answers for its own metrics, on the port of its number.
            for number in (0, 1):
                await answers(f"http://127.0.0.1:{metrics_port + number}/metrics")
            second, failures_before = pids(server), load.failures
            assert server.process is not None
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: "workers.rolled" in server.log_tail(1000))
            failures_of_roll = load.failures - failures_before
            await load.acknowledge(50)
            assert set(pids(server).values()).isdisjoint(second.values())
            load.stop.set()
            await asyncio.gather(*writing)
            for writer in load.writers:
                writer.settle(await load.export(writer))
            last = max(reader.follower.last_seq for reader in load.readers)
            await asyncio.gather(*(reader.reach(last) for reader in load.readers))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for reader in load.readers:
                assert reader.frames == load.readers[0].frames
            for writer in load.writers:
                state = load.readers[0].follower.repos[writer.did].records
                assert {path: cid_text(cid) for path, cid in state.items()} == writer.records
            print(f"\nwrites {load.total}, failed {load.failures} ({failures_of_roll} at the roll)")
            last_pids = pids(server)
            assert await server.stop() == 0
            for pid in last_pids.values():
                assert not Path(f"/proc/{pid}").exists()
        finally:
            if server.process is not None:
                await server.stop()


async def test_workers_stop_when_their_parent_was_killed(tmp_path: Path, database_url: str) -> None:
    async with running_plc() as plc:
        server = ServerProcess(tmp_path, plc.url, **SHARED, PDS_DATABASE_URL=database_url)
        server.arguments = ("--workers", "1")
        await server.start()
        (pid,) = pids(server).values()
        await until(lambda: "server.started" in server.log_tail(1000))
        await server.kill()
        async with asyncio.timeout(20):
            while Path(f"/proc/{pid}").exists() and "zombie" not in status_of(pid):
                await asyncio.sleep(0.02)
        assert "worker.left_alone" in server.log_tail(1000)


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


async def test_workers_that_cannot_start_end_the_parent(tmp_path: Path, database_url: str) -> None:
    """With the exit code of a worker: 2 for wrong settings, such as a port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ServerProcess(
            tmp_path,
            "http://127.0.0.1:1",
            **SHARED,
            PDS_DATABASE_URL=database_url,
            PDS_METRICS_PORT=str(taken.getsockname()[1]),
        )
        server.arguments = ("--workers", "2")
        with contextlib.suppress(AssertionError):  # the other worker may have answered before
            await server.start()
        assert server.process is not None
        async with asyncio.timeout(30):
            assert await server.process.wait() == 2
        assert "set PDS_METRICS_PORT" in server.log_tail(1000)
