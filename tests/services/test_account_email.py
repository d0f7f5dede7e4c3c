"""Addresses of accounts: confirmed, changed, and what a host without mail says."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError, Unreachable
from pds.net.mail_errors import MailUnreachable, RecipientRejected
from pds.protocol.syntax import Did
from pds.services.mail import LogMailer
from pds.services.mail_tokens import LIFETIME_S, MailPurpose
from pds.store.accounts import update_email
from tests.services.mail_host import FailingMailer, MailHost, mail_host

BOB = Did("did:plc:bobbbbbbbbbbbbbbbbbbbbbb")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[MailHost]:
    async with mail_host(tmp_path) as host:
        yield host


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


async def confirmed(host: MailHost) -> int:
    aid = await host.base.add_account()

    def confirm(txn: Any, aid: int) -> None:
        update_email(txn, aid, "alice@mail.test", confirmed_at=1)

    await host.base.change(confirm, aid)
    return aid


async def test_confirmation_by_code(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    await host.email.request_confirmation(aid)
    [mail] = [kept.mail for kept in host.mailbox.received()]
    code = await host.last_code()
    assert mail.to == "alice@mail.test"
    assert f"https://app.test/verify?code={code}" in mail.text
    assert await refusal(host.email.confirm(aid, "other@mail.test", code)) == ("InvalidEmail", 400)
    assert await refusal(host.email.confirm(aid, "alice@mail.test", "AAAAA-AAAAA")) == (
        "InvalidToken",
        400,
    )
    assert (await host.account(aid)).email_confirmed_at is None
    await host.email.confirm(aid, " Alice@Mail.Test", code.lower())
    assert (await host.account(aid)).email_confirmed_at == host.base.clock.now_us()
    again = host.email.confirm(aid, "alice@mail.test", code)
    assert await refusal(again) == ("InvalidToken", 400)


async def test_expired_confirmation(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    await host.email.request_confirmation(aid)
    host.base.clock.advance(LIFETIME_S)
    code = await host.last_code()
    late = host.email.confirm(aid, "alice@mail.test", code)
    assert await refusal(late) == ("ExpiredToken", 400)


async def test_session_shows_the_confirmation_at_once(host: MailHost) -> None:
    aid = await host.base.add_account()
    view = await host.base.sessions.login("alice.pds.test", "correct horse battery")
    assert not view.email_confirmed
    await host.email.request_confirmation(aid)
    await host.email.confirm(aid, "alice@mail.test", await host.last_code())
    cached = await host.base.cache.get(view.did)
    assert cached is not None
    assert cached.email_confirmed_at is not None


async def test_unconfirmed_address_is_changed_without_a_code(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    assert await host.email.request_update(aid) is False
    assert await host.sent() == []
    await host.email.update(aid, "New@Mail.Test", None)
    assert (await host.account(aid)).email == "new@mail.test"
    await host.email.update(aid, "newer@mail.test", "NEVER-ASKED")
    assert (await host.account(aid)).email == "newer@mail.test"
    assert await host.sent() == []


async def test_confirmed_address_needs_a_code_that_went_there(host: MailHost) -> None:
    """ACC-36."""
    aid = await confirmed(host)
    assert await refusal(host.email.update(aid, "new@mail.test", None)) == ("TokenRequired", 400)
    assert await host.email.request_update(aid) is True
    code = await host.last_code()
    wrong = host.email.update(aid, "new@mail.test", "AAAAA-AAAAA")
    assert await refusal(wrong) == ("InvalidToken", 400)
    await host.email.update(aid, "new@mail.test", code)
    account = await host.account(aid)
    assert (account.email, account.email_confirmed_at) == ("new@mail.test", None)
    assert await host.sent() == [
        ("update_email", "alice@mail.test"),
        ("email_changed", "alice@mail.test"),
    ]


async def test_new_address_voids_all_codes(host: MailHost) -> None:
    """ACC-36."""
    aid = await host.base.add_account()
    await host.email.request_confirmation(aid)
    code = await host.last_code()
    await host.mails.request_code(aid, MailPurpose.DELETE_ACCOUNT)
    await host.email.update(aid, "new@mail.test", None)
    left = await host.base.engine.read("test", lambda txn: txn.read("SELECT 1 FROM mail_token"))
    assert left == []
    assert await refusal(host.email.confirm(aid, "new@mail.test", code)) == ("InvalidToken", 400)


async def test_same_address_again_stays_confirmed(host: MailHost) -> None:
    aid = await confirmed(host)
    await host.email.request_update(aid)
    await host.email.update(aid, "Alice@mail.test", await host.last_code())
    assert (await host.account(aid)).email_confirmed_at == 1
    assert await host.sent() == [("update_email", "alice@mail.test")]


async def test_address_of_another_account_is_refused_and_the_code_stays(host: MailHost) -> None:
    """ACC-2."""
    aid = await confirmed(host)
    await host.base.add_account(did=BOB, handle="bob.pds.test", email="bob@mail.test")
    await host.email.request_update(aid)
    code = await host.last_code()
    taken = host.email.update(aid, "BOB@mail.test", code)
    assert await refusal(taken) == ("InvalidRequest", 400)
    await host.email.update(aid, "free@mail.test", code)
    assert (await host.account(aid)).email == "free@mail.test"


@pytest.mark.parametrize("email", ["nobody", "a@trash.test", "a@mail.test\r\nBcc: b@mail.test"])
async def test_addresses_that_are_not_taken(host: MailHost, email: str) -> None:
    """ACC-10."""
    aid = await host.base.add_account()
    assert await refusal(host.email.update(aid, email, None)) == ("InvalidRequest", 400)


async def test_guessing_the_code_is_limited(host: MailHost) -> None:
    """ACC-36: five wrong ones, and the right one is void."""
    aid = await confirmed(host)
    await host.email.request_update(aid)
    code = await host.last_code()
    for _ in range(5):
        wrong = host.email.update(aid, "eve@mail.test", "AAAAA-AAAAA")
        assert await refusal(wrong) == ("InvalidToken", 400)
    late = host.email.update(aid, "eve@mail.test", code)
    assert await refusal(late) == ("InvalidToken", 400)
    assert (await host.account(aid)).email == "alice@mail.test"


@pytest.mark.parametrize("purpose", list(MailPurpose))
async def test_each_purpose_has_its_mail(host: MailHost, purpose: MailPurpose) -> None:
    aid = await host.base.add_account()
    await host.mails.request_code(aid, purpose)
    assert await host.sent() == [(purpose.value, "alice@mail.test")]
    assert await host.tokens.find_owner(purpose, await host.last_code()) == aid


async def test_host_without_mail_says_so_and_makes_no_code(host: MailHost) -> None:
    """ACC-37."""
    aid = await confirmed(host)
    host.use(LogMailer())
    for call in (
        host.email.request_confirmation(aid),
        host.email.request_update(aid),
        host.mails.request_code(aid, MailPurpose.PLC_OPERATION),
        host.reset.request("alice@mail.test"),
        host.reset.request("nobody@mail.test"),
    ):
        assert await refusal(call) == ("InvalidRequest", 400)
    left = await host.base.engine.read("test", lambda txn: txn.read("SELECT 1 FROM mail_token"))
    assert left == []


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MailUnreachable("mail.test:465 did not answer in time"), ("NotEnoughResources", 503)),
        (Unreachable("somewhere"), ("NotEnoughResources", 503)),
        (RecipientRejected("mail.test:465 refused the recipient (550)"), ("InvalidRequest", 400)),
    ],
)
async def test_outage_is_told_to_client_and_operator(
    host: MailHost,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    answer: tuple[str, int],
) -> None:
    """ACC-37."""
    aid = await host.base.add_account()
    host.use(FailingMailer(error))
    with caplog.at_level(logging.WARNING):
        assert await refusal(host.email.request_confirmation(aid)) == answer
    [record] = [record for record in caplog.records if record.getMessage() == "mail.failed"]
    assert "alice" not in str(record.__dict__)


async def test_account_without_address_cannot_ask(host: MailHost) -> None:
    aid = await host.base.add_account()

    def forget(txn: Any, aid: int) -> None:
        update_email(txn, aid, None, confirmed_at=None)

    await host.base.change(forget, aid)
    assert await refusal(host.email.request_confirmation(aid)) == ("InvalidRequest", 400)
    assert await host.email.request_update(aid) is False
    assert await refusal(host.email.confirm(aid, "", "AAAAA-AAAAA")) == ("InvalidEmail", 400)


async def test_account_that_is_gone(host: MailHost) -> None:
    assert await refusal(host.email.request_confirmation(77)) == ("AccountNotFound", 403)
    assert await refusal(host.email.update(77, "a@mail.test", None)) == ("AccountNotFound", 403)
