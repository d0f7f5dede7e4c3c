"""What a write and a read cost on a host of 1,000, 10,000 and 100,000 accounts.

Every account has a key, a repo and a few records. Each operation goes to an account taken at
random, so neither trees nor rows are in memory from the time before. What must not grow with the
accounts is the cost of an operation; what may is the database, by rows.

`python -m bench.growth [--accounts 1000,10000,100000] [--engine sqlite|postgres]`
"""

import argparse
import asyncio
import hashlib
import logging
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.postgres_writes import database_cpu, post
from pds.protocol.keys import make_signer
from pds.protocol.syntax import Did, Handle
from pds.protocol.tid import encode_tid
from pds.services.account_cache import AccountCache
from pds.services.lexicons import load_catalog
from pds.services.repo_txn import create_repo, emit_commit
from pds.services.repos import Repos
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

BATCH = 50
OPERATIONS = 3_000
AT_ONCE = 16


class Host:
    """A database that grows."""

    def __init__(self, engine: ThreadedEngine, server: OwnServer | None) -> None:
        self.engine, self.server = engine, server
        self.clock, self.keystore = SystemClock(), Keystore(bytes(32))
        self.aids: list[int] = []
        self.repos = Repos(
            engine=engine,
            clock=self.clock,
            keystore=self.keystore,
            catalog=load_catalog(),
            accounts=AccountCache(engine),
            documents=None,  # type: ignore[arg-type]  # nothing asks for any
            clock_id=7,
        )

    async def grow(self, count: int) -> None:
        """Add accounts until there are `count`."""
        while len(self.aids) < count:
            first = len(self.aids)
            numbers = range(first, min(count, first + BATCH))
            self.aids += await self.engine.transact(
                "accounts", self._insert, numbers, self.clock.now_us(), bulk=True
            )

    def _insert(self, txn: Txn, numbers: Sequence[int], now_us: int) -> list[int]:
        return [self._insert_one(txn, number, now_us) for number in numbers]

    def _insert_one(self, txn: Txn, number: int, now_us: int) -> int:
        did, handle = Did(f"did:plc:{number:024d}"), Handle(f"a{number}.test")
        secret = hashlib.sha256(did.encode()).digest()
        aid = insert_account(
            txn, did=did, handle=handle, email=None, password_hash=None, now_us=now_us
        )
        entropy = secret[:KEY_ENTROPY_BYTES].ljust(KEY_ENTROPY_BYTES, b"x")
        key_id, _ = self.keystore.create_signing_key(
            txn, aid, curve="k256", secret=secret, entropy=entropy, now_us=now_us
        )
        update_key(txn, aid, key_id)
        signer = make_signer("k256", secret)
        rev = encode_tid(now_us, 1)
        emit_commit(txn, aid, create_repo(txn, aid, did, signer, rev=rev, now_us=now_us))
        return aid

    async def measure(self, name: str, act: Callable[[int], Awaitable[Any]]) -> None:
        """Time `act` on random accounts, 16 at once."""
        rng = random.Random(len(self.aids))
        times: list[float] = []
        left = OPERATIONS

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                began = time.perf_counter()
                await act(rng.choice(self.aids))
                times.append(time.perf_counter() - began)

        own, theirs, began = time.process_time(), database_cpu(self.server), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        seconds = time.perf_counter() - began
        own_us = (time.process_time() - own) / OPERATIONS * 1e6
        theirs_us = (database_cpu(self.server) - theirs) / OPERATIONS * 1e6
        print(
            f"{name:<12}{len(self.aids):>9,} accounts {OPERATIONS / seconds:>8,.0f} /s"
            f"  p50 {statistics.median(times) * 1e3:>6.2f} ms  CPU {own_us:>5.0f} us here,"
            f" {theirs_us:>5.0f} us in the database",
            flush=True,
        )

    async def write(self, aid: int) -> None:
        """Create one record."""
        await self.repos.write(aid, [post(aid)])

    async def read(self, aid: int) -> None:
        """Look one record up."""
        await self.engine.read("record", get_record, aid, "none/none")


async def run(sizes: Sequence[int], engine_name: str) -> None:
    """Grow one database, and measure at every size."""
    with tempfile.TemporaryDirectory() as folder:
        server = private_server(DURABLE) if engine_name == "postgres" else None
        engine: ThreadedEngine = (
            SqliteEngine(SqliteSettings(Path(folder) / "db.sqlite"), SystemClock())
            if server is None
            else PostgresEngine(PostgresSettings(server.url), SystemClock())
        )
        await engine.start()
        try:
            host = Host(engine, server)
            for size in sizes:
                began = time.perf_counter()
                await host.grow(size)
                print(f"{size:,} accounts after {time.perf_counter() - began:.0f} s", flush=True)
                await host.measure("createRecord", host.write)
                await host.measure("getRecord", host.read)
                peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                size_mb = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
                print(f"peak memory {peak_mb:.0f} MB, files {size_mb / 1e6:.0f} MB", flush=True)
        finally:
            await engine.close()
            if server is not None:
                server.remove()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("--accounts", default="1000,10000,100000")
    parser.add_argument("--engine", choices=["sqlite", "postgres"], default="sqlite")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # Many accounts in one job: slow, as meant.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    print(f"{os.cpu_count()} cores, {asked.engine}")
    uvloop.run(run([int(text) for text in asked.accounts.split(",")], asked.engine))


if __name__ == "__main__":
    main()
