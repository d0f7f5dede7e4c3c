"""The documents by which servers and clients of OAuth are found, and what must be in them.

A host names its authorization server; that one names its endpoints and says what it can do; a
client is known by the address of a document about it. Whoever reads one believes nothing that the
rules do not demand.

Spec: (OAUTH-1, OAUTH-2, OAUTH-10, OAUTH-15, OAUTH-19)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from pds.protocol.diddoc import parse_origin
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.jwk import ALGORITHM
from pds.protocol.oauth.pkce import METHOD

RESOURCE_PATH: Final = "/.well-known/oauth-protected-resource"
SERVER_PATH: Final = "/.well-known/oauth-authorization-server"
LOOPBACK_CLIENT: Final = "http://localhost"
MAX_ENDPOINT_CHARS: Final = 2048
AUTH_METHODS: Final = ("none", "private_key_jwt")

_LOCAL_NAMES: Final = ("localhost", "local", "internal", "test", "invalid", "example", "onion")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What a client needs to know of an authorization server."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    par_endpoint: str
    revocation_endpoint: str | None


def check_resource(content: object, origin: str) -> str:
    """Return the issuer that the host at `origin` names in its document (OAUTH-1).

    Raises: OAuthInvalid.
    """
    document = _object(content)
    if document.get("resource") != origin:
        raise OAuthInvalid(f"it speaks for another host than {origin}")
    servers = document.get("authorization_servers")
    if not isinstance(servers, list) or len(servers) != 1:
        raise OAuthInvalid("it must name exactly one authorization server")
    return check_issuer(servers[0])


def check_issuer(value: object) -> str:
    """Return an issuer: an origin in its one form. Raises: OAuthInvalid."""
    if not isinstance(value, str) or parse_origin(value) != value or value != value.lower():
        raise OAuthInvalid("the issuer must be an origin, without path")
    parts = urlsplit(value)
    if parts.port == _DEFAULT_PORTS[parts.scheme] or value.endswith(":"):
        raise OAuthInvalid("the issuer must not spell out the default port")
    return value


def check_server(content: object, issuer: str) -> ServerMetadata:
    """Return what the authorization server `issuer` says of itself, if it is what it must be.

    The document was fetched from `issuer`, and must say so itself: else one server could speak for
    another. Raises: OAuthInvalid. Spec: (OAUTH-2)
    """
    document = _object(content)
    if document.get("issuer") != issuer:
        raise OAuthInvalid(f"its issuer is not {issuer}")
    for name, value in (
        ("response_types_supported", "code"),
        ("grant_types_supported", "authorization_code"),
        ("grant_types_supported", "refresh_token"),
        ("code_challenge_methods_supported", METHOD),
        *(("token_endpoint_auth_methods_supported", method) for method in AUTH_METHODS),
        ("token_endpoint_auth_signing_alg_values_supported", ALGORITHM),
        ("dpop_signing_alg_values_supported", ALGORITHM),
        ("scopes_supported", "atproto"),
    ):
        _check_has(document, name, value)
    if "none" in _list(document, "token_endpoint_auth_signing_alg_values_supported"):
        raise OAuthInvalid("it takes unsigned assertions of clients")
    for name in (
        "authorization_response_iss_parameter_supported",
        "require_pushed_authorization_requests",
        "client_id_metadata_document_supported",
    ):
        if document.get(name) is not True:
            raise OAuthInvalid(f"{name} must be true")
    if document.get("require_request_uri_registration") is False:
        raise OAuthInvalid("require_request_uri_registration must not be false")
    revocation = document.get("revocation_endpoint")
    return ServerMetadata(
        issuer=issuer,
        authorization_endpoint=_endpoint(document, "authorization_endpoint", issuer),
        token_endpoint=_endpoint(document, "token_endpoint", issuer),
        par_endpoint=_endpoint(document, "pushed_authorization_request_endpoint", issuer),
        revocation_endpoint=(
            None if revocation is None else _endpoint(document, "revocation_endpoint", issuer)
        ),
    )


# Clients


def is_discoverable(origin: str) -> bool:
    """Whether other servers may fetch the document of a client from an origin (OAUTH-10)."""
    parts = urlsplit(origin)
    host = parts.hostname or ""
    is_name = "." in host and not host.replace(".", "").isdigit() and ":" not in host
    is_local = host.rpartition(".")[2] in _LOCAL_NAMES
    return parts.scheme == "https" and parts.port is None and is_name and not is_local


def loopback_client_id(redirect_uri: str, scope: str) -> str:
    """Return the id of a client without a document: one on the machine of its user (OAUTH-19)."""
    return (
        f"{LOOPBACK_CLIENT}?redirect_uri={quote(redirect_uri, safe='')}"
        f"&scope={quote(scope, safe='')}"
    )


def client_document(
    *,
    client_id: str,
    client_name: str,
    client_uri: str,
    redirect_uris: Sequence[str],
    scope: str,
    keys: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Return the document of a client that is a server and proves itself by a key (OAUTH-14)."""
    return {
        "client_id": client_id,
        "client_name": client_name,
        "client_uri": client_uri,
        "application_type": "web",
        "redirect_uris": list(redirect_uris),
        "response_types": ["code"],
        "grant_types": ["authorization_code", "refresh_token"],
        "scope": scope,
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": ALGORITHM,
        "dpop_bound_access_tokens": True,
        "jwks": {"keys": [dict(key) for key in keys]},
    }


def _object(content: object) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise OAuthInvalid("it is no JSON object")
    return content


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    values = document.get(name)
    return values if isinstance(values, list) else []


def _check_has(document: Mapping[str, Any], name: str, value: str) -> None:
    if value not in _list(document, name):
        raise OAuthInvalid(f"{name} lacks {value}")


def _endpoint(document: Mapping[str, Any], name: str, issuer: str) -> str:
    """Return an address that is as safe to use as the issuer's own."""
    url = document.get(name)
    if not isinstance(url, str) or len(url) > MAX_ENDPOINT_CHARS:
        raise OAuthInvalid(f"{name} is missing")
    try:
        parts = urlsplit(url)
        origin = parse_origin(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        origin = None
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}#')
    is_safe = origin is not None and (
        parts.scheme == "https" or parts.scheme == urlsplit(issuer).scheme
    )
    if not is_plain or not is_safe:
        raise OAuthInvalid(f"{name} must be an https URL")
    return url
