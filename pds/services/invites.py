"""Invite codes: made by the operator or earned by accounts, spent at sign-up.

A code reads `<host name with dashes>-xxxxx-xxxxx`, so that people see which host it is for
(ACC-25). Checking and spending a code is part of account creation, in its transaction.

Where the operator has set an interval, each account earns a code of one use per interval since the
later of its creation and the epoch, and holds at most five unused ones; they are made when its
owner lists them. Codes that the operator gave to an account do not count.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.services.audit import Order, carry_out, note_act
from pds.store.accounts import Account, get_account_by_aid
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.invite_lists import ListedInvite, list_invites_of
from pds.store.invites import (
    ADMIN_HOLDER,
    InviteCode,
    count_invite_uses,
    insert_invite_codes,
)

OF_THE_PROGRAM: Final = Order("")
"""For codes that no operator asked for."""
MAX_CODES_PER_CALL: Final = 500
MAX_USES: Final = 100_000
MAX_OPEN_CODES: Final = 5
"""Earned codes that an account may hold unused."""
MAX_LISTED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteSettings:
    """Whether and how fast accounts earn codes; without an interval they earn none."""

    required: bool = True
    interval_s: float | None = None
    epoch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AccountCodes:
    """Codes made for one holder: a DID or `admin`."""

    account: str
    codes: tuple[str, ...]


class Invites:
    """Makes and lists invite codes."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        hostname: str,
        settings: InviteSettings | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._settings = settings or InviteSettings()
        self._prefix = hostname.replace(".", "-").replace(":", "-")

    async def create(
        self,
        *,
        code_count: int,
        use_count: int,
        for_accounts: Sequence[str] = (),
        order: Order | None = None,
    ) -> list[AccountCodes]:
        """Make `code_count` codes of `use_count` uses for each holder (ACC-26).

        With an `order` it is noted in the audit trail, by numbers: a code is worth an account.

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
        await carry_out(
            self._engine, "invite.create", order or OF_THE_PROGRAM, _insert_codes, codes, order
        )
        return made

    async def list_of_account(
        self, aid: int, *, include_used: bool = True, create_available: bool = True
    ) -> list[ListedInvite]:
        """Return the codes of an account that are not disabled, making those it has earned.

        Spec: (ACC-26)
        """
        listed = await self._engine.read("invite.list", _list_of, aid)
        now_us = self._clock.now_us()
        if create_available and _count_due(listed, self._settings, now_us):
            listed = await self._engine.transact(
                "invite.earn",
                self._earn,
                aid,
                tuple(self._generate() for _ in range(MAX_OPEN_CODES)),
                now_us,
                accounts=(aid,),
            )
        return [
            code
            for code, uses in zip(listed.codes, listed.uses, strict=True)
            if not code.disabled and (include_used or uses < code.use_count)
        ]

    def _earn(self, txn: Txn, aid: int, codes: tuple[str, ...], now_us: int) -> "_Listed":
        """Make the codes that are due, judged again with the account locked."""
        listed = _list_of(txn, aid)
        did = listed.account.did
        due = _count_due(listed, self._settings, now_us)
        is_disabled = listed.account.invites_disabled
        insert_invite_codes(
            txn, [InviteCode(code, 1, is_disabled, did, did, now_us) for code in codes[:due]]
        )
        return _list_of(txn, aid)

    def _generate(self) -> str:
        text = base64.b32encode(secrets.token_bytes(7)).decode().lower()
        return f"{self._prefix}-{text[:5]}-{text[5:10]}"


def _insert_codes(txn: Txn, codes: tuple[InviteCode, ...], order: Order | None) -> None:
    """Insert new codes, and a row in the audit trail for each holder."""
    insert_invite_codes(txn, codes)
    if order is None:
        return
    for holder, group in groupby(codes, key=lambda code: code.for_account):
        of_holder = list(group)
        after: dict[str, Json] = {"codes": len(of_holder), "uses": of_holder[0].use_count}
        now_us = of_holder[0].created_at
        note_act(txn, order, "invite.create", holder, now_us=now_us, after=after)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Codes with how often each was used; also uses of accounts that are gone count."""

    account: Account
    codes: list[ListedInvite]
    uses: list[int]


def _list_of(txn: Txn, aid: int) -> _Listed:
    account = get_account_by_aid(txn, aid)
    if account is None:
        raise RequestError("AccountNotFound", "Account not found", 403)
    codes = list_invites_of(txn, account.did, limit=MAX_LISTED)
    return _Listed(account, codes, [count_invite_uses(txn, code.code) for code in codes])


def _count_due(listed: _Listed, settings: InviteSettings, now_us: int) -> int:
    """How many codes an account may be given now, as the reference counts them."""
    if not settings.required or not settings.interval_s:
        return 0
    pairs = zip(listed.codes, listed.uses, strict=True)
    earned = [(code, uses) for code, uses in pairs if code.created_by != ADMIN_HOLDER]
    unused = sum(not code.disabled and uses < code.use_count for code, uses in earned)
    epoch_us = round(settings.epoch_s * US_PER_S)
    since_us = max(listed.account.created_at, epoch_us)
    intervals = max(0, now_us - since_us) // round(settings.interval_s * US_PER_S)
    made = sum(code.created_at > epoch_us for code, _ in earned)
    return max(0, min(intervals - made, MAX_OPEN_CODES - unused))
