"""Timestamp identifiers (TIDs): 13 letters that sort by time; record keys and revs.

A TID is a 64-bit number in base 32: a zero bit, 53 bits of microseconds since 1970 and 10 bits of
clock id. It proves neither the time of creation nor uniqueness (DM-62). Time and clock ids are
arguments here; whoever stores revs passes the previous one (DM-61, REPO-3).

Spec: tid#tid-structure (DM-60)
"""

from typing import Final

from pds.protocol.syntax import InvalidSyntax, Tid, parse_tid

MAX_US: Final = 2**53 - 1
"""Latest instant that a TID can hold."""
MAX_CLOCK_ID: Final = 1023

_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"
_PYTHON_BASE32: Final = "0123456789abcdefghijklmnopqrstuv"
_TO_PYTHON: Final = bytes.maketrans(_ALPHABET.encode(), _PYTHON_BASE32.encode())
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)


def encode_tid(us: int, clock_id: int) -> Tid:
    """Return the TID of an instant in unix microseconds.

    Raises: InvalidSyntax when a number does not fit.
    """
    if not 0 <= us <= MAX_US or not 0 <= clock_id <= MAX_CLOCK_ID:
        raise InvalidSyntax("a TID holds 53 bits of microseconds and a 10-bit clock id")
    pairs = _PAIRS
    return Tid(
        _ALPHABET[us >> 50]
        + pairs[us >> 40 & 1023]
        + pairs[us >> 30 & 1023]
        + pairs[us >> 20 & 1023]
        + pairs[us >> 10 & 1023]
        + pairs[us & 1023]
        + pairs[clock_id]
    )


def decode_tid(tid: str) -> tuple[int, int]:
    """Return the microseconds and the clock id of a TID.

    Raises: InvalidSyntax.
    """
    number = int(parse_tid(tid).encode().translate(_TO_PYTHON), 32)
    return number >> 10, number & MAX_CLOCK_ID


def next_tid(previous: Tid | None, now_us: int, clock_id: int) -> Tid:
    """Return a TID of now that is strictly greater than `previous`.

    When the clock is not ahead of `previous`, its time plus one microsecond is taken (DM-61).
    Raises: InvalidSyntax when `previous` is the last possible instant.
    """
    if previous is not None:
        now_us = max(now_us, decode_tid(previous)[0] + 1)
    return encode_tid(now_us, clock_id)


class TidClock:
    """Makes strictly increasing TIDs for one worker, for example as record keys.

    Not for revs: those follow the stored rev of their repo.
    """

    __slots__ = ("_last_us", "clock_id")

    def __init__(self, clock_id: int, last_us: int = 0) -> None:
        self.clock_id = clock_id
        self._last_us = last_us

    def next(self, now_us: int) -> Tid:
        """Return a TID greater than every earlier one of this object."""
        self._last_us = max(now_us, self._last_us + 1)
        return encode_tid(self._last_us, self.clock_id)
