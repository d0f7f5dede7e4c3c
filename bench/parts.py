"""The parts of a createRecord that need an event loop: HTTP alone, SQLite alone, and the whole."""

import asyncio
import socket
import tempfile
import time
from pathlib import Path

import uvloop
from aiohttp import web

from bench import http_load
from bench.raw_client import post
from bench.store_records import create_record, load_chunk
from pds.store.clock import SystemClock
from pds.store.sqlite import SqliteEngine, SqliteSettings
from pds.xrpc.listener import Listener, ListenerSettings

REQUESTS = 2_000
GROUP = 16
GROUPS = 100


async def _http_us() -> float:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return web.Response(body=b"{}", headers={"Content-Type": "application/json"})

    loop = asyncio.get_running_loop()
    listener = Listener(handle, ListenerSettings())
    server = await loop.create_server(listener, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    request = post("com.atproto.repo.createRecord", "x" * 300, {"record": "x" * 200})

    def ask() -> None:
        with socket.create_connection(address) as client:
            for _ in range(REQUESTS):
                client.sendall(request)
                client.recv(65_536)

    began = time.thread_time()
    await asyncio.to_thread(ask)
    spent = time.thread_time() - began
    server.close()
    await listener.shutdown(1)
    return spent / REQUESTS * 1e6


async def _sqlite_us(folder: Path) -> float:
    engine = SqliteEngine(SqliteSettings(path=folder / "pds.sqlite"), SystemClock())
    await engine.start()
    for repo_id in range(1, 11):
        for first in range(0, 2_000, 500):
            await engine.transact("load", load_chunk, repo_id, first, 500, bulk=True)
    began = time.process_time()
    for group in range(GROUPS):
        numbers = range(group * GROUP, (group + 1) * GROUP)
        await asyncio.gather(
            *(engine.transact("create", create_record, n % 10 + 1, n) for n in numbers)
        )
    spent = time.process_time() - began
    await engine.close()
    return spent / (GROUPS * GROUP) * 1e6


async def _whole_us() -> float:
    async with http_load.bench_server() as server:
        accounts = await http_load.sign_up(server.url, 10, "steps")
        line = await http_load.drive(
            server,
            "",
            lambda n: http_load.create(accounts[n % 10], n),
            connections=GROUP,
            seconds=2,
        )
    return line.cpu_seconds / line.operations * 1e6


def http_us() -> float:
    """Return the CPU of one empty POST on the event loop."""
    return float(uvloop.run(_http_us()))


def sqlite_us() -> float:
    """Return the CPU of what one createRecord writes, 16 to a commit, hand-over included."""
    with tempfile.TemporaryDirectory() as folder:
        return float(uvloop.run(_sqlite_us(Path(folder))))


def whole_us() -> float:
    """Return the CPU of one createRecord in a server with 16 writers."""
    return asyncio.run(_whole_us())
