"""What is noted of acts that reach beyond the database: a mail that could not be sent."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RemoteError, RequestError, Unreachable
from pds.services.admin_accounts import AdminAccounts, MailOrder
from pds.services.audit import AuditTrail, Order
from pds.services.principal import ReplayId
from tests.services.account_host import ALICE, SessionHost, session_host

ORDER = Order("did:web:mod.test", replay=ReplayId(b"a digest", 1 << 60))


class BrokenMails:
    """A mail service that fails as told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.sent: list[str] = []

    async def send_moderation(self, account: Any, *, subject: str, content: str) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(f"{account.email}: {subject}: {content}")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        await host.add_account()
        yield host


def make_accounts(host: SessionHost, mails: BrokenMails) -> AdminAccounts:
    return AdminAccounts(
        engine=host.engine,
        clock=host.clock,
        accounts=host.cache,
        sessions=host.sessions,
        passwords=host.passwords,
        mails=mails,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "error", [Unreachable("mail server is silent"), RequestError("InvalidRequest", "no mail")]
)
async def test_a_mail_that_could_not_be_sent_is_noted_as_such(
    host: SessionHost, error: Exception
) -> None:
    mails = BrokenMails()
    mails.error = error
    accounts = make_accounts(host, mails)
    with pytest.raises((RemoteError, RequestError)):
        await accounts.send_mail(MailOrder(ALICE, "text", "subject"), ORDER)
    rows, _ = await AuditTrail(engine=host.engine).list()
    assert [row.act for row in rows] == ["account.send-mail.failed", "account.send-mail"]
    assert not any(b"text" in (row.after or b"") for row in rows)
    mails.error = None
    with pytest.raises(RequestError) as refused:
        await accounts.send_mail(MailOrder(ALICE, "text", "subject"), ORDER)
    assert refused.value.name == "BadJwt"
    assert mails.sent == []


async def test_a_rehearsed_mail_is_not_sent(host: SessionHost) -> None:
    mails = BrokenMails()
    accounts = make_accounts(host, mails)
    await accounts.send_mail(MailOrder(ALICE, "x"), Order("cli:me", is_rehearsal=True))
    assert mails.sent == []
    await accounts.send_mail(MailOrder(ALICE, "x", "y"), Order("cli:me"))
    assert mails.sent == ["alice@mail.test: y: x"]


async def test_a_new_password_ends_sessions_and_voids_codes(host: SessionHost) -> None:
    """(ACC-32, XRPC-26)"""
    accounts = make_accounts(host, BrokenMails())
    view = await host.sessions.login("alice.pds.test", "correct horse battery", address="1.2.3.4")
    assert view.tokens is not None
    await accounts.set_password(ALICE, "another password", Order("admin"))
    with pytest.raises(RequestError):
        await host.sessions.authenticate_access(view.tokens.access)
    with pytest.raises(RequestError):
        await host.sessions.refresh(view.tokens.refresh)
    for wrong in ("short", "x" * 257):
        with pytest.raises(RequestError) as refused:
            await accounts.set_password(ALICE, wrong, Order("admin"))
        assert refused.value.name == "InvalidRequest"
    rows, _ = await AuditTrail(engine=host.engine).list()
    assert [(row.act, row.before, row.after) for row in rows] == [
        ("account.set-password", None, None)
    ]
