"""A host for tests of mailed codes: sessions, mails into a mailbox, and the services over them."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pds.services.account_email import AccountEmail
from pds.services.account_mails import AccountMails, AccountMailSettings
from pds.services.mail import Mail, Mailer, MemoryMailbox
from pds.services.mail_tokens import MailTokens
from pds.services.password_reset import PasswordReset
from pds.store.accounts import Account, get_account_by_aid
from tests.services.account_host import SECRET, SessionHost, session_host

SETTINGS = AccountMailSettings(
    service_name="Tests",
    public_url="https://pds.test",
    confirmation_link_url="https://app.test/verify",
)


class FailingMailer:
    """Fails as told."""

    delivers = True

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked: list[str] = []

    async def send(self, mail: Mail, *, now_us: int) -> None:
        self.asked.append(mail.purpose)
        raise self.error


@dataclass
class MailHost:
    base: SessionHost
    mailbox: MemoryMailbox
    tokens: MailTokens
    mails: AccountMails
    email: AccountEmail
    reset: PasswordReset

    def use(self, mailer: Mailer) -> None:
        """Build the services anew over another transport."""
        base = self.base
        self.mails = AccountMails(
            engine=base.engine,
            clock=base.clock,
            tokens=self.tokens,
            mailer=mailer,
            settings=SETTINGS,
        )
        self.email = AccountEmail(
            engine=base.engine,
            clock=base.clock,
            accounts=base.cache,
            tokens=self.tokens,
            mails=self.mails,
            blocked_domains=["trash.test"],
        )
        self.reset = PasswordReset(
            engine=base.engine,
            clock=base.clock,
            accounts=base.cache,
            sessions=base.sessions,
            passwords=base.passwords,
            tokens=self.tokens,
            mails=self.mails,
        )

    async def account(self, aid: int) -> Account:
        account = await self.base.engine.read("test.account", get_account_by_aid, aid)
        assert account is not None
        return account

    async def sent(self) -> list[tuple[str, str]]:
        """(purpose, recipient) of every mail, also of those that were on their way."""
        await self.mails.settle()
        return [(kept.mail.purpose, kept.mail.to) for kept in self.mailbox.received()]

    async def last_code(self) -> str:
        await self.mails.settle()
        return code_in(self.mailbox.received()[-1].mail)


def code_in(mail: Mail) -> str:
    """The code in a mail."""
    found = re.search(r"^[A-Z2-7]{5}-[A-Z2-7]{5}$", mail.text, re.MULTILINE)
    assert found is not None
    return found[0]


@asynccontextmanager
async def mail_host(folder: Path) -> AsyncIterator[MailHost]:
    async with session_host(folder) as base:
        mailbox = MemoryMailbox()
        tokens = MailTokens(engine=base.engine, secret=SECRET)
        host = MailHost(base, mailbox, tokens, None, None, None)  # type: ignore[arg-type]
        host.use(mailbox)
        yield host
        await host.mails.settle()
