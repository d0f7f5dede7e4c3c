"""The door to SMTP: one mail to one recipient, over one connection.

The server and how to speak to it is a URL, in the form that the reference PDS takes:
`smtps://user:password@host:465` is TLS from the first byte, `smtp://host:587` becomes TLS as soon
as the server offers it. Of the options of that form, `requireTLS` (give up without TLS),
`ignoreTLS` (never use it) and `tls.rejectUnauthorized=false` (take any certificate) are understood.

Credentials are never sent in the clear, save to this machine itself. Everything together has a
deadline.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib

from pds.net.mail_errors import MailRejected, MailUnreachable, RecipientRejected

CONNECT_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 20.0
"""All of it: somebody is waiting for the answer of the method that sends."""

_OPTIONS: Final = frozenset({"requireTLS", "ignoreTLS", "tls.rejectUnauthorized"})
_TRUE: Final = frozenset({"true", "1", "yes"})


class SmtpTls(StrEnum):
    """When a connection is encrypted."""

    IMPLICIT = "implicit"
    OFFERED = "offered"
    REQUIRED = "required"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpServer:
    """A mail server that takes mail from us."""

    host: str
    port: int
    tls: SmtpTls
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    verify: bool = True

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_smtp_url(text: str) -> SmtpServer:
    """A mail server from its URL. Raises: ValueError, without the password in it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError("must be a URL such as smtps://user:password@host:465") from error
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise ValueError("must be a URL such as smtps://user:password@host:465")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - _OPTIONS):
        raise ValueError(f"has an option that is not understood: {unknown[0]}")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("must have both a user name and a password, or neither")
    tls = _tls(parts.scheme, options)
    return SmtpServer(
        host=parts.hostname,
        port=port or (465 if tls is SmtpTls.IMPLICIT else 587),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        verify=options.get("tls.rejectUnauthorized", "true").lower() in _TRUE,
    )


def _tls(scheme: str, options: Mapping[str, str]) -> SmtpTls:
    if scheme == "smtps":
        return SmtpTls.IMPLICIT
    if options.get("requireTLS", "").lower() in _TRUE:
        return SmtpTls.REQUIRED
    if options.get("ignoreTLS", "").lower() in _TRUE:
        return SmtpTls.NEVER
    return SmtpTls.OFFERED


async def send_mail(
    server: SmtpServer,
    *,
    sender: str,
    recipient: str,
    message: bytes,
    local_name: str,
    timeout_s: float = SEND_TIMEOUT_S,
) -> None:
    """Hand one mail over; returning means that the server answers for it from now on.

    `local_name` is what we call ourselves. Raises: MailUnreachable, MailRejected,
    RecipientRejected. Neither address is in what these say.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await _send(server, sender, recipient, message, local_name)
    except TimeoutError as error:  # The library's own is one of these.
        raise MailUnreachable(f"{server} did not answer in time") from error
    except aiosmtplib.SMTPRecipientsRefused as error:
        refusal = error.recipients[0]
        raise _refusal(server, "the recipient", refusal.code, refusal.message) from error
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(server, _subject(error), error.code, error.message) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise MailUnreachable(f"{server} cannot be used", detail=str(error)) from error


async def _send(
    server: SmtpServer, sender: str, recipient: str, message: bytes, local_name: str
) -> None:
    context = None
    if server.tls is not SmtpTls.NEVER:  # Reading the system's certificates takes a while.
        context = await asyncio.to_thread(_context, server)
    client = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        local_hostname=local_name,
        timeout=CONNECT_TIMEOUT_S,
        use_tls=server.tls is SmtpTls.IMPLICIT,
        start_tls=_start_tls(server.tls),
        tls_context=context,
    )
    try:
        await client.connect()
        if server.username is not None:
            _check_private(client, server)
            await client.login(server.username, server.password or "")
        options = _utf8_options(client, server, sender, recipient)
        await client.sendmail(sender, [recipient], message, mail_options=options)
        with suppress(aiosmtplib.SMTPException):  # The mail was taken over; the parting may fail.
            await client.quit()
    finally:
        client.close()


def _start_tls(tls: SmtpTls) -> bool | None:
    """What the library calls it: None means "if offered"."""
    match tls:
        case SmtpTls.OFFERED:
            return None
        case SmtpTls.REQUIRED:
            return True
        case _:
            return False


def _context(server: SmtpServer) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not server.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_private(client: aiosmtplib.SMTP, server: SmtpServer) -> None:
    """Refuse to show credentials to whoever listens on the way."""
    is_encrypted = client.get_transport_info("sslcontext") is not None
    if not is_encrypted and not _is_this_machine(server.host):
        raise MailRejected(
            f"{server} offers no encryption, so the password is not sent;"
            " use smtps://, or a server with STARTTLS"
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _utf8_options(
    client: aiosmtplib.SMTP, server: SmtpServer, sender: str, recipient: str
) -> list[str]:
    """Ask for international addresses where one is used (RFC 6531)."""
    if sender.isascii() and recipient.isascii():
        return []
    if not client.supports_extension("smtputf8"):
        raise RecipientRejected(f"{server} takes no international addresses")
    return ["SMTPUTF8"]


def _subject(error: aiosmtplib.SMTPResponseException) -> str:
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            return "our user name and password"
        case aiosmtplib.SMTPSenderRefused():
            return "our sender address"
        case aiosmtplib.SMTPConnectResponseError():
            return "our connection"
        case _:
            return "our mail"


def _refusal(
    server: SmtpServer, what: str, code: int, words: str
) -> MailUnreachable | MailRejected:
    """A 4xx is "try again later", anything else is a no."""
    message = f"{server} refused {what} ({code})"
    if 400 <= code < 500:
        return MailUnreachable(message, detail=words)
    if what == "the recipient":
        return RecipientRejected(message, detail=words)
    return MailRejected(message, detail=words)
