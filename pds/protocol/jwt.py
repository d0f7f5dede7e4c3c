"""JSON web tokens in the two shapes that we meet: our own HS256 session tokens, and foreign ones.

Session tokens are signed and verified by this host only. The algorithm is pinned: `verify_hs256`
knows nothing but HMAC-SHA256, whatever a header says. The key is chosen by the header's `kid` among
keys that the caller holds, so that the secret can be rotated; tokens without `kid` use entry "".

Foreign tokens (service auth, DPoP, client assertions) are only taken apart here, by `decode_jwt`;
who checks their claims and signature stands in the module of that kind of token.

Times and audiences are not judged here. Unknown critical header parameters are refused.
"""

import binascii
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pds.errors import ProtocolError
from pds.protocol.encodings import InvalidEncoding, decode_base64url, encode_base64url

MAX_TOKEN_CHARS: Final = 16_384
"""Longest token that is parsed; HTTP header limits are of this size."""

_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")

JwtObject = dict[str, Any]
"""A decoded header or claims object: JSON values of unknown shape."""


class JwtError(ProtocolError):
    """A token that is malformed or whose signature is wrong; `reason` is a short fixed word.

    Reasons: `malformed`, `algorithm`, `key`, `critical`, `signature`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Jwt:
    """A token whose signature was verified."""

    header: JwtObject
    claims: JwtObject


@dataclass(frozen=True, slots=True)
class UnverifiedJwt:
    """A token taken apart: nothing in it is to be believed yet."""

    header: JwtObject
    claims: JwtObject
    signing_input: bytes
    signature: bytes


def sign_hs256(header: Mapping[str, Any], claims: Mapping[str, Any], key: bytes) -> str:
    """Return a compact HS256 token; `alg` is set here, all else comes from the caller."""
    signing_input = encode_segment({**header, "alg": "HS256"}) + "." + encode_segment(claims)
    return signing_input + "." + _hs256(signing_input, key)


def verify_hs256(token: str, keys: Mapping[str, bytes]) -> Jwt:
    """Verify a token of ours with the key that its `kid` names, and return its contents.

    Raises: JwtError. Expiry and audience are the caller's to check. Cost: about 6 us.
    """
    signing_input, signature = _split(token)
    header_text, _, claims_text = signing_input.partition(".")
    header = _parse_own_segment(header_text)
    if header.get("alg") != "HS256":
        raise JwtError("algorithm", "token algorithm is not HS256")
    if "crit" in header:
        raise JwtError("critical", "token demands an extension that is not supported")
    kid = header.get("kid", "")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise JwtError("key", "token is signed with an unknown key")
    if not hmac.compare_digest(_hs256(signing_input, key).encode(), signature.encode()):
        raise JwtError("signature", "token signature is wrong")
    return Jwt(header, _parse_own_segment(claims_text))


def decode_jwt(token: str) -> UnverifiedJwt:
    """Take a compact token apart without believing any of it.

    Raises: JwtError for anything but three canonical base64url parts holding a header object, a
    claims object and a signature, or with critical header parameters. Spec: (XRPC-40, XRPC-43)
    """
    signing_input, signature_text = _split(token)
    header_text, _, claims_text = signing_input.partition(".")
    header = _parse_segment(header_text)
    if "crit" in header:
        raise JwtError("critical", "token demands an extension that is not supported")
    try:
        signature = decode_base64url(signature_text)
    except InvalidEncoding as error:
        raise JwtError("malformed", "token signature is not base64url") from error
    return UnverifiedJwt(
        header, _parse_segment(claims_text), signing_input.encode("ascii"), signature
    )


def encode_segment(value: Mapping[str, Any]) -> str:
    """Encode a header or claims object as one token segment."""
    return encode_base64url(json.dumps(value, separators=(",", ":")).encode())


def _hs256(signing_input: str, key: bytes) -> str:
    return encode_base64url(hmac.digest(key, signing_input.encode(), "sha256"))


def _split(token: str) -> tuple[str, str]:
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise JwtError("malformed", "token is too long or not ASCII")
    signing_input, _, signature = token.rpartition(".")
    if signing_input.count(".") != 1:
        raise JwtError("malformed", "token does not have three parts")
    return signing_input, signature


def _parse_own_segment(text: str) -> JwtObject:
    """Parse a segment covered by our own signature: lenient about its base64, and fast."""
    try:
        content = binascii.a2b_base64(text.encode().translate(_URL_SAFE) + b"==")
        value = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        raise JwtError("malformed", "token part is not JSON in base64url") from error
    if not isinstance(value, dict):
        raise JwtError("malformed", "token part is not an object")
    return value


def _parse_segment(text: str) -> JwtObject:
    try:
        value = json.loads(decode_base64url(text), object_pairs_hook=_unique)
    except (InvalidEncoding, ValueError, RecursionError) as error:
        raise JwtError("malformed", "token part is not JSON in base64url") from error
    if not isinstance(value, dict):
        raise JwtError("malformed", "token part is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> JwtObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise JwtError("malformed", "token part repeats a key")
    return value
