"""Authentication of XRPC requests: from the Authorization header to a `Principal`.

Each method declares one `Auth` level; the scheme of the header selects the credential (XRPC-20):
Bearer is a session (or a service token, where the method takes one), Basic is the operator.
Error names and statuses are those that clients act on (XRPC-24): an expired token is a 400
`ExpiredToken`, a missing one a 401 `AuthMissing`, or `AuthenticationRequired` where the operator's
password is what is missing.

The state of the account is part of this only as far as the credential depends on it; whether an
account may write is decided in the write's own transaction.
"""

import base64
from enum import Enum, auto
from typing import Final

from aiohttp import web

from pds.errors import RequestError
from pds.services import Services
from pds.services.principal import ADMIN, Principal


class Auth(Enum):
    """What a method wants to know about its caller."""

    NONE = auto()
    """The header is not looked at."""
    OPTIONAL = auto()
    """Anonymous, or a session (a taken-down one too), or the operator; a bad header is refused."""
    SESSION = auto()
    """Any session of an account that is not taken down."""
    SESSION_TAKENDOWN_OK = auto()
    """Any session, also the narrow one of a taken-down account."""
    FULL = auto()
    """A session opened with the main password, of an account that is not taken down."""
    FULL_TAKENDOWN_OK = auto()
    """A session opened with the main password, or the narrow one of a taken-down account."""
    REFRESH = auto()
    """A Bearer token that the handler itself checks as a refresh token (`call.token`)."""
    ADMIN = auto()
    """The operator."""
    MODERATOR = auto()
    """The operator, or a token of the configured moderation service that names this method."""
    SESSION_OR_SERVICE = auto()
    """A session, or a service token that names this method."""
    SESSION_OR_MODERATOR = auto()
    """A session, also a narrow one, or a token of the moderation service that names this method."""
    SERVICE_OPTIONAL = auto()
    """Anonymous, or a service token that names this method."""


TAKENDOWN_OK: Final = frozenset(
    {
        Auth.OPTIONAL,
        Auth.SESSION_TAKENDOWN_OK,
        Auth.FULL_TAKENDOWN_OK,
        Auth.SESSION_OR_MODERATOR,
    }
)
FULL_ONLY: Final = frozenset({Auth.FULL, Auth.FULL_TAKENDOWN_OK})
BASIC_OK: Final = frozenset({Auth.ADMIN, Auth.MODERATOR, Auth.OPTIONAL})
OPERATOR_ONLY: Final = frozenset({Auth.ADMIN, Auth.MODERATOR})
BASIC_CHALLENGE: Final = 'Basic realm="admin", charset="UTF-8"'
BEARER_CHALLENGE: Final = "Bearer"


async def authenticate(
    auth: Auth, *, request: web.BaseRequest, services: Services, nsid: str
) -> tuple[Principal | None, str | None]:
    """Who calls, and the bare token that was shown (XRPC-20..28).

    Raises: RequestError with the names that clients know.
    """
    if auth is Auth.NONE:
        return None, None
    header = request.headers.get("Authorization")
    if header is None:
        if auth in (Auth.OPTIONAL, Auth.SERVICE_OPTIONAL):
            return None, None
        raise _missing(auth)
    scheme, token = _split_header(header, auth)
    match scheme:
        case "bearer":
            return await _from_bearer(auth, token, services=services, nsid=nsid), token
        case "basic" if auth in BASIC_OK:
            return await _from_basic(token, request=request, services=services), None
        case _:
            raise _unusable(auth, "Unexpected authorization type")


async def _from_bearer(
    auth: Auth, token: str, *, services: Services, nsid: str
) -> Principal | None:
    match auth:
        case Auth.REFRESH:
            return None
        case Auth.ADMIN:
            raise _unusable(auth, "Unexpected authorization type")
        case Auth.MODERATOR:
            return await services.service_tokens.authenticate_moderator(token, lxm=nsid)
        case Auth.SERVICE_OPTIONAL:
            return await services.service_tokens.authenticate(token, lxm=nsid)
        case Auth.SESSION_OR_MODERATOR if services.service_tokens.is_service_token(token):
            return await services.service_tokens.authenticate_moderator(token, lxm=nsid)
        case Auth.SESSION_OR_SERVICE if services.service_tokens.is_service_token(token):
            return await services.service_tokens.authenticate(token, lxm=nsid)
    principal = await services.sessions.authenticate_access(token)
    if principal.is_takendown:
        if auth in TAKENDOWN_OK:
            return principal
        raise RequestError("AccountTakedown", "Account has been taken down", 401)
    if auth in FULL_ONLY and not principal.is_full:
        raise RequestError("InvalidToken", "Bad token scope")
    return principal


async def _from_basic(token: str, *, request: web.BaseRequest, services: Services) -> Principal:
    try:
        username, _, password = base64.b64decode(token, validate=True).decode().partition(":")
    except ValueError:  # Not base64, not ASCII, or not UTF-8 inside.
        username = password = ""
    address = request.remote or ""
    if await services.admin.check(username, password, address=address):
        return ADMIN
    raise RequestError(
        "AuthenticationRequired",
        "Invalid admin credentials",
        401,
        headers={"WWW-Authenticate": BASIC_CHALLENGE},
    )


def _split_header(header: str, auth: Auth) -> tuple[str, str]:
    scheme, _, token = header.partition(" ")
    if not token or " " in token:
        if auth is Auth.MODERATOR:  # It may have been meant as a token: no call for a password.
            raise RequestError("InvalidToken", "Malformed authorization header")
        raise _unusable(auth, "Malformed authorization header")
    return scheme.lower(), token


def _missing(auth: Auth) -> RequestError:
    is_operator_only = auth in OPERATOR_ONLY
    return RequestError(
        "AuthenticationRequired" if is_operator_only else "AuthMissing",
        "Authentication Required",
        401,
        headers={"WWW-Authenticate": BASIC_CHALLENGE if is_operator_only else BEARER_CHALLENGE},
    )


def _unusable(auth: Auth, message: str) -> RequestError:
    """A header that is there but cannot be used: never treated as no header (XRPC-21)."""
    if auth is Auth.OPTIONAL:
        return RequestError(
            "AuthenticationRequired",
            "Invalid authorization header",
            401,
            headers={"WWW-Authenticate": BEARER_CHALLENGE},
        )
    if auth in OPERATOR_ONLY:
        return RequestError(
            "AuthenticationRequired",
            message,
            401,
            headers={"WWW-Authenticate": BASIC_CHALLENGE},
        )
    return RequestError("InvalidToken", message)
