"""Mail as the rest of the program sees it: a text for somebody, and the seam behind which it goes.

A `Mailer` accepts a mail and returns once it is taken over. Two are here: a bounded mailbox in
memory, which the development server shows as a page and tests read, and a transport that only notes
that there would have been a mail, for hosts without a mail service. Those that really send are in
`mail_transports`, what is written in `mail_texts`, to whom and when in `account_mails`. Neither the
recipient nor the text is ever logged.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from pds.log import get_logger

MAILBOX_MAILS: Final = 200

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail, as text and the same as HTML. `purpose` is a fixed word for logs.

    Without `html` it is a mail in plain text only.
    """

    to: str = field(repr=False)
    subject: str = field(repr=False)
    text: str = field(repr=False)
    purpose: str
    html: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """A mail in the memory mailbox, with the time of its arrival."""

    mail: Mail
    at_us: int


class Mailer(Protocol):
    """Takes mails over for delivery."""

    @property
    def delivers(self) -> bool:
        """Whether anybody will ever read what is sent here."""

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Take `mail` over, or raise RemoteError."""


class MemoryMailbox:
    """Keeps the latest mails in memory, oldest first."""

    delivers = True

    def __init__(self, *, capacity: int = MAILBOX_MAILS) -> None:
        self._mails: deque[ReceivedMail] = deque(maxlen=capacity)

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Keep `mail`, under a time of its own: pages name mails by it."""
        newest_us = self._mails[-1].at_us if self._mails else 0
        self._mails.append(ReceivedMail(mail, max(now_us, newest_us + 1)))

    def received(self) -> list[ReceivedMail]:
        """Return the mails that are kept."""
        return list(self._mails)


class LogMailer:
    """Sends nothing: notes that a mail was due, for hosts without a mail service."""

    delivers = False

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Note the purpose of `mail`."""
        _log.warning("mail.not_sent", purpose=mail.purpose)
