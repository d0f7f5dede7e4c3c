"""A bounded memory of answers, good and bad, each with an age.

An answer is *fresh*, then *stale* (still used, but asked for again in the background), then
*expired* (not used any more). A negative answer, a definite no or a failure to find out, is kept
for a short time only, so that a mistake is soon repaired but a flood of questions about the same
broken name makes no flood of requests (ID-35).

The memory is bounded by entries and by bytes, the least recently used go first. Event loop only.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Generic, TypeVar

from pds.errors import RemoteError

V = TypeVar("V")

MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 100_000_000
"""Of the weights that the answers are given, which are what they take in memory, roughly."""
_ENTRY_BYTES: Final = 200
_RETRY_S: Final = 60.0
"""How long a stale answer is left alone after asking again has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTimes:
    """Ages in seconds at which an answer changes its standing.

    `settle_s` is the age below which even a forced refresh believes the memory: it bounds how
    often a stranger can make us ask about the same subject.
    """

    stale_s: float = 3600.0
    max_s: float = 86_400.0
    negative_s: float = 30.0
    failure_s: float = 5.0
    settle_s: float = 3.0


class Standing(Enum):
    """How far a remembered answer may be used."""

    FRESH = auto()
    STALE = auto()


@dataclass(frozen=True, slots=True)
class Remembered(Generic[V]):
    """One answer: a value, or the error that was raised instead."""

    value: V | None
    error: RemoteError | None
    size_bytes: int
    fetched_at_s: float
    refresh_at_s: float
    expires_at_s: float


class AnswerCache(Generic[V]):
    """Answers by subject."""

    def __init__(
        self, times: CacheTimes, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._times = times
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Remembered[V]] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What the answers take, roughly."""
        return self._size_bytes

    def get(self, subject: str, now_s: float) -> tuple[Remembered[V], Standing] | None:
        """Return the remembered answer and its standing, or None."""
        entry = self._entries.get(subject)
        if entry is None:
            return None
        if now_s >= entry.expires_at_s or now_s < entry.fetched_at_s:
            self.forget(subject)
            return None
        self._entries.move_to_end(subject)
        return entry, Standing.FRESH if now_s < entry.refresh_at_s else Standing.STALE

    def is_settled(self, subject: str, now_s: float) -> bool:
        """Whether the answer is so young that it must not be asked for again, even by force."""
        entry = self._entries.get(subject)
        return entry is not None and 0 <= now_s - entry.fetched_at_s < self._times.settle_s

    def put(self, subject: str, value: V, size_bytes: int, fetched_at_s: float) -> None:
        """Remember a good answer of the given age."""
        times = self._times
        stale_at_s, expires_at_s = fetched_at_s + times.stale_s, fetched_at_s + times.max_s
        self._store(
            subject, Remembered(value, None, size_bytes, fetched_at_s, stale_at_s, expires_at_s)
        )

    def put_error(
        self, subject: str, error: RemoteError, now_s: float, *, is_definite: bool
    ) -> None:
        """Remember a bad answer.

        A definite no replaces a good answer. A failure to find out does not: the good one stays
        in use, and is not asked for again for a while.
        """
        old = self._entries.get(subject)
        if not is_definite and old is not None and old.error is None:
            self._entries[subject] = replace(old, refresh_at_s=now_s + _RETRY_S)
            return
        life_s = self._times.negative_s if is_definite else self._times.failure_s
        ends_at_s = now_s + life_s
        self._store(subject, Remembered(None, error, 0, now_s, ends_at_s, ends_at_s))

    def forget(self, subject: str) -> None:
        """Drop what is remembered about a subject."""
        entry = self._entries.pop(subject, None)
        if entry is not None:
            self._size_bytes -= entry.size_bytes + _ENTRY_BYTES

    def _store(self, subject: str, entry: Remembered[V]) -> None:
        self.forget(subject)
        self._entries[subject] = entry
        self._size_bytes += entry.size_bytes + _ENTRY_BYTES
        while len(self._entries) > self._max_entries or self._size_bytes > self._max_bytes:
            self.forget(next(iter(self._entries)))
