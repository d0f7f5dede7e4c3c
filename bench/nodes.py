"""What one, two and three nodes of one host do over HTTP, and one on SQLite, in the same run.

PostgreSQL runs on this machine and syncs, as SQLite does. Nodes, database and load share its cores,
so rates stop growing where those are used up: the CPU of an operation, by process, is what tells
how far a host can grow on machines of its own.

`python -m bench.nodes [--seconds N]`
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from bench.http_load import ENDLESS_LIMITS, cpu_seconds, create
from bench.postgres_writes import database_cpu
from bench.raw_client import RawConnection, get
from tests.fakes.plc import running_plc
from tests.scenarios.test_two_nodes import SHARED
from tests.support_load import Account, call, sign_up
from tests.support_postgres import DURABLE, OwnServer, make_database, private_server
from tests.support_process import ServerProcess

CONNECTIONS = 24
ACCOUNTS = 48
MAX_NODES = 3


@dataclass(frozen=True)
class Line:
    """One measured line; CPU in seconds, by node and of the database."""

    operations: int
    seconds: float
    node_cpu_s: Sequence[float]
    database_cpu_s: float
    p50_ms: float
    p99_ms: float

    def text(self, name: str, base: "Line | None") -> str:
        """The line as it is printed, with its ratio to `base`."""
        rate = self.operations / self.seconds
        nodes = sum(self.node_cpu_s) / self.operations * 1e6
        shares = "+".join(f"{cpu / self.seconds:.2f}" for cpu in self.node_cpu_s)
        ratio = "" if base is None else f"  {rate * base.seconds / base.operations:.2f} of SQLite"
        return (
            f"{name:<34}{rate:>8,.0f} /s  p50 {self.p50_ms:>6.2f}  p99 {self.p99_ms:>7.2f} ms"
            f"  CPU {nodes:>5.0f} us in nodes, {self.database_cpu_s / self.operations * 1e6:>5.0f}"
            f" us in the database; cores {shares}+{self.database_cpu_s / self.seconds:.2f}{ratio}"
        )


async def drive(
    nodes: Sequence[ServerProcess],
    database: OwnServer | None,
    make: Callable[[int, int], bytes],
    seconds: float,
) -> Line:
    """Send `make(connection, n)` over connections that are spread over the nodes."""
    times: list[float] = []

    async def work(number: int, deadline: float, book: list[float] | None) -> None:
        count = 0
        async with RawConnection("127.0.0.1", nodes[number % len(nodes)].port) as connection:
            while time.perf_counter() < deadline:
                count += 1
                began = time.perf_counter()
                status, body = await connection.send(make(number, count))
                if status != 200:
                    raise AssertionError(f"{status} {body[:200]!r}")
                if book is not None:
                    book.append(time.perf_counter() - began)

    warm = time.perf_counter() + 1.0
    await asyncio.gather(*(work(n, warm, None) for n in range(CONNECTIONS)))
    pids = [node.process.pid for node in nodes if node.process is not None]
    before, theirs, began = [cpu_seconds(p) for p in pids], database_cpu(database), time.time()
    deadline = time.perf_counter() + seconds
    await asyncio.gather(*(work(n, deadline, times) for n in range(CONNECTIONS)))
    elapsed = time.time() - began
    quantiles = statistics.quantiles(times, n=100)
    return Line(
        len(times),
        elapsed,
        [cpu_seconds(pid) - old for pid, old in zip(pids, before, strict=True)],
        database_cpu(database) - theirs,
        quantiles[49] * 1e3,
        quantiles[98] * 1e3,
    )


@asynccontextmanager
async def host(count: int, database: OwnServer | None) -> AsyncIterator[list[ServerProcess]]:
    """Run a host of `count` nodes; on SQLite without a database."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plc = await stack.enter_async_context(running_plc(rate_limits=None))
        shared = {
            **SHARED,
            "PDS_BLOBSTORE_DISK_LOCATION": str(folder / "blobs"),
            "LOG_ENABLED": "false",
            "PDS_RATE_LIMITS_ENABLED": "true",
            **dict.fromkeys(ENDLESS_LIMITS, str(10**12)),
        }
        if database is not None:
            shared["PDS_DATABASE_URL"] = make_database(database.url)
        nodes = [ServerProcess(folder / str(n), plc.url, **shared) for n in range(count)]
        for node in nodes:
            await node.start()
        try:
            yield nodes
        finally:
            for node in nodes:
                await node.stop()


async def measure(
    count: int, database: OwnServer | None, seconds: float
) -> tuple[Line, Line, list[Account]]:
    """Time createRecord and getRecord on one host."""
    async with host(count, database) as nodes:
        accounts = await sign_up(nodes[0].url, ACCOUNTS, "bench")
        uris = await first_posts(nodes[0], accounts)

        def write(number: int, n: int) -> bytes:
            mine = accounts[number::CONNECTIONS]
            return create(mine[n % len(mine)], n)

        def read(number: int, n: int) -> bytes:
            return get(f"com.atproto.repo.getRecord?{uris[(number + n) % len(uris)]}")

        return (
            await drive(nodes, database, write, seconds),
            await drive(nodes, database, read, seconds),
            accounts,
        )


async def first_posts(node: ServerProcess, accounts: Sequence[Account]) -> list[str]:
    """Write one record for each account; return the queries that read them."""
    queries = []
    async with aiohttp.ClientSession() as session:
        for account in accounts:
            body = {
                "repo": account.did,
                "collection": "com.example.note",
                "rkey": "first",
                "record": {"text": "read again and again"},
            }
            await call(
                session, node.url, "com.atproto.repo.createRecord", token=account.token, body=body
            )
            names = {key: body[key] for key in ("repo", "collection", "rkey")}
            queries.append(urlencode(names))
    return queries


async def run(seconds: float) -> None:
    """Print the lines of SQLite and of 1 to 3 nodes."""
    print(f"{os.cpu_count()} cores, {CONNECTIONS} connections, {ACCOUNTS} accounts, all synced")
    base = await measure(1, None, seconds)
    print(base[0].text("createRecord, SQLite", None))
    print(base[1].text("getRecord, SQLite", None), flush=True)
    database = private_server(DURABLE)
    try:
        for count in range(1, MAX_NODES + 1):
            writes, reads, _ = await measure(count, database, seconds)
            what = f"{count} node{'s' * (count > 1)}"
            print(writes.text(f"createRecord, PostgreSQL, {what}", base[0]))
            print(reads.text(f"getRecord, PostgreSQL, {what}", base[1]), flush=True)
    finally:
        database.remove()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.nodes")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each line")
    asyncio.run(run(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
