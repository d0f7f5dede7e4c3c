"""What a write costs on PostgreSQL, as a ratio to SQLite in the same run.

32 writers create records through the service, each in a repo of its own, first alone and then all
at once. PostgreSQL runs on this machine, once with its disk synced and once without; SQLite always
syncs. CPU is that of this process, and of all processes of the database, for one write.

`python -m bench.postgres_writes [--seconds N] [--rounds N]`
"""

import argparse
import asyncio
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.http_load import cpu_seconds
from pds.protocol.keys import make_signer
from pds.protocol.syntax import Did, Handle
from pds.protocol.tid import encode_tid
from pds.services.account_cache import AccountCache
from pds.services.lexicons import load_catalog
from pds.services.repo_txn import create_repo, emit_commit
from pds.services.repos import RecordWrite, Repos
from pds.store.accounts import insert_account, update_key
from pds.store.base import ThreadedEngine
from pds.store.clock import SystemClock
from pds.store.engine import SWITCH_INTERVAL_S, Txn
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore
from pds.store.postgres import PostgresEngine
from pds.store.postgres_link import PostgresSettings
from pds.store.records import get_record
from pds.store.sqlite import SqliteEngine, SqliteSettings
from tests.support_postgres import DURABLE, OwnServer, private_server

POST = "app.bsky.feed.post"
WRITERS = 32
FILLED = 300
"""Records that each repo has before anything is measured."""


@dataclass(frozen=True)
class Line:
    """One measured line."""

    name: str
    operations: int
    seconds: float
    own_cpu_s: float
    database_cpu_s: float
    p50_ms: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    def __str__(self) -> str:
        own, theirs = (
            seconds / self.operations * 1e6 for seconds in (self.own_cpu_s, self.database_cpu_s)
        )
        return (
            f"{self.name:<44}{self.rate:>8,.0f} /s  p50 {self.p50_ms:>7.2f} ms"
            f"  CPU {own:>6.0f} us here, {theirs:>6.0f} us in the database"
        )


def database_cpu(server: OwnServer | None) -> float:
    """Return the CPU seconds of a database server, with those of its children."""
    if server is None or server.process is None:
        return 0.0
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(cpu_seconds(int(child)) for child in (pid, *children))


async def make_accounts(engine: ThreadedEngine) -> tuple[Repos, list[int]]:
    """Make accounts with filled repos; return what writes to them."""
    keystore, clock = Keystore(bytes(32)), SystemClock()
    repos = Repos(
        engine=engine,
        clock=clock,
        keystore=keystore,
        catalog=load_catalog(),
        accounts=AccountCache(engine),
        documents=None,  # type: ignore[arg-type]  # nothing asks for any
        clock_id=7,
    )

    def insert(txn: Txn, number: int) -> int:
        did, handle = Did(f"did:plc:{number:024d}"), Handle(f"a{number}.test")
        now_us = clock.now_us()
        secret = hashlib.sha256(did.encode()).digest()
        aid = insert_account(
            txn, did=did, handle=handle, email=None, password_hash=None, now_us=now_us
        )
        entropy = bytes([number]) * KEY_ENTROPY_BYTES
        key_id, _ = keystore.create_signing_key(
            txn, aid, curve="k256", secret=secret, entropy=entropy, now_us=now_us
        )
        update_key(txn, aid, key_id)
        signer = make_signer("k256", secret)
        rev = encode_tid(now_us, 1)
        emit_commit(txn, aid, create_repo(txn, aid, did, signer, rev=rev, now_us=now_us))
        return aid

    aids = [await engine.transact("account", insert, number) for number in range(WRITERS)]
    for _ in range(FILLED // 100):
        await asyncio.gather(*(repos.write(aid, [post(n) for n in range(100)]) for aid in aids))
    return repos, aids


def post(number: int) -> RecordWrite:
    """Return a small post to create."""
    value = {"text": f"post {number} of the bench, as long as people write them"}
    return RecordWrite("create", POST, None, value | {"createdAt": "2026-01-01T00:00:00.000Z"})


async def drive(
    name: str,
    call: Callable[[int], Awaitable[Any]],
    *,
    writers: int,
    seconds: float,
    server: OwnServer | None,
) -> Line:
    """Call `call(writer)` again and again for `seconds`, after a short warm-up."""
    times: list[float] = []

    async def work(writer: int, deadline: float, book: list[float] | None) -> None:
        while (began := time.perf_counter()) < deadline:
            await call(writer)
            if book is not None:
                book.append(time.perf_counter() - began)

    warm = time.perf_counter() + 0.5
    await asyncio.gather(*(work(n, warm, None) for n in range(writers)))
    own, theirs, began = time.process_time(), database_cpu(server), time.perf_counter()
    await asyncio.gather(*(work(n, began + seconds, times) for n in range(writers)))
    elapsed = time.perf_counter() - began
    return Line(
        name,
        len(times),
        elapsed,
        time.process_time() - own,
        database_cpu(server) - theirs,
        statistics.median(times) * 1e3,
    )


async def measure(
    name: str, engine: ThreadedEngine, seconds: float, server: OwnServer | None
) -> list[Line]:
    """Time writes and point reads on an engine that is not started."""
    await engine.start()
    try:
        repos, aids = await make_accounts(engine)

        async def write(writer: int) -> None:
            await repos.write(aids[writer], [post(writer)])

        async def read(_writer: int) -> None:
            await engine.read("record", get_record, 1, "none/none")

        return [
            await drive(f"{name}, {what}", call, writers=writers, seconds=seconds, server=server)
            for what, call, writers in (
                (f"{WRITERS} writers", write, WRITERS),
                ("1 writer", write, 1),
                ("point reads, 1 reader", read, 1),
                ("point reads, 16 readers", read, 16),
            )
        ]
    finally:
        await engine.close()


async def run(seconds: float, rounds: int) -> None:
    """Measure SQLite, PostgreSQL that syncs and PostgreSQL that does not, in turn."""
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            sqlite = SqliteEngine(SqliteSettings(Path(folder) / "db.sqlite"), SystemClock())
            base = await measure("SQLite", sqlite, seconds, None)
        print(*base, sep="\n")
        for name, settings in (("fsync on", DURABLE), ("fsync off", None)):
            server = private_server(settings) if settings else private_server()
            try:
                engine = PostgresEngine(PostgresSettings(server.url), SystemClock())
                lines = await measure(f"PostgreSQL, {name}", engine, seconds, server)
            finally:
                server.remove()
            for line, other in zip(lines, base, strict=True):
                print(f"{line}, {line.rate / other.rate:.2f} of SQLite")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.postgres_writes")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each line")
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    print(f"{os.cpu_count()} cores")
    uvloop.run(run(asked.seconds, asked.rounds))


if __name__ == "__main__":
    main()
