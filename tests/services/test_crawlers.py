"""Announcing to relays: at start, after writes, when alone, with patience (SYNC-60)."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Rejected, RemoteError, Unavailable, Unreachable
from pds.services.crawlers import (
    FIRST_RETRY_S,
    MAX_LONELY_INTERVAL_S,
    MIN_INTERVAL_S,
    CrawlClaims,
    Crawlers,
)
from pds.store.crawl_requests import claim_crawl_requests, get_crawl_requests
from pds.store.engine import Engine, Txn
from tests.services.account_host import SettableClock
from tests.suites.engines import open_engine

RELAYS = ("https://relay.example", "https://other.example/")


class FakePoster:
    """Notes every request; relays named in `down` do not answer."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, Any]] = []
        self.down: dict[str, RemoteError] = {}
        self.gate: asyncio.Event | None = None

    async def post_json(self, url: str, value: Any, *, timeout_s: float) -> object:
        assert timeout_s <= 10
        self.posts.append((url, value))
        if self.gate is not None:
            await self.gate.wait()
        for relay, error in self.down.items():
            if url.startswith(relay):
                raise error
        return None


class Town:
    """A host with two relays and a clock moved by hand."""

    def __init__(
        self, relays: tuple[str, ...] = RELAYS, *, claims: CrawlClaims | None = None
    ) -> None:
        self.http = FakePoster()
        self.now_s = 5000.0
        self.readers = 0
        self.crawlers = Crawlers(
            http=self.http,
            relays=relays,
            hostname="pds.example",
            reader_count=lambda: self.readers,
            monotonic=lambda: self.now_s,
            claims=claims,
        )

    async def after(self, seconds: float) -> list[str]:
        """Let time pass; returns the relays asked then."""
        self.now_s += seconds
        self.http.posts.clear()
        await self.crawlers.announce_due()
        return sorted(url.split("/")[2] for url, _value in self.http.posts)


BOTH = ["other.example", "relay.example"]


async def test_every_relay_is_asked_at_start() -> None:
    town = Town()
    assert await town.after(0) == BOTH
    assert {url for url, _value in town.http.posts} == {
        "https://relay.example/xrpc/com.atproto.sync.requestCrawl",
        "https://other.example/xrpc/com.atproto.sync.requestCrawl",
    }
    assert all(value == {"hostname": "pds.example"} for _url, value in town.http.posts)


async def test_writes_are_announced_at_most_every_twenty_minutes() -> None:
    town = Town()
    await town.after(0)
    town.readers = 1
    for _ in range(19):
        town.crawlers.note_events(["an event"])
        assert await town.after(60) == []
    assert await town.after(60) == BOTH
    assert await town.after(MIN_INTERVAL_S) == []
    town.crawlers.note_events(["an event"])
    assert await town.after(0) == BOTH


async def test_with_a_reader_and_no_news_nobody_is_asked_again() -> None:
    town = Town()
    await town.after(0)
    town.readers = 1
    assert await town.after(10 * MAX_LONELY_INTERVAL_S) == []


async def test_without_readers_relays_are_asked_again_ever_more_slowly() -> None:
    town = Town((RELAYS[0],))
    asked_at = []
    for minute in range(40 * 60):
        if await town.after(60 if minute else 0):
            asked_at.append(town.now_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert gaps[:3] == [2 * MIN_INTERVAL_S, 4 * MIN_INTERVAL_S, 8 * MIN_INTERVAL_S]
    assert gaps == sorted(gaps)
    assert max(gaps) == MAX_LONELY_INTERVAL_S
    town.readers = 1
    town.crawlers.note_events(["an event"])
    assert await town.after(MIN_INTERVAL_S)
    town.readers = 0
    assert await town.after(MIN_INTERVAL_S - 60) == []
    assert await town.after(60) == ["relay.example"]


async def test_a_relay_that_is_down_is_tried_again_with_growing_pauses_alone() -> None:
    town = Town()
    town.http.down["https://relay.example"] = Unreachable("no answer")
    town.readers = 1
    assert await town.after(0) == BOTH
    assert await town.after(FIRST_RETRY_S - 1) == []
    assert await town.after(1) == ["relay.example"]
    assert await town.after(FIRST_RETRY_S) == []
    assert await town.after(FIRST_RETRY_S) == ["relay.example"]
    assert town.crawlers.relays[0].failures == 3
    assert town.crawlers.relays[0].last_error == "no answer"
    town.http.down.clear()
    assert await town.after(3600) == ["relay.example"]
    assert town.crawlers.relays[0].failures == 0
    assert town.crawlers.relays[0].last_error is None


async def test_a_relay_that_refuses_is_asked_again_at_most_every_hour() -> None:
    town = Town((RELAYS[0],))
    town.http.down["https://relay.example"] = Rejected("HostBanned")
    count = 0
    for _ in range(24 * 60):
        count += bool(await town.after(60))
    assert 24 <= count <= 34


async def test_news_during_an_announcement_is_not_forgotten() -> None:
    town = Town((RELAYS[0],))
    town.readers = 1
    town.http.gate = asyncio.Event()
    task = asyncio.create_task(town.crawlers.announce_due())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    town.crawlers.note_events(["an event"])
    town.http.gate.set()
    await task
    assert await town.after(MIN_INTERVAL_S) == ["relay.example"]


async def test_the_same_relay_twice_is_one_relay() -> None:
    town = Town((RELAYS[0], RELAYS[0]))
    assert await town.after(0) == ["relay.example"]


async def test_the_periodic_task_announces_and_wakes_for_news() -> None:
    town = Town((RELAYS[0],))
    task = asyncio.create_task(town.crawlers.run())
    async with asyncio.timeout(60):
        while len(town.http.posts) < 1:
            await asyncio.sleep(0.001)
        town.now_s += MIN_INTERVAL_S
        town.crawlers.note_events(["an event"])
        while len(town.http.posts) < 2:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_relays_there_is_nothing_to_do() -> None:
    town = Town(())
    await asyncio.wait_for(town.crawlers.run(), 1)
    assert town.http.posts == []


async def test_the_scheduled_look_says_how_each_relay_stands() -> None:
    town = Town()
    town.http.down["https://other.example"] = Unreachable("no answer")
    said = "relay.example asked, other.example failed 1 times (no answer)"
    assert await town.crawlers.sweep() == said
    assert await town.crawlers.sweep() == said
    assert len(town.http.posts) == 2
    assert await Town(()).crawlers.sweep() == "no relays"


# --- several nodes ------------------------------------------------------------------------------


class Country:
    """Nodes of one host, which share a database and a clock."""

    def __init__(self, engine: Engine, clock: SettableClock) -> None:
        self.clock = clock
        self.engine = engine
        self.towns: list[Town] = []

    def start(self) -> Town:
        """Start a node; its monotonic clock begins anywhere."""
        town = Town((RELAYS[0],), claims=CrawlClaims(self.engine, self.clock))
        town.now_s = 1000.0 * (len(self.towns) + 1)
        town.readers = 1
        self.towns.append(town)
        return town

    async def after(self, seconds: float) -> int:
        """Let time pass for all; returns how many requests all of them make then."""
        self.clock.advance(seconds)
        return sum([len(await town.after(seconds)) for town in self.towns])


@pytest.fixture
async def country(tmp_path: Path) -> AsyncIterator[Country]:
    clock = SettableClock()
    async with open_engine(tmp_path, clock) as engine:
        yield Country(engine, clock)


async def test_many_nodes_ask_no_more_often_than_one(country: Country) -> None:
    nodes = [country.start() for _ in range(3)]
    assert await country.after(0) == 1
    requests = 0
    for _ in range(6 * 60):
        for node in nodes:
            node.crawlers.note_events(["an event"])
        requests += await country.after(60)
    assert 17 <= requests <= 18
    await country.after(MIN_INTERVAL_S)
    assert await country.after(10 * MIN_INTERVAL_S) == 0


async def test_news_after_the_request_of_another_node_are_told_later(country: Country) -> None:
    first, second = country.start(), country.start()
    assert await country.after(0) == 1
    await country.after(60)
    second.crawlers.note_events(["an event"])
    assert await country.after(60) == 0
    assert await country.after(MIN_INTERVAL_S) == 1
    assert first.http.posts == []


async def test_what_another_node_was_refused_may_be_asked_by_the_next(country: Country) -> None:
    first, second = country.start(), country.start()
    first.http.down[RELAYS[0]] = Unreachable("no answer")
    assert await country.after(0) == 2
    assert second.crawlers.relays[0].failures == 0
    assert await country.after(FIRST_RETRY_S) == 0
    assert first.crawlers.relays[0].failures == 0


async def test_a_node_that_starts_asks_but_not_over_and_over(country: Country) -> None:
    country.start()
    assert await country.after(0) == 1
    for _ in range(10):
        country.start()
        assert await country.after(5) == 0
    country.start()
    assert await country.after(10) == 1


async def test_the_operator_is_not_kept_waiting(country: Country) -> None:
    node = country.start()
    await country.after(0)
    await node.crawlers.announce_all()
    assert len(node.http.posts) == 2


async def test_a_database_that_fails_stops_no_announcement(
    country: Country, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: Any, **_options: Any) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(country.engine, "transact", fail)
    node = country.start()
    assert await country.after(0) == 1
    node.http.down[RELAYS[0]] = Unreachable("no answer")
    node.crawlers.note_events(["an event"])
    assert await country.after(MIN_INTERVAL_S) == 1


async def test_relays_that_are_no_longer_configured_are_forgotten(country: Country) -> None:
    now_us, gap_us = country.clock.now_us(), 1

    def job(txn: Txn) -> dict[str, int]:
        txn.write("DELETE FROM fact WHERE name = ?", ("crawl_requests",))
        txn.write("INSERT INTO fact (name, value) VALUES (?, ?)", ("crawl_requests", b"{"))
        for url in ("https://old.example", "https://new.example"):
            claim_crawl_requests(txn, [url], now_us=now_us, min_gap_us=gap_us, keep=[url])
        return get_crawl_requests(txn)

    found = await country.engine.transact("test.claims", job)
    assert found == {"https://new.example": now_us}
