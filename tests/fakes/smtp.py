"""A real SMTP server (aiosmtpd) on loopback that keeps what it gets, and is unkind on request."""

import asyncio
import datetime
import email
import ipaddress
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER = "pds@mail.test"
SECRET = "p@ss/word"


@dataclass
class Taken:
    """A mail that was taken over, with its envelope."""

    sender: str
    recipients: list[str]
    content: bytes
    was_encrypted: bool
    user: str | None

    @property
    def message(self) -> EmailMessage:
        parsed = email.message_from_bytes(self.content, policy=default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@dataclass
class FakeSmtp:
    """Where it listens, what it got, and how it answers.

    `answers` maps a command (`RCPT`, `MAIL`, `DATA`) to the reply that is given instead of taking
    it; at a command in `silent` nothing is answered, at one in `dropped` the connection is cut.
    """

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    connections: int = 0
    most_at_once: int = 0
    open_now: int = 0
    gate: asyncio.Event | None = None
    reached: set[str] = field(default_factory=set)
    servers: list[Any] = field(default_factory=list, repr=False)

    async def close(self) -> None:
        """Cut every connection and wait until it is gone."""
        for server in self.servers:
            if server.transport is not None:
                server.transport.abort()
        await asyncio.gather(*(server.ended.wait() for server in self.servers))
        await asyncio.gather(*(server.handling for server in self.servers), return_exceptions=True)

    async def _meet(self, command: str, server: SMTP) -> str | None:
        self.reached.add(command)
        if command in self.silent:
            await asyncio.Event().wait()
        if command in self.dropped:
            server.transport.abort()
            await asyncio.Event().wait()  # The server ends this with the connection.
        return self.answers.get(command)

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._meet("MAIL", server)
        if reply is not None:
            return reply
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._meet("RCPT", server)
        if reply is not None:
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = await self._meet("DATA", server)
        if reply is not None:
            return reply
        if self.gate is not None:
            await self.gate.wait()
        content = envelope.content
        assert isinstance(content, bytes)
        user = session.auth_data.decode() if session.authenticated else None
        self.taken.append(
            Taken(
                envelope.mail_from or "",
                list(envelope.rcpt_tos),
                content,
                session.ssl is not None
                or server.transport.get_extra_info("sslcontext") is not None,
                user,
            )
        )
        return "250 Taken"


class _Server(SMTP):
    """Counts its connections, and may greet nobody."""

    def __init__(self, fake: FakeSmtp, **options: Any) -> None:
        super().__init__(fake, hostname="mail.test", **options)
        self._fake = fake
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._fake.servers.append(self)
        self._fake.connections += 1
        self._fake.open_now += 1
        self._fake.most_at_once = max(self._fake.most_at_once, self._fake.open_now)

    @property
    def handling(self) -> Any:
        """The task that talks to the client."""
        return self._handler_coroutine

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.ended.set()
        self._fake.open_now -= 1

    async def _handle_client(self) -> None:
        if "CONNECT" in self._fake.silent:
            await asyncio.Event().wait()
        await super()._handle_client()


def _authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    is_right = data.login == USER.encode() and data.password == SECRET.encode()
    return AuthResult(success=is_right, handled=False, auth_data=data.login)


@asynccontextmanager
async def smtp_server(
    *,
    starttls: ssl.SSLContext | None = None,
    implicit: ssl.SSLContext | None = None,
    wants_user: bool = False,
    auth_in_clear: bool = False,
) -> AsyncIterator[FakeSmtp]:
    """Run a server; with a context it offers STARTTLS or speaks TLS from the first byte."""
    fake = FakeSmtp()

    def make() -> _Server:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of passwords in the clear, which are meant here.
            return _Server(
                fake,
                tls_context=starttls,
                authenticator=_authenticate,
                auth_required=wants_user,
                auth_require_tls=not (auth_in_clear or implicit is not None),
                enable_SMTPUTF8=True,
            )

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=implicit)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        await fake.close()


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate of its own making for 127.0.0.1: the server's context, and the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    key_file = folder / "key.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file
