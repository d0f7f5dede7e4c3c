"""Mail to the holders of accounts: which message, to whom, and what if it cannot be sent.

Codes are mailed while somebody waits: the method answers once the mail was taken over, or says that
it was not (ACC-37). Courtesy notes (a welcome, "your password was changed") are sent behind the
answer, and their failure is only logged. Where nobody may learn whether an account exists, the code
goes out behind the answer too (`request_code_later`).

On a host without a mail service the methods that need one say so at once, the same for everybody.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from pds.errors import RemoteError, RequestError, StoreError
from pds.log import get_logger
from pds.net.mail_errors import RecipientRejected
from pds.protocol.syntax import Did, Handle
from pds.services.mail import Mail, Mailer
from pds.services.mail_texts import MailTexts
from pds.services.mail_tokens import ENTROPY_BYTES, LIFETIME_S, MailPurpose, MailTokens
from pds.store.accounts import Account, get_account_by_aid
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn

MAX_WAITING: Final = 256
"""Mails behind answers: more than a host ever has, and few enough to hold in memory."""
PLACEHOLDER_HANDLE: Final = "handle.invalid"

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountMailSettings:
    """Who writes; `confirmation_link_url` is None where there is to be no link."""

    service_name: str
    public_url: str
    confirmation_link_url: str | None = None


class AccountMails:
    """Sends mail about accounts."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        tokens: MailTokens,
        mailer: Mailer,
        moderation_mailer: Mailer | None = None,
        settings: AccountMailSettings,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._tokens = tokens
        self._mailer = mailer
        self._moderation_mailer = moderation_mailer or mailer
        self._settings = settings
        self._texts = MailTexts(service_name=settings.service_name, public_url=settings.public_url)
        self._tasks: set[asyncio.Task[None]] = set()

    # Codes

    def check_available(self) -> None:
        """Refuse what needs mail on a host that sends none. Raises: RequestError."""
        if not self._mailer.delivers:
            raise RequestError(
                "InvalidRequest", "This server sends no mail; ask its operator for help"
            )

    async def request_code(self, aid: int, purpose: MailPurpose) -> None:
        """Make a code and mail it to the holder of an account.

        Raises: RequestError `InvalidRequest` when there is no mail service or no address, or the
        address is refused for good; `NotEnoughResources` (503) when mail cannot be sent now.
        Spec: (ACC-36, ACC-37)
        """
        self.check_available()
        account, code = await self._issue(aid, purpose)
        try:
            await self._send_code(account, purpose, code)
        except RecipientRejected as error:
            _note_failure(purpose, error)
            raise RequestError("InvalidRequest", "Mail to this address was refused") from error
        except RemoteError as error:
            _note_failure(purpose, error)
            raise RequestError(
                "NotEnoughResources",
                "The mail could not be sent, try again later",
                503,
                headers={"Retry-After": "60"},
            ) from error

    def request_code_later(self, aid: int, purpose: MailPurpose) -> None:
        """Make a code and mail it behind the answer: the caller learns nothing of it."""

        async def issue_and_send() -> None:
            account, code = await self._issue(aid, purpose)
            await self._send_code(account, purpose, code)

        self._later(purpose, issue_and_send())

    async def _issue(self, aid: int, purpose: MailPurpose) -> tuple[Account, str]:
        return await self._engine.transact(
            "mail_token.issue",
            self._issue_in,
            aid,
            purpose,
            self._clock.now_us(),
            secrets.token_bytes(ENTROPY_BYTES),
            accounts=(aid,),
        )

    def _issue_in(
        self, txn: Txn, aid: int, purpose: MailPurpose, now_us: int, entropy: bytes
    ) -> tuple[Account, str]:
        account = get_account_by_aid(txn, aid)
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        if account.email is None:
            raise RequestError("InvalidRequest", "Account does not have an email address")
        code = self._tokens.issue(txn, aid, purpose, now_us=now_us, entropy=entropy)
        return account, code

    async def _send_code(self, account: Account, purpose: MailPurpose, code: str) -> None:
        match purpose:
            case MailPurpose.CONFIRM_EMAIL:
                await self.send_confirm_email(account, code)
            case MailPurpose.UPDATE_EMAIL:
                await self.send_update_email(account, code)
            case MailPurpose.RESET_PASSWORD:
                await self.send_reset_password(account, code)
            case MailPurpose.DELETE_ACCOUNT:
                await self.send_delete_account(account, code)
            case MailPurpose.PLC_OPERATION:
                await self.send_plc_operation(account, code)

    async def send_confirm_email(self, account: Account, code: str) -> None:
        """Mail the code that confirms the address. Raises: RemoteError."""
        url = self._settings.confirmation_link_url
        link = f"{url}?code={quote(code)}" if url else ""
        await self._send("confirm_email", account, code=code, link=link)

    async def send_update_email(self, account: Account, code: str) -> None:
        """Mail the code that allows another address. Raises: RemoteError."""
        await self._send("update_email", account, code=code)

    async def send_reset_password(self, account: Account, code: str) -> None:
        """Mail the code that allows a new password. Raises: RemoteError."""
        await self._send("reset_password", account, code=code)

    async def send_delete_account(self, account: Account, code: str) -> None:
        """Mail the code that allows deletion. Raises: RemoteError."""
        await self._send("delete_account", account, code=code)

    async def send_plc_operation(self, account: Account, code: str) -> None:
        """Mail the code that allows an operation on the identity. Raises: RemoteError."""
        await self._send("plc_operation", account, code=code)

    # Notes

    def note_welcome(self, account: Account) -> None:
        """Greet the holder of a new account."""
        self._note("welcome", account)

    def note_password_changed(self, account: Account) -> None:
        """Tell the holder that the password was changed."""
        self._note("password_changed", account)

    def note_email_changed(self, before: Account) -> None:
        """Tell the old address that it is no longer the account's."""
        self._note("email_changed", before)

    async def send_plc_alarm(
        self, account: Account, *, to: str, cid: str, signer: str, accepted: str, deadline: str
    ) -> None:
        """Tell somebody that an identity was changed from elsewhere. Raises: RemoteError."""
        if not self._mailer.delivers:
            raise RequestError("InvalidRequest", "This server sends no mail")
        mail = self._texts.write(
            "plc_alarm",
            to=to,
            handle=account.handle or PLACEHOLDER_HANDLE,
            did=account.did,
            operation=cid,
            signer=signer,
            accepted=accepted,
            deadline=deadline,
        )
        await self._mailer.send(mail, now_us=self._clock.now_us())

    async def send_moderation(self, account: Account, *, subject: str, content: str) -> None:
        """Mail what a moderator wrote, as HTML or plain text.

        Raises: RemoteError; RequestError where there is no mail service or no address.
        """
        if not self._moderation_mailer.delivers:
            raise RequestError("InvalidRequest", "This server sends no mail")
        if account.email is None:
            raise RequestError("InvalidRequest", "Account does not have an email address")
        mail = self._texts.write_moderation(to=account.email, subject=subject, content=content)
        await self._moderation_mailer.send(mail, now_us=self._clock.now_us())

    async def settle(self) -> None:
        """Wait for the mails that are on their way; each has its own deadline."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _write(self, purpose: str, account: Account, values: dict[str, str]) -> Mail:
        handle: Handle | str = account.handle or PLACEHOLDER_HANDLE
        did: Did = account.did
        return self._texts.write(
            purpose,
            to=account.email or "",
            handle=handle,
            did=did,
            minutes=str(LIFETIME_S // 60),
            **values,
        )

    async def _send(self, purpose: str, account: Account, **values: str) -> None:
        mail = self._write(purpose, account, values)
        await self._mailer.send(mail, now_us=self._clock.now_us())

    def _note(self, purpose: str, account: Account) -> None:
        if account.email is not None:
            self._later(purpose, self._send(purpose, account))

    def _later(self, purpose: str, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= MAX_WAITING:
            work.close()
            _log.warning("mail.failed", purpose=purpose, reason="too many mails are waiting")
            return
        task = asyncio.create_task(_noting_failure(purpose, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _noting_failure(purpose: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except (RemoteError, RequestError, StoreError) as error:
        # Nobody waits for this mail: the operator's log is where its failure can be seen.
        _note_failure(purpose, error)
    except Exception as error:
        _log.error("mail.failed", exc=error, purpose=purpose)


def _note_failure(purpose: str, error: Exception) -> None:
    _log.warning("mail.failed", purpose=purpose, reason=str(error))
