"""Transports: the contract on a real SMTP server and a real program, and their settings."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.config import load_config
from pds.errors import ConfigError
from pds.net.sendmail import SendmailProgram
from pds.net.smtp import SmtpServer, parse_smtp_url
from pds.services.mail import Mail
from pds.services.mail_transports import MAX_SENDING, SendingMailer, parse_mail_url
from tests.fakes.smtp import FakeSmtp, smtp_server
from tests.suites.mailer_suite import MAIL, NOW_US, MailerSuite

SENDER = "noreply@pds.test"


def over(route: SmtpServer | SendmailProgram, sender: str = SENDER) -> SendingMailer:
    return SendingMailer(route, sender=sender, service_name="Tests", local_name="pds.test")


class TestSmtp(MailerSuite):
    @pytest.fixture(autouse=True)
    async def server(self) -> AsyncIterator[FakeSmtp]:
        async with smtp_server() as self.fake:
            yield self.fake

    @pytest.fixture
    def mailer(self, server: FakeSmtp) -> SendingMailer:
        return over(parse_smtp_url(f"smtp://127.0.0.1:{server.port}"))

    def arrived(self) -> list[tuple[list[str], bytes]]:
        return [(taken.recipients, taken.content) for taken in self.fake.taken]

    def refuse(self) -> None:
        self.fake.answers["RCPT"] = "550 Nobody of that name"

    async def test_few_mails_are_on_their_way_at_once(self, mailer: SendingMailer) -> None:
        self.fake.gate = asyncio.Event()
        sending = [asyncio.create_task(mailer.send(MAIL, now_us=NOW_US)) for _ in range(7)]
        while self.fake.open_now < MAX_SENDING:
            await asyncio.sleep(0)
        self.fake.gate.set()
        await asyncio.gather(*sending)
        assert len(self.fake.taken) == 7
        assert self.fake.most_at_once == MAX_SENDING

    async def test_sender_may_have_a_name(self, server: FakeSmtp) -> None:
        route = parse_smtp_url(f"smtp://127.0.0.1:{server.port}")
        await over(route, "Die Post <post@pds.test>").send(MAIL, now_us=NOW_US)
        assert server.taken[0].sender == "post@pds.test"
        assert server.taken[0].message["From"] == "Die Post <post@pds.test>"

    async def test_international_address(self, mailer: SendingMailer) -> None:
        await mailer.send(Mail("älice@mail.test", "Hi", "Text\n", "test"), now_us=NOW_US)
        [taken] = self.fake.taken
        assert taken.recipients == ["älice@mail.test"]
        assert "To: älice@mail.test".encode() in taken.content


class TestSendmail(MailerSuite):
    @pytest.fixture(autouse=True)
    def program(self, tmp_path: Path) -> Path:
        self.folder = tmp_path
        file = tmp_path / "sendmail"
        file.write_text(
            f"#!{sys.executable}\nimport json, pathlib, sys\n"
            f"folder = pathlib.Path({str(tmp_path)!r})\n"
            "if (folder / 'refuse').exists(): sys.exit(67)\n"
            "number = len(list(folder.glob('*.mail')))\n"
            "(folder / f'{number}.mail').write_bytes(sys.stdin.buffer.read())\n"
            "(folder / f'{number}.json').write_text(json.dumps(sys.argv[5:]))\n"
        )
        file.chmod(0o755)
        return file

    @pytest.fixture
    def mailer(self, program: Path) -> SendingMailer:
        return over(SendmailProgram(str(program)))

    def arrived(self) -> list[tuple[list[str], bytes]]:
        return [
            (json.loads(file.with_suffix(".json").read_text()), file.read_bytes())
            for file in sorted(self.folder.glob("*.mail"))
        ]

    def refuse(self) -> None:
        (self.folder / "refuse").touch()


def config(**changes: str):  # type: ignore[no-untyped-def]
    environment = {
        "PDS_EMAIL_SMTP_URL": "smtps://user:secret-word@smtp.example.com:465/",
        "PDS_EMAIL_FROM_ADDRESS": "Post <admin@pds.example.com>",
        **changes,
    }
    return load_config({name: value for name, value in environment.items() if value}).mail


def test_settings_of_the_reference_choose_a_server() -> None:
    mail = config()
    assert isinstance(mail.route, SmtpServer)
    assert mail.route.host == "smtp.example.com"
    assert mail.moderation_route == mail.route
    assert "secret-word" not in repr(mail)
    assert config(PDS_EMAIL_SMTP_URL="", PDS_EMAIL_FROM_ADDRESS="").route is None


def test_sendmail_is_chosen_by_its_path_or_in_the_url_of_the_reference() -> None:
    assert parse_mail_url("smtp:///?sendmail=true") == SendmailProgram("sendmail")
    mail = config(PDS_EMAIL_SMTP_URL="", PDS_EMAIL_SENDMAIL="/usr/sbin/sendmail")
    assert mail.route == SendmailProgram("/usr/sbin/sendmail")


def test_moderators_may_have_a_server_and_an_address_of_their_own() -> None:
    mail = config(
        PDS_MODERATION_EMAIL_SMTP_URL="smtp://mod.example.com",
        PDS_MODERATION_EMAIL_ADDRESS="moderation@pds.example.com",
    )
    assert mail.moderation_route != mail.route


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"PDS_EMAIL_SMTP_URL": ""}, "PDS_EMAIL_SMTP_URL"),
        ({"PDS_EMAIL_FROM_ADDRESS": ""}, "PDS_EMAIL_FROM_ADDRESS"),
        ({"PDS_EMAIL_FROM_ADDRESS": "nobody"}, "PDS_EMAIL_FROM_ADDRESS"),
        ({"PDS_EMAIL_SENDMAIL": "/usr/sbin/sendmail"}, "PDS_EMAIL_SENDMAIL"),
        ({"PDS_MODERATION_EMAIL_SMTP_URL": "smtp://m"}, "PDS_MODERATION_EMAIL_ADDRESS"),
        ({"PDS_MODERATION_EMAIL_ADDRESS": "a@b@c"}, "PDS_MODERATION_EMAIL_ADDRESS"),
        ({"PDS_EMAIL_SMTP_URL": "https://u:secret-word@h"}, "PDS_EMAIL_SMTP_URL"),
    ],
)
def test_wrong_settings_are_named_without_their_secret(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        config(**changes)
    assert "secret-word" not in str(refused.value)
