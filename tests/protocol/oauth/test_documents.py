"""Documents and answers of OAuth: each rule refused when it is broken.

Spec: (OAUTH-1, OAUTH-2, OAUTH-10, OAUTH-14, OAUTH-19, OAUTH-47, OAUTH-63)
"""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pds.protocol.oauth.answers import parse_redirect, parse_tokens
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.metadata import (
    check_issuer,
    check_resource,
    check_server,
    client_document,
    is_discoverable,
    loopback_client_id,
)

ISSUER = "https://auth.example.com"


def server(**more: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "issuer": ISSUER,
        "authorization_endpoint": f"{ISSUER}/oauth/authorize",
        "token_endpoint": f"{ISSUER}/oauth/token",
        "pushed_authorization_request_endpoint": f"{ISSUER}/oauth/par",
        "revocation_endpoint": f"{ISSUER}/oauth/revoke",
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256"],
        "scopes_supported": ["atproto", "transition:generic"],
        "authorization_response_iss_parameter_supported": True,
        "require_pushed_authorization_requests": True,
        "require_request_uri_registration": True,
        "dpop_signing_alg_values_supported": ["ES256"],
        "client_id_metadata_document_supported": True,
    }
    return document | more


def test_a_host_names_one_authorization_server() -> None:
    origin = "https://pds.example.com"
    right = {"resource": origin, "authorization_servers": [ISSUER]}
    assert check_resource(right, origin) == ISSUER
    for wrong in (
        None,
        [],
        {},
        right | {"resource": "https://other.example.com"},
        right | {"resource": f"{origin}/"},
        right | {"authorization_servers": []},
        right | {"authorization_servers": [ISSUER, origin]},
        right | {"authorization_servers": ISSUER},
        right | {"authorization_servers": [None]},
    ):
        with pytest.raises(OAuthInvalid):
            check_resource(wrong, origin)


@pytest.mark.parametrize(
    "issuer",
    [
        "https://auth.example.com/",
        "https://auth.example.com/path",
        "https://auth.example.com:443",
        "https://auth.example.com:",
        "http://localhost:80",
        "https://Auth.example.com",
        "https://user@auth.example.com",
        "https://auth.example.com?x",
        "ftp://auth.example.com",
        "auth.example.com",
        "",
        7,
    ],
)
def test_an_issuer_has_one_form(issuer: object) -> None:
    with pytest.raises(OAuthInvalid):
        check_issuer(issuer)


def test_a_server_that_keeps_the_rules_is_taken() -> None:
    found = check_server(server(), ISSUER)
    assert (found.issuer, found.par_endpoint) == (ISSUER, f"{ISSUER}/oauth/par")
    assert found.revocation_endpoint == f"{ISSUER}/oauth/revoke"
    assert check_server(server(revocation_endpoint=None), ISSUER).revocation_endpoint is None
    check_server(server(require_request_uri_registration=None), ISSUER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("issuer", "https://evil.example.com"),
        ("issuer", f"{ISSUER}/"),
        ("response_types_supported", ["token"]),
        ("grant_types_supported", ["authorization_code"]),
        ("grant_types_supported", ["refresh_token"]),
        ("code_challenge_methods_supported", ["plain"]),
        ("code_challenge_methods_supported", None),
        ("token_endpoint_auth_methods_supported", ["none"]),
        ("token_endpoint_auth_methods_supported", ["private_key_jwt"]),
        ("token_endpoint_auth_signing_alg_values_supported", ["ES256", "none"]),
        ("token_endpoint_auth_signing_alg_values_supported", ["RS256"]),
        ("dpop_signing_alg_values_supported", ["ES256K"]),
        ("scopes_supported", ["openid"]),
        ("authorization_response_iss_parameter_supported", False),
        ("require_pushed_authorization_requests", "true"),
        ("client_id_metadata_document_supported", None),
        ("require_request_uri_registration", False),
        ("token_endpoint", "http://auth.example.com/oauth/token"),
        ("token_endpoint", None),
        ("authorization_endpoint", "javascript:alert(1)"),
        ("authorization_endpoint", f"{ISSUER}/a#b"),
        ("authorization_endpoint", f"{ISSUER}/a b"),
        ("authorization_endpoint", "https://user@auth.example.com/a"),
        ("authorization_endpoint", f"{ISSUER}/\x1b[2J"),
        ("pushed_authorization_request_endpoint", f"{ISSUER}/{'x' * 3000}"),
        ("revocation_endpoint", "https://[broken"),
    ],
)
def test_a_server_that_breaks_a_rule_is_refused(name: str, value: object) -> None:
    with pytest.raises(OAuthInvalid):
        check_server(server(**{name: value}), ISSUER)
    with pytest.raises(OAuthInvalid):
        check_server([server()], ISSUER)


@pytest.mark.parametrize(
    ("origin", "is_public"),
    [
        ("https://pds.example.com", True),
        ("http://pds.example.com", False),
        ("https://pds.example.com:8443", False),
        ("https://localhost", False),
        ("https://pds.local", False),
        ("https://192.0.2.1", False),
        ("https://[2001:db8::1]", False),
        ("http://localhost:2583", False),
    ],
)
def test_only_hosts_with_a_public_name_have_a_client_document(
    origin: str, *, is_public: bool
) -> None:
    assert is_discoverable(origin) is is_public


def test_a_loopback_client_carries_its_document_in_its_id() -> None:
    found = loopback_client_id("http://127.0.0.1:2583/back", "atproto rpc:a.b.c?aud=*")
    assert found.startswith("http://localhost?")
    assert parse_qs(urlsplit(found).query) == {
        "redirect_uri": ["http://127.0.0.1:2583/back"],
        "scope": ["atproto rpc:a.b.c?aud=*"],
    }


def test_a_client_document_is_that_of_a_confidential_client() -> None:
    document = client_document(
        client_id="https://pds.example.com/client.json",
        client_name="Freehold",
        client_uri="https://pds.example.com",
        redirect_uris=("https://pds.example.com/back",),
        scope="atproto",
        keys=({"kty": "EC"},),
    )
    assert document["token_endpoint_auth_method"] == "private_key_jwt"
    assert document["dpop_bound_access_tokens"] is True
    assert document["jwks"] == {"keys": [{"kty": "EC"}]}
    assert "jwks_uri" not in document


def test_a_redirect_brings_a_code_or_an_error_once() -> None:
    found = parse_redirect("code=c%2F1&state=s&iss=https%3A%2F%2Fa.example&foo=1&foo=2")
    assert (found.state, found.iss, found.code, found.error) == (
        "s",
        "https://a.example",
        "c/1",
        None,
    )
    refused = parse_redirect("error=access_denied&error_description=no&state=s")
    assert (refused.error, refused.description, refused.iss) == ("access_denied", "no", None)
    for wrong in (
        "",
        "code=1",
        "state=&code=1",
        "state=s",
        "state=s&code=1&error=x",
        "state=s&state=t&code=1",
        "state=s&code=1&code=2",
        "state=s&iss=a&iss=b&code=1",
        f"state=s&code={'x' * 20_000}",
        "&".join(f"a{number}=1" for number in range(60)) + "&state=s&code=1",
    ):
        with pytest.raises(OAuthInvalid):
            parse_redirect(wrong)


def test_tokens_are_bound_and_say_for_whom_they_are() -> None:
    right = {
        "access_token": "a",
        "refresh_token": "r",
        "token_type": "DPoP",
        "scope": "atproto account:email",
        "sub": "did:plc:x",
        "expires_in": 300,
    }
    found = parse_tokens(right)
    assert (found.access, found.refresh, found.sub) == ("a", "r", "did:plc:x")
    assert parse_tokens(right | {"refresh_token": None}).refresh is None
    for more in (
        {"token_type": "Bearer"},
        {"token_type": None},
        {"scope": "transition:generic"},
        {"scope": None},
        {"sub": ""},
        {"access_token": "a\nb"},
        {"access_token": "x" * 20_000},
        {"refresh_token": 7},
    ):
        with pytest.raises(OAuthInvalid):
            parse_tokens(right | more)
