"""An event loop whose timers do not run while the machine keeps the tests from running.

Most tests talk to a fake in the same loop, with a deadline of some tenths of a second: the one
that is meant to pass shall pass because nobody answers, and none shall pass because the machine is
slow. So the loop counts the time for which it waited, which is all of it on an idle machine, and
of the time for which it computed, or was not given a processor, no more than a moment at a time.

The long series (`tests/soak`) use the usual loop: they kill and measure by the machine's clock.
"""

import asyncio
import selectors
import time

COMPUTED_S = 0.001
"""What one round of callbacks counts for, however long it took."""
WAIT_S = 0.02
"""The longest wait in one piece; what is longer than it was meant to be is the machine's doing."""


class PatientLoop(asyncio.SelectorEventLoop):
    """The loop of all tests; `pass_time` lets timers come due at once."""

    def __init__(self) -> None:
        self._counted_s = self._seen_s = time.monotonic()
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the time by which timers run."""
        return self._counted_s + min(time.monotonic() - self._seen_s, COMPUTED_S)

    def pass_time(self, seconds: float) -> None:
        """Let `seconds` be over."""
        self._counted_s += seconds

    def count(self, at_most_s: float) -> None:
        """Count what has passed since the last call, up to `at_most_s`."""
        now_s = time.monotonic()
        self._counted_s += min(now_s - self._seen_s, at_most_s)
        self._seen_s = now_s


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: PatientLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.count(COMPUTED_S)
        ends_at = None if timeout is None else self._loop.time() + timeout
        while True:
            left_s = WAIT_S if ends_at is None else max(ends_at - self._loop.time(), 0)
            wait_s = min(left_s, WAIT_S)
            events = super().select(wait_s)
            self._loop.count(wait_s)
            if events or (ends_at is not None and wait_s == left_s):
                return events


def pass_time(seconds: float) -> None:
    """Let `seconds` be over for all timers of the loop that runs this test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, PatientLoop)
    loop.pass_time(seconds)
