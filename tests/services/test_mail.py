"""Mail: the mailbox in memory, and the transport that only notes."""

import logging

import pytest

from pds.services.mail import LogMailer, Mail, MemoryMailbox

MAIL = Mail("alice@mail.test", "Alice's subject", "Dear Alice", "welcome", "<p>Dear Alice</p>")


async def test_mailbox_keeps_the_latest_under_times_of_their_own() -> None:
    mailbox = MemoryMailbox(capacity=2)
    assert mailbox.delivers
    for _ in range(3):
        await mailbox.send(MAIL, now_us=7)
    assert [kept.at_us for kept in mailbox.received()] == [8, 9]
    assert mailbox.received()[0].mail == MAIL


async def test_log_transport_names_the_purpose_and_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not LogMailer().delivers
    with caplog.at_level(logging.INFO):
        await LogMailer().send(MAIL, now_us=7)
    [record] = caplog.records
    shown = f"{record.getMessage()} {record.__dict__}"
    assert "mail.not_sent" in shown
    assert "welcome" in shown
    assert "alice" not in shown.lower()


def test_a_mail_does_not_show_its_holder_when_printed() -> None:
    assert "alice" not in repr(MAIL).lower()
