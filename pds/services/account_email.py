"""The address of an account: confirmed by a code that was sent to it, changed by one too.

An address that was confirmed is changed only by somebody who reads the mail sent to it; one that
was never confirmed proves nothing and may be replaced at once. A new address is unconfirmed again,
and codes that went to the old one are void.
"""

from collections.abc import Collection

from pds.errors import Conflict, RequestError
from pds.services.account_cache import AccountCache
from pds.services.account_mails import AccountMails
from pds.services.email_addresses import normalize_email, parse_email
from pds.services.mail_tokens import MailCode, MailPurpose, MailTokens
from pds.store.accounts import (
    Account,
    get_account_by_aid,
    get_account_by_email,
    update_email,
)
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn


class AccountEmail:
    """Confirms and changes the addresses of accounts."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        accounts: AccountCache,
        tokens: MailTokens,
        mails: AccountMails,
        blocked_domains: Collection[str] = (),
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._tokens = tokens
        self._mails = mails
        self._blocked_domains = frozenset(blocked_domains)

    async def request_confirmation(self, aid: int) -> None:
        """Mail a code that confirms the address. Raises: as `AccountMails.request_code`."""
        await self._mails.request_code(aid, MailPurpose.CONFIRM_EMAIL)

    async def confirm(self, aid: int, email: str, code: str) -> None:
        """Note that the holder reads what is sent to this address.

        Raises: RequestError `InvalidEmail` when it is not the account's, `InvalidToken`,
        `ExpiredToken`.
        """
        now_us = self._clock.now_us()
        account = await self._get(aid)
        if account.email is None or account.email != normalize_email(email):
            raise _other_address()
        given = MailCode(aid, MailPurpose.CONFIRM_EMAIL, code, now_us)
        await self._tokens.use("email.confirm", given, self._confirm, account, now_us)

    def _confirm(self, txn: Txn, seen: Account, now_us: int) -> None:
        account = get_account_by_aid(txn, seen.aid)
        if account is None or account.email != seen.email:
            raise _other_address()
        update_email(txn, seen.aid, seen.email, confirmed_at=now_us)
        self._accounts.forget_after(txn, seen.aid)

    async def request_update(self, aid: int) -> bool:
        """Whether changing the address needs a code; it is mailed then.

        Raises: as `AccountMails.request_code`.
        """
        account = await self._get(aid)
        if account.email is None or account.email_confirmed_at is None:
            return False
        await self._mails.request_code(aid, MailPurpose.UPDATE_EMAIL)
        return True

    async def update(self, aid: int, email: str, code: str | None) -> None:
        """Give the account another address, unconfirmed.

        Raises: RequestError `InvalidRequest` for an address that is none, not wanted or somebody
        else's, `TokenRequired`, `InvalidToken`, `ExpiredToken`. Spec: (ACC-2, ACC-36)
        """
        new = parse_email(email, blocked_domains=self._blocked_domains)
        try:
            before = await self._update(aid, new, code)
        except Conflict as error:  # Another node's account took it in the same moment.
            raise _taken() from error
        if before.email_confirmed_at is not None and before.email != new:
            self._mails.note_email_changed(before)

    async def _update(self, aid: int, new: str, code: str | None) -> Account:
        if code is None:
            return await self._engine.transact(
                "email.update", self._replace, aid, new, False, accounts=(aid,)
            )
        given = MailCode(aid, MailPurpose.UPDATE_EMAIL, code, self._clock.now_us())
        account = await self._get(aid)
        if account.email_confirmed_at is None:  # Then no code was needed, and none is judged.
            return await self._update(aid, new, None)
        return await self._tokens.use("email.update", given, self._replace, aid, new, True)

    def _replace(self, txn: Txn, aid: int, new: str, is_proved: bool) -> Account:
        account = get_account_by_aid(txn, aid)
        if account is None:
            raise _not_found()
        if account.email_confirmed_at is not None and not is_proved:
            raise RequestError("TokenRequired", "confirmation token required")
        if account.email == new:
            return account
        if get_account_by_email(txn, new) is not None:
            raise _taken()
        update_email(txn, aid, new, confirmed_at=None)
        self._tokens.drop_all(txn, aid)
        self._accounts.forget_after(txn, aid)
        return account

    async def _get(self, aid: int) -> Account:
        account = await self._engine.read("account.get", get_account_by_aid, aid)
        if account is None:
            raise _not_found()
        return account


def _not_found() -> RequestError:
    return RequestError("AccountNotFound", "Account not found", 403)


def _other_address() -> RequestError:
    return RequestError("InvalidEmail", "invalid email")


def _taken() -> RequestError:
    return RequestError(
        "InvalidRequest", "This email address is already in use, please use a different email."
    )
