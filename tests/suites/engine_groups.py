"""The engine's contract, second part: groups of jobs and the numbers of their events."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from pds.errors import Unavailable
from pds.store.base import QueueLimits, ThreadedEngine
from pds.store.clock import ClockInDoubt
from pds.store.engine import CommittedEvent, Txn
from tests.fakes.clock import NOON_US, FakeClock
from tests.suites.engine_base import EngineFixtures
from tests.suites.engine_jobs import (
    COUNT,
    PUT,
    UPSERT,
    Gate,
    Refused,
    count,
    get,
    put,
    put_with_event,
    queue_jobs,
    settle,
)
from tests.suites.engines import Backend


class GroupSuite(EngineFixtures):
    """Which jobs share a COMMIT, what a failing one takes with it, and which numbers they get."""

    async def test_a_lone_writer_waits_for_nobody(self, engine: ThreadedEngine) -> None:
        for n in range(3):
            await engine.transact("put", put, f"f{n}")
        assert engine.health().groups == 3

    async def test_waiting_jobs_share_groups_of_at_most_64(self, engine: ThreadedEngine) -> None:
        gate = Gate()
        held = await gate.hold(engine)
        before = engine.health().groups
        tasks = await queue_jobs(engine, *[lambda txn, n=n: put(txn, f"f{n}") for n in range(200)])
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
        numbers = await asyncio.gather(
            *(engine.transact("n", job, n, accounts=(n,)) for n in range(1000))
        )
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
