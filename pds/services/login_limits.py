"""How often somebody may try to sign in to one account.

Attempts are counted per resolved account, not per spelling of its name, together with the caller's
address: so guessing is slow, and a guesser elsewhere does not lock the owner out. Names that belong
to nobody are counted the same way, by name. A wider limit per account alone slows a guesser with
many addresses; it is far above what an owner needs.

Counts live in memory, bounded in number and, since names are kept as digests, in size: a restart
forgets them. Accounts and names that belong to nobody are to be counted apart, so that a flood of
invented names does not push out the count of a real account.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pds.errors import RequestError
from pds.services.callers import caller_block

MAX_SUBJECTS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Window:
    """At most `attempts` in `seconds`."""

    attempts: int
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginLimits:
    """Attempts per account and address (the reference's figures), and per account alone."""

    per_address: tuple[Window, ...] = (Window(30, 300), Window(300, 86_400))
    per_account: tuple[Window, ...] = (Window(300, 300), Window(3_000, 86_400))


class AttemptCounter:
    """Counts attempts in fixed windows. Event loop only."""

    def __init__(
        self,
        limits: LoginLimits | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or LoginLimits()
        self._monotonic = monotonic
        self._counts: OrderedDict[tuple[bytes, int, int], int] = OrderedDict()

    def count(self, subject: str, address: str) -> None:
        """Count one attempt to sign in as `subject` from `address`.

        Raises: RequestError (429) when a limit is passed; the attempt must then not be judged.
        """
        now_s = self._monotonic()
        for key, windows in (
            (f"{subject} {caller_block(address)}", self._limits.per_address),
            (subject, self._limits.per_account),
        ):
            digest = sha256(key.encode("utf-8", "surrogatepass")).digest()
            for window in windows:
                self._count(digest, window, now_s)

    def _count(self, key: bytes, window: Window, now_s: float) -> None:
        number, elapsed_s = divmod(now_s, window.seconds)
        entry = (key, window.seconds, int(number))
        attempts = self._counts.get(entry, 0) + 1
        if attempts > window.attempts:
            raise RequestError(
                "RateLimitExceeded",
                "Too many attempts to sign in",
                429,
                headers={"Retry-After": str(max(1, int(window.seconds - elapsed_s)))},
            )
        self._counts[entry] = attempts
        self._counts.move_to_end(entry)
        while len(self._counts) > MAX_SUBJECTS:
            self._counts.popitem(last=False)
