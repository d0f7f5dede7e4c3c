"""Ends every way into an account at once, for accounts that somebody else has got into.

Sessions and app passwords are deleted, codes that were mailed are void, and the password opens
nothing any more. The holder comes back in by resetting the password by mail, or with the operator's
help. The account itself is not touched.
"""

from pds.services.account_cache import AccountCache
from pds.services.audit import Order, carry_out, note_act
from pds.services.moderation import subject_not_found
from pds.services.sessions import Sessions
from pds.store.accounts import get_account_by_aid, update_password_hash
from pds.store.app_passwords import delete_app_password, list_app_passwords
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.mail_tokens import delete_account_mail_tokens


class Credentials:
    """What opens accounts, taken together."""

    def __init__(
        self, *, engine: Engine, clock: Clock, accounts: AccountCache, sessions: Sessions
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._sessions = sessions

    async def revoke_all(self, did_or_handle: str, order: Order) -> None:
        """End every session, app password and mailed code of an account, and its password.

        Raises: RequestError `NotFound`. Spec: (XRPC-26, ACC-34)
        """
        name = did_or_handle if did_or_handle.startswith("did:") else did_or_handle.lower()
        account = await self._accounts.get(name)
        if account is None:
            raise subject_not_found()
        now_us = self._clock.now_us()

        def revoke(txn: Txn, aid: int) -> None:
            found = get_account_by_aid(txn, aid)
            if found is None:
                raise subject_not_found()
            for app_password in list_app_passwords(txn, aid):
                delete_app_password(txn, app_password.app_password_id)
            delete_account_mail_tokens(txn, aid)
            update_password_hash(txn, aid, None)
            self._sessions.end_sessions(txn, aid)
            self._accounts.forget_after(txn, aid)
            note_act(txn, order, "account.revoke-credentials", found.did, now_us=now_us)

        await carry_out(
            self._engine, "account.revoke", order, revoke, account.aid, accounts=(account.aid,)
        )
