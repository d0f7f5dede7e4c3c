"""Password reset: nobody learns who has an account, and a new password ends all sessions."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.net.mail_errors import MailUnreachable
from pds.services.app_passwords import AppPasswords
from pds.services.mail import Mail
from pds.services.mail_tokens import LIFETIME_S
from pds.services.sessions import SessionView
from pds.store.accounts import update_deactivation, update_takedown
from tests.services.account_host import PASSWORD
from tests.services.mail_host import FailingMailer, MailHost, mail_host

NEW = "a new password of alice"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[MailHost]:
    async with mail_host(tmp_path) as host:
        yield host


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


async def test_reset_sets_the_password_and_ends_every_session(host: MailHost) -> None:
    """ACC-32, XRPC-26."""
    aid = await host.base.add_account()
    app_passwords = AppPasswords(
        engine=host.base.engine, clock=host.base.clock, sessions=host.base.sessions
    )
    secret = (await app_passwords.create(aid, "phone", privileged=False)).password
    sessions = host.base.sessions
    opened: list[SessionView] = [
        await sessions.login("alice.pds.test", PASSWORD),
        await sessions.login("alice.pds.test", secret),
    ]
    await host.reset.request(" Alice@Mail.Test ")
    code = await host.last_code()
    await host.reset.reset(code, NEW)
    for view in opened:
        assert view.tokens is not None
        ended = sessions.authenticate_access(view.tokens.access)
        assert await refusal(ended) == ("ExpiredToken", 400)
        assert await refusal(sessions.refresh(view.tokens.refresh)) == ("ExpiredToken", 400)
    assert await refusal(sessions.login("alice.pds.test", PASSWORD)) == (
        "AuthenticationRequired",
        401,
    )
    await sessions.login("alice.pds.test", NEW)
    await sessions.login("alice.pds.test", secret)
    assert await refusal(host.reset.reset(code, NEW)) == ("InvalidToken", 400)
    assert await host.sent() == [
        ("reset_password", "alice@mail.test"),
        ("password_changed", "alice@mail.test"),
    ]


async def test_unknown_address_is_answered_the_same(host: MailHost) -> None:
    """ACC-37."""
    await host.base.add_account()
    for email in ("nobody@mail.test", "nonsense", "", "alice@mail.test\x00", "a" * 10_000):
        await host.reset.request(email)
    assert await host.sent() == []


async def test_answer_waits_neither_for_the_code_nor_for_the_mail(host: MailHost) -> None:
    """ACC-37: what a known address costs happens behind the answer."""
    gate = asyncio.Event()

    class SlowMailer:
        delivers = True

        def __init__(self) -> None:
            self.mails: list[Mail] = []

        async def send(self, mail: Mail, *, now_us: int) -> None:
            await gate.wait()
            self.mails.append(mail)

    await host.base.add_account()
    slow = SlowMailer()
    host.use(slow)
    for email in ("alice@mail.test", "nobody@mail.test"):
        host.base.reads.clear()
        await asyncio.wait_for(host.reset.request(email), 60)
        assert host.base.reads == ["password.find"]
        rows = await host.base.engine.read(
            "test", lambda txn: txn.read("SELECT attempts FROM mail_token")
        )
        assert not slow.mails
        assert len(rows) <= 1
    gate.set()
    await host.mails.settle()
    assert [mail.to for mail in slow.mails] == ["alice@mail.test"]


async def test_outage_is_seen_by_the_operator_only(
    host: MailHost, caplog: pytest.LogCaptureFixture
) -> None:
    """ACC-37."""
    await host.base.add_account()
    failing = FailingMailer(MailUnreachable("mail.test:465 did not answer in time"))
    host.use(failing)
    with caplog.at_level(logging.WARNING):
        await host.reset.request("alice@mail.test")
        await host.mails.settle()
    assert failing.asked == ["reset_password"]
    [record] = [record for record in caplog.records if record.getMessage() == "mail.failed"]
    assert "alice" not in str(record.__dict__)


async def test_fault_of_a_transport_is_logged_and_ends_nothing(
    host: MailHost, caplog: pytest.LogCaptureFixture
) -> None:
    await host.base.add_account()
    host.use(FailingMailer(ZeroDivisionError()))
    await host.reset.request("alice@mail.test")
    await host.mails.settle()
    assert any(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("state", ["deactivated", "takendown"])
async def test_inactive_accounts_may_reset_so_that_they_can_leave(
    host: MailHost, state: str
) -> None:
    """ACC-5, ACC-45."""
    aid = await host.base.add_account()
    if state == "takendown":
        await host.base.change(update_takedown, aid, "ref")
    else:

        def deactivate(txn: Any, aid: int) -> None:
            update_deactivation(txn, aid, deactivated_at=1, delete_after=None)

        await host.base.change(deactivate, aid)
    await host.reset.request("alice@mail.test")
    await host.reset.reset(await host.last_code(), NEW)
    await host.base.sessions.login("alice.pds.test", NEW, allow_takendown=True)


@pytest.mark.parametrize("password", ["", "short", "x" * 257])
async def test_bad_password_is_refused_and_the_code_stays(host: MailHost, password: str) -> None:
    """ACC-10, ACC-31: under a name that the method declares."""
    await host.base.add_account()
    await host.reset.request("alice@mail.test")
    code = await host.last_code()
    assert await refusal(host.reset.reset(code, password)) == ("InvalidRequest", 400)
    await host.reset.reset(code, NEW)


async def test_wrong_and_expired_codes(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    await host.reset.request("alice@mail.test")
    code = await host.last_code()
    assert await refusal(host.reset.reset("AAAAA-AAAAA", NEW)) == ("InvalidToken", 400)
    host.base.clock.advance(LIFETIME_S)
    assert await refusal(host.reset.reset(code, NEW)) == ("ExpiredToken", 400)
    stored = (await host.account(aid)).password_hash
    assert await host.base.passwords.verify(PASSWORD, stored)


async def test_code_of_another_purpose_resets_nothing(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    await host.email.request_confirmation(aid)
    code = await host.last_code()
    assert await refusal(host.reset.reset(code, NEW)) == ("InvalidToken", 400)


async def test_two_resets_with_one_code_at_once_work_once(host: MailHost) -> None:
    """ACC-36."""
    await host.base.add_account()
    await host.reset.request("alice@mail.test")
    code = await host.last_code()
    outcomes = await asyncio.gather(
        *(host.reset.reset(code, f"{NEW} {n}") for n in range(3)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
    assert sorted(error.name for error in refused) == ["InvalidToken", "InvalidToken"]
    assert outcomes.count(None) == 1
