"""What time it is, and whether that may be believed.

Sequence numbers and revisions are made of the time and must never go back, so one wrong reading
would be in them for ever. The wall clock is therefore believed only while there is a reason:

* *Continuity*: since the last look it advanced as the boot clock did (which also counts
  suspended time and is not changed by anybody). Slow corrections by NTP pass, jumps do not.
* *Reference*: at start and after a jump, `Date` headers of a PLC directory or a relay agree.
* *Operator*: somebody ran `pds clock accept`; kept as the fact `clock_accepted`, it counts at
  starts within the day after.
* At start without any reference in reach: the time is not before the last number given out, and
  at most a day after it; or no number was ever given out (a first start, an embedded or private
  network).

In doubt `now_us` raises `Unavailable`, so writes answer 503 and nothing wrong enters a number.
`ClockJudge` is the decision, without threads, network or time of its own; `CheckedClock` feeds it.
"""

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from pds.errors import Unavailable
from pds.store.engine import Txn

US_PER_S: Final = 1_000_000
DAY_US: Final = 86_400 * US_PER_S

STEP_TOLERANCE_US: Final = 2 * US_PER_S
"""A change against the boot clock up to this is a correction, not a jump."""

SLEW_PER_MILLE: Final = 1
"""NTP slews by at most 0.5 per mille; so much more may differ when the last look is long ago."""

REFERENCE_TOLERANCE_US: Final = 30 * US_PER_S
"""A Date header has whole seconds and may come out of a cache or over a slow line."""

EARLIEST_US: Final = 1_735_689_600 * US_PER_S
"""2025-01-01: a clock before this was never set."""

_log: Final = logging.getLogger(__name__)


class Clock(Protocol):
    """Where `now_us` comes from."""

    def now_us(self) -> int:
        """Return the time in unix microseconds; raises Unavailable while it is in doubt."""


class SystemClock:
    """The machine's wall clock, unchecked: for tools and tests."""

    def now_us(self) -> int:
        """Return the time in unix microseconds."""
        return time.time_ns() // 1000


class ClockInDoubt(Unavailable):
    """The clock is not believed; writes wait until it is confirmed or accepted."""


class Reading(NamedTuple):
    """Both clocks at one instant, in microseconds."""

    wall_us: int
    boot_us: int


class Basis(StrEnum):
    """Why the clock is believed."""

    REFERENCE = "reference"
    OPERATOR = "operator"
    LAST_EVENT = "last_event"
    FIRST_START = "first_start"


_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def read_clocks() -> Reading:
    """Read the machine's clocks. Where there is no CLOCK_BOOTTIME the monotonic clock stands in."""
    return Reading(time.time_ns() // 1000, time.clock_gettime_ns(_BOOT_CLOCK) // 1000)


class ClockJudge:
    """Decides whether the wall clock is believed. Not safe for threads by itself."""

    def __init__(self, *, last_seq: int = 0, accepted_us: int | None = None) -> None:
        self._last_seq = last_seq
        self._accepted_us = accepted_us
        self._anchor: Reading | None = None
        self.basis: Basis | None = None
        self.doubt: str | None = "the clock has not been checked yet"

    def look(self, reading: Reading) -> bool:
        """Note a reading; return whether the clock is believed. The hot path."""
        anchor = self._anchor
        if anchor is None:
            return False
        passed_us = reading.boot_us - anchor.boot_us
        change_us = reading.wall_us - anchor.wall_us - passed_us
        if abs(change_us) > STEP_TOLERANCE_US + passed_us * SLEW_PER_MILLE // 1000:
            self._anchor = None
            self.basis = None
            self.doubt = f"the clock jumped by {change_us / US_PER_S:+.1f} s"
            return False
        if passed_us > US_PER_S:
            self._anchor = reading
        return True

    def judge(self, reading: Reading, references_us: Sequence[int], *, starting: bool) -> bool:
        """Decide anew, with the times that references gave; return whether it is believed.

        `starting` allows the reasons that count at start only.
        """
        wall_us = reading.wall_us
        if wall_us < EARLIEST_US:
            return self._doubt("the clock was never set")
        if starting and self._accepted_us is not None:
            since_us = wall_us - self._accepted_us
            if -STEP_TOLERANCE_US <= since_us <= DAY_US:
                return self._believe(reading, Basis.OPERATOR)
        if references_us:
            agreeing = sum(abs(us - wall_us) <= REFERENCE_TOLERANCE_US for us in references_us)
            if agreeing * 2 > len(references_us):
                return self._believe(reading, Basis.REFERENCE)
            off_us = sorted(references_us)[len(references_us) // 2] - wall_us
            return self._doubt(f"other hosts' clocks differ by {off_us / US_PER_S:+.1f} s")
        if not starting:
            return self._doubt(self.doubt or "the clock jumped")
        if self._last_seq == 0:
            return self._believe(reading, Basis.FIRST_START)
        ahead_us = wall_us - self._last_seq
        if -STEP_TOLERANCE_US <= ahead_us <= DAY_US:
            return self._believe(reading, Basis.LAST_EVENT)
        return self._doubt(
            f"the clock is {ahead_us / DAY_US:+.1f} days from the last event and no other host's"
            " clock could be asked"
        )

    def accept(self, reading: Reading) -> bool:
        """Believe the clock because the operator says so; refuse one that was never set."""
        if reading.wall_us < EARLIEST_US:
            return self._doubt("the clock was never set")
        return self._believe(reading, Basis.OPERATOR)

    def _believe(self, reading: Reading, basis: Basis) -> bool:
        self._anchor = reading
        self.basis = basis
        self.doubt = None
        return True

    def _doubt(self, reason: str) -> bool:
        self._anchor = None
        self.basis = None
        self.doubt = reason
        return False


AskReferences = Callable[[], Awaitable[Sequence[int]]]
"""Asks the PLC directory and the relays for the time: unix microseconds of each Date header, those
that did not answer left out. Must have a time limit of its own."""


class CheckedClock:
    """The wall clock, believed only with reason.

    `now_us` may be called from any thread. `start`, `check` and `accept` belong to the event loop;
    the app calls `check` every few seconds, which costs nothing while the clock is believed.
    """

    def __init__(self, ask: AskReferences, *, read: Callable[[], Reading] = read_clocks) -> None:
        self._ask = ask
        self._read = read
        self._lock = threading.Lock()
        self._judge = ClockJudge()
        self._starting = True

    @property
    def doubt(self) -> str | None:
        """Why the clock is not believed, for the operator; None while it is."""
        return self._judge.doubt

    @property
    def basis(self) -> Basis | None:
        """Why the clock is believed."""
        return self._judge.basis

    def now_us(self) -> int:
        """Return the time in unix microseconds; raises ClockInDoubt."""
        reading = self._read()
        with self._lock:
            believed = self._judge.look(reading)
        if not believed:
            raise ClockInDoubt(
                f"{self._judge.doubt}: writes wait until it is confirmed or accepted"
            )
        return reading.wall_us

    async def start(self, *, last_seq: int, accepted_us: int | None = None) -> bool:
        """Decide for the first time, knowing the last number and the operator's last word."""
        self._judge = ClockJudge(last_seq=last_seq, accepted_us=accepted_us)
        self._starting = True
        return await self.check()

    async def check(self) -> bool:
        """Look for a jump; while in doubt ask the references; return whether it is believed."""
        with self._lock:
            if self._judge.look(self._read()):
                return True
        references_us = await self._ask()
        with self._lock:
            believed = self._judge.judge(self._read(), references_us, starting=self._starting)
        if believed:
            self._starting = False
            _log.info("clock.believed", extra={"basis": self._judge.basis})
        else:
            _log.error("clock.in_doubt", extra={"reason": self._judge.doubt})
        return believed

    def accept(self) -> bool:
        """Believe the clock as it is now, at the operator's word."""
        with self._lock:
            believed = self._judge.accept(self._read())
        if believed:
            self._starting = False
            _log.warning("clock.accepted")
        return believed


ACCEPTED_FACT: Final = "clock_accepted"


def get_accepted_us(txn: Txn) -> int | None:
    """Return the time at which the operator last accepted the clock."""
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (ACCEPTED_FACT,))
    return None if row is None else int.from_bytes(row[0], "big")


def put_accepted_us(txn: Txn, now_us: int) -> None:
    """Keep the operator's word over a restart."""
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (ACCEPTED_FACT, now_us.to_bytes(8, "big")),
    )


def parse_date_header(text: str) -> int | None:
    """Return the unix microseconds of an HTTP Date header, or None when it is not one."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * US_PER_S
