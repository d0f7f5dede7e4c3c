"""Which e-mail addresses an account may have.

The syntax check is that of addresses which mail servers take and headers can carry unquoted: no
blanks, no control characters, no list or comment characters, a domain of at least two labels. Which
domains only hand out addresses for a day changes weekly, so there is no list here: the operator
names what is not wanted.
"""

import re
from collections.abc import Collection
from typing import Final

from pds.errors import RequestError

MAX_EMAIL_CHARS: Final = 254
"""What fits between the angle brackets of a mail server's command (RFC 5321 4.5.3.1.3)."""

_NOT_ALLOWED: Final = r"\s@\"(),:;<>\[\\\]\x00-\x1f\x7f-\x9f"
_EMAIL: Final = re.compile(
    rf"(?!-)[^{_NOT_ALLOWED}]{{1,64}}"
    rf"@(?:(?!-)[^{_NOT_ALLOWED}.]{{1,63}}(?<!-)\.)+(?!-)[^{_NOT_ALLOWED}.]{{2,63}}(?<!-)"
)


def is_email(text: str) -> bool:
    """Whether `text` is one address and nothing else."""
    return len(text) <= MAX_EMAIL_CHARS and _EMAIL.fullmatch(text) is not None


def normalize_email(text: str) -> str:
    """The form in which addresses are stored and compared: lower-case, whole (ACC-2)."""
    return text.strip().lower()


def parse_email(text: str, *, blocked_domains: Collection[str] = ()) -> str:
    """Return the stored form of an address that somebody gave.

    Raises: RequestError `InvalidRequest` when it is none, or of a domain that is not wanted here.
    Spec: (ACC-10)
    """
    email = normalize_email(text)
    if not is_email(email) or _is_blocked(email.rpartition("@")[2], blocked_domains):
        raise RequestError(
            "InvalidRequest",
            "This email address is not supported, please use a different email.",
        )
    return email


def _is_blocked(domain: str, blocked: Collection[str]) -> bool:
    """Whether the domain or one above it is blocked."""
    labels = domain.split(".")
    return any(".".join(labels[at:]) in blocked for at in range(len(labels)))
