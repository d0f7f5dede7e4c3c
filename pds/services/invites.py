"""Invite codes: made by the operator, spent at sign-up.

A code reads `<host name with dashes>-xxxxx-xxxxx`, so that people see which host it is for
(ACC-25). Checking and spending a code is part of account creation, in its transaction.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.invites import ADMIN_HOLDER, InviteCode, insert_invite_codes

MAX_CODES_PER_CALL: Final = 500
MAX_USES: Final = 100_000


@dataclass(frozen=True, slots=True)
class AccountCodes:
    """Codes made for one holder: a DID or `admin`."""

    account: str
    codes: tuple[str, ...]


class Invites:
    """Makes invite codes."""

    def __init__(self, *, engine: Engine, clock: Clock, hostname: str) -> None:
        self._engine = engine
        self._clock = clock
        self._prefix = hostname.replace(".", "-").replace(":", "-")

    async def create(
        self, *, code_count: int, use_count: int, for_accounts: Sequence[str] = ()
    ) -> list[AccountCodes]:
        """Make `code_count` codes of `use_count` uses for each holder (ACC-26).

        Raises: RequestError `InvalidRequest` for numbers that make no sense.
        """
        holders = tuple(dict.fromkeys(for_accounts)) or (ADMIN_HOLDER,)
        if not 1 <= use_count <= MAX_USES:
            raise RequestError("InvalidRequest", f"useCount must be 1 to {MAX_USES}")
        if not 1 <= code_count * len(holders) <= MAX_CODES_PER_CALL:
            raise RequestError(
                "InvalidRequest", f"1 to {MAX_CODES_PER_CALL} codes can be made at once"
            )
        now_us = self._clock.now_us()
        made = [
            AccountCodes(holder, tuple(self._generate() for _ in range(code_count)))
            for holder in holders
        ]
        codes = tuple(
            InviteCode(code, use_count, False, entry.account, ADMIN_HOLDER, now_us)
            for entry in made
            for code in entry.codes
        )
        await self._engine.transact("invite.create", insert_codes, codes)
        return made

    def _generate(self) -> str:
        text = base64.b32encode(secrets.token_bytes(7)).decode().lower()
        return f"{self._prefix}-{text[:5]}-{text[5:10]}"


def insert_codes(txn: Txn, codes: tuple[InviteCode, ...]) -> None:
    """Insert new codes in a transaction of their own."""
    insert_invite_codes(txn, codes)
