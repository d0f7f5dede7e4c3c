"""Accounts that the operator opens for others.

The same creation as at sign-up, with an invite code made for the purpose where codes are required.
The row in the audit trail is written before and says that it was ordered; if the account could not
be made, a second row says so, and the code is disabled.
"""

from collections.abc import Callable

from pds.errors import RemoteError, RequestError
from pds.protocol.data import Json
from pds.services.accounts import AccountRequest, Accounts
from pds.services.admin_accounts import AdminAccounts
from pds.services.audit import Order, carry_out, note_act
from pds.services.email_addresses import parse_email
from pds.services.handles import HandlePolicy
from pds.services.invites import Invites
from pds.services.passwords import check_new_password
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn

ACT = "account.create"


class AdminCreation:
    """Opens accounts on the operator's order."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        accounts: Accounts,
        admin_accounts: AdminAccounts,
        invites: Invites,
        handles: HandlePolicy,
        invite_required: bool,
        make_password: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._admin_accounts = admin_accounts
        self._invites = invites
        self._handles = handles
        self._invite_required = invite_required
        self._make_password = make_password

    async def create(
        self, *, handle: str, email: str, password: str | None, order: Order
    ) -> dict[str, Json]:
        """Open an account; without a password one is made, and shown in the answer only.

        Raises: as `Accounts.create`.
        """
        parsed, email = self._handles.parse(handle), parse_email(email)
        if password is not None:
            check_new_password(password)
        if await self._accounts.lookup(parsed) is not None:
            raise RequestError("HandleNotAvailable", f"Handle already taken: {parsed}")
        await self._note(ACT, parsed, order, {"email": email})
        if order.is_rehearsal:
            return {"handle": parsed, "email": email}
        given = password or self._make_password()
        code = await self._make_code(order) if self._invite_required else None
        try:
            view = await self._accounts.create(
                AccountRequest(handle=parsed, email=email, password=given, invite_code=code)
            )
        except (RequestError, RemoteError) as error:
            await self._note(f"{ACT}.failed", parsed, order, {"error": str(error)})
            if code is not None:
                await self._admin_accounts.disable_codes(order, codes=[code])
            raise
        answer: dict[str, Json] = {"did": view.did, "handle": view.handle, "email": email}
        if password is None:
            answer["password"] = given
        return answer

    async def _make_code(self, order: Order) -> str:
        made = await self._invites.create(code_count=1, use_count=1, order=order)
        return made[0].codes[0]

    async def _note(self, act: str, subject: str, order: Order, after: dict[str, Json]) -> None:
        def note(txn: Txn, now_us: int) -> None:
            note_act(txn, order, act, subject, now_us=now_us, after=after)

        await carry_out(self._engine, "admin.create", order, note, self._clock.now_us())
