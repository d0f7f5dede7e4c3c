"""The two tokens of a legacy session: how they are made and what makes them good.

Access tokens are short-lived and carry the scope; refresh tokens are long-lived, single-use and
carry the id of their row. Both are HS256 JWTs over a key derived from `PDS_JWT_SECRET` and name
that key by `kid`, so a new secret can be put in front while tokens of the old one run out. One
claim is ours: `sid`, the session, by which an access token can be revoked at once.

A token that was found good is remembered until it expires or newer ones push it out, because the
same one comes with every request: what then remains to be asked is the time.

Tokens of the reference server, which may have been here before under the same secret, have no
`kid` and no `sid`. Its refresh tokens are taken: what they are worth stands in their rows, taken
over with them. Its access tokens are answered as expired, upon which clients refresh.

This module judges tokens only. Whether the session still lives is asked in `sessions`.

Spec: xrpc#authentication (XRPC-22, XRPC-23, XRPC-24)
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from pds.errors import ConfigError, RequestError
from pds.protocol.jwt import Jwt, JwtError, JwtObject, sign_hs256, verify_hs256
from pds.services.principal import ACCESS_TOKEN_SCOPES, Scope

ACCESS_TYPE: Final = "at+jwt"
REFRESH_TYPE: Final = "refresh+jwt"
MIN_SECRET_CHARS: Final = 8
"""A shorter secret is a mistake; 32 random bytes are what the documentation asks for."""

MAX_REMEMBERED: Final = 10_000
"""Good access tokens in memory, about 1 KB each; saves 7 us of 10 per request."""

_KEY_LABEL: Final = b"freehold session tokens 1"
_FOREIGN_CLAIMS: Final = ("lxm", "cnf")


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a good access token says."""

    did: str
    scope: Scope
    session_id: str
    expires_s: int


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    """What a good refresh token says."""

    did: str
    token_id: str
    session_id: str | None
    """None in a token of the reference server: the row knows."""


class SessionTokens:
    """Makes and checks session tokens; the first secret signs, all of them verify."""

    def __init__(
        self, *, secrets: Sequence[str], service_did: str, former_dids: Sequence[str] = ()
    ) -> None:
        """`former_dids` are those that were the service's when older tokens were made."""
        if not secrets or any(len(secret) < MIN_SECRET_CHARS for secret in secrets):
            message = f"PDS_JWT_SECRET must be set to at least {MIN_SECRET_CHARS} characters"
            raise ConfigError(message)
        keys = [_derive_key(secret) for secret in secrets]
        self._keys: Mapping[str, bytes] = {_key_id(key): key for key in keys}
        self._reference_keys = [{"": secret.encode()} for secret in secrets]
        self._key = keys[0]
        self._kid = _key_id(keys[0])
        self._service_did = service_did
        self._audiences = frozenset({service_did, *former_dids})
        self._good: dict[str, AccessClaims] = {}

    def issue_access(
        self, *, did: str, scope: Scope, session_id: str, issued_s: int, expires_s: int
    ) -> str:
        """Return an access token."""
        return self._sign(
            ACCESS_TYPE,
            did=did,
            scope=scope,
            session_id=session_id,
            issued_s=issued_s,
            expires_s=expires_s,
        )

    def issue_refresh(
        self, *, did: str, token_id: str, session_id: str, issued_s: int, expires_s: int
    ) -> str:
        """Return a refresh token."""
        return self._sign(
            REFRESH_TYPE,
            did=did,
            scope=Scope.REFRESH,
            session_id=session_id,
            issued_s=issued_s,
            expires_s=expires_s,
            token_id=token_id,
        )

    def parse_access(self, token: str, *, now_s: float) -> AccessClaims:
        """Check an access token.

        Raises: RequestError `ExpiredToken` or `InvalidToken`, both 400 (XRPC-24).
        """
        known = self._good.get(token)
        if known is None:
            known = self._parse_access(token, now_s)
            while len(self._good) >= MAX_REMEMBERED:
                del self._good[next(iter(self._good))]
            self._good[token] = known
        elif known.expires_s <= now_s:
            del self._good[token]
            raise _expired()
        return known

    def _parse_access(self, token: str, now_s: float) -> AccessClaims:
        claims = self._verify(token, ACCESS_TYPE, now_s=now_s)
        scope = claims.get("scope")
        if not isinstance(scope, str) or scope not in ACCESS_TOKEN_SCOPES:
            raise _invalid("Bad token scope")
        return AccessClaims(
            _text(claims, "sub"), Scope(scope), _text(claims, "sid"), _instant(claims, "exp")
        )

    def parse_refresh(self, token: str, *, now_s: float, expired_ok: bool = False) -> RefreshClaims:
        """Check a refresh token; with `expired_ok` an expired one is good too (deleteSession).

        Raises: RequestError `ExpiredToken` or `InvalidToken`, both 400 (XRPC-24).
        """
        claims = self._verify(token, REFRESH_TYPE, now_s=now_s, expired_ok=expired_ok)
        if claims.get("scope") != Scope.REFRESH:
            raise _invalid("Bad token scope")
        session_id = _text(claims, "sid") if "sid" in claims else None
        return RefreshClaims(_text(claims, "sub"), _text(claims, "jti"), session_id)

    def _sign(
        self,
        token_type: str,
        *,
        did: str,
        scope: Scope,
        session_id: str,
        issued_s: int,
        expires_s: int,
        token_id: str | None = None,
    ) -> str:
        claims: dict[str, Any] = {
            "scope": scope.value,
            "aud": self._service_did,
            "sub": did,
            "iat": issued_s,
            "exp": expires_s,
            "sid": session_id,
        }
        if token_id is not None:
            claims["jti"] = token_id
        return sign_hs256({"typ": token_type, "kid": self._kid}, claims, self._key)

    def _verify(
        self, token: str, token_type: str, *, now_s: float, expired_ok: bool = False
    ) -> JwtObject:
        jwt, is_foreign = self._verify_signature(token)
        claims = jwt.claims
        if jwt.header.get("typ") != token_type:
            raise _invalid("Invalid token type")
        if any(claim in claims for claim in _FOREIGN_CLAIMS):
            raise _invalid("Malformed token")
        if not isinstance(aud := claims.get("aud"), str) or aud not in self._audiences:
            raise _invalid("Token is for another service")
        _instant(claims, "iat")
        if "nbf" in claims and _instant(claims, "nbf") > now_s:
            raise _invalid("Token is not valid yet")
        if _instant(claims, "exp") <= now_s and not expired_ok:
            raise _expired()
        if is_foreign and token_type == ACCESS_TYPE:
            raise _expired()
        if is_foreign == ("sid" in claims):
            raise _invalid("Malformed token")
        return claims

    def _verify_signature(self, token: str) -> tuple[Jwt, bool]:
        """Return the token, and whether the reference server has signed it with our secret."""
        try:
            return verify_hs256(token, self._keys), False
        except JwtError as error:
            refusal = error
        for keys in self._reference_keys if refusal.reason == "key" else ():
            try:
                return verify_hs256(token, keys), True
            except JwtError as error:
                refusal = error
        raise _invalid("Token could not be verified") from refusal


def _expired() -> RequestError:
    return RequestError("ExpiredToken", "Token has expired")


def _invalid(message: str) -> RequestError:
    return RequestError("InvalidToken", message)


def _instant(claims: JwtObject, name: str) -> int:
    value = claims.get(name)
    if type(value) is not int:
        raise _invalid("Malformed token")
    return value


def _text(claims: JwtObject, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid("Malformed token")
    return value


def _derive_key(secret: str) -> bytes:
    return hmac.digest(secret.encode(), _KEY_LABEL, "sha256")


def _key_id(key: bytes) -> str:
    return sha256(b"key id" + key).hexdigest()[:8]
