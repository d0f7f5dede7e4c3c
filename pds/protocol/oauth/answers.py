"""What an authorization server answers a client: by the browser of its user, and directly.

This module checks the form of answers only. Whether the `state` and `iss` of a redirect are those
that were asked for is decided in `services/migration_sign_in` (`accept`), which keeps what was
asked, and looks at `sub` too.

Spec: (OAUTH-47, OAUTH-63)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from pds.protocol.oauth.errors import OAuthInvalid

MAX_TOKEN_CHARS: Final = 16_384
MAX_QUERY_CHARS: Final = 16_384
REQUIRED_SCOPE: Final = "atproto"

_REDIRECT_FIELDS: Final = ("state", "iss", "code", "error", "error_description")


@dataclass(frozen=True, slots=True)
class Redirect:
    """What a browser brings back: a code or an error, and who says so (RFC 9207)."""

    state: str = field(repr=False)
    iss: str | None
    code: str | None = field(repr=False)
    error: str | None
    description: str


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """Tokens, for whom they are, and what they allow."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    scope: str
    sub: str


def parse_redirect(query: str) -> Redirect:
    """Read the query with which a browser came back.

    Raises: OAuthInvalid when there is no state, or a field is there twice: which one counts would
    be the reader's choice.
    """
    if len(query) > MAX_QUERY_CHARS:
        raise OAuthInvalid("the address is too long")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise OAuthInvalid("the address cannot be read") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in _REDIRECT_FIELDS:
            if name in fields:
                raise OAuthInvalid(f"the address has {name} twice")
            fields[name] = value
    if not fields.get("state"):
        raise OAuthInvalid("the address has no state")
    code, refusal = fields.get("code") or None, fields.get("error") or None
    if (code is None) == (refusal is None):
        raise OAuthInvalid("the address must have a code, or an error")
    return Redirect(
        fields["state"], fields.get("iss"), code, refusal, fields.get("error_description", "")
    )


def parse_tokens(content: Mapping[str, Any]) -> TokenAnswer:
    """Read the answer of a token endpoint. Raises: OAuthInvalid."""
    kind = content.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "dpop":
        raise OAuthInvalid("the tokens are not bound to a key")
    refresh = content.get("refresh_token")
    scope = _text(content, "scope")
    if REQUIRED_SCOPE not in scope.split(" "):
        raise OAuthInvalid(f"the scope {REQUIRED_SCOPE} was not granted")
    return TokenAnswer(
        access=_text(content, "access_token"),
        refresh=None if refresh is None else _text(content, "refresh_token"),
        scope=scope,
        sub=_text(content, "sub"),
    )


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    is_text = isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARS
    if not isinstance(value, str) or not is_text or not value.isascii() or not value.isprintable():
        raise OAuthInvalid(f"the answer has no {name}")
    return value
