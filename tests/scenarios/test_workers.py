"""`pds serve --workers 2` over real HTTP: one server, whichever process answers."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import aiohttp

from tests.fakes.plc import running_plc
from tests.independent import cid_text
from tests.scenarios.test_two_nodes import SHARED, sign_up
from tests.support_cluster import Load, until
from tests.support_ports import two_free_ports
from tests.support_postgres import database_url
from tests.support_process import ServerProcess

__all__ = ["database_url"]


async def answers(url: str) -> None:
    """Wait until somebody answers there, and well."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
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
    metrics_port = two_free_ports()
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
            load = Load(server.url, [w for w, _ in made], {w.did: key for w, key in made})
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
        async with asyncio.timeout(60):
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
        async with asyncio.timeout(60):
            assert await server.process.wait() == 2
        assert "set PDS_METRICS_PORT" in server.log_tail(1000)
