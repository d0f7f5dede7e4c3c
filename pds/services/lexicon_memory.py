"""Answers about names that are looked up elsewhere: remembered, asked for once at a time, renewed.

A `LexiconMemory` stands between whoever asks and a slow look-up. A good answer is used while it is
fresh; when it is stale it is still used and asked for again behind the scenes; a failure to find
out never takes a good answer away. A definite no does, and is remembered for a while, so that a
flood of writes to one broken name makes no flood of requests.

Bounded in entries, bytes and look-ups at a time. Event loop only.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

from pds.errors import NotResolvable, RemoteError, Unreachable
from pds.identity.cache import AnswerCache, CacheTimes, Standing

T = TypeVar("T")

MAX_ENTRIES: Final = 5000
MAX_BYTES: Final = 50_000_000
"""Of what the answers weigh, which is about what they take in memory."""
MAX_LOOKUPS: Final = 64
"""Names that are looked up at the same time; a background wish beyond that is dropped."""

_log: Final = logging.getLogger(__name__)


class Learned(NamedTuple, Generic[T]):
    """A good answer, what it weighs, and how old it is."""

    value: T
    weight_bytes: int
    fetched_at_s: float


class LexiconMemory(Generic[T]):
    """What was found out about names, by one kind of look-up."""

    def __init__(
        self,
        look_up: Callable[[str], Awaitable[Learned[T]]],
        *,
        times: CacheTimes,
        now_s: Callable[[], float],
        max_lookups: int = MAX_LOOKUPS,
    ) -> None:
        """`look_up` raises NotResolvable for a definite no, other RemoteErrors otherwise."""
        self._look_up = look_up
        self._now_s = now_s
        self._max_lookups = max_lookups
        self._cache: AnswerCache[T] = AnswerCache(
            times, max_entries=MAX_ENTRIES, max_bytes=MAX_BYTES
        )
        self._running: dict[str, asyncio.Task[None]] = {}

    def peek(self, name: str) -> T | None:
        """Return what is known now; have the rest found out behind the scenes."""
        found = self._cache.get(name, self._now_s())
        if found is None:
            self._start(name)
            return None
        remembered, standing = found
        if standing is Standing.STALE:
            self._start(name)
        return remembered.value

    async def ask(self, name: str, *, fresh: bool = False) -> T:
        """Return the answer, and look it up if it is not known, or stale and `fresh` is wanted.

        A look-up goes on when its caller gives up. Raises: RemoteError.
        """
        found = self._cache.get(name, self._now_s())
        if found is None or (fresh and found[1] is Standing.STALE):
            task = self._start(name)
            if task is None:
                raise Unreachable("too many lexicons are being looked up")
            await asyncio.wait([task])
            found = self._cache.get(name, self._now_s())
        elif found[1] is Standing.STALE:
            self._start(name)
        if found is None:
            raise Unreachable(f"{name} could not be looked up")
        remembered = found[0]
        if remembered.error is not None:
            raise type(remembered.error)(str(remembered.error))  # Afresh: tracebacks accumulate.
        if remembered.value is None:
            raise Unreachable(f"{name} could not be looked up")
        return remembered.value

    async def close(self) -> None:
        """End every look-up that is running."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait for every look-up that is running."""
        while self._running:
            await asyncio.wait(list(self._running.values()))

    def _start(self, name: str) -> asyncio.Task[None] | None:
        """Return the look-up of `name` that is running, or start one if there may be another."""
        task = self._running.get(name)
        if task is None and len(self._running) < self._max_lookups:
            task = asyncio.create_task(self._learn(name))
            self._running[name] = task
            task.add_done_callback(lambda _done: self._running.pop(name, None))
        return task

    async def _learn(self, name: str) -> None:
        try:
            learned = await self._look_up(name)
        except NotResolvable as error:
            self._cache.put_error(name, error, self._now_s(), is_definite=True)
        except RemoteError as error:
            unreachable = Unreachable(str(error))
            self._cache.put_error(name, unreachable, self._now_s(), is_definite=False)
        except Exception as error:
            _log.error("lexicon.look_up_failed", exc_info=error, extra={"nsid": name})
            failure = Unreachable(f"{name} could not be looked up")
            self._cache.put_error(name, failure, self._now_s(), is_definite=False)
        else:
            self._cache.put(name, learned.value, learned.weight_bytes, learned.fetched_at_s)
