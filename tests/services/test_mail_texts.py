"""What is written: both parts of every message say the same, and no value becomes markup."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from pds.services.mail_texts import TEXT_WIDTH, MailTexts, html_to_paragraphs

VALUES = {
    "handle": "alice.pds.test",
    "did": "did:plc:aliceaaaaaaaaaaaaaaaaaaa",
    "code": "ABCDE-FGHIJ",
    "link": "https://app.test/verify?code=ABCDE-FGHIJ",
    "minutes": "15",
}
WITH_CODE = ["confirm_email", "update_email", "reset_password", "delete_account", "plc_operation"]
ALL = [*WITH_CODE, "welcome", "password_changed", "email_changed", "test"]
HOSTILE = "<script>alert(1)</script> \"&' {{ 7*7 }} {% raw %}"


@pytest.fixture
def texts() -> MailTexts:
    return MailTexts(service_name="Tests & Söhne", public_url="https://pds.test")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def tags_of(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


@pytest.mark.parametrize("purpose", ALL)
def test_both_parts_say_the_same(texts: MailTexts, purpose: str) -> None:
    mail = texts.write(purpose, to="alice@mail.test", **VALUES)
    in_text = mail.text.replace("-- \n", "").split()
    in_html = " ".join(html_to_paragraphs(mail.html)).split()
    # A link stands in the text once, in HTML as target and as words.
    in_html = " ".join(in_html).replace(f"{VALUES['link']} {VALUES['link']}", VALUES["link"])
    assert " ".join([*mail.subject.split(), *in_text]) == in_html
    assert mail.subject
    assert mail.purpose == purpose


@pytest.mark.parametrize("purpose", WITH_CODE)
def test_code_stands_alone_on_its_line_and_the_mail_says_how_long(
    texts: MailTexts, purpose: str
) -> None:
    mail = texts.write(purpose, to="alice@mail.test", **VALUES)
    assert VALUES["code"] in mail.text.splitlines()
    assert "15 minutes" in mail.text
    assert f">{VALUES['code']}</p>" in mail.html
    assert VALUES["code"] not in mail.subject


@pytest.mark.parametrize("purpose", ALL)
def test_hostile_values_stay_text(texts: MailTexts, purpose: str) -> None:
    usual = texts.write(purpose, to="a@mail.test", **VALUES)
    mail = texts.write(purpose, to="a@mail.test", **{**VALUES, "handle": HOSTILE})
    assert tags_of(mail.html).tags == tags_of(usual.html).tags
    assert (HOSTILE in unescape(mail.html)) == ("alice.pds.test" in usual.text)


@pytest.mark.parametrize("purpose", ALL)
def test_nothing_is_fetched_and_nothing_runs(texts: MailTexts, purpose: str) -> None:
    found = tags_of(texts.write(purpose, to="a@mail.test", **VALUES).html)
    assert not {"img", "script", "link", "iframe", "style", "form"} & set(found.tags)
    targets = {value for name, value in found.attributes if name in ("href", "src")}
    assert targets <= {VALUES["link"]}
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert ("name", "viewport") in found.attributes


@pytest.mark.parametrize("purpose", ALL)
def test_text_is_wrapped_and_links_stay_whole(texts: MailTexts, purpose: str) -> None:
    mail = texts.write(purpose, to="a@mail.test", **VALUES)
    assert all(len(line) <= TEXT_WIDTH for line in mail.text.splitlines())


def test_confirmation_without_link_has_none(texts: MailTexts) -> None:
    mail = texts.write("confirm_email", to="a@mail.test", **{**VALUES, "link": ""})
    assert "open this page" not in mail.text
    assert "href" not in mail.html
    assert VALUES["code"] in mail.text


def test_moderators_write_plain_text(texts: MailTexts) -> None:
    mail = texts.write_moderation(
        to="a@mail.test", subject="A\r\nBcc: b@mail.test", content="Dear & all\n\nSecond\nline"
    )
    assert mail.subject == "A Bcc: b@mail.test"
    assert "Dear & all\n\nSecond\nline\n" in mail.text
    assert "Dear &amp; all" in mail.html
    assert "Second<br>line" in mail.html


def test_moderators_write_html(texts: MailTexts) -> None:
    content = (
        "<h1>Hello</h1><p>Your post <a href='https://x.test/1'>here</a> was &lt;removed&gt;.</p>"
        "<style>p { color: red }</style><p>Bye</p>"
    )
    mail = texts.write_moderation(to="a@mail.test", subject="About", content=content)
    assert mail.html == content
    assert mail.text.startswith(
        "Hello\n\nYour post https://x.test/1 here was <removed>.\n\nBye\n\n"
    )
    assert "color" not in mail.text
    assert re.search(r"-- \nTests & Söhne\nhttps://pds.test\n$", mail.text)
