"""Tells relays that this host has something to read.

Each relay is asked to crawl at start, after writes (at most every 20 minutes), and again and again,
ever more slowly, while nobody reads the firehose. A relay that cannot be reached is tried again
with growing pauses. All of it happens behind the scenes: a write only leaves a note.

`run` waits for news in every node; `sweep` is the scheduled look of the host, which `pds jobs`
shows. Nodes that share a database also share when a relay was asked (`CrawlClaims`), so that many
nodes ask no more often than one; a node that starts asks in any case, at most once a minute.

Spec: sync#usage-and-implementation-guidelines (SYNC-60)
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pds.errors import RemoteError, StoreError
from pds.services.jobs import Sleep
from pds.store.clock import US_PER_S, Clock
from pds.store.crawl_requests import claim_crawl_requests, release_crawl_request
from pds.store.engine import Engine, Txn

MIN_INTERVAL_S: Final = 20 * 60.0
"""Shortest time between two requests to one relay that accepted the first."""
MAX_LONELY_INTERVAL_S: Final = 6 * 3600.0
"""Longest time between requests while nobody comes to read."""
FIRST_RETRY_S: Final = 10.0
MAX_RETRY_S: Final = 3600.0
TIMEOUT_S: Final = 10.0
START_GAP_S: Final = 60.0
"""Shortest time between requests of nodes that start: a host that starts over and over asks no
more often."""
GAP_SLACK_S: Final = 5.0
"""By how much the clocks of two nodes may make 20 minutes look shorter."""

_PATH: Final = "/xrpc/com.atproto.sync.requestCrawl"
_log: Final = logging.getLogger(__name__)


class HttpPoster(Protocol):
    """The part of an HTTP client that is needed here."""

    async def post_json(self, url: str, value: Any, *, timeout_s: float) -> object:
        """POST JSON and return the answer. Raises: RemoteError."""


class CrawlClaims:
    """When a relay was last asked by any node, in the database that they share."""

    def __init__(self, engine: Engine, wall: Clock) -> None:
        self._engine = engine
        self._wall = wall

    async def claim(
        self, relays: Sequence[str], *, min_gap_s: float, keep: Sequence[str]
    ) -> dict[str, float]:
        """Claim the next request to `relays`; return those that another node asked just now.

        They come with the seconds since then. Raises: StoreError.
        """
        now_us = self._wall.now_us()
        gap_us = round(min_gap_s * US_PER_S)
        recent = await self._engine.transact(
            "crawlers.claim", _claim, tuple(relays), now_us, gap_us, tuple(keep), bulk=True
        )
        return {url: (now_us - at_us) / US_PER_S for url, at_us in recent.items()}

    async def release(self, relay: str) -> None:
        """Give a claim back, because the relay did not answer. Raises: StoreError."""
        await self._engine.transact("crawlers.release", release_crawl_request, relay, bulk=True)


@dataclass(slots=True)
class RelayState:
    """What is known about one relay. Times are those of the monotonic clock."""

    url: str
    has_news: bool = True
    news_at_s: float = float("-inf")
    asked_at_s: float | None = None
    accepted_at_s: float | None = None
    retry_at_s: float = 0.0
    failures: int = 0
    lonely_requests: int = 0
    last_error: str | None = None


class Crawlers:
    """Announces this host to the configured relays."""

    def __init__(
        self,
        *,
        http: HttpPoster,
        relays: Sequence[str],
        hostname: str,
        reader_count: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        claims: CrawlClaims | None = None,
    ) -> None:
        """Without `claims` this process alone counts when a relay was asked."""
        self._http = http
        self._hostname = hostname
        self._reader_count = reader_count
        self._now_s = monotonic
        self._relays = tuple(RelayState(url.rstrip("/")) for url in dict.fromkeys(relays))
        self._wake = asyncio.Event()
        self._claims = claims
        self._turn = asyncio.Lock()

    @property
    def relays(self) -> tuple[RelayState, ...]:
        """How each relay answered, for the operator."""
        return self._relays

    def note_events(self, _events: Sequence[object]) -> None:
        """Take note that there is something new. The engine's event hook; never waits."""
        now_s = self._now_s()
        for relay in self._relays:
            relay.has_news = True
            relay.news_at_s = now_s
        self._wake.set()

    async def run(self, sleep: Sleep = asyncio.sleep) -> None:
        """Announce whenever it is time to, until cancelled; `sleep` goes by the same clock."""
        if not self._relays:
            return
        while True:
            self._wake.clear()
            await self.announce_due()
            pause_s = min(self._due_at_s(relay) for relay in self._relays) - self._now_s()
            waits = [
                asyncio.ensure_future(self._wake.wait()),
                asyncio.ensure_future(sleep(min(max(pause_s, 1.0), 60.0))),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def announce_due(self) -> None:
        """Ask every relay for which it is time, all at once."""
        async with self._turn:
            now_s = self._now_s()
            due = [relay for relay in self._relays if self._due_at_s(relay) <= now_s]
            if not due:
                return
            starting = [relay for relay in due if relay.asked_at_s is None]
            others = [relay for relay in due if relay.asked_at_s is not None]
            claimed = await self._claim(starting, START_GAP_S)
            claimed += await self._claim(others, MIN_INTERVAL_S - GAP_SLACK_S)
            await asyncio.gather(*(self._announce(relay) for relay in claimed))

    async def announce_all(self) -> None:
        """Ask every relay now, whether or not it is time; an operator wants it."""
        async with self._turn:
            claimed = await self._claim(self._relays, 0.0)
            await asyncio.gather(*(self._announce(relay) for relay in claimed))

    async def sweep(self) -> str:
        """Ask every relay for which it is time, and say how each of them stands."""
        await self.announce_due()
        return ", ".join(_describe(relay) for relay in self._relays) or "no relays"

    async def _claim(self, relays: Sequence[RelayState], gap_s: float) -> list[RelayState]:
        """Return the relays that no other node has asked within `gap_s`; others count as asked."""
        if self._claims is None or not relays:
            return list(relays)
        urls, all_urls = [relay.url for relay in relays], [relay.url for relay in self._relays]
        try:
            recent = await self._claims.claim(urls, min_gap_s=gap_s, keep=all_urls)
        except StoreError:
            return list(relays)  # Better a request too many than none.
        for relay in relays:
            if relay.url in recent:
                asked_at_s = self._now_s() - recent[relay.url]
                relay.asked_at_s = relay.accepted_at_s = asked_at_s
                relay.has_news = relay.news_at_s > asked_at_s
                relay.failures, relay.last_error = 0, None
        return [relay for relay in relays if relay.url not in recent]

    def _due_at_s(self, relay: RelayState) -> float:
        """When to ask next, as things are now."""
        if relay.accepted_at_s is None:
            return relay.retry_at_s
        earliest_s = max(relay.accepted_at_s + MIN_INTERVAL_S, relay.retry_at_s)
        if relay.has_news:
            return earliest_s
        if self._reader_count() > 0:
            return float("inf")
        interval_s = MIN_INTERVAL_S * (1 << min(relay.lonely_requests, 10))
        return max(earliest_s, relay.accepted_at_s + min(interval_s, MAX_LONELY_INTERVAL_S))

    async def _announce(self, relay: RelayState) -> None:
        relay.has_news = False
        relay.asked_at_s = self._now_s()
        is_lonely = self._reader_count() == 0
        try:
            value = {"hostname": self._hostname}
            await self._http.post_json(relay.url + _PATH, value, timeout_s=TIMEOUT_S)
        except RemoteError as error:
            pause_s = min(FIRST_RETRY_S * (1 << min(relay.failures, 20)), MAX_RETRY_S)
            relay.failures += 1
            relay.retry_at_s = self._now_s() + pause_s
            relay.has_news = True
            relay.last_error = str(error)
            extra = {"relay": relay.url, "reason": str(error), "retry_s": pause_s}
            _log.warning("crawlers.refused", extra=extra)
            if self._claims is not None:
                with suppress(StoreError):  # Another node may then only ask later.
                    await self._claims.release(relay.url)
            return
        relay.accepted_at_s = self._now_s()
        relay.failures = 0
        relay.last_error = None
        relay.lonely_requests = relay.lonely_requests + 1 if is_lonely else 0
        _log.info("crawlers.accepted", extra={"relay": relay.url})


def _claim(
    txn: Txn, relays: Sequence[str], now_us: int, min_gap_us: int, keep: Sequence[str]
) -> dict[str, int]:
    return claim_crawl_requests(txn, relays, now_us=now_us, min_gap_us=min_gap_us, keep=keep)


def _describe(relay: RelayState) -> str:
    host = urlsplit(relay.url).netloc
    if relay.failures:
        return f"{host} failed {relay.failures} times ({relay.last_error})"
    return f"{host} asked" if relay.accepted_at_s is not None else f"{host} not asked"
