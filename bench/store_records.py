"""How the store behaves with many records, cold: run before the schema is frozen.

    python -m bench.store_records 1000000 [--folder FOLDER]

Loads that many records (300 bytes each, with their tree nodes) into repos of 2,000 in bulk jobs of
500 rows, closes, drops the file from the page cache, opens again, and measures point reads, list
pages and writes in random repos, first cold and then warm.
"""

import asyncio
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from pds.store.clock import SystemClock
from pds.store.engine import SWITCH_INTERVAL_S, Row, Txn
from pds.store.sqlite import SqliteEngine, SqliteSettings

RECORDS_PER_REPO = 2_000
ROWS_PER_JOB = 500
RECORDS_PER_NODE = 4
RECORD = os.urandom(300)
NODE = os.urandom(900)
FRAME = os.urandom(5_000)

INSERT_RECORD = "INSERT INTO record (repo_id, path, cid, rev, bytes) VALUES (?, ?, ?, ?, ?)"
INSERT_NODE = "INSERT INTO node (repo_id, cid, rev, bytes) VALUES (?, ?, ?, ?)"
DELETE_NODE = "DELETE FROM node WHERE repo_id = ? AND cid = ?"
SELECT_RECORD = "SELECT cid, bytes FROM record WHERE repo_id = ? AND path = ?"
SELECT_PAGE = (
    "SELECT path, cid, bytes FROM record WHERE repo_id = ? AND path > ? AND path < ?"
    " ORDER BY path DESC LIMIT 100"
)
UPDATE_HEAD = "UPDATE repo SET commit_cid = ?, rev = ?, updated_at = ? WHERE repo_id = ?"
INSERT_HEAD = (
    "INSERT INTO repo (repo_id, aid, commit_cid, rev, data_cid, commit_block, record_count,"
    " node_count, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def make_cid(*parts: int) -> bytes:
    """A CID as random as real ones, the same for the same numbers."""
    return b"\x01\x71\x12\x20" + hashlib.sha256(repr(parts).encode()).digest()


def make_path(number: int) -> str:
    return f"app.bsky.feed.post/3l{number:011d}"


def load_chunk(txn: Txn, repo_id: int, first: int, count: int) -> None:
    if first == 0:
        head = (repo_id, repo_id, make_cid(repo_id), "3l", make_cid(0), NODE[:200], 0, 0, 0)
        txn.write(INSERT_HEAD, head)
    numbers = range(first, first + count)
    txn.write_many(
        INSERT_RECORD,
        [(repo_id, make_path(n), make_cid(repo_id, n), "3l", RECORD) for n in numbers],
    )
    txn.write_many(
        INSERT_NODE,
        [(repo_id, make_cid(repo_id, n, 0), "3l", NODE) for n in numbers[::RECORDS_PER_NODE]],
    )


def read_record(txn: Txn, repo_id: int, number: int) -> Row | None:
    return txn.read_one(SELECT_RECORD, (repo_id, make_path(number)))


def list_page(txn: Txn, repo_id: int) -> int:
    return len(txn.read(SELECT_PAGE, (repo_id, "app.bsky.feed.post/", "app.bsky.feed.post0")))


def create_record(txn: Txn, repo_id: int, number: int) -> None:
    """What one createRecord writes: a record, four nodes in, four out, the head, an event."""
    rev = f"3m{number:011d}"
    path = f"app.bsky.feed.post/{rev}"
    txn.write(INSERT_RECORD, (repo_id, path, make_cid(repo_id, number, 1), rev, RECORD))
    txn.write_many(
        INSERT_NODE, [(repo_id, make_cid(repo_id, number, 2, n), rev, NODE) for n in range(4)]
    )
    old = random.randrange(RECORDS_PER_REPO // RECORDS_PER_NODE) * RECORDS_PER_NODE
    txn.write_many(
        DELETE_NODE,
        [(repo_id, make_cid(repo_id, old + n * RECORDS_PER_NODE, 0)) for n in range(4)],
    )
    txn.write(UPDATE_HEAD, (make_cid(number), rev, number, repo_id))
    txn.emit("commit", repo_id, lambda _seq, _at_us: FRAME)


def drop_from_cache(path: Path) -> None:
    """Have the operating system forget the file's pages."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


async def measure(name: str, count: int, call: Callable[[int], Awaitable[object]]) -> None:
    """Time each call alone and print the distribution."""
    times = []
    cpu = time.process_time()
    for number in range(count):
        began = time.perf_counter()
        await call(number)
        times.append((time.perf_counter() - began) * 1e6)
    cpu = (time.process_time() - cpu) / count * 1e6
    times.sort()
    print(
        f"{name:30} p50 {times[count // 2]:8.0f} us   p99 {times[count * 99 // 100]:8.0f} us"
        f"   cpu {cpu:6.0f} us   ({count} calls)"
    )


async def load(engine: SqliteEngine, records: int) -> int:
    """Fill the database; return the number of repos."""
    repos = max(1, records // RECORDS_PER_REPO)
    began = time.perf_counter()
    for repo_id in range(1, repos + 1):
        for first in range(0, RECORDS_PER_REPO, ROWS_PER_JOB):
            await engine.transact("load", load_chunk, repo_id, first, ROWS_PER_JOB, bulk=True)
        if repo_id % max(1, repos // 10) == 0:
            done = repo_id * RECORDS_PER_REPO
            print(f"  {done:>10} records, {done / (time.perf_counter() - began):8.0f} records/s")
    return repos


async def run(records: int, folder: Path) -> None:
    path = folder / "pds.sqlite"
    engine = SqliteEngine(SqliteSettings(path=path), SystemClock())
    await engine.start()
    repos = await load(engine, records)
    await engine.close()
    print(
        f"file {path.stat().st_size / 1e9:.2f} GB, {path.stat().st_size / records:.0f} bytes/record"
    )
    drop_from_cache(path)
    engine = SqliteEngine(SqliteSettings(path=path), SystemClock())
    began = time.perf_counter()
    await engine.start()
    print(f"start, cold                    {(time.perf_counter() - began) * 1000:.0f} ms")
    chance = random.Random(1)

    def any_repo() -> int:
        return chance.randrange(repos) + 1

    async def read(_number: int) -> None:
        number = chance.randrange(RECORDS_PER_REPO)
        assert await engine.read("record", read_record, any_repo(), number) is not None

    async def page(_number: int) -> None:
        assert await engine.read("page", list_page, any_repo()) == 100

    async def write(number: int) -> None:
        await engine.transact("create", create_record, any_repo(), number)

    written = 0

    async def write_32(_number: int) -> None:
        nonlocal written
        written += 32
        await asyncio.gather(*(write(written + n + 1_000_000) for n in range(32)))

    await measure("read a record, cold", 2_000, read)
    await measure("list 100 records, cold", 500, page)
    await measure("createRecord alone, cold", 2_000, write)
    await measure("32 createRecords, cold", 100, write_32)
    await measure("read a record, again", 5_000, read)
    await measure("list 100 records, again", 500, page)
    await measure("createRecord alone, again", 2_000, lambda n: write(n + 50_000_000))
    print(engine.health())
    await engine.close()


@click.command()
@click.argument("records", type=int)
@click.option("--folder", type=click.Path(path_type=Path), default=None)
def main(records: int, folder: Path | None) -> None:
    """Load RECORDS records and measure."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        asyncio.run(run(records, scratch))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
