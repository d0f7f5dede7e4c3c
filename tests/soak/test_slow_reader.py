"""A getRepo client that reads 1 KB/s must cost nobody anything (promise B1)."""

import asyncio
import os
import random
import socket
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support_live import LiveServer, live_server_in
from tests.support_load import Writer, call

MAX_WAL_BYTES = 64 * 1024 * 1024
RECORDS = 20_000
SECONDS = int(os.environ.get("PDS_SOAK_SLOW_READER_S", "600"))


async def fill(session: aiohttp.ClientSession, server: LiveServer, writer: Writer) -> None:
    for start in range(0, RECORDS, 200):
        writes = [
            {
                "$type": "com.atproto.repo.applyWrites#create",
                "collection": "com.example.note",
                "rkey": f"{number:08d}",
                "value": {"$type": "com.example.note", "text": "x" * 300, "n": number},
            }
            for number in range(start, start + 200)
        ]
        await call(
            session,
            server.url,
            "com.atproto.repo.applyWrites",
            token=writer.token,
            body={"repo": writer.did, "writes": writes, "validate": False},
        )


async def write_latencies(
    session: aiohttp.ClientSession, server: LiveServer, writer: Writer, seconds: float
) -> list[float]:
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        await call(
            session,
            server.url,
            "com.atproto.repo.createRecord",
            token=writer.token,
            body={
                "repo": writer.did,
                "collection": "com.example.note",
                "record": {"$type": "com.example.note", "text": "y" * 300},
                "validate": False,
            },
        )
        found.append(time.monotonic() - began)
        await asyncio.sleep(0.002)
    return found


async def read_slowly(server: LiveServer, did: str, seconds: float) -> int:
    """Read a getRepo answer at 1 KB/s through a small socket buffer; returns the bytes read."""
    address = urlsplit(server.url)
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", address.port or 80))
    request = f"GET /xrpc/com.atproto.sync.getRepo?did={did} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    await loop.sock_sendall(raw, request.encode())
    total = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chunk = await loop.sock_recv(raw, 1024)
        assert chunk, "the server hung up on a slow but steady reader"
        total += len(chunk)
        await asyncio.sleep(1)
    raw.close()
    return total


@pytest.mark.timeout(SECONDS + 300)
async def test_slow_reader_costs_writers_nothing(tmp_path: Path) -> None:
    async with live_server_in(tmp_path / "server") as server, aiohttp.ClientSession() as session:
        owner = Writer(server.url, "exported.test", random.Random(1))
        other = Writer(server.url, "neighbour.test", random.Random(2))
        await owner.sign_up(session)
        await other.sign_up(session)
        await fill(session, server, owner)
        before = await write_latencies(session, server, other, 10)

        largest_wal = 0
        reader = asyncio.create_task(read_slowly(server, owner.did, SECONDS))
        during: list[float] = []
        while not reader.done():
            during += await write_latencies(session, server, other, 2)
            for wal in server.folder.rglob("*-wal"):
                largest_wal = max(largest_wal, wal.stat().st_size)
        read = await reader

        p50_before, p50_during = statistics.median(before), statistics.median(during)
        p99 = statistics.quantiles(during, n=100)[98]
        print(
            f"\nslow reader: {read} bytes in {SECONDS} s, {len(during)} writes meanwhile, "
            f"p50 {p50_before * 1e3:.2f} -> {p50_during * 1e3:.2f} ms, p99 {p99 * 1e3:.1f} ms, "
            f"largest WAL {largest_wal / 1e6:.1f} MB"
        )
        assert largest_wal < MAX_WAL_BYTES
        assert p50_during < 2 * p50_before + 0.001
