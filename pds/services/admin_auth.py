"""The operator's password: checked in constant time, and never tried without limit.

Failed attempts are counted per address and for the whole host: a guesser who spreads over many
addresses meets the second limit. A correct password always clears its own address. Each failure is
counted in the database at once where nodes share one, so a guesser who changes nodes gains at most
one guess at each. No setting lifts these limits.

Whoever sends the password without TLS asks first who is there (`prove`): on a machine with other
users, somebody else may listen on the port of a server that is down.
"""

import hmac
from hashlib import sha256
from typing import Final

from pds.services.callers import caller_block
from pds.services.rate_limits import Key, Limit, RateLimited, RateLimits

WINDOW_S: Final = 300
FAILURES_PER_ADDRESS: Final = 10
FAILURES_IN_ALL: Final = 100
PER_ADDRESS: Final = Limit(
    name="admin-guess", key=Key.ADDRESS, points=FAILURES_PER_ADDRESS, window_s=WINDOW_S
)
IN_ALL: Final = Limit(
    name="admin-guess-all", key=Key.NAME, points=FAILURES_IN_ALL, window_s=WINDOW_S
)
EVERYBODY: Final = "everybody"
MESSAGE: Final = "Too many failed attempts"
_PROOF_LABEL: Final = b"freehold server proof 1"


class AdminAuth:
    """Checks `admin:<password>` of Basic authorization (XRPC-28).

    Without a configured password nobody is the operator over HTTP.
    """

    def __init__(
        self, password: str | None, rates: RateLimits | None = None, *, secret: str = ""
    ) -> None:
        """`secret` is that of the session tokens, which only this server and its operator know."""
        self._password = password
        self._secret = secret
        self._rates = rates or RateLimits()
        self._by_address = self._rates.bucket(PER_ADDRESS, exact=True)
        self._in_all = self._rates.bucket(IN_ALL, exact=True)

    def prove(self, nonce: str) -> str | None:
        """Show that this is the server: what only who knows its secret can make of `nonce`."""
        return server_proof(self._secret, nonce) if self._secret else None

    async def check(self, username: str, password: str, *, address: str) -> bool:
        """Whether these are the operator's credentials.

        Raises: RequestError (429) when this address, or everybody together, guessed too often.
        """
        subject = self._rates.text_subject(caller_block(address))
        try:
            self._by_address.check(subject)
            self._in_all.check(EVERYBODY)
            if username == "admin" and self._password and _is_equal(self._password, password):
                self._in_all.refund(EVERYBODY, self._by_address.refund(subject))
                return True
            await self._rates.spend_exactly(
                [(self._by_address, subject), (self._in_all, EVERYBODY)]
            )
        except RateLimited as error:
            error.message = MESSAGE
            raise
        return False


def server_proof(secret: str, nonce: str) -> str:
    """Return what a server with this secret answers to `nonce`; it tells nothing of the secret."""
    key = hmac.digest(secret.encode(), _PROOF_LABEL, sha256)
    return hmac.digest(key, nonce.encode(), sha256).hex()


def _is_equal(expected: str, given: str) -> bool:
    # Digests first: compare_digest itself shows the length of its arguments.
    return hmac.compare_digest(sha256(expected.encode()).digest(), sha256(given.encode()).digest())
