"""Codes sent by mail: proof that somebody reads the mail of an account.

A code is ten base32 letters, shown as `XXXXX-XXXXX` (50 random bits), good for 15 minutes, for one
account and one purpose; a new one replaces the old. The database holds only a digest, made with a
key that is not in the database, so a copy of it does not help to guess codes (ACC-36).

A code works once, in the transaction that does what it allows: if that fails, the code is still
good. It may be tried wrongly five times. Such a try must be counted although the caller gets an
error, and the writes of a job that raises are rolled back. So `MailTokens.use` runs the whole job:

    await mail_tokens.use("account.delete", MailCode(aid, purpose, code, now_us), delete, aid)

runs `delete(txn, aid)` if the code is right, and otherwise commits the count alone and raises.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar, TypeVarTuple

from pds.errors import RequestError
from pds.services.sweeping import sweep_rows
from pds.store.clock import US_PER_S
from pds.store.engine import Engine, Txn
from pds.store.mail_tokens import (
    delete_account_mail_tokens,
    delete_mail_token,
    delete_old_mail_tokens,
    get_mail_token,
    get_mail_token_owner,
    replace_mail_token,
    update_mail_token_attempts,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ENTROPY_BYTES: Final = 7
"""Random bytes that `issue` wants: the 50 bits of a code and a few to spare."""
CODE_CHARS: Final = 10
LIFETIME_S: Final = 15 * 60
MAX_ATTEMPTS: Final = 5
KEEP_EXPIRED_S: Final = 86_400
"""How long an expired code is still told from a wrong one."""
MAX_GIVEN_CHARS: Final = 64

_KEY_LABEL: Final = b"freehold mail codes 1"


class MailPurpose(StrEnum):
    """What a code allows."""

    CONFIRM_EMAIL = "confirm_email"
    UPDATE_EMAIL = "update_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - a word, not a password
    DELETE_ACCOUNT = "delete_account"
    PLC_OPERATION = "plc_operation"


@dataclass(frozen=True, slots=True)
class MailCode:
    """A code that somebody gave, for what, and when."""

    aid: int
    purpose: MailPurpose
    code: str
    now_us: int


class MailTokens:
    """Makes codes and uses them up."""

    def __init__(self, *, engine: Engine, secret: str) -> None:
        self._engine = engine
        self._key = hmac.digest(secret.encode(), _KEY_LABEL, hashlib.sha256)

    def issue(
        self, txn: Txn, aid: int, purpose: MailPurpose, *, now_us: int, entropy: bytes
    ) -> str:
        """Make the code of an account for a purpose, inside a transaction of the caller's.

        `entropy` are `ENTROPY_BYTES` random bytes. Raises: ValueError for fewer.
        """
        if len(entropy) < ENTROPY_BYTES:
            raise ValueError("too little entropy for a code")
        letters = base64.b32encode(entropy[:ENTROPY_BYTES]).decode()[:CODE_CHARS]
        replace_mail_token(
            txn, aid=aid, purpose=purpose, digest=self._digest(purpose, letters), now_us=now_us
        )
        return f"{letters[:5]}-{letters[5:]}"

    async def use(self, label: str, given: MailCode, fn: Callable[[Txn, *Ts], T], *args: *Ts) -> T:
        """Run `fn(txn, *args)` in one transaction with using up the code, and return its result.

        A wrong code is counted, also though this raises, and the fifth ends the code.

        Raises: RequestError `InvalidToken` or `ExpiredToken`; what `fn` raises, and then the code
        was not used up. Spec: (ACC-36)
        """

        def job(txn: Txn) -> "tuple[T] | RequestError":
            refusal = self._refusal(txn, given)
            return (fn(txn, *args),) if refusal is None else refusal

        outcome = await self._engine.transact(label, job, accounts=(given.aid,))
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome[0]

    async def find_owner(self, purpose: MailPurpose, code: str) -> int | None:
        """Return whose code this is, for methods that are told nothing but the code."""
        digest = self._digest(purpose, _letters(code))
        return await self._engine.read("mail_token.owner", get_mail_token_owner, purpose, digest)

    def drop_all(self, txn: Txn, aid: int) -> None:
        """Drop the codes of an account whose address has changed or who is gone."""
        delete_account_mail_tokens(txn, aid)

    async def sweep(self, now_us: int) -> int:
        """Delete codes that expired long ago; return how many there were."""
        before_us = now_us - (LIFETIME_S + KEEP_EXPIRED_S) * US_PER_S
        return await sweep_rows(self._engine, "mail_token.sweep", delete_old_mail_tokens, before_us)

    def _refusal(self, txn: Txn, given: MailCode) -> RequestError | None:
        """Use the code up, or count the wrong one and say what is wrong."""
        stored = get_mail_token(txn, given.aid, given.purpose)
        digest = self._digest(given.purpose, _letters(given.code))
        if stored is None:
            return invalid_token()
        if not hmac.compare_digest(stored.digest, digest):
            if stored.attempts + 1 < MAX_ATTEMPTS:
                update_mail_token_attempts(txn, given.aid, given.purpose, stored.attempts + 1)
            else:
                delete_mail_token(txn, given.aid, given.purpose)
            return invalid_token()
        if given.now_us >= stored.created_at + LIFETIME_S * US_PER_S:
            return RequestError("ExpiredToken", "Token is expired")
        delete_mail_token(txn, given.aid, given.purpose)
        return None

    def _digest(self, purpose: MailPurpose, letters: str) -> bytes:
        return hmac.digest(self._key, f"{purpose} {letters}".encode(), hashlib.sha256)


def invalid_token() -> RequestError:
    """The answer to a code that is wrong, used, replaced or of somebody else."""
    return RequestError("InvalidToken", "Token is invalid")


def _letters(code: str) -> str:
    """What people typed, without spaces, dashes and lower case."""
    shortened = code[:MAX_GIVEN_CHARS]
    return "".join(shortened.split()).replace("-", "").upper()
