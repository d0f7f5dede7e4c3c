"""What every engine promises of `stream`: the same on a reader thread and in another process.

Jobs are functions of this module, because a process that runs them must be able to import it.
"""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Corrupt, RequestError, StoreError
from pds.store.base import ThreadedEngine
from pds.store.engine import Txn, Write
from tests.suites.engine_base import EngineFixtures
from tests.suites.engine_jobs import GET, UPSERT, count, get, put

BIG = 1 << 20


class Picky(Exception):
    """An exception whose constructor wants something that `args` does not hold."""

    def __init__(self, one: str, *, two: int) -> None:
        super().__init__(f"{one} {two}")
        self.two = two


def write_pieces(txn: Txn, write: Write, sizes: list[int]) -> None:
    """Write pieces of these sizes, each of another letter."""
    for number, size in enumerate(sizes):
        write(bytes([97 + number % 26]) * size)


def write_until_told(txn: Txn, write: Write, name: str, told: str) -> None:
    """Write a fact, wait until a file is there, write the fact again."""
    row = txn.read_one(GET, (name,))
    assert row is not None
    write(row[0])
    for _ in range(2000):
        if Path(told).exists():
            break
        time.sleep(0.01)
    row = txn.read_one(GET, (name,))
    assert row is not None
    write(row[0])


def write_for_ever(txn: Txn, write: Write) -> None:
    """Write until ended."""
    while True:
        count(txn)
        write(bytes(100_000))


def read_for_ever(txn: Txn, write: Write) -> None:
    """Write once, then read until ended."""
    write(b"first")
    while True:
        txn.read(
            "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000)"
            " SELECT COUNT(*) FROM n"
        )


def make_errors() -> list[BaseException]:
    """Exceptions of several shapes."""
    return [
        Corrupt("damaged"),
        RequestError("RepoNotFound", "no such repo", 404, headers={"a": "b"}),
        Picky("one", two=2),
        KeyError("key"),
    ]


def write_then_fail(txn: Txn, write: Write, content: bytes, error: int) -> None:
    """Write something, then raise."""
    if content:
        write(content)
    raise make_errors()[error]


def try_to_write_rows(txn: Txn, write: Write) -> None:
    """Change the database, which a reader may not."""
    put(txn, "from a reader")


class StreamSuite(EngineFixtures):
    """The contract; subclasses choose with `apart`."""

    apart = False

    async def collect(self, engine: ThreadedEngine, fn: Any, *args: Any) -> bytes:
        pieces: list[bytes] = []
        await engine.stream("stream", pieces.append, fn, *args, apart=self.apart)
        return b"".join(pieces)

    async def test_a_stream_arrives_in_order_and_whole(self, engine: ThreadedEngine) -> None:
        for sizes in ([], [0], [1], [3, 0, 5], [BIG, 1, BIG], [70_000] * 40, [1] * 3000):
            expected = b"".join(bytes([97 + n % 26]) * size for n, size in enumerate(sizes))
            assert await self.collect(engine, write_pieces, sizes) == expected

    async def test_several_streams_at_once_do_not_mix(self, engine: ThreadedEngine) -> None:
        jobs = [self.collect(engine, write_pieces, [n, 300_000, n]) for n in range(1, 9)]
        sizes = [len(content) for content in await asyncio.gather(*jobs)]
        assert sizes == [300_000 + 2 * n for n in range(1, 9)]

    async def test_a_stream_sees_one_snapshot(self, engine: ThreadedEngine, tmp_path: Path) -> None:
        told = tmp_path / "told"
        await engine.transact("put", put, "a", b"1")
        began = asyncio.Event()
        loop = asyncio.get_running_loop()
        pieces: list[bytes] = []

        def take(piece: bytes) -> None:
            pieces.append(piece)
            loop.call_soon_threadsafe(began.set)

        stream = asyncio.create_task(
            engine.stream("stream", take, write_until_told, "a", str(told), apart=self.apart)
        )
        await began.wait()
        await engine.transact("put", lambda txn: txn.write(UPSERT, ("a", b"2")))
        told.touch()
        await stream
        assert b"".join(pieces) == b"11"
        assert await engine.read("get", get, "a") == b"2"
        assert await self.collect(engine, write_until_told, "a", str(told)) == b"22"

    @pytest.mark.parametrize("content", [b"", b"half"])
    async def test_what_a_stream_raises_arrives_as_it_was(
        self, engine: ThreadedEngine, content: bytes
    ) -> None:
        for number, error in enumerate(make_errors()):
            with pytest.raises(type(error)) as info:
                await self.collect(engine, write_then_fail, content, number)
            assert str(info.value) == str(error)
            assert info.value.__dict__ == error.__dict__
        assert await self.collect(engine, write_pieces, [3]) == b"aaa"

    async def test_a_stream_cannot_write(self, engine: ThreadedEngine) -> None:
        with pytest.raises(StoreError):
            await self.collect(engine, try_to_write_rows)
        assert await engine.read("count", count) == 0

    async def test_what_the_taker_raises_ends_the_stream(self, engine: ThreadedEngine) -> None:
        class Enough(Exception):
            pass

        taken: list[int] = []

        def take(piece: bytes) -> None:
            taken.append(len(piece))
            if len(taken) == 3:
                raise Enough

        async with asyncio.timeout(60):
            with pytest.raises(Enough):
                await engine.stream("stream", take, write_for_ever, apart=self.apart)
        assert len(taken) == 3
        assert await self.collect(engine, write_pieces, [3]) == b"aaa"

    async def test_a_cancelled_caller_ends_the_stream(self, engine: ThreadedEngine) -> None:
        """One after the other: readers that went on would soon all be taken."""
        for _ in range(5):
            began = threading.Event()
            stream = asyncio.create_task(
                engine.stream(
                    "stream", lambda _piece, began=began: began.set(), write_for_ever,
                    apart=self.apart,
                )
            )  # fmt: skip
            assert await asyncio.to_thread(began.wait, 60)
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stream
        assert await self.collect(engine, write_pieces, [3]) == b"aaa"

    async def test_a_stream_that_waits_may_be_cancelled(self, engine: ThreadedEngine) -> None:
        streams = [asyncio.create_task(self.collect(engine, write_for_ever)) for _ in range(6)]
        await asyncio.sleep(0.3)
        for stream in streams:
            stream.cancel()
        await asyncio.wait(streams)
        assert await self.collect(engine, write_pieces, [3]) == b"aaa"

    async def test_a_closing_engine_finishes_streams_and_takes_no_more(
        self, engine: ThreadedEngine
    ) -> None:
        stream = asyncio.create_task(self.collect(engine, write_pieces, [BIG] * 20))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        assert len(await stream) == 20 * BIG
        await closing
        with pytest.raises(StoreError):
            await self.collect(engine, write_pieces, [3])
