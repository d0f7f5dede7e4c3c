"""What every engine promises; run by one test class for each database.

A subclass of `EngineSuite` gives the fixture `backend`. Faults of the disk are injected in the
tests of each engine. This part: results, isolation, and what a job may not do.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pds.errors import Conflict, StoreError
from pds.store.base import ThreadedEngine
from pds.store.engine import Txn
from pds.store.statements import BadStatement
from tests.fakes.clock import FakeClock
from tests.suites.engine_delivery import DeliverySuite
from tests.suites.engine_groups import GroupSuite
from tests.suites.engine_jobs import (
    COUNT,
    PUT,
    UPSERT,
    Refused,
    count,
    get,
    put,
)
from tests.suites.engine_streams import StreamSuite
from tests.suites.engines import Backend


class EngineSuite(GroupSuite, DeliverySuite, StreamSuite):
    """The contract."""

    async def test_a_write_is_answered_with_its_result_and_seen_by_readers(
        self, engine: ThreadedEngine
    ) -> None:
        assert await engine.transact("put", put, "a", b"1") == "a"
        assert await engine.read("get", get, "a") == b"1"

    async def test_what_was_answered_is_there_after_reopening(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        engine = backend.engine(clock)
        await engine.start()
        await engine.transact("put", put, "a", b"1")
        await engine.close()
        engine = backend.engine(clock)
        await engine.start()
        assert await engine.read("get", get, "a") == b"1"
        await engine.close()

    async def test_a_job_sees_its_own_writes_and_readers_do_not_before_the_commit(
        self, engine: ThreadedEngine
    ) -> None:
        written, go_on = threading.Event(), threading.Event()

        def job(txn: Txn) -> bytes | None:
            put(txn, "a", b"1")
            written.set()
            assert go_on.wait(60)
            return get(txn, "a")

        task = asyncio.create_task(engine.transact("put", job))
        assert await asyncio.to_thread(written.wait, 60)
        assert await engine.read("get", get, "a") is None
        go_on.set()
        assert await task == b"1"
        assert await engine.read("get", get, "a") == b"1"

    async def test_a_read_has_one_snapshot_for_all_its_statements(
        self, engine: ThreadedEngine
    ) -> None:
        await engine.transact("put", put, "a", b"1")
        first_read, go_on = threading.Event(), threading.Event()

        def reader(txn: Txn) -> tuple[bytes | None, bytes | None]:
            before = get(txn, "a")
            first_read.set()
            assert go_on.wait(60)
            return before, get(txn, "a")

        task = asyncio.create_task(engine.read("two reads", reader))
        assert await asyncio.to_thread(first_read.wait, 60)
        await engine.transact("put", lambda txn: txn.write(UPSERT, ("a", b"2")))
        go_on.set()
        assert await task == (b"1", b"1")
        assert await engine.read("get", get, "a") == b"2"

    async def test_a_failed_read_raises_what_it_raised_and_the_next_one_works(
        self, engine: ThreadedEngine
    ) -> None:
        def bad(_txn: Txn) -> None:
            raise Refused

        with pytest.raises(Refused):
            await engine.read("bad", bad)
        with pytest.raises(StoreError):
            await engine.read("bad", lambda txn: txn.read("SELECT nothing FROM nowhere"))
        assert await engine.read("count", count) == 0

    async def test_values_come_back_as_they_were(self, engine: ThreadedEngine) -> None:
        def job(txn: Txn) -> list[Any]:
            for aid, did, blocked in ((1, "did:plc:ä\U0001f98b", None), (2**63 - 1, "x", -(2**63))):
                txn.write(
                    "INSERT INTO account (aid, did, created_at, invites_disabled)"
                    " VALUES (?, ?, ?, ?)",
                    (aid, did, 0 if blocked is None else blocked, 0),
                )
            return txn.read("SELECT aid, did, handle, created_at FROM account ORDER BY aid")

        expected = [(1, "did:plc:ä\U0001f98b", None, 0), (2**63 - 1, "x", None, -(2**63))]
        assert await engine.transact("values", job) == expected
        blob = bytes(range(256))
        await engine.transact("put", put, "blob", blob)
        assert await engine.read("get", get, "blob") == blob

    async def test_text_is_ordered_by_its_bytes(self, engine: ThreadedEngine) -> None:
        names = ["Z", "a", "a.b", "a/b", "ab", "z", "~", "é", "\uffff", "\U0001f98b"]
        for name in reversed(names):
            await engine.transact("put", put, name)
        rows = await engine.read("all", lambda txn: txn.read("SELECT name FROM fact ORDER BY name"))
        assert [row[0] for row in rows] == names

    async def test_a_value_of_the_wrong_type_is_refused(self, engine: ThreadedEngine) -> None:
        with pytest.raises(StoreError):
            await engine.transact("text into bytes", lambda txn: txn.write(PUT, ("a", "text")))

    async def test_counters_count_per_name_and_a_failed_job_uses_no_number(
        self, engine: ThreadedEngine
    ) -> None:
        def take_and_fail(txn: Txn) -> None:
            txn.next_id("account")
            raise Refused

        assert await engine.transact("id", lambda txn: txn.next_id("account")) == 1
        with pytest.raises(Refused):
            await engine.transact("id", take_and_fail)
        assert await engine.transact("id", lambda txn: txn.next_id("account")) == 2
        assert await engine.transact("id", lambda txn: txn.next_id("repo")) == 1

    async def test_write_many_writes_each_row(self, engine: ThreadedEngine) -> None:
        rows = [(f"f{n}", b"%d" % n) for n in range(700)]
        await engine.transact("many", lambda txn: txn.write_many(PUT, iter(rows)))
        await engine.transact("none", lambda txn: txn.write_many(PUT, []))
        assert await engine.read("count", count) == 700

    async def test_write_returns_the_rows_of_returning(self, engine: ThreadedEngine) -> None:
        await engine.transact("put", put, "a", b"1")
        rows = await engine.transact(
            "delete",
            lambda txn: txn.write("DELETE FROM fact WHERE name = ? RETURNING value", ("a",)),
        )
        assert rows == [(b"1",)]

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO fact (name, value) VALUES ('a', randomblob(3))",
            "INSERT INTO event (seq, aid, kind, at, frame) VALUES (1, 1, 'x', now(), '')",
            "UPDATE fact SET value = CURRENT_TIMESTAMP WHERE name = 'x'",
            "INSERT OR REPLACE INTO fact (name, value) VALUES (?, ?)",
            "DELETE FROM fact WHERE name = ?1",
            "DELETE FROM fact WHERE name = :name",
            "DELETE FROM fact; DELETE FROM seq",
            "SELECT 1",
            "PRAGMA user_version = 3",
            "DROP TABLE fact",
        ],
    )
    async def test_a_statement_that_cannot_be_replayed_is_refused(
        self, engine: ThreadedEngine, sql: str
    ) -> None:
        with pytest.raises(BadStatement):
            await engine.transact("bad", lambda txn: txn.write(sql))

    async def test_a_write_cannot_go_through_the_door_of_reads(
        self, engine: ThreadedEngine
    ) -> None:
        sneaky = "WITH x AS (SELECT 1) DELETE FROM fact WHERE name = ?"
        for sql in (PUT, sneaky):
            with pytest.raises(BadStatement):
                await engine.transact("sneak", lambda txn, sql=sql: txn.read(sql, ("a", b"")))

    async def test_a_reader_cannot_write(self, engine: ThreadedEngine) -> None:
        attempts: list[Callable[[Txn], Any]] = [
            lambda txn: put(txn, "a"),
            lambda txn: txn.write_many(PUT, [("a", b"")]),
            lambda txn: txn.next_id("account"),
            lambda txn: txn.emit("commit", 1, lambda _seq, _at: b""),
            lambda txn: txn.on_commit(lambda: None),
            lambda txn: txn.lock_accounts([1]),
        ]
        for attempt in attempts:
            with pytest.raises(StoreError):
                await engine.read("write", attempt)
        assert await engine.read("count", count) == 0

    async def test_a_transaction_cannot_be_used_after_its_end(self, engine: ThreadedEngine) -> None:
        kept: list[Txn] = []
        await engine.transact("keep", kept.append)
        await engine.read("keep", kept.append)
        for txn in kept:
            with pytest.raises(StoreError):
                txn.read(COUNT)
        with pytest.raises(StoreError):
            put(kept[0], "a")

    async def test_a_job_that_goes_on_after_a_failed_statement_fails(
        self, engine: ThreadedEngine
    ) -> None:
        await engine.transact("put", put, "a", b"1")

        def swallow(txn: Txn) -> str:
            put(txn, "b")
            try:
                put(txn, "a")
            except Conflict:
                return "went on"
            return "no conflict"

        with pytest.raises(Conflict):
            await engine.transact("swallow", swallow)
        assert await engine.read("get", get, "b") is None
