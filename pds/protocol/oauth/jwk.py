"""Keys as JSON (RFC 7517), their names (RFC 7638), and tokens signed with ES256.

Only P-256 is written: ES256 is what every server of the profile must take (OAUTH-2, OAUTH-70).
"""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pds.protocol.encodings import encode_base64url
from pds.protocol.jwt import encode_segment
from pds.protocol.keys import PublicKey, Signer
from pds.protocol.oauth.errors import OAuthInvalid

ALGORITHM: Final = "ES256"

_P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_B: Final = 0x5AC635D8_AA3A93E7_B3EBBD55_769886BC_651D06B0_CC53B0F6_3BCE3C3E_27D2604B
_NAMED_BY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}
)
"""The members that name a key, by its type (RFC 7638 section 3.2, RFC 8037)."""


def public_jwk(key: PublicKey) -> dict[str, str]:
    """Return a P-256 key as JSON, with what a thumbprint needs and nothing else."""
    if key.curve != "p256":
        raise OAuthInvalid("only P-256 keys are written as JWK")
    x, y = _coordinates(key.compressed)
    return {"kty": "EC", "crv": "P-256", "x": encode_base64url(x), "y": encode_base64url(y)}


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the name of a public key: the hash of its members in one fixed form (RFC 7638).

    Raises: OAuthInvalid.
    """
    names = _NAMED_BY.get(str(jwk.get("kty")))
    if names is None or not all(isinstance(jwk.get(name), str) for name in names):
        raise OAuthInvalid("the key is no JWK of a known type")
    content = json.dumps({name: jwk[name] for name in names}, separators=(",", ":"))
    return encode_base64url(hashlib.sha256(content.encode()).digest())


def sign_jwt(header: Mapping[str, Any], claims: Mapping[str, Any], signer: Signer) -> str:
    """Return a compact token signed with ES256; `alg` is set here."""
    signing_input = f"{encode_segment({**header, 'alg': ALGORITHM})}.{encode_segment(claims)}"
    return f"{signing_input}.{encode_base64url(signer.sign(signing_input.encode('ascii')))}"


def _coordinates(compressed: bytes) -> tuple[bytes, bytes]:
    """Return x and y of a compressed point, which is known to lie on the curve."""
    x = int.from_bytes(compressed[1:], "big")
    squared = (pow(x, 3, _P256_PRIME) - 3 * x + _P256_B) % _P256_PRIME
    y = pow(squared, (_P256_PRIME + 1) // 4, _P256_PRIME)
    if y & 1 != compressed[0] & 1:
        y = _P256_PRIME - y
    return x.to_bytes(32, "big"), y.to_bytes(32, "big")
