"""Mail: the mailbox in memory, and the transport that only notes."""

import logging

import pytest

from pds.protocol.syntax import Did, Handle
from pds.services.mail import LogMailer, MemoryMailbox, welcome_mail

MAIL = welcome_mail(
    to="alice@mail.test",
    service_name="Tests",
    handle=Handle("alice.pds.test"),
    did=Did("did:web:alice.test"),
)


async def test_mailbox_keeps_the_latest_under_times_of_their_own() -> None:
    mailbox = MemoryMailbox(capacity=2)
    for _ in range(3):
        await mailbox.send(MAIL, now_us=7)
    assert [kept.at_us for kept in mailbox.received()] == [8, 9]
    assert mailbox.received()[0].mail == MAIL


async def test_log_transport_names_the_purpose_and_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        await LogMailer().send(MAIL, now_us=7)
    [record] = caplog.records
    shown = f"{record.getMessage()} {record.__dict__}"
    assert "mail.not_sent" in shown
    assert "welcome" in shown
    assert "alice" not in shown


def test_welcome_names_handle_and_did() -> None:
    assert "@alice.pds.test" in MAIL.text
    assert "did:web:alice.test" in MAIL.text
    assert MAIL.subject == "Welcome to Tests"
