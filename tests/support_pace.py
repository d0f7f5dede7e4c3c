"""Limits in processor time that hold on any machine.

A bound such as "a megabyte is refused within a second" is about how the work grows, not about the
machine. So it is given as the machine had it on which the bounds were set, and a slower one gets as
much more as it takes longer for a piece of ordinary work, measured at the same time.
"""

import time

YARDSTICK_S = 0.007
"""What `_work` took there."""


def slowness() -> float:
    """How many times slower than that machine this one is now; at least 1."""
    return max(1.0, max(_work() for _ in range(3)) / YARDSTICK_S)


def within(seconds: float, since: float) -> bool:
    """Whether this thread used no more than `seconds` since `time.thread_time()` was `since`."""
    used = time.thread_time() - since
    return used <= seconds or used <= seconds * slowness()


def _work() -> float:
    began = time.thread_time()
    kept: dict[int, list[object]] = {}
    for number in range(60_000):
        kept[number & 1023] = [number, str(number)]
    return time.thread_time() - began
