"""Scheduled work: when jobs run, who runs them, and what is noted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pds.errors import Unavailable
from pds.services.jobs import Schedule, describe_result
from pds.store.engine import Engine
from pds.store.jobs import JobRow, forget_old_jobs, get_job, list_jobs, put_job, take_job
from tests.fakes.clock import NOON_US, FakeClock
from tests.fakes.virtual_time import VirtualTime
from tests.suites.engines import open_engine

SECOND_US = 1_000_000
HOUR_S = 3600


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def engine(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Engine]:
    async with open_engine(tmp_path, clock) as engine:
        yield engine


def make(engine: Engine, node: str = "one", *, is_shared: bool = True) -> Schedule:
    return Schedule(engine=engine, node=node, is_shared=is_shared, lease_s=0.3)


@asynccontextmanager
async def running(clock: FakeClock, *schedules: Schedule) -> AsyncIterator[VirtualTime]:
    """The schedules, side by side, in time that passes when the test says so."""
    time = VirtualTime(clock, sum(len(schedule.jobs) for schedule in schedules))
    tasks = [asyncio.create_task(schedule.run(clock, time.sleep)) for schedule in schedules]
    try:
        yield time
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def in_real_time(schedule: Schedule, clock: FakeClock) -> AsyncIterator[asyncio.Task[None]]:
    """One schedule that looks again and again, without pause."""
    task = asyncio.create_task(schedule.run(clock, lambda _: asyncio.sleep(0.005)))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def row_of(engine: Engine, name: str) -> JobRow:
    row = await engine.read("test.job", get_job, name)
    assert row is not None
    return row


class Work:
    """A job that notes when it ran, and does what the test tells it to."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.ran_s: list[float] = []
        self.fails: list[Exception] = []
        self.hold: asyncio.Event | None = None
        self.ended = 0

    async def __call__(self) -> int:
        self.ran_s.append((self.clock.now_us() - NOON_US) / SECOND_US)
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.ended += 1
        if self.fails:
            raise self.fails.pop(0)
        return len(self.ran_s)


async def test_a_day_of_jobs_runs_each_when_it_is_due(engine: Engine, clock: FakeClock) -> None:
    schedule = make(engine)
    works = {name: Work(clock) for name in ("hourly", "daily", "here")}
    schedule.add("hourly", works["hourly"], every_s=HOUR_S)
    schedule.add("daily", works["daily"], every_s=24 * HOUR_S, first_after_s=HOUR_S)
    schedule.add("here", works["here"], every_s=6 * HOUR_S, first_after_s=5, per_node=True)
    async with running(clock, schedule) as time:
        await time.pass_until(NOON_US + 26 * HOUR_S * SECOND_US - 1)
    assert works["hourly"].ran_s == [n * HOUR_S for n in range(26)]
    assert works["daily"].ran_s == [HOUR_S, 25 * HOUR_S]
    assert works["here"].ran_s == [5 + n * 6 * HOUR_S for n in range(5)]
    rows = await engine.read("test.jobs", list_jobs)
    assert [row.name for row in rows] == ["daily", "hourly"], "a node's own jobs have no row"
    daily = rows[0]
    assert (daily.result, daily.failures, daily.lease_node) == ("2", 0, None)
    assert daily.next_at == NOON_US + 49 * HOUR_S * SECOND_US
    assert daily.succeeded_at == daily.finished_at == NOON_US + 25 * HOUR_S * SECOND_US


async def test_of_three_nodes_one_does_each_due_run(engine: Engine, clock: FakeClock) -> None:
    work = Work(clock)
    schedules = [make(engine, node) for node in ("one", "two", "three")]
    for schedule in schedules:
        schedule.add("shared", work, every_s=60)
    async with running(clock, *schedules) as time:
        await time.pass_until(NOON_US + 600 * SECOND_US - 1)
    assert work.ran_s == [n * 60 for n in range(10)]


async def test_of_nodes_that_take_at_once_one_gets_it(engine: Engine, clock: FakeClock) -> None:
    def put(txn) -> None:
        put_job(txn, "x", period_us=1, now_us=1, first_at=1, at_start=False, alone=False)

    def take(txn, node: str) -> object:
        return take_job(txn, "x", node=node, now_us=5, lease_until=9)

    await engine.transact("test.put", put)
    taken = await asyncio.gather(*(engine.transact("test.take", take, str(n)) for n in range(8)))
    assert [found for found in taken if found is not None] == [(1, 0)]


async def test_a_lease_is_renewed_while_the_work_goes_on(engine: Engine, clock: FakeClock) -> None:
    work = Work(clock)
    work.hold = asyncio.Event()
    schedule = make(engine)
    schedule.add("long", work, every_s=60)
    async with in_real_time(schedule, clock):
        await until(lambda: bool(work.ran_s))
        first = (await row_of(engine, "long")).lease_until
        assert first is not None
        clock.advance(5)
        async with asyncio.timeout(60):
            while (await row_of(engine, "long")).lease_until == first:
                await asyncio.sleep(0.01)
        other_work = Work(clock)
        other = make(engine, "two")
        other.add("long", other_work, every_s=60)
        async with running(clock, other) as time:
            row = await row_of(engine, "long")
            assert row.lease_until is not None
            await time.pass_until(row.lease_until - 1)
            assert other_work.ran_s == []
        clock.set(row.lease_until - SECOND_US)
        work.hold.set()
        async with asyncio.timeout(60):
            while (await row_of(engine, "long")).result != "1":
                await asyncio.sleep(0.005)
    assert (await row_of(engine, "long")).lease_node is None


async def test_the_work_of_a_dead_node_is_taken_over_when_its_lease_lapses(
    engine: Engine, clock: FakeClock
) -> None:
    work = Work(clock)
    schedule = make(engine, "two")
    schedule.add("shared", work, every_s=HOUR_S)

    def die(txn) -> None:
        now_us = clock.now_us()
        put_job(
            txn, "shared", period_us=1, now_us=now_us, first_at=now_us, at_start=False, alone=False
        )
        assert take_job(
            txn, "shared", node="dead", now_us=now_us, lease_until=now_us + 60 * SECOND_US
        )

    await engine.transact("test.die", die)
    async with running(clock, schedule) as time:
        await time.pass_until(NOON_US + 59 * SECOND_US)
        assert work.ran_s == []
        await time.pass_until(NOON_US + 61 * SECOND_US)
        assert work.ran_s == [60]


async def test_who_lost_the_lease_stops_and_notes_nothing(engine: Engine, clock: FakeClock) -> None:
    work = Work(clock)
    work.hold = asyncio.Event()
    schedule = make(engine)
    schedule.add("shared", work, every_s=HOUR_S)

    def steal(txn) -> None:
        assert take_job(
            txn, "shared", node="two", now_us=NOON_US + HOUR_S * SECOND_US, lease_until=2 * NOON_US
        )

    async with in_real_time(schedule, clock):
        await until(lambda: bool(work.ran_s))
        await engine.transact("test.steal", steal)
        await until(lambda: work.ended == 1)
        row = await row_of(engine, "shared")
        assert (row.lease_node, row.result) == ("two", None)


async def test_a_failure_is_noted_and_tried_again_with_growing_pauses(
    engine: Engine, clock: FakeClock
) -> None:
    work = Work(clock)
    work.fails = [Unavailable("no disk"), ValueError("a mistake"), Unavailable("no disk")]
    schedule = make(engine)
    schedule.add("daily", work, every_s=24 * HOUR_S)
    async with running(clock, schedule) as time:
        await time.pass_until(NOON_US + 61 * SECOND_US)
        row = await row_of(engine, "daily")
        assert (row.result, row.failures) == ("failed: ValueError: a mistake", 2)
        assert row.succeeded_at is None
        await time.pass_until(NOON_US + 23 * HOUR_S * SECOND_US)
    assert work.ran_s == [0, 60, 180, 420]
    row = await row_of(engine, "daily")
    assert (row.result, row.failures) == ("4", 0)
    assert row.next_at == NOON_US + (420 + 24 * HOUR_S) * SECOND_US


async def test_a_stopping_node_lets_go_at_once(engine: Engine, clock: FakeClock) -> None:
    work = Work(clock)
    work.hold = asyncio.Event()
    schedule = make(engine)
    schedule.add("shared", work, every_s=HOUR_S)
    async with in_real_time(schedule, clock):
        await until(lambda: bool(work.ran_s))
    row = await row_of(engine, "shared")
    assert work.ended == 1
    assert (row.lease_node, row.next_at) == (None, NOON_US)


async def test_a_restart_keeps_what_is_due_when(engine: Engine, clock: FakeClock) -> None:
    """Save for what is due at every start, and for a lease that nobody can hold any more."""
    work, at_start = Work(clock), Work(clock)
    for start_s in (0, 600):
        schedule = make(engine, is_shared=False)
        schedule.add("hourly", work, every_s=HOUR_S)
        schedule.add("recover", at_start, every_s=HOUR_S, at_start=True)
        async with running(clock, schedule) as time:
            await time.pass_until(NOON_US + (start_s + 300) * SECOND_US)
        clock.set(NOON_US + 600 * SECOND_US)
    assert work.ran_s == [0]
    assert at_start.ran_s == [0, 600]

    def die(txn) -> None:
        now_us = NOON_US + HOUR_S * SECOND_US
        assert take_job(txn, "hourly", node="dead", now_us=now_us, lease_until=2 * NOON_US)

    await engine.transact("test.die", die)
    clock.set(NOON_US + HOUR_S * SECOND_US)
    alone = make(engine, is_shared=False)
    alone.add("hourly", work, every_s=HOUR_S)
    async with running(clock, alone) as time:
        await time.pass_until(NOON_US + (HOUR_S + 1) * SECOND_US)
    assert work.ran_s == [0, HOUR_S]


async def test_a_shorter_period_counts_from_the_next_start(
    engine: Engine, clock: FakeClock
) -> None:
    work = Work(clock)
    for every_s in (24 * HOUR_S, HOUR_S):
        schedule = make(engine)
        schedule.add("sweep", work, every_s=every_s)
        async with running(clock, schedule) as time:
            await time.pass_until(clock.now_us() + 2 * HOUR_S * SECOND_US)
    assert work.ran_s == [0, 3 * HOUR_S, 4 * HOUR_S]


async def test_while_the_clock_is_in_doubt_only_the_nodes_own_jobs_run(
    engine: Engine, clock: FakeClock
) -> None:
    shared, own = Work(clock), 0
    schedule = make(engine)

    async def check() -> None:
        nonlocal own
        own += 1

    schedule.add("shared", shared, every_s=1)
    schedule.add("clock", check, every_s=5, per_node=True)
    clock.error = Unavailable("the clock jumped")
    async with in_real_time(schedule, clock):
        await until(lambda: own > 3)
        assert shared.ran_s == []
        clock.error = None
        await until(lambda: bool(shared.ran_s))


async def test_old_jobs_are_forgotten(engine: Engine, clock: FakeClock) -> None:
    schedule = make(engine)
    schedule.add("gone", Work(clock), every_s=HOUR_S)
    async with running(clock, schedule) as time:
        await time.pass_until(NOON_US)
    later_us = NOON_US + 31 * 24 * HOUR_S * SECOND_US
    assert await engine.transact("test.forget", forget_old_jobs, later_us - 2 * 86_400_000_000) == 0
    assert await engine.transact("test.forget", forget_old_jobs, later_us) == 1
    # Whoever has it still makes it again.
    work = Work(clock)
    again = make(engine)
    again.add("gone", work, every_s=HOUR_S)
    async with running(clock, again) as time:
        await time.pass_until(NOON_US)
    assert work.ran_s == [0]


def test_a_job_is_named_once() -> None:
    schedule = Schedule(engine=None, node="one", is_shared=False)  # type: ignore[arg-type]

    async def work() -> None:
        return None

    schedule.add("x", work, every_s=1)
    with pytest.raises(ValueError):
        schedule.add("x", work, every_s=1)
    with pytest.raises(ValueError):
        schedule.add("y", work, every_s=0)
    assert [job.name for job in schedule.jobs] == ["x"]


def test_results_are_one_short_line() -> None:
    assert describe_result(None) == "done"
    assert describe_result(7) == "7"
    assert describe_result({"completed": 2, "undone": 0}) == "2 completed"
    assert describe_result({"completed": 0}) == "nothing to do"
    assert len(describe_result("x" * 1000)) == 300
