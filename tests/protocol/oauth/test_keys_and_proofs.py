"""Keys by name, proofs and verifiers, against the examples of their RFCs and another library.

Spec: (OAUTH-60, OAUTH-70)
"""

import json

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey

from pds.protocol.encodings import decode_base64url
from pds.protocol.keys import generate_secret, make_signer, public_key
from pds.protocol.oauth.dpop import hash_token, make_proof, proof_target
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.jwk import public_jwk, sign_jwt, thumbprint
from pds.protocol.oauth.pkce import make_challenge, make_verifier

SIGNER = make_signer("p256", generate_secret("p256", b"\x11" * 32))

RFC7638_KEY = {
    "kty": "RSA",
    "n": (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP"
        "ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY"
        "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f"
        "M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    ),
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}
RFC9449_KEY = {
    "kty": "EC",
    "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    "crv": "P-256",
}


def test_keys_are_named_as_the_rfcs_name_theirs() -> None:
    """RFC 7638 section 3.1, RFC 9449 section 6.1."""
    assert thumbprint(RFC7638_KEY) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert thumbprint(RFC9449_KEY) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    for broken in ({}, {"kty": "oct", "k": "AQ"}, {"kty": "EC", "crv": "P-256", "x": "AQ"}):
        with pytest.raises(OAuthInvalid):
            thumbprint(broken)


def test_a_key_is_written_with_the_point_that_it_is() -> None:
    point = decode_base64url(RFC9449_KEY["x"]) + decode_base64url(RFC9449_KEY["y"])
    assert public_jwk(public_key("p256", b"\x04" + point)) == RFC9449_KEY
    for seed in range(40):  # Both signs of y, and coordinates with leading zeros if any.
        signer = make_signer("p256", generate_secret("p256", bytes([seed]) * 32))
        jwk = public_jwk(signer.public_key)
        assert ECKey.import_key(jwk).thumbprint() == thumbprint(jwk)
        assert len(jwk["x"]) == len(jwk["y"]) == 43
    with pytest.raises(OAuthInvalid):
        public_jwk(make_signer("k256", b"\x01" * 32).public_key)


def test_a_proof_says_what_the_rfc_wants_and_verifies_with_the_key_in_it() -> None:
    proof = make_proof(
        SIGNER,
        method="GET",
        url="https://Resource.example.org/protectedresource?x=1#y",
        jti="e1j3V_bKic8-LAEB",
        now_s=1562262618,
        nonce="n-1",
        access_token="Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
    )
    header = jws.extract_compact(proof.encode()).headers()
    assert (header["typ"], header["alg"]) == ("dpop+jwt", "ES256")
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}
    token = jwt.decode(proof, ECKey.import_key(header["jwk"]), algorithms=["ES256"])
    assert token.claims == {
        "jti": "e1j3V_bKic8-LAEB",
        "htm": "GET",
        "htu": "https://resource.example.org/protectedresource",
        "iat": 1562262618,
        "nonce": "n-1",
        "ath": "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo",
    }
    plain = make_proof(SIGNER, method="POST", url="https://a.example", jti="1", now_s=1)
    claims = json.loads(decode_base64url(plain.split(".")[1]))
    assert claims == {"jti": "1", "htm": "POST", "htu": "https://a.example/", "iat": 1}


def test_the_address_in_a_proof_has_no_query() -> None:
    assert (
        proof_target("http://localhost:2583/xrpc/a.b.c?d=e&f") == "http://localhost:2583/xrpc/a.b.c"
    )
    assert hash_token("a") == hash_token("a") != hash_token("b")


def test_assertions_verify_with_another_library() -> None:
    token = sign_jwt({"kid": "1"}, {"iss": "a"}, SIGNER)
    key = ECKey.import_key(public_jwk(SIGNER.public_key))
    assert jwt.decode(token, key, algorithms=["ES256"]).claims == {"iss": "a"}


def test_verifiers_are_those_of_the_rfc() -> None:
    """RFC 7636 appendix B."""
    entropy = bytes.fromhex("7418dfb49799e0254ffa607dd8adbbba16d4254d69d6bff05b58055853848d79")
    verifier = make_verifier(entropy)
    assert verifier == "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert make_challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    with pytest.raises(OAuthInvalid):
        make_verifier(b"short")
