"""What every engine promises (DESIGN 4); run by one test class for each database.

A subclass gives the fixture `backend`. Faults of the disk are injected in the tests of each engine.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pds.errors import Conflict, StoreError, Unavailable
from pds.store.base import QueueLimits, ThreadedEngine
from pds.store.clock import ClockInDoubt
from pds.store.engine import CommittedEvent, CommittedGroup, HealthStatus, Txn
from pds.store.replay import WriteLog, compare
from pds.store.statements import BadStatement
from tests.fakes.clock import NOON_US, FakeClock
from tests.suites.engines import Backend

PUT = "INSERT INTO fact (name, value) VALUES (?, ?)"
UPSERT = PUT + " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
GET = "SELECT value FROM fact WHERE name = ?"
COUNT = "SELECT COUNT(*) FROM fact"


def put(txn: Txn, name: str, value: bytes = b"v") -> str:
    """Insert a fact; Conflict when it is there."""
    txn.write(PUT, (name, value))
    return name


def put_with_event(txn: Txn, name: str) -> None:
    """Insert a fact and tell the world."""
    put(txn, name)
    txn.emit("commit", 1, lambda seq, at_us: f"{name} {seq} {at_us}".encode())


def get(txn: Txn, name: str) -> bytes | None:
    """The value of a fact."""
    row = txn.read_one(GET, (name,))
    return None if row is None else row[0]


def count(txn: Txn) -> int:
    """How many facts there are."""
    row = txn.read_one(COUNT)
    assert row is not None
    return int(row[0])


class Refused(Exception):
    """What a job raises of its own."""


class Gate:
    """A job that holds the writer until it is opened, so that a group can gather behind it.

    It is a bulk job, which runs alone, so what waits behind it is not part of its group.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def job(self, _txn: Txn) -> None:
        """Wait on the writer thread."""
        self.entered.set()
        assert self.opened.wait(20)

    async def hold(self, engine: ThreadedEngine) -> "asyncio.Task[None]":
        """Occupy the writer and return the task that ends when the gate is opened."""
        task = asyncio.create_task(engine.transact("gate", self.job, bulk=True))
        assert await asyncio.to_thread(self.entered.wait, 20)
        return task


async def settle(*tasks: "asyncio.Task[Any]") -> list[Any]:
    """Results or exceptions of tasks."""
    return await asyncio.gather(*tasks, return_exceptions=True)


async def queue_jobs(
    engine: ThreadedEngine, *jobs: Callable[[Txn], Any], bulk: bool = False
) -> list["asyncio.Task[Any]"]:
    """Submit jobs in this order without waiting for them."""
    tasks = [asyncio.create_task(engine.transact("queued", job, bulk=bulk)) for job in jobs]
    await asyncio.sleep(0)
    return tasks


class EngineSuite:
    """The contract."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    async def engine(self, backend: Backend, clock: FakeClock) -> AsyncIterator[ThreadedEngine]:
        """A started engine; at the end its write log must replay to the same rows."""
        log = WriteLog()
        engine = backend.engine(clock, recorder=log, limits=QueueLimits(reopen_interval_s=0.01))
        await engine.start()
        yield engine
        await engine.close()
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []

    # Results, isolation, values

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
            assert go_on.wait(20)
            return get(txn, "a")

        task = asyncio.create_task(engine.transact("put", job))
        assert await asyncio.to_thread(written.wait, 20)
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
            assert go_on.wait(20)
            return before, get(txn, "a")

        task = asyncio.create_task(engine.read("two reads", reader))
        assert await asyncio.to_thread(first_read.wait, 20)
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

    # What a job may not do

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

    # Groups

    async def test_a_lone_writer_waits_for_nobody(self, engine: ThreadedEngine) -> None:
        for n in range(3):
            await engine.transact("put", put, f"f{n}")
        assert engine.health().groups == 3

    async def test_waiting_jobs_share_groups_of_at_most_64(self, engine: ThreadedEngine) -> None:
        gate = Gate()
        held = await gate.hold(engine)
        before = engine.health().groups
        tasks = [asyncio.create_task(engine.transact("p", put, f"f{n}")) for n in range(200)]
        await asyncio.sleep(0)
        gate.opened.set()
        await settle(held, *tasks)
        groups = engine.health().groups - before
        # The gate's own group and four of at most 64; more on a slow machine, because a group
        # also ends after 10 ms.
        assert 5 <= groups <= 60
        assert await engine.read("count", count) == 200

    async def test_a_failing_job_takes_nothing_with_it(self, engine: ThreadedEngine) -> None:
        called: list[str] = []

        def fail(txn: Txn) -> None:
            put_with_event(txn, "lost")
            txn.on_commit(lambda: called.append("lost"))
            raise Refused

        gate = Gate()
        held = await gate.hold(engine)
        tasks = await queue_jobs(
            engine,
            lambda txn: put_with_event(txn, "a"),
            fail,
            lambda txn: put_with_event(txn, "b"),
        )
        gate.opened.set()
        _, first, second, third = await settle(held, *tasks)
        assert (first, third) == (None, None)
        assert isinstance(second, Refused)
        rows = await engine.read(
            "events", lambda txn: txn.read("SELECT seq, frame FROM event ORDER BY seq")
        )
        assert [frame.split()[0] for _, frame in rows] == [b"a", b"b"]
        assert rows[1][0] == rows[0][0] + 1  # the failed job took no number
        assert await engine.read("get", get, "lost") is None
        assert called == []

    async def test_a_frame_that_cannot_be_built_fails_its_own_job_only(
        self, engine: ThreadedEngine
    ) -> None:
        def fail(_seq: int, _at_us: int) -> bytes:
            raise Refused

        def job(txn: Txn) -> None:
            put(txn, "lost")
            txn.emit("commit", 1, fail)

        gate = Gate()
        held = await gate.hold(engine)
        tasks = await queue_jobs(
            engine,
            lambda txn: put_with_event(txn, "a"),
            job,
            lambda txn: put_with_event(txn, "b"),
        )
        gate.opened.set()
        results = await settle(held, *tasks)
        assert isinstance(results[2], Refused)
        assert [results[0], results[1], results[3]] == [None, None, None]
        assert await engine.read("count", count) == 2

    @pytest.mark.parametrize("fail_at", range(7))
    async def test_a_job_that_fails_at_any_statement_leaves_nothing(
        self, engine: ThreadedEngine, fail_at: int
    ) -> None:
        steps: list[Callable[[Txn], Any]] = [
            lambda txn: txn.next_id("thing"),
            lambda txn: put_with_event(txn, "a"),
            lambda txn: txn.read(COUNT),
            lambda txn: txn.write_many(PUT, [("m1", b""), ("m2", b"")]),
            lambda txn: txn.write(UPSERT, ("kept", b"changed")),
            lambda txn: txn.on_commit(lambda: called.append(1)),
            lambda txn: txn.write("DELETE FROM fact WHERE name = ?", ("kept",)),
        ]
        called: list[int] = []
        await engine.transact("put", put, "kept", b"as it was")

        def job(txn: Txn) -> None:
            for number, step in enumerate(steps):
                if number == fail_at:
                    raise Refused
                step(txn)

        for bulk in (False, True):
            with pytest.raises(Refused):
                await engine.transact("fail", job, bulk=bulk)
        facts = await engine.read("all", lambda txn: txn.read("SELECT name, value FROM fact"))
        counters = await engine.read("ids", lambda txn: txn.read("SELECT name FROM counter"))
        events = await engine.read("events", lambda txn: txn.read("SELECT seq FROM event"))
        assert (facts, counters, events, called) == ([("kept", b"as it was")], [], [], [])

    async def test_a_thousand_concurrent_jobs_each_count(self, engine: ThreadedEngine) -> None:
        def job(txn: Txn, number: int) -> int:
            put_with_event(txn, f"f{number}")
            return txn.next_id("n")

        seen: list[CommittedEvent] = []
        engine.add_event_hook(seen.extend)
        numbers = await asyncio.gather(*(engine.transact("n", job, n) for n in range(1000)))
        assert sorted(numbers) == list(range(1, 1001))
        assert len(seen) == 1000
        assert engine.health().groups < 1000

    async def test_of_two_writers_that_swap_the_same_value_one_wins(
        self, engine: ThreadedEngine
    ) -> None:
        await engine.transact("put", put, "head", b"0")

        def swap(txn: Txn, expected: bytes, new: bytes) -> None:
            if get(txn, "head") != expected:
                raise Refused
            txn.write(UPSERT, ("head", new))

        for step in range(10):
            now = b"%d" % step
            results = await asyncio.gather(
                engine.transact("swap", swap, now, b"%d" % (step + 1), accounts=[1]),
                engine.transact("swap", swap, now, b"other", accounts=[1]),
                return_exceptions=True,
            )
            assert results[0] is None
            assert isinstance(results[1], Refused)

    async def test_bulk_jobs_run_alone_and_let_user_jobs_pass(self, engine: ThreadedEngine) -> None:
        order: list[str] = []

        def note(name: str) -> Callable[[Txn], None]:
            return lambda txn: txn.on_commit(lambda: order.append(name))

        gate = Gate()
        held = await gate.hold(engine)
        bulk = await queue_jobs(engine, *(note(f"bulk{n}") for n in range(3)), bulk=True)
        user = await queue_jobs(engine, *(note(f"user{n}") for n in range(4)))
        assert engine.health().waiting_bulk_jobs == 3
        before = engine.health().groups
        gate.opened.set()
        await settle(held, *bulk, *user)
        assert order == ["user0", "user1", "user2", "user3", "bulk0", "bulk1", "bulk2"]
        assert engine.health().groups - before == 5  # the gate, the users together, three alone

    async def test_user_jobs_do_not_starve_bulk_jobs(self, engine: ThreadedEngine) -> None:
        order: list[str] = []

        def note(name: str) -> Callable[[Txn], None]:
            return lambda txn: txn.on_commit(lambda: order.append(name))

        gate = Gate()
        held = await gate.hold(engine)
        bulk = await queue_jobs(engine, note("bulk0"), note("bulk1"), bulk=True)
        user = await queue_jobs(engine, *(note("user") for _ in range(3 * 64)))
        gate.opened.set()
        await settle(held, *bulk, *user)
        first, second = order.index("bulk0"), order.index("bulk1")
        assert 1 <= first <= 64  # after one group of users, not after all of them
        assert first + 1 < second <= first + 1 + 64

    async def test_a_full_queue_refuses_at_once(self, backend: Backend, clock: FakeClock) -> None:
        engine = backend.engine(clock, limits=QueueLimits(jobs=3, bulk_jobs=1, reads=1))
        await engine.start()
        gate = Gate()
        held = await gate.hold(engine)
        tasks = await queue_jobs(engine, *[count] * 3)
        bulk = await queue_jobs(engine, count, bulk=True)
        with pytest.raises(Unavailable, match="too many writes"):
            await engine.transact("one more", count)
        with pytest.raises(Unavailable, match="too many bulk"):
            await engine.transact("one more", count, bulk=True)
        gate.opened.set()
        assert await settle(held, *tasks, *bulk) == [None, 0, 0, 0, 0]
        assert await engine.transact("room again", count) == 0
        await engine.close()

    async def test_a_slow_job_is_logged_by_its_label(
        self, engine: ThreadedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        with caplog.at_level(logging.WARNING):
            held = await gate.hold(engine)
            await asyncio.sleep(0.06)
            gate.opened.set()
            await held
        slow = [record for record in caplog.records if record.msg == "store.slow_job"]
        assert [record.__dict__["label"] for record in slow] == ["gate"]

    # Numbers

    async def test_numbers_come_from_the_clock_and_chain(
        self, engine: ThreadedEngine, clock: FakeClock
    ) -> None:
        seen: list[CommittedEvent] = []
        engine.add_event_hook(seen.extend)

        def three(txn: Txn) -> None:
            for name in "abc":
                put_with_event(txn, name)

        await engine.transact("three", three)
        clock.advance(1)
        await engine.transact("one", put_with_event, "d")
        assert [event.seq for event in seen] == [NOON_US + n for n in (0, 1, 2, 1_000_000)]
        assert [event.prev_seq for event in seen] == [0, *(event.seq for event in seen[:-1])]
        assert [event.frame for event in seen] == [
            f"{name} {event.seq} {event.at_us}".encode()
            for name, event in zip("abcd", seen, strict=True)
        ]
        rows = await engine.read(
            "events",
            lambda txn: txn.read("SELECT seq, aid, kind, at, frame FROM event ORDER BY seq"),
        )
        assert rows == [(e.seq, e.aid, e.kind, e.at_us, e.frame) for e in seen]
        assert engine.last_seq == seen[-1].seq

    async def test_numbers_rise_when_the_clock_steps_back(
        self, engine: ThreadedEngine, clock: FakeClock
    ) -> None:
        seen: list[CommittedEvent] = []
        engine.add_event_hook(seen.extend)
        await engine.transact("a", put_with_event, "a")
        clock.advance(-3600)
        await engine.transact("b", put_with_event, "b")
        await engine.transact("c", put_with_event, "c")
        assert [event.seq for event in seen] == [NOON_US, NOON_US + 1, NOON_US + 2]

    async def test_numbers_go_on_above_the_last_after_reopening(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        for step in range(3):
            engine = backend.engine(clock)
            await engine.start()
            assert engine.last_seq == (NOON_US + step - 1 if step else 0)
            await engine.transact("a", put_with_event, f"f{step}")
            assert engine.last_seq == NOON_US + step
            await engine.close()
            clock.advance(-60)

    async def test_a_raised_floor_is_kept(self, backend: Backend, clock: FakeClock) -> None:
        engine = backend.engine(clock)
        await engine.start()
        floor = NOON_US + 5_000_000
        assert await engine.raise_seq(floor) == floor
        assert await engine.raise_seq(7) == floor
        assert engine.last_seq == floor
        await engine.close()
        engine = backend.engine(clock)
        await engine.start()
        await engine.transact("a", put_with_event, "a")
        assert engine.last_seq == floor + 1
        await engine.close()

    async def test_many_events_of_one_job_are_all_stored(self, engine: ThreadedEngine) -> None:
        def job(txn: Txn) -> None:
            for number in range(150):
                txn.emit("commit", number, lambda seq, _at: b"%d" % seq)

        await engine.transact("many", job)
        rows = await engine.read(
            "e", lambda txn: txn.read("SELECT seq, aid FROM event ORDER BY seq")
        )
        assert rows == [(NOON_US + n, n) for n in range(150)]

    async def test_a_doubted_clock_stops_writes_and_nothing_else(
        self, engine: ThreadedEngine, clock: FakeClock
    ) -> None:
        await engine.transact("put", put, "a")
        clock.error = ClockInDoubt("the clock jumped")
        for bulk in (False, True):
            with pytest.raises(ClockInDoubt):
                await engine.transact("put", put, "b", bulk=bulk)
        assert await engine.read("count", count) == 1
        clock.error = None
        await engine.transact("put", put, "b")

    # Hooks, answers, cancelling

    async def test_hooks_run_in_order_before_the_answers(self, engine: ThreadedEngine) -> None:
        order: list[str] = []
        engine.add_event_hook(lambda events: order.extend(e.frame.decode()[0] for e in events))
        engine.add_event_hook(lambda _events: order.append("second hook"))

        def job(txn: Txn, name: str) -> None:
            put_with_event(txn, name)
            txn.on_commit(lambda: order.append(f"commit {name}"))

        async def call(name: str) -> None:
            await engine.transact("put", job, name)
            order.append(f"answer {name}")

        gate = Gate()
        held = await gate.hold(engine)
        calls = [asyncio.create_task(call(name)) for name in "xy"]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(held, *calls)
        assert order == ["x", "y", "second hook", "commit x", "commit y", "answer x", "answer y"]

    async def test_a_hook_that_raises_stops_no_other(
        self, engine: ThreadedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []

        def broken(*_args: object) -> None:
            raise Refused

        engine.add_event_hook(broken)
        engine.add_event_hook(lambda events: seen.append(f"{len(events)} events"))

        def job(txn: Txn) -> str:
            put_with_event(txn, "a")
            txn.on_commit(broken)
            txn.on_commit(lambda: seen.append("own hook"))
            return "answer"

        assert await engine.transact("put", job) == "answer"
        assert seen == ["1 events", "own hook"]
        logged = [record.msg for record in caplog.records]
        assert "store.event_hook_failed" in logged
        assert "store.commit_hook_failed" in logged

    async def test_a_cancelled_caller_does_not_cancel_a_started_job(
        self, engine: ThreadedEngine
    ) -> None:
        entered, go_on, hook_ran = threading.Event(), threading.Event(), asyncio.Event()

        def job(txn: Txn) -> None:
            put_with_event(txn, "a")
            txn.on_commit(hook_ran.set)
            entered.set()
            assert go_on.wait(20)

        task = asyncio.create_task(engine.transact("put", job))
        assert await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.wait_for(hook_ran.wait(), 20)
        assert await engine.read("get", get, "a") == b"v"

    async def test_a_job_cancelled_while_it_waits_is_not_run(self, engine: ThreadedEngine) -> None:
        gate = Gate()
        held = await gate.hold(engine)
        lost, kept = await queue_jobs(
            engine, lambda txn: put(txn, "lost"), lambda txn: put(txn, "kept")
        )
        lost.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await settle(held, kept)
        assert await engine.read("count", count) == 1
        assert engine.health().waiting_jobs == 0

    async def test_groups_are_made_durable_before_anybody_is_told(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        order: list[str] = []

        def make_durable(group: CommittedGroup) -> None:
            order.append(f"durable {len(group.events)}")

        engine = backend.engine(clock, make_durable=make_durable)
        engine.add_event_hook(lambda _events: order.append("event"))
        await engine.start()
        await engine.transact("put", put_with_event, "a")
        order.append("answer")
        await engine.close()
        assert order == ["durable 1", "event", "answer"]

    async def test_a_group_that_is_not_durable_enough_is_not_acknowledged(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        fail = True
        hooks: list[str] = []

        def make_durable(_group: CommittedGroup) -> None:
            if fail:
                raise Refused

        engine = backend.engine(
            clock, make_durable=make_durable, limits=QueueLimits(reopen_interval_s=0.01)
        )
        engine.add_event_hook(lambda _events: hooks.append("event"))
        await engine.start()

        def job(txn: Txn) -> None:
            put_with_event(txn, "a")
            txn.on_commit(lambda: hooks.append("own"))

        with pytest.raises(Unavailable):
            await engine.transact("put", job)
        assert hooks == ["own"]  # caches must forget; the world is not told yet
        fail = False
        await wait_until_writable(engine)
        await engine.close()

    # Start and end

    async def test_closing_finishes_what_waits_and_refuses_the_rest(
        self, backend: Backend, clock: FakeClock
    ) -> None:
        engine = backend.engine(clock)
        with pytest.raises(Unavailable):
            await engine.transact("too early", count)
        assert engine.health().status is HealthStatus.FAILED
        await engine.start()
        assert engine.health().status is HealthStatus.OK
        gate = Gate()
        held = await gate.hold(engine)
        tasks = await queue_jobs(engine, *[lambda txn, n=n: put(txn, f"f{n}") for n in range(20)])
        bulk = await queue_jobs(engine, lambda txn: put(txn, "bulk"), bulk=True)
        reads = [asyncio.create_task(engine.read("count", count)) for _ in range(20)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await engine.transact("too late", count)
        with pytest.raises(Unavailable):
            await engine.read("too late", count)
        gate.opened.set()
        await closing
        results = await settle(held, *tasks, *bulk)
        assert results == [None, *(f"f{n}" for n in range(20)), "bulk"]
        assert await settle(*reads) == [0] * 20
        await engine.close()
        assert len(backend.dump()["fact"]) == 21


async def wait_until_writable(engine: ThreadedEngine) -> None:
    """Try a harmless write until it is taken."""
    for _ in range(2000):
        try:
            await engine.transact("try", count)
        except Unavailable:
            await asyncio.sleep(0.01)
        else:
            return
    pytest.fail("writes did not come back")
