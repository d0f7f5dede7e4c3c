"""The operator's password: checked in constant time, and never tried without limit.

Failed attempts are counted per address and for the whole host, in memory: a guesser who spreads
over many addresses meets the second limit. A correct password always clears its own address.
"""

import hmac
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from pds.errors import RequestError
from pds.services.callers import caller_block

WINDOW_S: Final = 300.0
FAILURES_PER_ADDRESS: Final = 10
FAILURES_IN_ALL: Final = 100


@dataclass(slots=True)
class AdminAuth:
    """Checks `admin:<password>` of Basic authorization (XRPC-28).

    Without a configured password nobody is the operator over HTTP.
    """

    password: str | None = field(repr=False)
    _failures: deque[tuple[float, str]] = field(default_factory=deque, repr=False)

    def check(self, username: str, password: str, *, address: str, now_s: float) -> bool:
        """Whether these are the operator's credentials.

        Raises: RequestError (429) when this address, or everybody together, guessed too often.
        """
        self._forget(now_s)
        address = caller_block(address)
        mine = sum(1 for _, other in self._failures if other == address)
        if mine >= FAILURES_PER_ADDRESS or len(self._failures) >= FAILURES_IN_ALL:
            raise RequestError(
                "RateLimitExceeded",
                "Too many failed attempts",
                429,
                headers={"Retry-After": str(int(WINDOW_S))},
            )
        if username == "admin" and self.password and _is_equal(self.password, password):
            self._failures = deque(entry for entry in self._failures if entry[1] != address)
            return True
        self._failures.append((now_s, address))
        return False

    def _forget(self, now_s: float) -> None:
        while self._failures and self._failures[0][0] < now_s - WINDOW_S:
            self._failures.popleft()


def _is_equal(expected: str, given: str) -> bool:
    # Digests first: compare_digest itself shows the length of its arguments.
    return hmac.compare_digest(sha256(expected.encode()).digest(), sha256(given.encode()).digest())
