"""The SMTP door against a real server: encryption, credentials, refusals, silence, cut lines."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pds.net.mail_errors import MailError, MailRejected, MailUnreachable, RecipientRejected
from pds.net.smtp import SmtpServer, SmtpTls, parse_smtp_url, send_mail
from tests.fakes.smtp import SECRET, USER, FakeSmtp, make_certificate, smtp_server
from tests.fakes.streams import stream_server

MESSAGE = b"Subject: Hello\r\n\r\n.A dot at the start\r\nEnd\r\n"
CREDENTIALS = f"{quote(USER, safe='')}:{quote(SECRET, safe='')}"


@pytest.fixture
async def plain() -> AsyncIterator[FakeSmtp]:
    async with smtp_server() as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def send(url: str, recipient: str = "alice@mail.test", timeout_s: float = 5.0) -> None:
    await send_mail(
        parse_smtp_url(url),
        sender="noreply@pds.test",
        recipient=recipient,
        message=MESSAGE,
        local_name="pds.test",
        timeout_s=timeout_s,
    )


async def failure(url: str, timeout_s: float = 5.0) -> MailError:
    with pytest.raises(MailError) as failed:
        await send(url, timeout_s=timeout_s)
    assert "alice" not in str(failed.value)
    assert "noreply" not in str(failed.value)
    return failed.value


async def test_mail_arrives_as_it_was_given(plain: FakeSmtp) -> None:
    await send(f"smtp://127.0.0.1:{plain.port}")
    [taken] = plain.taken
    assert (taken.sender, taken.recipients) == ("noreply@pds.test", ["alice@mail.test"])
    assert taken.content == MESSAGE
    assert not taken.was_encrypted
    assert taken.user is None


async def test_starttls_is_used_when_offered(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with smtp_server(starttls=context, wants_user=True) as server:
        await send(f"smtp://{CREDENTIALS}@127.0.0.1:{server.port}")
        [taken] = server.taken
        assert taken.was_encrypted
        assert taken.user == USER


async def test_tls_from_the_first_byte(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with smtp_server(implicit=context, wants_user=True) as server:
        await send(f"smtps://{CREDENTIALS}@127.0.0.1:{server.port}")
        [taken] = server.taken
        assert taken.was_encrypted
        assert taken.user == USER


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_unknown_certificate_is_refused_unless_the_operator_takes_any(
    certificate: tuple[ssl.SSLContext, Path], scheme: str
) -> None:
    context, _ = certificate
    options = {"starttls": context} if scheme == "smtp" else {"implicit": context}
    async with smtp_server(**options) as server:
        url = f"{scheme}://127.0.0.1:{server.port}"
        assert isinstance(await failure(url), MailUnreachable)
        assert not server.taken
        await send(f"{url}?tls.rejectUnauthorized=false")
        assert server.taken[0].was_encrypted


async def test_required_encryption_that_is_not_offered_sends_nothing(plain: FakeSmtp) -> None:
    assert isinstance(await failure(f"smtp://127.0.0.1:{plain.port}?requireTLS=true"), MailError)
    assert not plain.taken


async def test_password_goes_in_the_clear_to_this_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with smtp_server(wants_user=True, auth_in_clear=True) as server:
        await send(f"smtp://{CREDENTIALS}@127.0.0.1:{server.port}")
        assert server.taken[0].user == USER
        monkeypatch.setattr("pds.net.smtp._is_this_machine", lambda host: False)
        error = await failure(f"smtp://{CREDENTIALS}@127.0.0.1:{server.port}")
        assert isinstance(error, MailRejected)
        assert "no encryption" in str(error)
        assert len(server.taken) == 1


async def test_wrong_password_is_named_without_showing_it() -> None:
    async with smtp_server(wants_user=True, auth_in_clear=True) as server:
        error = await failure(f"smtp://{quote(USER, safe='')}:guess@127.0.0.1:{server.port}")
        assert isinstance(error, MailRejected)
        assert "our user name and password (535)" in str(error)
        assert "guess" not in f"{error} {error.detail}"


@pytest.mark.parametrize(
    ("command", "reply", "kind"),
    [
        ("RCPT", "550 5.1.1 <alice@mail.test> is unknown", RecipientRejected),
        ("RCPT", "451 Greylisted, come back", MailUnreachable),
        ("MAIL", "553 Not with this sender", MailRejected),
        ("MAIL", "450 Busy", MailUnreachable),
        ("DATA", "554 Looks like spam", MailRejected),
        ("DATA", "452 Disk full", MailUnreachable),
    ],
)
async def test_refusals_keep_no_apart_from_later(
    plain: FakeSmtp, command: str, reply: str, kind: type[MailError]
) -> None:
    plain.answers[command] = reply
    error = await failure(f"smtp://127.0.0.1:{plain.port}")
    assert type(error) is kind
    assert reply[:3] in str(error)
    assert error.detail in reply


@pytest.mark.parametrize("command", ["CONNECT", "MAIL", "RCPT", "DATA"])
async def test_silent_server_is_given_up_at_the_deadline(plain: FakeSmtp, command: str) -> None:
    plain.silent.add(command)
    error = await failure(f"smtp://127.0.0.1:{plain.port}", timeout_s=0.2)
    assert isinstance(error, MailUnreachable)
    assert "in time" in str(error)


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_cut_connection_is_no_delivery(plain: FakeSmtp, command: str) -> None:
    plain.dropped.add(command)
    assert isinstance(await failure(f"smtp://127.0.0.1:{plain.port}"), MailUnreachable)
    assert not plain.taken


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await failure(f"smtp://127.0.0.1:{unused.getsockname()[1]}")
    assert isinstance(error, MailUnreachable)


async def test_something_else_listens() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with stream_server(babble) as port:
        error = await failure(f"smtp://127.0.0.1:{port}")
    assert isinstance(error, MailError)


async def test_cancelling_leaves_no_connection(plain: FakeSmtp) -> None:
    plain.silent.add("DATA")
    sending = asyncio.create_task(send(f"smtp://127.0.0.1:{plain.port}"))
    while "DATA" not in plain.reached:
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    while plain.open_now:
        await asyncio.sleep(0)


async def test_international_address_needs_a_server_that_takes_it(plain: FakeSmtp) -> None:
    await send(f"smtp://127.0.0.1:{plain.port}", recipient="älice@mail.test")
    assert plain.taken[0].recipients == ["älice@mail.test"]


def test_urls_of_the_reference() -> None:
    assert parse_smtp_url("smtps://resend:key%2F1@smtp.example.com:465/") == SmtpServer(
        host="smtp.example.com",
        port=465,
        tls=SmtpTls.IMPLICIT,
        username="resend",
        password="key/1",
    )
    assert parse_smtp_url("smtp://localhost").port == 587
    assert parse_smtp_url("smtps://localhost").port == 465
    assert parse_smtp_url("smtp://h:25?ignoreTLS=true").tls is SmtpTls.NEVER
    assert parse_smtp_url("smtp://h:25?requireTLS=true").tls is SmtpTls.REQUIRED
    assert not parse_smtp_url("smtp://h?tls.rejectUnauthorized=false").verify
    assert "key" not in repr(parse_smtp_url("smtps://resend:key@smtp.example.com"))


@pytest.mark.parametrize(
    "url",
    [
        "smtp.example.com:465",
        "https://smtp.example.com",
        "smtp://",
        "smtp://secret@host",
        "smtp://u:secret@host:99999",
        "smtp://u:secret@host?pool=true",
    ],
)
def test_wrong_urls_are_refused_without_their_secret(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_smtp_url(url)
    assert "secret" not in str(refused.value)
