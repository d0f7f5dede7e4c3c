"""How often somebody may try to sign in to one account.

Attempts are counted per resolved account, not per spelling of its name, together with the caller's
address: so guessing is slow, and a guesser elsewhere does not lock the owner out. Names that belong
to nobody are counted the same way, by name. A wider limit per account alone slows a guesser with
many addresses; it is far above what an owner needs.

Every node counts what all nodes have counted so far, before an attempt is judged. Accounts and
names that belong to nobody are counted apart, so that a flood of invented names does not push out
the count of a real account.
"""

from dataclasses import dataclass
from typing import Final

from pds.services.callers import caller_block
from pds.services.rate_limits import Key, Limit, RateLimited, RateLimits

MAX_SUBJECTS: Final = 10_000
MESSAGE: Final = "Too many attempts to sign in"


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
    """Counts attempts under names that begin with `name`. Event loop only."""

    def __init__(self, rates: RateLimits, limits: LoginLimits, name: str) -> None:
        self._rates = rates
        self._by_address = [
            rates.bucket(_limit(name, Key.ADDRESS_AND_NAME, window), exact=True)
            for window in limits.per_address
        ]
        self._by_account = [
            rates.bucket(_limit(f"{name}-alone", Key.NAME, window), exact=True)
            for window in limits.per_account
        ]

    async def count(self, subject: str, address: str) -> None:
        """Count one attempt to sign in as `subject` from `address`.

        Raises: RequestError (429) when a limit is passed; the attempt must then not be judged.
        StoreError when nodes share their counts and cannot be asked.
        """
        both = self._rates.name_subject(subject, caller_block(address))
        alone = self._rates.name_subject(subject)
        try:
            await self._rates.spend_exactly(
                [
                    *((bucket, both) for bucket in self._by_address),
                    *((bucket, alone) for bucket in self._by_account),
                ]
            )
        except RateLimited as error:
            error.message = MESSAGE
            raise


def _limit(name: str, key: Key, window: Window) -> Limit:
    return Limit(
        name=f"{name}-{window.seconds}",
        key=key,
        points=window.attempts,
        window_s=window.seconds,
        max_subjects=MAX_SUBJECTS,
    )
