"""What every transport that sends does with a mail: the contract of `Mailer`.

A class that inherits from `MailerSuite` gives `mailer`, what has `arrived`, and `refuse`, which
makes the other side take no mail for the recipient.
"""

import email
from abc import ABC, abstractmethod
from email.message import EmailMessage
from email.policy import default

import pytest

from pds.net.mail_errors import RecipientRejected
from pds.services.mail import Mail, Mailer

NOW_US = 1_760_000_000_000_000
MAIL = Mail(
    "alice@mail.test",
    "Grüße an Alice",
    "Ein Text mit Umläuten, und einer Zeile\n.\nmit einem Punkt. " + "lang " * 300 + "\n",
    "welcome",
    "<!doctype html>\n<p>Ein Text mit <b>Umläuten</b></p>\n",
)


def parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    return message


def words(part: EmailMessage) -> str:
    """The content with the line ends that were written."""
    return str(part.get_content()).replace("\r\n", "\n")


class MailerSuite(ABC):
    """The contract; see the module."""

    @abstractmethod
    def arrived(self) -> list[tuple[list[str], bytes]]:
        """Recipients and bytes of each mail that arrived."""

    @abstractmethod
    def refuse(self) -> None:
        """Have the next mail refused for its recipient."""

    async def test_both_parts_arrive_as_written(self, mailer: Mailer) -> None:
        assert mailer.delivers
        await mailer.send(MAIL, now_us=NOW_US)
        [(recipients, content)] = self.arrived()
        message = parsed(content)
        assert recipients == [MAIL.to]
        assert message.get_content_type() == "multipart/alternative"
        text, html = message.iter_parts()
        assert isinstance(text, EmailMessage)
        assert isinstance(html, EmailMessage)
        assert words(text).rstrip() == MAIL.text.rstrip()
        assert words(html).rstrip() == MAIL.html.rstrip()
        assert max(len(line) for line in content.splitlines()) < 998

    async def test_headers_say_who_when_and_that_no_person_wrote(self, mailer: Mailer) -> None:
        await mailer.send(MAIL, now_us=NOW_US)
        await mailer.send(MAIL, now_us=NOW_US)
        first, second = (parsed(content) for _, content in self.arrived())
        assert first["From"] == "Tests <noreply@pds.test>"
        assert first["To"] == "alice@mail.test"
        assert first["Subject"] == "Grüße an Alice"
        assert first["Date"] == "Thu, 09 Oct 2025 08:53:20 +0000"
        assert first["Auto-Submitted"] == "auto-generated"
        assert first["Message-ID"].endswith("@pds.test>")
        assert first["Message-ID"] != second["Message-ID"]

    async def test_mail_without_html_is_plain(self, mailer: Mailer) -> None:
        await mailer.send(Mail("alice@mail.test", "Hello", "Text\n", "test"), now_us=NOW_US)
        [(_, content)] = self.arrived()
        assert parsed(content).get_content_type() == "text/plain"

    @pytest.mark.parametrize("newline", ["\r\n", "\n", "\r", "\x0b", "\x85", "\u2028"])
    async def test_subject_adds_no_header(self, mailer: Mailer, newline: str) -> None:
        subject = f"Hello{newline}Bcc: eve@mail.test{newline}{newline}<b>"
        await mailer.send(Mail("alice@mail.test", subject, "Text\n", "test"), now_us=NOW_US)
        [(recipients, content)] = self.arrived()
        message = parsed(content)
        assert recipients == ["alice@mail.test"]
        assert message["Bcc"] is None
        assert message["Subject"] == "Hello Bcc: eve@mail.test <b>"
        assert words(message) == "Text\n"

    @pytest.mark.parametrize(
        "address",
        [
            "alice@mail.test, eve@mail.test",
            "alice@mail.test\r\nBcc: eve@mail.test",
            "alice@mail.test>\r\nRCPT TO:<eve@mail.test",
            "Alice <alice@mail.test>",
            "alice",
            "",
        ],
    )
    async def test_what_is_not_one_address_gets_no_mail(self, mailer: Mailer, address: str) -> None:
        with pytest.raises(RecipientRejected):
            await mailer.send(Mail(address, "Hello", "Text\n", "test"), now_us=NOW_US)
        assert not self.arrived()

    async def test_unusual_local_part_is_one_address(self, mailer: Mailer) -> None:
        mail = Mail("o'brien+pds..x@mail.test", "Hello", "Text\n", "test")
        await mailer.send(mail, now_us=NOW_US)
        [(recipients, content)] = self.arrived()
        assert [address.strip('"').replace('"', "") for address in recipients] == [mail.to]
        assert parsed(content)["To"].addresses[0].username == "o'brien+pds..x"

    async def test_refused_recipient_is_told_from_other_failures(self, mailer: Mailer) -> None:
        self.refuse()
        with pytest.raises(RecipientRejected):
            await mailer.send(MAIL, now_us=NOW_US)
