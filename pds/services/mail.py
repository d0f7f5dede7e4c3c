"""Mail to account holders: what we write, and the seam behind which it is sent.

A `Mailer` accepts a mail and returns once it is taken over. Two are here: a bounded mailbox in
memory, which the development server shows as a page and tests read, and a transport that only notes
that there would have been a mail, for hosts without a mail service. Neither the recipient nor the
text is ever logged.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from pds.log import get_logger
from pds.protocol.syntax import Did, Handle

MAILBOX_MAILS: Final = 200

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail in plain text. `purpose` is a fixed word for logs, such as `welcome`."""

    to: str
    subject: str
    text: str
    purpose: str


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """A mail in the memory mailbox, with the time of its arrival."""

    mail: Mail
    at_us: int


class Mailer(Protocol):
    """Takes mails over for delivery."""

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Take `mail` over, or raise RemoteError."""


class MemoryMailbox:
    """Keeps the latest mails in memory, oldest first."""

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

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Note the purpose of `mail`."""
        _log.warning("mail.not_sent", purpose=mail.purpose)


def welcome_mail(*, to: str, service_name: str, handle: Handle, did: Did) -> Mail:
    """The note after an account was made."""
    text = (
        f"Your account on {service_name} is ready.\n"
        "\n"
        f"Handle: @{handle}\n"
        f"DID: {did}\n"
        "\n"
        "Keep the DID: it is your identity, also if you change your handle or move to another\n"
        "host. If you did not ask for this account, you can ignore this mail.\n"
    )
    return Mail(to, f"Welcome to {service_name}", text, "welcome")
