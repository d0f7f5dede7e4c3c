"""Clocks that a test moves by hand."""

import threading

from pds.store.clock import Reading

NOON_US = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z


class FakeClock:
    """A clock that stands still until it is told otherwise. May be read from any thread."""

    def __init__(self, now_us: int = NOON_US) -> None:
        self._now_us = now_us
        self._lock = threading.Lock()
        self.error: Exception | None = None

    def now_us(self) -> int:
        """Return the time, or raise what the test put into `error`."""
        if self.error is not None:
            raise self.error
        return self._now_us

    def advance(self, seconds: float) -> None:
        """Move on, or back when negative."""
        with self._lock:
            self._now_us += round(seconds * 1_000_000)

    def set(self, now_us: int) -> None:
        """Set the time."""
        self._now_us = now_us


class TickingClock(FakeClock):
    """Advances by one millisecond at each reading, so that revisions differ."""

    def now_us(self) -> int:
        """Return the time and move on."""
        now_us = super().now_us()
        self.advance(0.001)
        return now_us


class FakeMachine:
    """A wall clock and a boot clock, for `CheckedClock(read=machine.read)`."""

    def __init__(self, wall_us: int = NOON_US) -> None:
        self.wall_us = wall_us
        self.boot_us = 5_000_000

    def read(self) -> Reading:
        """Return both clocks."""
        return Reading(self.wall_us, self.boot_us)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, also while suspended: both clocks move."""
        self.wall_us += round(seconds * 1_000_000)
        self.boot_us += round(seconds * 1_000_000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as an operator, NTP or a restored machine does."""
        self.wall_us += round(seconds * 1_000_000)


class FakeReferences:
    """Other hosts' clocks: pass the object as `ask`. `offset_s` None means out of reach."""

    def __init__(self, machine: FakeMachine, *offsets_s: float | None) -> None:
        self.machine = machine
        self.offsets_s = list(offsets_s)
        self.true_us = machine.wall_us
        self.asked = 0

    async def __call__(self) -> list[int]:
        """Return the time of each host in reach."""
        self.asked += 1
        return [self.true_us + round(s * 1_000_000) for s in self.offsets_s if s is not None]
