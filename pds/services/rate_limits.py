"""How often who may do what: points spent in windows, by all nodes of a host together.

A `Limit` gives each subject a number of points in a window of time. A subject is whoever the limit
is counted by: an address, an account, a name, or two of them. What a request costs is data
(`pds.services.rate_table`); this module only counts.

*Windows* are fixed. Each subject's begin at another moment, made of the subject, so all nodes agree
on it, and clients that were refused do not all come back in the same second.

*Here.* To spend is one look-up and an addition in memory. Counts are bounded in number, per limit,
and a name that strangers can make up is kept as its digest; what was not used longest goes first.

*Together.* With a database that nodes share, `share` adds what was counted here to the common rows
once a second, and takes over the sums. A subject takes part once it has spent a sixteenth of its
points at this node: those who stay far from every limit cost the database nothing. So a client that
goes to several nodes gets, at each further one, at most a sixteenth of the limit and what it sends
within a second beyond the limit. Limits against guessing are exact instead: `spend_exactly` asks
the database before anything is judged.

On a database of its own a server saves the counts of windows of an hour or longer, so that a
restart forgets little.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import islice
from typing import Final, TypeAlias
from zlib import crc32

from pds.errors import RequestError, StoreError
from pds.services.sweeping import sweep_rows
from pds.store.clock import US_PER_S
from pds.store.engine import Engine
from pds.store.rate_counts import (
    RateCount,
    add_rate_counts,
    delete_old_rate_counts,
    list_rate_counts,
)

MAX_SUBJECTS: Final = 10_000
"""Subjects of one limit that are remembered; one takes about 300 bytes."""
SHARED_FROM: Final = 16
"""A subject's count is shared from this part of its points on."""
SAVED_WINDOW_S: Final = 3600
"""Shorter windows are over before a restart matters."""
SHARE_PERIOD_S: Final = 1.0
"""How often nodes that share a database tell each other."""
SAVE_PERIOD_S: Final = 30.0
BATCH_ROWS: Final = 400
MAX_LOADED: Final = 20_000
DIGEST_BYTES: Final = 16
LONG_SUBJECT: Final = 64
"""Longer texts are kept as their digest."""
EXCEEDED: Final = "Rate Limit Exceeded"

Subject: TypeAlias = str | bytes
NowS: TypeAlias = Callable[[], float]
"""The time in unix seconds, the same for all nodes."""


_log: Final = logging.getLogger(__name__)


class Key(StrEnum):
    """What the subjects of a limit are."""

    ADDRESS = "address"
    ACCOUNT = "account"
    NAME = "name"
    """A text of the request, such as an e-mail address."""
    ADDRESS_AND_NAME = "address and name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most `points` for each subject in any window of `window_s` seconds."""

    name: str
    key: Key
    points: int
    window_s: int
    max_subjects: int = MAX_SUBJECTS


class Count:
    """What one subject has spent in its present window, at all nodes as far as known here."""

    __slots__ = ("begins_at", "bucket", "ends_at", "is_waiting", "subject", "unsent", "used")

    def __init__(self, bucket: "Bucket", subject: Subject, begins_at: int) -> None:
        self.bucket = bucket
        self.subject = subject
        self.begins_at = begins_at
        self.ends_at = begins_at + bucket.limit.window_s
        self.used = 0
        self.unsent = 0
        self.is_waiting = False

    @property
    def remaining(self) -> int:
        """Points that are left."""
        return max(0, self.bucket.points - self.used)


class RateLimited(RequestError):
    """Too much was asked for; `count` is of the limit that was reached (XRPC-70)."""

    def __init__(self, count: Count, now_s: float, message: str = EXCEEDED) -> None:
        wait_s = max(1, int(count.ends_at - now_s + 0.999))
        super().__init__("RateLimitExceeded", message, 429, headers={"Retry-After": str(wait_s)})
        self.count = count


class Bucket:
    """The counts of one limit. Event loop only."""

    def __init__(
        self, limit: Limit, *, rates: "RateLimits", now_s: NowS, shared_from: float
    ) -> None:
        self.limit = limit
        self.points = limit.points
        self.limit_text = str(limit.points)
        self.policy_text = f"{limit.points};w={limit.window_s}"
        self._rates = rates
        self._now_s = now_s
        self._shared_from = shared_from
        self._counts: dict[Subject, Count] = {}
        self._crowded_from = limit.max_subjects // 2

    def __len__(self) -> int:
        return len(self._counts)

    def spend(self, subject: Subject, points: int = 1) -> Count:
        """Spend points of `subject`. Raises: RateLimited, and nothing is spent."""
        now_s = self._now_s()
        count = self._counts.get(subject)
        if count is None or not count.begins_at <= now_s < count.ends_at:
            count = self._begin(subject, now_s)
        used = count.used + points
        if used > self.points:
            raise RateLimited(count, now_s)
        count.used = used
        count.unsent += points
        if used >= self._shared_from and not count.is_waiting:
            self._rates.note(count)
        if len(self._counts) > self._crowded_from:
            self._counts[subject] = self._counts.pop(subject)  # the longest unused is first
        return count

    def check(self, subject: Subject, points: int = 1) -> Count:
        """Look whether points are left. Raises: RateLimited."""
        now_s = self._now_s()
        count = self._counts.get(subject)
        if count is None or not count.begins_at <= now_s < count.ends_at:
            count = self._begin(subject, now_s)
        if count.used + points > self.limit.points:
            raise RateLimited(count, now_s)
        return count

    def refund(self, subject: Subject, points: int | None = None) -> int:
        """Give back points of the present window, all if not said how many; return how many."""
        count = self._counts.get(subject)
        if count is None or not count.used:
            return 0
        given = count.used if points is None else min(points, count.used)
        count.unsent -= given
        count.used -= given
        self._rates.note(count)
        return given

    def forget_old(self) -> None:
        """Drop the counts of windows that are over."""
        now_s = self._now_s()
        self._counts = {
            subject: count for subject, count in self._counts.items() if count.ends_at > now_s
        }

    def _begin(self, subject: Subject, now_s: float) -> Count:
        text = subject if isinstance(subject, bytes) else subject.encode("utf-8", "surrogatepass")
        window_s = self.limit.window_s
        offset = crc32(text) % window_s
        count = Count(self, subject, (int(now_s) - offset) // window_s * window_s + offset)
        self._counts.pop(subject, None)
        if len(self._counts) >= self.limit.max_subjects:
            for oldest in list(islice(self._counts, max(1, self.limit.max_subjects // 8))):
                del self._counts[oldest]
        self._counts[subject] = count
        count.used = self._rates.take_loaded(count)
        return count


class RateLimits:
    """All limits of a server. Event loop only.

    `secret` is the same at all nodes; without it nobody can tell from the database whose a count
    is. Without an `engine` counts are kept in memory alone.
    """

    def __init__(
        self,
        *,
        now_s: NowS = time.time,
        secret: str = "",
        engine: Engine | None = None,
        is_shared: bool = False,
    ) -> None:
        self._now_s = now_s
        self._key = blake2b(secret.encode(), person=b"rate limits").digest()
        self._engine = engine
        self._is_shared = engine is not None and is_shared
        self._buckets: dict[str, Bucket] = {}
        self._waiting: list[Count] = []
        self._loaded: dict[tuple[str, bytes, int], int] = {}

    @property
    def is_shared(self) -> bool:
        """Whether other nodes count too."""
        return self._is_shared

    def bucket(self, limit: Limit, *, exact: bool = False) -> Bucket:
        """Return the counts of a limit, the same each time.

        Those of an `exact` limit are shared by `spend_exactly` alone.
        """
        found = self._buckets.get(limit.name)
        if found is None:
            shared_from = self._shared_from(limit, exact=exact)
            found = Bucket(limit, rates=self, now_s=self._now_s, shared_from=shared_from)
            self._buckets[limit.name] = found
        elif found.limit != limit:
            raise ValueError(f"two limits are named {limit.name}")
        return found

    def _shared_from(self, limit: Limit, *, exact: bool) -> float:
        if self._engine is None or (self._is_shared and exact):
            return float("inf")
        if not self._is_shared and limit.window_s < SAVED_WINDOW_S:
            return float("inf")
        return max(1, limit.points // SHARED_FROM)

    def name_subject(self, *parts: str) -> bytes:
        """Return the subject for texts that strangers can make up."""
        text = "\n".join(str(len(part)) + part for part in parts)
        return self._digest(text.encode("utf-8", "surrogatepass"))

    def text_subject(self, text: str) -> Subject:
        """Return the subject for an address or a DID."""
        return text if len(text) <= LONG_SUBJECT else self.name_subject(text)

    async def spend_exactly(self, charges: Sequence[tuple[Bucket, Subject]]) -> None:
        """Spend one point of each, counting what all nodes have counted up to this moment.

        Raises: RateLimited; StoreError.
        """
        counts = [bucket.spend(subject) for bucket, subject in charges]
        if not self._is_shared:
            return
        await self._send(counts, bulk=False)
        for count in counts:
            if count.used > count.bucket.limit.points:
                raise RateLimited(count, self._now_s())

    def note(self, count: Count) -> None:
        """Have `share` look at a count."""
        if self._engine is not None and not count.is_waiting:
            count.is_waiting = True
            self._waiting.append(count)

    async def share(self) -> None:
        """Add what was counted here to the database, and take over what others counted.

        Raises: StoreError; what could not be added waits for the next call.
        """
        waiting, self._waiting = self._waiting, []
        for count in waiting:
            count.is_waiting = False
        for begin in range(0, len(waiting), BATCH_ROWS):
            try:
                await self._send(waiting[begin : begin + BATCH_ROWS], bulk=True)
            except StoreError:
                for count in waiting[begin:]:
                    self.note(count)
                raise

    @property
    def share_period_s(self) -> float:
        """How often `share` is to be called."""
        return SHARE_PERIOD_S if self._is_shared else SAVE_PERIOD_S

    async def save(self) -> None:
        """`share` at the end of the server, when it matters little if it fails."""
        try:
            await self.share()
        except StoreError as error:
            _log.warning("limits.not_saved", extra={"reason": str(error)})

    async def _send(self, counts: Sequence[Count], *, bulk: bool) -> None:
        if self._engine is None:
            return
        groups: dict[tuple[str, bytes, int], list[Count]] = {}
        now_s = self._now_s()
        for count in counts:
            if count.unsent and count.ends_at > now_s:
                groups.setdefault(self._row_key(count), []).append(count)
        if not groups:
            return
        keys = sorted(groups)  # all nodes lock rows in one order
        sent = [[count.unsent for count in groups[key]] for key in keys]
        rows = [
            RateCount(*key, sum(amounts), key[2] + groups[key][0].bucket.limit.window_s * US_PER_S)
            for key, amounts in zip(keys, sent, strict=True)
        ]
        for count in counts:
            count.unsent = 0
        try:
            totals = await self._engine.transact("rate.share", add_rate_counts, rows, bulk=bulk)
        except StoreError:
            for key, amounts in zip(keys, sent, strict=True):
                for count, amount in zip(groups[key], amounts, strict=True):
                    count.unsent += amount
            raise
        for key, total in zip(keys, totals, strict=True):
            for count in groups[key]:
                count.used = max(count.used, total + count.unsent)

    def _row_key(self, count: Count) -> tuple[str, bytes, int]:
        subject = count.subject
        digest = subject if isinstance(subject, bytes) else self._digest(subject.encode())
        return count.bucket.limit.name, digest, count.begins_at * US_PER_S

    def _digest(self, text: bytes) -> bytes:
        return blake2b(text, key=self._key, digest_size=DIGEST_BYTES).digest()

    async def load(self) -> None:
        """Remember what was counted before a restart."""
        if self._engine is None:
            return
        now_us = int(self._now_s() * US_PER_S)
        rows = await self._engine.read("rate.load", list_rate_counts, now_us, MAX_LOADED)
        self._loaded = {(row.limit_name, row.subject, row.window_start): row.points for row in rows}

    def take_loaded(self, count: Count) -> int:
        """Return what `load` knows of a new count."""
        return self._loaded.pop(self._row_key(count), 0) if self._loaded else 0

    async def forget_old(self) -> None:
        """Drop what is in memory of windows that are over."""
        for bucket in list(self._buckets.values()):
            bucket.forget_old()
            await asyncio.sleep(0)  # so that nobody waits for all of them
        now_us = int(self._now_s() * US_PER_S)
        self._loaded = {
            key: points for key, points in self._loaded.items() if not self._is_over(key, now_us)
        }

    async def sweep(self) -> int:
        """Drop the rows of windows that are over and return how many there were."""
        if self._engine is None:
            return 0
        now_us = int(self._now_s() * US_PER_S)
        return await sweep_rows(self._engine, "rate.sweep", delete_old_rate_counts, now_us)

    def _is_over(self, key: tuple[str, bytes, int], now_us: int) -> bool:
        bucket = self._buckets.get(key[0])
        return bucket is None or key[2] + bucket.limit.window_s * US_PER_S <= now_us
