"""Tells relays that this host has something to read.

Each relay is asked to crawl at start, after writes (at most every 20 minutes), and again and again,
ever more slowly, while nobody reads the firehose. A relay that cannot be reached is tried again
with growing pauses. All of it happens in one background task: a write only leaves a note.

Spec: sync#usage-and-implementation-guidelines (SYNC-60)
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pds.errors import RemoteError
from pds.services.jobs import Sleep

MIN_INTERVAL_S: Final = 20 * 60.0
"""Shortest time between two requests to one relay that accepted the first."""
MAX_LONELY_INTERVAL_S: Final = 6 * 3600.0
"""Longest time between requests while nobody comes to read."""
FIRST_RETRY_S: Final = 10.0
MAX_RETRY_S: Final = 3600.0
TIMEOUT_S: Final = 10.0

_PATH: Final = "/xrpc/com.atproto.sync.requestCrawl"
_log: Final = logging.getLogger(__name__)


class HttpPoster(Protocol):
    """The part of an HTTP client that is needed here."""

    async def post_json(self, url: str, value: Any, *, timeout_s: float) -> object:
        """POST JSON and return the answer. Raises: RemoteError."""


@dataclass(slots=True)
class RelayState:
    """What is known about one relay. Times are those of the monotonic clock."""

    url: str
    has_news: bool = True
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
    ) -> None:
        self._http = http
        self._hostname = hostname
        self._reader_count = reader_count
        self._now_s = monotonic
        self._relays = tuple(RelayState(url.rstrip("/")) for url in dict.fromkeys(relays))
        self._wake = asyncio.Event()

    @property
    def relays(self) -> tuple[RelayState, ...]:
        """How each relay answered, for the operator."""
        return self._relays

    def note_events(self, _events: Sequence[object]) -> None:
        """Take note that there is something new. The engine's event hook; never waits."""
        for relay in self._relays:
            relay.has_news = True
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
        now_s = self._now_s()
        due = [relay for relay in self._relays if self._due_at_s(relay) <= now_s]
        await asyncio.gather(*(self._announce(relay) for relay in due))

    async def announce_all(self) -> None:
        """Ask every relay now, whether or not it is time; an operator wants it."""
        await asyncio.gather(*(self._announce(relay) for relay in self._relays))

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
            return
        relay.accepted_at_s = self._now_s()
        relay.failures = 0
        relay.last_error = None
        relay.lonely_requests = relay.lonely_requests + 1 if is_lonely else 0
        _log.info("crawlers.accepted", extra={"relay": relay.url})
