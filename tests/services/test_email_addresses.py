"""Which addresses are taken."""

import pytest

from pds.errors import RequestError
from pds.services.email_addresses import is_email, parse_email


@pytest.mark.parametrize(
    "email",
    [
        "alice@example.com",
        "a@b.co",
        "first.last+tag@sub.example.co.uk",
        "o'brien_1%x@example.com",
        "jörg@müller.example",
        "a..b@docomo.example",
        f"{'a' * 64}@example.com",
    ],
)
def test_usual_and_unusual_addresses(email: str) -> None:
    assert is_email(email)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "alice",
        "@example.com",
        "alice@",
        "alice@localhost",
        "alice@example",
        "alice@.com",
        "alice@exa mple.com",
        "alice@-example.com",
        "alice@example-.com",
        "al ice@example.com",
        "alice@example.com\n",
        "alice@example.com\x00",
        "alice\x7f@example.com",
        "alice@example.com,eve@example.com",
        "<alice@example.com>",
        '"alice"@example.com',
        "alice@[127.0.0.1]",
        "a@b@example.com",
        "-f@example.com",
        f"{'a' * 65}@example.com",
        f"alice@{'a' * 250}.com",
        f"alice@{'.'.join(['a' * 60] * 5)}.com",
    ],
)
def test_what_is_no_address(email: str) -> None:
    assert not is_email(email)


def test_stored_form_is_lower_case() -> None:
    """ACC-2."""
    assert parse_email(" Alice@Example.COM ") == "alice@example.com"


@pytest.mark.parametrize("email", ["a@trash.example", "a@deep.trash.example", "A@TRASH.example"])
def test_domains_that_the_operator_does_not_want(email: str) -> None:
    """ACC-10."""
    with pytest.raises(RequestError, match="not supported"):
        parse_email(email, blocked_domains={"trash.example"})
    assert parse_email("a@nottrash.example", blocked_domains={"trash.example"})
