"""Time that passes as soon as everybody waits for it: for loops, and for a whole server."""

import asyncio
import heapq
import itertools

from tests.fakes.clock import FakeClock, FakeMachine


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


class ServerTime:
    """The clocks of a machine, and a `sleep` for all loops of the server that runs on it.

    Time passes in steps. At the end of each, everybody is woken whose time has come, and the next
    step begins when all `parties` are asleep again. So something that is due happens at most a step
    late, and never early.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.parties = 0
        self._numbers = itertools.count()
        self._asleep: list[tuple[int, int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait until the machine's clock has moved on by `seconds`; may be cancelled."""
        woken = asyncio.get_running_loop().create_future()
        wakes_at = self.machine.wall_us + round(seconds * 1_000_000)
        heapq.heappush(self._asleep, (wakes_at, next(self._numbers), woken))
        self._changed.set()
        try:
            await woken
        finally:
            if woken.cancelled():
                self._asleep = [entry for entry in self._asleep if entry[2] is not woken]
                heapq.heapify(self._asleep)

    async def pass_until(self, end_us: int, *, step_s: float) -> None:
        """Let time pass up to `end_us`, and everything happen that is due by then."""
        await self._rest()
        while self.machine.wall_us < end_us:
            step_us = round(step_s * 1_000_000)
            self.machine.pass_time(min(step_us, end_us - self.machine.wall_us) / 1_000_000)
            await self._rest()

    async def _rest(self) -> None:
        """Wake everybody whose time has come, until all are asleep for longer."""
        while True:
            while len(self._asleep) < self.parties:
                self._changed.clear()
                await self._changed.wait()
            if self._asleep[0][0] > self.machine.wall_us:
                return
            while self._asleep and self._asleep[0][0] <= self.machine.wall_us:
                heapq.heappop(self._asleep)[2].set_result(None)
