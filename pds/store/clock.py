"""What time it is, and whether that may be believed."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where `now_us` comes from."""

    def now_us(self) -> int:
        """Return the time in unix microseconds; raises Unavailable while it is in doubt."""


class SystemClock:
    """The machine's wall clock, unchecked."""

    def now_us(self) -> int:
        """Return the time in unix microseconds."""
        return time.time_ns() // 1000
