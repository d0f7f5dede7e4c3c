"""What the server does over HTTP: requests a second and CPU of the server process per operation.

Ratios within one run can be trusted; absolute figures depend on the machine and its other load.
CPU is read from the process's own counters, so a slow load generator does not spoil it.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.raw_client import RawConnection, get, post
from tests.support_live import LiveServer, live_server_in
from tests.support_load import Account, fill_repo, sign_up

ENDLESS_LIMITS = (
    "PDS_RATE_LIMIT_REQUESTS",
    "PDS_RATE_LIMIT_WRITES_PER_HOUR",
    "PDS_RATE_LIMIT_WRITES_PER_DAY",
    "PDS_RATE_LIMIT_UPLOADS_PER_DAY",
    "PDS_RATE_LIMIT_UPLOAD_BYTES_PER_DAY",
)
"""Requests are counted, as in earnest, but never refused."""


@dataclass(frozen=True)
class Line:
    """One measured line."""

    name: str
    operations: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        rate = self.operations / self.seconds
        cpu = self.cpu_seconds / self.operations * 1e6
        return (
            f"{self.name:<44}{rate:>10,.0f} /s {self.p50_ms:>8.2f} {self.p99_ms:>8.2f} ms "
            f"{cpu:>8.0f} us CPU"
        )


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, to the nanosecond.

    The number of a process's clock is made of its id (Linux, clock_getcpuclockid).
    """
    return time.clock_gettime(~pid << 3 | 2)


async def drive(
    server: LiveServer,
    name: str,
    make: Callable[[int], bytes],
    *,
    connections: int,
    seconds: float,
) -> Line:
    """Send `make(n)` over kept-alive connections for `seconds`, after a short warm-up."""
    assert server.process is not None
    times: list[float] = []
    counter = 0

    async def work(deadline: float, book: list[float] | None) -> None:
        nonlocal counter
        async with RawConnection("127.0.0.1", server.port) as connection:
            while time.perf_counter() < deadline:
                counter += 1
                request = make(counter)
                began = time.perf_counter()
                status, body = await connection.send(request)
                if status != 200:
                    raise AssertionError(f"{name}: {status} {body[:200]!r}")
                if book is not None:
                    book.append(time.perf_counter() - began)

    warm = time.perf_counter() + 0.5
    await asyncio.gather(*(work(warm, None) for _ in range(connections)))
    cpu, began = cpu_seconds(server.process.pid), time.perf_counter()
    await asyncio.gather(*(work(began + seconds, times) for _ in range(connections)))
    elapsed = time.perf_counter() - began
    used = cpu_seconds(server.process.pid) - cpu
    quantiles = statistics.quantiles(times, n=100)
    return Line(name, len(times), elapsed, used, quantiles[49] * 1e3, quantiles[98] * 1e3)


def create(account: Account, number: int) -> bytes:
    """Return a createRecord of a small post."""
    record = {
        "$type": "app.bsky.feed.post",
        "text": f"post number {number} of the bench, as long as people write them",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "langs": ["en"],
    }
    body = {"repo": account.did, "collection": "app.bsky.feed.post", "record": record}
    return post("com.atproto.repo.createRecord", account.token, body)


async def export_lines(server: LiveServer, account: Account, records: int) -> str:
    """Fill one repo and time its export."""
    assert server.process is not None
    await fill_repo(server.url, account, records)
    async with aiohttp.ClientSession() as session:
        cpu, began, size, first = cpu_seconds(server.process.pid), time.perf_counter(), 0, 0.0
        for _ in range(3):
            start = time.perf_counter()
            url = f"{server.url}/xrpc/com.atproto.sync.getRepo?did={account.did}"
            async with session.get(url) as answer:
                async for chunk in answer.content.iter_any():
                    if size == 0:
                        first = time.perf_counter() - start
                    size += len(chunk)
        seconds = time.perf_counter() - began
        cpu = cpu_seconds(server.process.pid) - cpu
    return (
        f"getRepo, {records:,} records{'':<17}{size / seconds / 1e6:>12.0f} MB/s"
        f"   first byte {first * 1e3:.1f} ms, {cpu / size * 1e9:.0f} ms CPU per MB"
    )


async def fan_out_line(server: LiveServer, accounts: list[Account], readers: int) -> str:
    """Time deliveries to many live readers while four writers write."""
    assert server.process is not None
    received = 0
    stop = asyncio.Event()

    async def read(session: aiohttp.ClientSession) -> None:
        nonlocal received
        url = f"{server.url}/xrpc/com.atproto.sync.subscribeRepos"
        async with session.ws_connect(url, max_msg_size=0) as stream:
            while not stop.is_set():
                try:
                    message = await asyncio.wait_for(stream.receive(), 0.5)
                except TimeoutError:
                    continue
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                received += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(read(session)) for _ in range(readers)]
        await asyncio.sleep(0.5)
        cpu, before = cpu_seconds(server.process.pid), received
        line = await drive(
            server,
            "",
            lambda n: create(accounts[n % len(accounts)], n),
            connections=4,
            seconds=3,
        )
        await asyncio.sleep(0.5)
        cpu = cpu_seconds(server.process.pid) - cpu
        delivered = received - before
        stop.set()
        await asyncio.gather(*tasks)
    return (
        f"firehose, {readers:>4} readers{'':<22}{delivered / line.seconds:>10,.0f} deliveries/s, "
        f"{line.operations / line.seconds:,.0f} writes/s, "
        f"{cpu / max(delivered, 1) * 1e6:.1f} us CPU per delivery, writes included"
    )


@asynccontextmanager
async def bench_server() -> AsyncIterator[LiveServer]:
    """Run a server in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        async with live_server_in(
            Path(folder) / "server",
            LOG_ENABLED="false",
            PDS_RATE_LIMITS_ENABLED="true",
            **dict.fromkeys(ENDLESS_LIMITS, str(10**12)),
        ) as server:
            yield server


async def run(seconds: float, say: Callable[[str], None]) -> None:
    """Print every line."""
    async with bench_server() as server:
        accounts = await sign_up(server.url, 50, "bench")
        one = accounts[0]
        say(f"{'':<44}{'rate':>13} {'p50':>8} {'p99':>11} {'server':>9}")

        async def line(name: str, make: Callable[[int], bytes], connections: int) -> None:
            found = await drive(server, name, make, connections=connections, seconds=seconds)
            say(str(found))

        steps: list[Callable[[], Awaitable[None]]] = [
            lambda: line("createRecord, 1 account, c=1", lambda n: create(one, n), 1),
            lambda: line(
                "createRecord, 50 accounts, c=1", lambda n: create(accounts[n % 50], n), 1
            ),
            lambda: line(
                "createRecord, 50 accounts, c=8", lambda n: create(accounts[n % 50], n), 8
            ),
            lambda: line(
                "createRecord, 50 accounts, c=32", lambda n: create(accounts[n % 50], n), 32
            ),
        ]
        for step in steps:
            await step()
        status, body = 0, b""
        async with RawConnection("127.0.0.1", server.port) as connection:
            status, body = await connection.send(
                post(
                    "com.atproto.repo.putRecord",
                    one.token,
                    {
                        "repo": one.did,
                        "collection": "app.bsky.actor.profile",
                        "rkey": "self",
                        "record": {"$type": "app.bsky.actor.profile", "displayName": "Bench"},
                    },
                )
            )
        assert status == 200, body
        record = (
            f"com.atproto.repo.getRecord?repo={one.did}&collection=app.bsky.actor.profile&rkey=self"
        )
        await line("getRecord, c=1", lambda _: get(record), 1)
        await line("getRecord, c=16", lambda _: get(record), 16)
        listing = (
            f"com.atproto.repo.listRecords?repo={one.did}&collection=app.bsky.feed.post&limit=100"
        )
        await line("listRecords 100, c=1", lambda _: get(listing), 1)
        proof = (
            f"com.atproto.sync.getRecord?did={one.did}&collection=app.bsky.actor.profile&rkey=self"
        )
        await line("sync.getRecord, c=1", lambda _: get(proof), 1)
        await line(
            "getLatestCommit, c=1",
            lambda _: get(f"com.atproto.sync.getLatestCommit?did={one.did}"),
            1,
        )
        await line("getSession, c=1", lambda _: get("com.atproto.server.getSession", one.token), 1)
        await line("describeServer, c=1", lambda _: get("com.atproto.server.describeServer"), 1)
        await line("_health, c=1", lambda _: get("_health"), 1)
        exporter = (await sign_up(server.url, 1, "exporter"))[0]
        say(await export_lines(server, exporter, 10_000))
        for readers in (1, 10, 100):
            say(await fan_out_line(server, accounts, readers))
        assert server.process is not None
        status_file = Path(f"/proc/{server.process.pid}/status").read_text()
        memory = next(row for row in status_file.splitlines() if row.startswith("VmRSS"))
        say(f"memory after all this: {int(memory.split()[1]) / 1024:.0f} MB")
        say(f"start to first answer: {server.start_times_s[0]:.2f} s")
