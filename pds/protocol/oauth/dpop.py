"""Proofs of possession (DPoP, RFC 9449): each request shows that its sender holds a key.

Proofs are made here, for the requests that this host sends as a client; none are checked.

A token that was given to a key is of no use to who has only the token. A proof is a small token for
one method, one address and one moment; servers hand out nonces to bind the moment, and take each
proof once.

Spec: (OAUTH-70, OAUTH-71)
"""

import hashlib
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pds.protocol.encodings import encode_base64url
from pds.protocol.keys import Signer
from pds.protocol.oauth.jwk import public_jwk, sign_jwt

PROOF_TYPE: Final = "dpop+jwt"
PROOF_HEADER: Final = "DPoP"
NONCE_HEADER: Final = "DPoP-Nonce"
NONCE_NEEDED: Final = "use_dpop_nonce"


def make_proof(
    signer: Signer,
    *,
    method: str,
    url: str,
    jti: str,
    now_s: int,
    nonce: str | None = None,
    access_token: str | None = None,
) -> str:
    """Return the proof for one request; `jti` is fresh randomness, never used twice.

    `access_token` is the one that goes with a request to a resource; requests for tokens have none.
    """
    claims: dict[str, Any] = {
        "jti": jti,
        "htm": method,
        "htu": proof_target(url),
        "iat": now_s,
    }
    if nonce is not None:
        claims["nonce"] = nonce
    if access_token is not None:
        claims["ath"] = hash_token(access_token)
    header = {"typ": PROOF_TYPE, "jwk": public_jwk(signer.public_key)}
    return sign_jwt(header, claims, signer)


def proof_target(url: str) -> str:
    """Return what a proof says of an address: all but query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path or "/", "", ""))


def hash_token(access_token: str) -> str:
    """Return the hash by which a proof names the token that it goes with."""
    return encode_base64url(hashlib.sha256(access_token.encode()).digest())
