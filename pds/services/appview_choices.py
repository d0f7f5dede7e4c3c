"""Which AppView an account wants: its own choice, kept on this host, above that of the settings.

A choice is `did#service`, or `none` for an account that wants no AppView at all. Clients that name
a service in the `atproto-proxy` header overrule it for that call. No lexicon has a method to set
it, so it is set by the operator: `pds account set-appview`. `proxy.find_target` decides.
"""

from typing import Final

from pds.errors import RequestError
from pds.protocol.syntax import Did, InvalidSyntax, parse_did
from pds.services.account_cache import AccountCache, AidCache
from pds.services.audit import Order, carry_out, note_act
from pds.services.moderation import subject_not_found
from pds.services.proxy import APPVIEW_ID, NO_APPVIEW, Proxy
from pds.store.account_choices import delete_choice, get_choice, put_choice
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn

NAME: Final = "appview"
_UNSET: Final = ""
"""Remembered for accounts that have chosen nothing."""


class AppviewChoices:
    """Keeps and remembers the choices."""

    def __init__(self, *, engine: Engine, clock: Clock, accounts: AccountCache) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._known: AidCache[int, str] = AidCache()
        engine.add_foreign_hook(self._known.forget_foreign)

    async def get(self, aid: int) -> str | None:
        """Return `did#service`, `none`, or None for the AppView of the settings."""
        known = self._known.get(aid)
        if known is None:
            ticket = self._known.ticket
            known = await self._engine.read("appview.get", get_choice, aid, NAME) or _UNSET
            self._known.put(aid, aid, known, ticket=ticket)
        return known or None

    async def set(
        self, did: Did, choice: str | None, order: Order, *, proxy: Proxy
    ) -> tuple[str | None, str | None]:
        """Set the choice of an account, or with None take it back; return what was and what is.

        A bare DID means its service `#bsky_appview`; what cannot be found is refused.
        Raises: RequestError `NotFound`, `InvalidRequest`; UpstreamError.
        """
        account = await self._accounts.get(did)
        if account is None:
            raise subject_not_found()
        if choice is not None and choice != NO_APPVIEW:
            choice = (await proxy.find_named(_full_name(choice))).name
        now_us = self._clock.now_us()

        def change(txn: Txn) -> str | None:
            before = get_choice(txn, account.aid, NAME)
            if before == choice:
                return before
            if choice is None:
                delete_choice(txn, account.aid, NAME)
            else:
                put_choice(txn, account.aid, NAME, choice)
            note_act(
                txn,
                order,
                "account.set-appview",
                did,
                now_us=now_us,
                before={"appview": before},
                after={"appview": choice},
            )
            txn.on_commit(lambda: self._known.forget(account.aid))
            txn.announce(account.aid)
            return before

        before = await carry_out(
            self._engine, "appview.set", order, change, accounts=(account.aid,)
        )
        return before, choice


def _full_name(choice: str) -> str:
    did, _, service_id = choice.partition("#")
    try:
        return f"{parse_did(did)}#{service_id or APPVIEW_ID}"
    except InvalidSyntax as error:
        raise RequestError(
            "InvalidRequest", "An AppView is named by its DID, or by DID#service"
        ) from error
