"""Session tokens (HS256) and the taking apart of foreign ones (XRPC-40, XRPC-43)."""

import base64
import hmac
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import OctKey

from pds.protocol.jwt import (
    MAX_TOKEN_CHARS,
    JwtError,
    decode_jwt,
    encode_segment,
    sign_hs256,
    verify_hs256,
)

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = {"": OLD, "2": NEW}
CLAIMS = {"sub": "did:plc:abc", "exp": 1_800_000_000, "scope": "com.atproto.access"}


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def forge(header: Any, claims: Any, key: bytes = OLD) -> str:
    """Sign whatever JSON is given, without our code."""
    signing_input = b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims).encode())
    return signing_input + "." + b64(hmac.digest(key, signing_input.encode(), "sha256"))


def reason(token: str) -> str:
    with pytest.raises(JwtError) as caught:
        verify_hs256(token, KEYS)
    return caught.value.reason


def test_a_token_is_verified_with_the_key_that_its_kid_names() -> None:
    old = sign_hs256({"typ": "at+jwt"}, CLAIMS, OLD)
    new = sign_hs256({"typ": "at+jwt", "kid": "2"}, CLAIMS, NEW)
    assert verify_hs256(old, KEYS).claims == CLAIMS
    assert verify_hs256(new, KEYS).header == {"typ": "at+jwt", "kid": "2", "alg": "HS256"}
    assert reason(sign_hs256({"kid": "2"}, CLAIMS, OLD)) == "signature"
    assert reason(sign_hs256({"kid": "3"}, CLAIMS, OLD)) == "key"
    assert reason(forge({"alg": "HS256", "kid": ["2"]}, CLAIMS)) == "key"


def test_joserfc_accepts_our_tokens_and_we_accept_its() -> None:
    key = OctKey.import_key(OLD)
    token = sign_hs256({"typ": "at+jwt"}, CLAIMS, OLD)
    assert joserfc_jwt.decode(token, key, algorithms=["HS256"]).claims == CLAIMS
    theirs = joserfc_jwt.encode({"alg": "HS256"}, dict(CLAIMS), key)
    assert verify_hs256(theirs, KEYS).claims == CLAIMS


@pytest.mark.parametrize("alg", ["none", "HS512", "ES256K", None, "hs256"])
def test_the_algorithm_is_pinned(alg: str | None) -> None:
    assert reason(forge({"alg": alg}, CLAIMS)) == "algorithm"


def test_critical_parameters_are_refused() -> None:
    assert reason(forge({"alg": "HS256", "crit": ["b64"]}, CLAIMS)) == "critical"
    with pytest.raises(JwtError):
        decode_jwt(forge({"alg": "ES256", "crit": []}, CLAIMS))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_any_changed_part_is_refused(at: int) -> None:
    parts = sign_hs256({"typ": "at+jwt"}, CLAIMS, OLD).split(".")
    parts[at] = parts[at][:-3] + "AAA"
    assert reason(".".join(parts)) in {"signature", "malformed"}


@pytest.mark.parametrize(
    "token",
    [
        "",
        "..",
        "a.b",
        "a.b.c.d",
        "e30.e30.",
        "W10.e30.AAAA",
        "é.e30.AAAA",
        "e30.e30.AAAA" + "A" * MAX_TOKEN_CHARS,
        "e30=.e30.AAAA",
        "e30.e30.AAB",
        "e30.W10.AAAA",
        b64(b'{"alg":1,"alg":2}') + ".e30.AAAA",
        b64(b"[" * 9000) + ".e30.AAAA",
        b64(b"\xff") + ".e30.AAAA",
    ],
)
def test_malformed_tokens_raise_nothing_but_jwt_errors(token: str) -> None:
    assert reason(token) in {"malformed", "algorithm"}
    if token not in ("e30.e30.",):
        with pytest.raises(JwtError):
            decode_jwt(token)


def test_own_claims_that_are_no_object_are_refused() -> None:
    assert reason(forge({"alg": "HS256"}, [1])) == "malformed"


@settings(max_examples=100)
@given(st.text(alphabet="eyJ0.-_A9{é", max_size=60))
def test_no_text_escapes_the_error_family(token: str) -> None:
    for parse in (decode_jwt, lambda text: verify_hs256(text, KEYS)):
        with pytest.raises(JwtError):
            parse(token + ".x")


def test_decode_takes_a_foreign_token_apart() -> None:
    token = encode_segment({"alg": "ES256K"}) + "." + encode_segment({"iss": "did:web:a"}) + ".AQI"
    parts = decode_jwt(token)
    assert parts.header == {"alg": "ES256K"}
    assert parts.claims == {"iss": "did:web:a"}
    assert parts.signature == b"\1\2"
    assert parts.signing_input == token.rpartition(".")[0].encode()
