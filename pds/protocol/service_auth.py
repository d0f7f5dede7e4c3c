"""Service tokens, their form, signature and checks: one account speaks to one service.

The issuer is an account's DID; the token is signed with that account's signing key, found in its
DID document. The audience is a service DID, nowadays with a fragment (`did:web:host#atproto_pds`):
with and without the fragment are two different audiences.

Order of use by a verifier: `parse_service_token`, `check_service_token` (everything that needs no
network), then resolve the issuer's key and `verify_service_signature`; if that fails, once more
with a freshly resolved key. Only after that is the replay id of the token to be recorded.

Spec: xrpc#inter-service-authentication-jwt (XRPC-40..XRPC-44, XRPC-47, NEW-30)
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import ProtocolError
from pds.protocol.encodings import encode_base64url
from pds.protocol.jwt import JwtError, decode_jwt, encode_segment
from pds.protocol.keys import PublicKey, Signer
from pds.protocol.syntax import Did, InvalidSyntax, Nsid, parse_did

SIGNING_KEY_ID: Final = "#atproto"
DEFAULT_LIFE_S: Final = 60
"""Life of the tokens that we mint unless asked otherwise (XRPC-45, XRPC-46)."""
MAX_LIFE_S: Final = 3600
"""Longest life of a token that we accept (XRPC-44)."""
CLOCK_LEEWAY_S: Final = 60
"""How far ahead of us an issuer's clock may be (XRPC-44)."""

_FOREIGN_TYPES: Final = frozenset({"at+jwt", "refresh+jwt", "dpop+jwt"})
_ALGORITHMS: Final = frozenset({"ES256", "ES256K"})
_MAX_ID_CHARS: Final = 2048


class ServiceAuthError(ProtocolError):
    """A service token that is refused; `name` is the wire name of the error (status 401)."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """A service token taken apart, its claims typed; signature not yet verified."""

    iss: Did
    key_id: str
    aud: str
    lxm: str | None
    iat: int | None
    nbf: int | None
    exp: int
    jti: str | None
    alg: str
    signing_input: bytes
    signature: bytes

    @property
    def replay_id(self) -> str:
        """What must not be seen twice before `exp`: the issuer with its `jti`.

        A token without `jti` is known by the hash of its signed bytes (not of its signature, which
        can be changed without the key).
        """
        if self.jti is not None:
            return f"{self.iss} {self.jti}"
        return f"{self.iss} sha256:{hashlib.sha256(self.signing_input).hexdigest()}"


def sign_service_token(
    signer: Signer, *, iss: Did, aud: str, lxm: Nsid | None, iat: int, exp: int, jti: str
) -> str:
    """Mint a service token of the account `iss`, whose signing key `signer` is.

    Spec: (XRPC-40, XRPC-45)
    """
    claims: dict[str, Any] = {"iat": iat, "iss": iss, "aud": aud, "exp": exp}
    if lxm is not None:
        claims["lxm"] = lxm
    claims["jti"] = jti
    header = {"typ": "JWT", "alg": signer.public_key.jwt_alg}
    signing_input = encode_segment(header) + "." + encode_segment(claims)
    return signing_input + "." + encode_base64url(signer.sign(signing_input.encode("ascii")))


def parse_service_token(token: str) -> ServiceToken:
    """Take a service token apart and type its claims.

    Raises: ServiceAuthError `BadJwt`, `BadJwtType` or `BadJwtIss`.
    Spec: (XRPC-40, XRPC-42, XRPC-43)
    """
    try:
        parts = decode_jwt(token)
    except JwtError as error:
        raise ServiceAuthError("BadJwt", f"poorly formatted jwt: {error}") from error
    header, claims = parts.header, parts.claims
    kind = header.get("typ")
    if isinstance(kind, str) and kind.lower() in _FOREIGN_TYPES:
        raise ServiceAuthError("BadJwtType", f"invalid jwt type {kind}")
    alg = header.get("alg")
    if alg not in _ALGORITHMS:
        raise ServiceAuthError("BadJwt", "jwt alg is neither ES256 nor ES256K")
    iss, key_id = _parse_issuer(claims.get("iss"), header.get("kid"))
    exp = _integer(claims, "exp")
    if exp is None:
        raise ServiceAuthError("BadJwt", "jwt has no exp")
    aud = _text(claims, "aud")
    if aud is None:
        raise ServiceAuthError("BadJwt", "jwt has no aud")
    return ServiceToken(
        iss=iss,
        key_id=key_id,
        aud=aud,
        lxm=_text(claims, "lxm"),
        iat=_integer(claims, "iat"),
        nbf=_integer(claims, "nbf"),
        exp=exp,
        jti=_text(claims, "jti"),
        alg=str(alg),
        signing_input=parts.signing_input,
        signature=parts.signature,
    )


def check_service_token(
    token: ServiceToken,
    *,
    audiences: Collection[str],
    lxm: str,
    now_s: int,
    key_ids: Collection[str] = (SIGNING_KEY_ID,),
    max_life_s: int = MAX_LIFE_S,
) -> str:
    """Check everything that needs no key, and return the token's replay id.

    `audiences` are all names that this service answers to; `lxm` is the method being called.

    Raises: ServiceAuthError with the names of XRPC-43. Spec: (XRPC-41, XRPC-42, XRPC-43, XRPC-44)
    """
    if token.exp <= now_s:
        raise ServiceAuthError("JwtExpired", "jwt expired")
    if token.iat is not None and token.iat > now_s + CLOCK_LEEWAY_S:
        raise ServiceAuthError("BadJwt", "jwt was issued in the future")
    if token.nbf is not None and token.nbf > now_s + CLOCK_LEEWAY_S:
        raise ServiceAuthError("BadJwt", "jwt is not valid yet")
    issued_at_s = now_s + CLOCK_LEEWAY_S if token.iat is None else min(token.iat, now_s)
    if token.exp - issued_at_s > max_life_s:
        raise ServiceAuthError("BadJwt", "jwt lives too long")
    if token.aud not in audiences:
        raise ServiceAuthError("BadJwtAudience", "jwt audience does not match service did")
    if token.lxm is None:
        raise ServiceAuthError("BadJwtLexiconMethod", f"missing jwt lexicon method: must be {lxm}")
    if token.lxm != lxm:
        raise ServiceAuthError("BadJwtLexiconMethod", f"bad jwt lexicon method: must be {lxm}")
    if token.key_id not in key_ids:
        raise ServiceAuthError("BadJwtIss", "jwt is signed with a key of another purpose")
    return token.replay_id


def verify_service_signature(token: ServiceToken, key: PublicKey) -> bool:
    """Return whether `key` signed the token; high-S signatures are tolerated (XRPC-47)."""
    if token.alg != key.jwt_alg:
        return False
    return key.verify(token.signature, token.signing_input, allow_high_s=True)


def _parse_issuer(iss: object, kid: object) -> tuple[Did, str]:
    """Return the issuer and its key's id: `kid`, an old-style fragment of `iss`, or the default."""
    if not isinstance(iss, str) or len(iss) > _MAX_ID_CHARS:
        raise ServiceAuthError("BadJwtIss", "jwt has no issuer")
    did, hash_sign, fragment = iss.partition("#")
    try:
        issuer = parse_did(did)
    except InvalidSyntax as error:
        raise ServiceAuthError("BadJwtIss", "jwt issuer is not a DID") from error
    key_id = hash_sign + fragment if hash_sign else SIGNING_KEY_ID
    if kid is None:
        return issuer, key_id
    if not isinstance(kid, str) or not kid.startswith("#") or (hash_sign and kid != key_id):
        raise ServiceAuthError("BadJwtIss", "jwt key id is not a fragment of the issuer")
    return issuer, kid


def _integer(claims: dict[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise ServiceAuthError("BadJwt", f"jwt {name} is not a time")
    return int(value)


def _text(claims: dict[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_ID_CHARS:
        raise ServiceAuthError("BadJwt", f"jwt {name} is not a text")
    return value
