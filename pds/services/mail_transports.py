"""Transports that really send: SMTP, and the `sendmail` program of this machine.

Both get the same bytes: a multipart message with a text and an HTML part, `Date`, `Message-ID` and
`Auto-Submitted` (RFC 3834, so that nobody's vacation note answers a code). Header values come from
operators and moderators at best, so control characters become blanks, and an address that is not
exactly one address is refused: nothing can add a header or a recipient.

A connection per mail: a host sends few, and a connection that is kept open is one that has died
when it is needed. At most four mails are on their way at once.
"""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, parseaddr
from typing import Final

from pds.errors import ConfigError
from pds.net.mail_errors import RecipientRejected
from pds.net.sendmail import SendmailProgram, run_sendmail
from pds.net.smtp import SmtpServer, parse_smtp_url, send_mail
from pds.services.email_addresses import is_email
from pds.services.mail import Mail
from pds.services.settings import parse_list, parse_url, setting

MAX_SENDING: Final = 4
MAX_SUBJECT_CHARS: Final = 200
BSKY_CONFIRMATION_URL: Final = "https://bsky.app/intent/verify-email"

MailRoute = SmtpServer | SendmailProgram


def parse_mail_url(text: str) -> MailRoute:
    """Where mail goes: an SMTP server, or `smtp:///?sendmail=true`. Raises: ValueError."""
    if text.replace("smtp:///", "smtp:").lower() in ("smtp:?sendmail=true", "sendmail:"):
        return SendmailProgram("sendmail")
    return parse_smtp_url(text)


def parse_domains(text: str) -> tuple[str, ...]:
    """Domains between commas, lower-case."""
    return tuple(domain.lower().strip("@.") for domain in parse_list(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """How mail leaves this host."""

    smtp_url: MailRoute | None = setting(  # noqa: RUF009
        "PDS_EMAIL_SMTP_URL",
        "Mail server, `smtps://user:password@host:465` or `smtp://host:587`;"
        " `smtp:///?sendmail=true` means the `sendmail` program. Without it no mail is sent.",
        parse=parse_mail_url,
        secret=True,
    )
    sendmail: SendmailProgram | None = setting(  # noqa: RUF009
        "PDS_EMAIL_SENDMAIL",
        "Path of a `sendmail` program that takes the mail instead of a server.",
        parse=SendmailProgram,
    )
    from_address: str | None = setting(
        "PDS_EMAIL_FROM_ADDRESS", "Sender of mail, `address` or `Name <address>`."
    )
    no_confirmation_link: bool = setting(
        "PDS_EMAIL_DISABLE_CONFIRMATION_LINK",
        "Leave the link out of the mail that asks to confirm an address; the code is always there.",
        default=False,
    )
    confirmation_link_url: str = setting(
        "PDS_EMAIL_CONFIRMATION_LINK_URL",
        "Page that the link opens; the code is added. There is a link only on a host with an"
        " AppView.",
        default=BSKY_CONFIRMATION_URL,
        parse=parse_url,
    )
    moderation_smtp_url: MailRoute | None = setting(  # noqa: RUF009
        "PDS_MODERATION_EMAIL_SMTP_URL",
        "Mail server for what moderators write; that of other mail when unset.",
        parse=parse_mail_url,
        secret=True,
    )
    moderation_address: str | None = setting(
        "PDS_MODERATION_EMAIL_ADDRESS", "Sender of what moderators write; that of other mail."
    )
    blocked_domains: tuple[str, ...] = setting(
        "PDS_EMAIL_BLOCKED_DOMAINS",
        "Domains whose addresses no account may have, with those below them.",
        default=(),
        parse=parse_domains,
    )

    @property
    def route(self) -> MailRoute | None:
        """Where mail goes, if anywhere."""
        return self.sendmail or self.smtp_url

    @property
    def moderation_route(self) -> MailRoute | None:
        """Where the mail of moderators goes."""
        return self.moderation_smtp_url or self.route

    def check(self) -> None:
        """Hold the settings against each other. Raises: ConfigError."""
        if self.smtp_url is not None and self.sendmail is not None:
            raise ConfigError(
                "PDS_EMAIL_SMTP_URL and PDS_EMAIL_SENDMAIL are both set; keep one of them"
            )
        if (self.route is None) != (self.from_address is None):
            raise ConfigError(
                "PDS_EMAIL_FROM_ADDRESS and PDS_EMAIL_SMTP_URL (or PDS_EMAIL_SENDMAIL) belong"
                " together; set both or neither"
            )
        if self.moderation_smtp_url is not None and self.moderation_address is None:
            raise ConfigError("PDS_MODERATION_EMAIL_ADDRESS is missing")
        for name, address in (
            ("PDS_EMAIL_FROM_ADDRESS", self.from_address),
            ("PDS_MODERATION_EMAIL_ADDRESS", self.moderation_address),
        ):
            if address is not None and not is_email(parseaddr(address)[1]):
                raise ConfigError(f"{name} is not an e-mail address (it is {address!r})")


class SendingMailer:
    """Sends mail by one route, from one address."""

    delivers = True

    def __init__(
        self, route: MailRoute, *, sender: str, service_name: str, local_name: str
    ) -> None:
        """`sender` is an address, or a name with one; without a name it is the service's."""
        name, self._sender = parseaddr(sender)
        self._from = Address(_one_line(name or service_name), addr_spec=self._sender)
        self._route = route
        self._local_name = local_name
        self._places = asyncio.Semaphore(MAX_SENDING)

    @property
    def route(self) -> MailRoute:
        """Where the mail goes."""
        return self._route

    async def send(self, mail: Mail, *, now_us: int) -> None:
        """Hand `mail` over. Raises: MailUnreachable, MailRejected, RecipientRejected."""
        if not is_email(mail.to):
            raise RecipientRejected("the address is none")
        message = self._compose(mail, now_us)
        async with self._places:
            match self._route:
                case SmtpServer():
                    await send_mail(
                        self._route,
                        sender=self._sender,
                        recipient=mail.to,
                        message=message,
                        local_name=self._local_name,
                    )
                case SendmailProgram():
                    await run_sendmail(
                        self._route, sender=self._sender, recipient=mail.to, message=message
                    )

    def _compose(self, mail: Mail, now_us: int) -> bytes:
        is_ascii = mail.to.isascii() and self._sender.isascii()
        message = EmailMessage(policy=SMTP if is_ascii else SMTPUTF8)
        local_part, _, domain = mail.to.rpartition("@")
        message["From"] = self._from
        message["To"] = Address(username=local_part, domain=domain)
        message["Subject"] = _one_line(mail.subject)[:MAX_SUBJECT_CHARS]
        message["Date"] = format_datetime(datetime.fromtimestamp(now_us // 1_000_000, UTC))
        message["Message-ID"] = f"<{secrets.token_hex(16)}@{self._sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message["X-Auto-Response-Suppress"] = "All"
        message.set_content(mail.text, cte="quoted-printable")
        if mail.html:
            message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
        return message.as_bytes()


def _one_line(text: str) -> str:
    """Header text: one line, no control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
