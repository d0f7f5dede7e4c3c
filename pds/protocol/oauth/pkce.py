"""Proof that who redeems a code is who asked for it (PKCE, RFC 7636), by S256 only (OAUTH-60)."""

import hashlib
from typing import Final

from pds.protocol.encodings import encode_base64url
from pds.protocol.oauth.errors import OAuthInvalid

METHOD: Final = "S256"
MIN_ENTROPY_BYTES: Final = 32


def make_verifier(entropy: bytes) -> str:
    """Write fresh randomness as a verifier: 43 characters of 32 bytes."""
    if len(entropy) < MIN_ENTROPY_BYTES:
        raise OAuthInvalid("a verifier needs at least 32 random bytes")
    return encode_base64url(entropy)


def make_challenge(verifier: str) -> str:
    """Return what is told beforehand of a verifier."""
    return encode_base64url(hashlib.sha256(verifier.encode("ascii")).digest())
