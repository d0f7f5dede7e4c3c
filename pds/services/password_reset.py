"""A new password for somebody who reads the mail of an account.

Asking answers the same for every address, in the same time: whether there is an account is looked
up, and everything that only happens when there is one (a code, a mail) happens behind the answer.

Only the code is shown when the new password is set, so it names the account. Guessing such a code
is guessing one of 2^50 for each that is out, at the rate that the limits of the method allow.
"""

from pds.errors import RequestError
from pds.services.account_cache import AccountCache
from pds.services.account_mails import AccountMails
from pds.services.email_addresses import is_email, normalize_email
from pds.services.mail_tokens import MailCode, MailPurpose, MailTokens, invalid_token
from pds.services.passwords import Passwords, check_new_password
from pds.services.sessions import Sessions
from pds.store.accounts import (
    Account,
    get_account_by_aid,
    get_account_by_email,
    update_password_hash,
)
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn


class PasswordReset:
    """Mails codes for new passwords, and sets them."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        accounts: AccountCache,
        sessions: Sessions,
        passwords: Passwords,
        tokens: MailTokens,
        mails: AccountMails,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._sessions = sessions
        self._passwords = passwords
        self._tokens = tokens
        self._mails = mails

    async def request(self, email: str) -> None:
        """Mail a code to the account with this address, if there is one; nobody is told.

        Raises: RequestError `InvalidRequest` when this host sends no mail. Spec: (ACC-37)
        """
        self._mails.check_available()
        asked = normalize_email(email)
        account = await self._engine.read(
            "password.find", get_account_by_email, asked if is_email(asked) else ""
        )
        if account is not None:
            self._mails.request_code_later(account.aid, MailPurpose.RESET_PASSWORD)

    async def reset(self, code: str, password: str) -> None:
        """Set the password of the account whose code this is, and end all of its sessions.

        Those of app passwords end too; the app passwords themselves stay.

        Raises: RequestError `InvalidToken`, `ExpiredToken`, `InvalidRequest` for a password that is
        too short or too long. Spec: (ACC-32, XRPC-26)
        """
        _check(password)
        aid = await self._tokens.find_owner(MailPurpose.RESET_PASSWORD, code)
        if aid is None:
            raise invalid_token()
        password_hash = await self._passwords.hash(password)
        given = MailCode(aid, MailPurpose.RESET_PASSWORD, code, self._clock.now_us())
        account = await self._tokens.use(
            "password.reset", given, self.set_password, aid, password_hash
        )
        self._mails.note_password_changed(account)

    def set_password(self, txn: Txn, aid: int, password_hash: str) -> Account:
        """Set the password and end all sessions, inside a transaction of the caller's."""
        account = get_account_by_aid(txn, aid)
        if account is None:
            raise invalid_token()
        update_password_hash(txn, aid, password_hash)
        self._sessions.end_sessions(txn, aid)
        self._accounts.forget_after(txn, aid)
        return account


def _check(password: str) -> None:
    """The rules of `check_new_password`, under the name that this method declares."""
    try:
        check_new_password(password)
    except RequestError as error:
        raise RequestError("InvalidRequest", error.message) from error
