"""Points in windows: here, and at several nodes of one database."""

import asyncio
from dataclasses import dataclass

import pytest

from pds.errors import RequestError, Unavailable
from pds.services.login_limits import AttemptCounter, LoginLimits, Window
from pds.services.rate_limits import (
    SHARED_FROM,
    Bucket,
    Key,
    Limit,
    RateLimited,
    RateLimits,
)
from pds.store.base import ThreadedEngine
from pds.store.rate_counts import list_rate_counts
from tests.store.conftest import recording_engine

__all__ = ["recording_engine"]

START_S = 1_760_000_000.0
HOUR = 3600


@dataclass
class Time:
    """A clock that nodes share."""

    now_s: float = START_S

    def __call__(self) -> float:
        return self.now_s


def limit(points: int = 10, window_s: int = 300, name: str = "things", **more: int) -> Limit:
    return Limit(name=name, key=Key.ADDRESS, points=points, window_s=window_s, **more)


def spend_all(bucket: Bucket, subject: str, most: int = 100_000) -> int:
    """Spend points one by one until none is left; return how many there were."""
    for spent in range(most):
        try:
            bucket.spend(subject)
        except RateLimited:
            return spent
    return most


def test_a_subject_has_its_points_in_each_window_and_no_more() -> None:
    """XRPC-70."""
    time = Time()
    bucket = RateLimits(now_s=time).bucket(limit())
    assert spend_all(bucket, "a") == 10
    assert spend_all(bucket, "b") == 10
    with pytest.raises(RateLimited) as caught:
        bucket.spend("a")
    error = caught.value
    wait_s = int(error.headers["Retry-After"])
    assert (error.name, error.status, error.message) == (
        "RateLimitExceeded",
        429,
        "Rate Limit Exceeded",
    )
    assert 0 < wait_s <= 300
    assert error.count.ends_at == START_S + wait_s
    time.now_s += wait_s - 1
    assert spend_all(bucket, "a") == 0
    time.now_s += 1
    assert spend_all(bucket, "a") == 10
    time.now_s += 299.5
    assert spend_all(bucket, "a") == 0
    time.now_s += 0.5
    assert spend_all(bucket, "a") == 10


def test_windows_of_different_subjects_end_at_different_times() -> None:
    """Refused clients shall not all come back in one second."""
    bucket = RateLimits(now_s=Time()).bucket(limit())
    ends = {bucket.spend(f"10.0.0.{number}").ends_at for number in range(100)}
    assert len(ends) > 60


def test_what_is_refused_costs_nothing_and_a_part_may_still_fit() -> None:
    bucket = RateLimits(now_s=Time()).bucket(limit(points=10))
    bucket.spend("a", 8)
    with pytest.raises(RateLimited):
        bucket.spend("a", 3)
    with pytest.raises(RateLimited):
        bucket.check("a", 3)
    assert bucket.check("a", 2).remaining == 2
    assert bucket.spend("a", 2).remaining == 0


def test_a_clock_that_was_set_back_begins_a_window_of_its_own() -> None:
    """A window of the future must not keep anybody out until then."""
    time = Time()
    bucket = RateLimits(now_s=time).bucket(limit())
    assert spend_all(bucket, "a") == 10
    time.now_s -= 86_400
    assert spend_all(bucket, "a") == 10


def test_memory_is_bounded_and_who_goes_on_is_not_forgotten() -> None:
    """Promise B6: a flood of addresses neither fills memory nor frees a busy one."""
    bucket = RateLimits(now_s=Time()).bucket(limit(points=1000, max_subjects=80))
    spent = 0
    for number in range(2000):
        bucket.spend(f"10.0.{number >> 8}.{number & 255}")
        if number % 10 == 0:
            bucket.spend("busy")
            spent += 1
        assert len(bucket) <= 80
    assert bucket.check("busy").used == spent


async def test_old_windows_are_dropped_from_memory() -> None:
    time = Time()
    rates = RateLimits(now_s=time)
    bucket = rates.bucket(limit())
    bucket.spend("a")
    await rates.forget_old()
    assert len(bucket) == 1
    time.now_s += 301
    bucket.spend("b")
    await rates.forget_old()
    assert len(bucket) == 1


def test_long_names_are_kept_as_digests() -> None:
    rates = RateLimits(now_s=Time())
    assert rates.text_subject("203.0.113.7") == "203.0.113.7"
    long = rates.text_subject("did:web:" + "x" * 2000)
    assert isinstance(long, bytes)
    assert len(long) == 16
    assert rates.name_subject("a", "bc") != rates.name_subject("ab", "c")
    assert rates.name_subject("a") != RateLimits(secret="another").name_subject("a")


def test_two_limits_must_not_share_a_name() -> None:
    rates = RateLimits(now_s=Time())
    assert rates.bucket(limit()) is rates.bucket(limit())
    with pytest.raises(ValueError, match="things"):
        rates.bucket(limit(points=11))


# Several nodes


def nodes(engine: ThreadedEngine, time: Time, count: int = 2) -> list[RateLimits]:
    """Nodes on one database, each with its own memory."""
    return [RateLimits(now_s=time, secret="s", engine=engine, is_shared=True) for _ in range(count)]


async def share_all(all_nodes: list[RateLimits]) -> None:
    """One second passes at every node; twice, so that all know of all."""
    for _ in range(2):
        for node in all_nodes:
            await node.share()


async def test_a_client_that_alternates_gets_the_limit_and_a_stated_rest(
    recording_engine: ThreadedEngine,
) -> None:
    """Promise B6: at each further node a sixteenth, and what comes within one second."""
    time = Time()
    everyone = nodes(recording_engine, time, 3)
    buckets = [node.bucket(limit(points=320)) for node in everyone]
    passed = 0
    per_second = 12
    for _ in range(60):
        for number in range(per_second):
            try:
                buckets[number % 3].spend("client")
                passed += 1
            except RateLimited:
                continue
        time.now_s += 1
        await share_all(everyone)
    assert 320 <= passed <= 320 + per_second
    assert [spend_all(bucket, "client") for bucket in buckets] == [0, 0, 0]


async def test_a_client_that_moves_on_when_it_is_refused_gains_a_sixteenth_at_each_node(
    recording_engine: ThreadedEngine,
) -> None:
    time = Time()
    here, there = nodes(recording_engine, time)
    mine, theirs = (node.bucket(limit(points=320)) for node in (here, there))
    assert spend_all(mine, "client") == 320
    await here.share()
    part = 320 // SHARED_FROM
    for _ in range(part):
        theirs.spend("client")
    assert theirs.check("client").used == part
    await there.share()
    assert spend_all(theirs, "client") == 0
    # The next window is a new one everywhere.
    time.now_s += 300
    await share_all([here, there])
    assert spend_all(theirs, "client") == 320


async def test_who_stays_far_from_the_limit_costs_the_database_nothing(
    recording_engine: ThreadedEngine,
) -> None:
    time = Time()
    (node,) = nodes(recording_engine, time, 1)
    bucket = node.bucket(limit(points=320))
    for number in range(50):
        for _ in range(320 // SHARED_FROM - 1):
            bucket.spend(f"client {number}")
    await node.share()
    now_us = int(time.now_s * 1_000_000)
    assert await recording_engine.read("t", list_rate_counts, now_us, 99) == []
    bucket.spend("client 7")
    await node.share()
    (row,) = await recording_engine.read("t", list_rate_counts, now_us, 99)
    assert row.points == 320 // SHARED_FROM
    assert b"client" not in row.subject
    assert await node.sweep() == 0
    time.now_s += 300
    assert await node.sweep() == 1


async def test_exact_limits_hold_to_the_point_at_all_nodes_together(
    recording_engine: ThreadedEngine,
) -> None:
    """Sign-ins (XRPC-27): guesses at both nodes at the same moment count before they are judged."""
    time = Time()
    figures = LoginLimits(per_address=(Window(9, 300),), per_account=(Window(20, 300),))
    counters = [
        AttemptCounter(node, figures, "sign-in") for node in nodes(recording_engine, time, 3)
    ]

    refusals: set[tuple[int, str]] = set()

    async def attempt(number: int, address: str) -> bool:
        try:
            await counters[number % 3].count("aid 1", address)
        except RequestError as error:
            refusals.add((error.status, error.message))
            return False
        return True

    passed = await asyncio.gather(*(attempt(number, "10.0.0.1") for number in range(40)))
    assert sum(passed) == 9
    elsewhere = [await attempt(number, f"10.0.1.{number}") for number in range(40)]
    assert sum(elsewhere) <= 11
    assert refusals == {(429, "Too many attempts to sign in")}
    time.now_s += 300
    assert await attempt(0, "10.0.0.1")


async def test_a_store_that_fails_loses_no_count(recording_engine: ThreadedEngine) -> None:
    class Failing:
        """The engine, as long as it is not told to fail."""

        is_failing = True

        async def transact(self, *args: object, **more: object) -> object:
            if self.is_failing:
                raise Unavailable("the disk is full")
            return await recording_engine.transact(*args, **more)  # type: ignore[arg-type]

    engine = Failing()
    time = Time()
    here = RateLimits(now_s=time, engine=engine, is_shared=True)  # type: ignore[arg-type]
    (there,) = nodes(recording_engine, time, 1)
    here._key = there._key
    mine, theirs = (node.bucket(limit(points=16)) for node in (here, there))
    mine.spend("a", 12)
    with pytest.raises(Unavailable):
        await here.share()
    await here.save()  # at the end of the server it only says so
    engine.is_failing = False
    mine.spend("a", 1)
    await here.share()
    theirs.spend("a", 1)
    await there.share()
    assert theirs.check("a").used == 14


async def test_points_given_back_are_given_back_at_all_nodes(
    recording_engine: ThreadedEngine,
) -> None:
    time = Time()
    here, there = nodes(recording_engine, time)
    mine, theirs = (node.bucket(limit(points=16)) for node in (here, there))
    mine.spend("a", 10)
    await here.share()
    assert mine.refund("a", 4) == 4
    assert mine.refund("b") == 0
    await here.share()
    theirs.spend("a")
    await there.share()
    assert theirs.check("a").used == 7
    assert mine.refund("a") == 6


# Restarts


async def test_a_restart_remembers_long_windows_only(recording_engine: ThreadedEngine) -> None:
    time = Time()
    before = RateLimits(now_s=time, engine=recording_engine)
    long, short = limit(32, HOUR, "long"), limit(32, 300, "short")
    for figures in (long, short):
        before.bucket(figures).spend("a", 30)
    await before.save()
    after = RateLimits(now_s=time, engine=recording_engine)
    await after.load()
    assert spend_all(after.bucket(long), "a") == 2
    assert spend_all(after.bucket(long), "b") == 32
    assert spend_all(after.bucket(short), "a") == 32
    await after.save()
    later = RateLimits(now_s=time, engine=recording_engine)
    time.now_s += HOUR
    await later.load()
    assert spend_all(later.bucket(long), "a") == 32
    await later.forget_old()
    assert later._loaded == {}
