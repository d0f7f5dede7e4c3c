"""Time that passes as soon as everybody waits for it."""

import asyncio
import heapq
import itertools

from tests.fakes.clock import FakeClock


class VirtualTime:
    """A `sleep` for loops that do nothing but work and sleep.

    When all `parties` loops are asleep, the clock moves to the next one's time and wakes that one
    alone; so the order of what happens is always the same, and no loop's work overlaps another's.
    """

    def __init__(self, clock: FakeClock, parties: int) -> None:
        self._clock = clock
        self._parties = parties
        self._numbers = itertools.count()
        self._asleep: list[tuple[int, int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on by `seconds`."""
        wakes_at = self._clock.now_us() + round(seconds * 1_000_000)
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._asleep, (wakes_at, next(self._numbers), woken))
        self._changed.set()
        await woken

    async def pass_until(self, end_us: int) -> None:
        """Let time pass up to `end_us`, and everything happen that is due by then."""
        while True:
            while len(self._asleep) < self._parties:
                self._changed.clear()
                await self._changed.wait()
            wakes_at, _, woken = self._asleep[0]
            if wakes_at > end_us:
                self._clock.set(end_us)
                return
            heapq.heappop(self._asleep)
            self._clock.set(max(wakes_at, self._clock.now_us()))
            woken.set_result(None)
