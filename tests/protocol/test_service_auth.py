"""Service tokens: minting, and every refusal with its exact name (XRPC-40..XRPC-47)."""

import base64
import json
from typing import Any

import pytest
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey

from pds.protocol.encodings import encode_base64url
from pds.protocol.jwt import encode_segment
from pds.protocol.keys import Curve, Signer, generate_secret, make_signer
from pds.protocol.service_auth import (
    ServiceAuthError,
    ServiceToken,
    check_service_token,
    parse_service_token,
    sign_service_token,
    verify_service_signature,
)
from pds.protocol.syntax import parse_did, parse_nsid

NOW = 1_790_000_000
DID = parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
AUD = "did:web:pds.example.com#atproto_pds"
LXM = parse_nsid("com.atproto.server.createAccount")
K256 = make_signer("k256", generate_secret("k256", b"1" * 32))
P256 = make_signer("p256", generate_secret("p256", b"1" * 32))
CLAIMS: dict[str, Any] = {
    "iss": DID,
    "aud": AUD,
    "lxm": LXM,
    "iat": NOW,
    "exp": NOW + 60,
    "jti": "abc",
}


def forge(
    claims: dict[str, Any], header: dict[str, Any] | None = None, signer: Signer = K256
) -> str:
    header = {"typ": "JWT", "alg": signer.public_key.jwt_alg, **(header or {})}
    head = {key: value for key, value in header.items() if value is not None}
    body = {key: value for key, value in claims.items() if value is not None}
    signing_input = encode_segment(head) + "." + encode_segment(body)
    return signing_input + "." + encode_base64url(signer.sign(signing_input.encode()))


def check(token: str, *, now_s: int = NOW, audiences: tuple[str, ...] = (AUD,)) -> ServiceToken:
    parsed = parse_service_token(token)
    check_service_token(parsed, audiences=audiences, lxm=LXM, now_s=now_s)
    return parsed


def refusal(token: str, **kwargs: Any) -> str:
    with pytest.raises(ServiceAuthError) as caught:
        check(token, **kwargs)
    assert caught.value.message
    return caught.value.name


@pytest.mark.parametrize("signer", [K256, P256], ids=["k256", "p256"])
def test_a_minted_token_passes_every_check(signer: Signer) -> None:
    token = sign_service_token(signer, iss=DID, aud=AUD, lxm=LXM, iat=NOW, exp=NOW + 60, jti="j1")
    parsed = check(token)
    assert (parsed.iss, parsed.key_id, parsed.aud, parsed.lxm) == (DID, "#atproto", AUD, LXM)
    assert (parsed.iat, parsed.exp, parsed.jti) == (NOW, NOW + 60, "j1")
    assert verify_service_signature(parsed, signer.public_key)
    other = P256 if signer is K256 else K256
    assert not verify_service_signature(parsed, other.public_key)


@pytest.mark.parametrize("curve", ["k256", "p256"])
def test_joserfc_verifies_our_tokens_and_we_verify_its(curve: Curve) -> None:
    name, alg = ("secp256k1", "ES256K") if curve == "k256" else ("P-256", "ES256")
    jwk = ECKey.generate_key(name)
    signer = make_signer(curve, base64.urlsafe_b64decode(jwk.as_dict(private=True)["d"] + "=="))
    token = sign_service_token(signer, iss=DID, aud=AUD, lxm=LXM, iat=NOW, exp=NOW + 60, jti="x")
    assert joserfc_jwt.decode(token, jwk, algorithms=[alg]).claims["lxm"] == LXM
    theirs = joserfc_jwt.encode({"alg": alg, "typ": "JWT"}, dict(CLAIMS), jwk, algorithms=[alg])
    # JOSE libraries write high-S half of the time (XRPC-47); either must be accepted.
    assert verify_service_signature(check(theirs), signer.public_key)


def test_a_high_s_signature_is_tolerated_and_a_wrong_one_is_not() -> None:
    head, _, signature = forge(CLAIMS).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    malleated = parse_service_token(head + "." + encode_base64url(high))
    assert verify_service_signature(malleated, K256.public_key)
    for bad in (raw[:-1], raw + b"\0", bytes(64), raw[32:] + raw[:32]):
        token = parse_service_token(head + "." + encode_base64url(bad))
        assert not verify_service_signature(token, K256.public_key)


def test_expiry_and_issue_time_are_judged() -> None:
    token = forge(CLAIMS)
    assert check(token, now_s=NOW + 59)
    assert refusal(token, now_s=NOW + 60) == "JwtExpired"
    assert refusal(forge({**CLAIMS, "exp": 0})) == "JwtExpired"
    assert check(forge({**CLAIMS, "iat": NOW + 60, "exp": NOW + 90}))
    assert refusal(forge({**CLAIMS, "iat": NOW + 61, "exp": NOW + 90})) == "BadJwt"
    assert check(forge({**CLAIMS, "exp": NOW + 3600}))
    assert refusal(forge({**CLAIMS, "exp": NOW + 3601})) == "BadJwt"
    assert refusal(forge({**CLAIMS, "iat": NOW - 3590, "exp": NOW + 60})) == "BadJwt"
    assert check(forge({**CLAIMS, "iat": None, "exp": NOW + 3600}))
    assert refusal(forge({**CLAIMS, "iat": None, "exp": NOW + 3661})) == "BadJwt"
    assert check(forge({**CLAIMS, "exp": NOW + 60.5})).exp == NOW + 60


def test_a_service_may_demand_a_shorter_life() -> None:
    parsed = parse_service_token(forge({**CLAIMS, "exp": NOW + 301}))
    with pytest.raises(ServiceAuthError):
        check_service_token(parsed, audiences=[AUD], lxm=LXM, now_s=NOW, max_life_s=300)


def test_the_audience_is_one_of_ours_literally() -> None:
    """XRPC-41, NEW-30: with and without the service are two audiences."""
    bare = "did:web:pds.example.com"
    assert refusal(forge({**CLAIMS, "aud": bare})) == "BadJwtAudience"
    assert refusal(forge(CLAIMS), audiences=(bare,)) == "BadJwtAudience"
    assert check(forge({**CLAIMS, "aud": bare}), audiences=(bare, AUD))


def test_the_method_is_required_and_must_be_the_called_one() -> None:
    """XRPC-43, NEW-30."""
    for lxm in (None, "com.atproto.server.createaccount", "com.atproto.repo.uploadBlob"):
        assert refusal(forge({**CLAIMS, "lxm": lxm})) == "BadJwtLexiconMethod"


@pytest.mark.parametrize("iss", [None, "", "alice.test", "did:plc", 5, "did:plc:a b", "did:" * 900])
def test_the_issuer_must_be_a_did(iss: object) -> None:
    assert refusal(forge({**CLAIMS, "iss": iss})) == "BadJwtIss"


@pytest.mark.parametrize("typ", ["at+jwt", "refresh+jwt", "dpop+jwt", "AT+JWT"])
def test_tokens_of_another_kind_are_refused(typ: str) -> None:
    assert refusal(forge(CLAIMS, {"typ": typ})) == "BadJwtType"


def test_a_token_without_type_is_accepted() -> None:
    assert check(forge(CLAIMS, {"typ": None}))


@pytest.mark.parametrize(
    ("claims", "header"),
    [
        ({"exp": None}, {}),
        ({"exp": "soon"}, {}),
        ({"exp": True}, {}),
        ({"exp": float("inf")}, {}),
        ({"exp": float("nan")}, {}),
        ({"iat": []}, {}),
        ({"aud": None}, {}),
        ({"aud": ["did:web:a"]}, {}),
        ({"lxm": 4}, {}),
        ({"jti": ""}, {}),
        ({"jti": "x" * 3000}, {}),
        ({}, {"alg": "none"}),
        ({}, {"alg": "HS256"}),
        ({}, {"alg": ["ES256"]}),
        ({}, {"crit": ["exp"]}),
    ],
)
def test_malformed_tokens_are_bad_jwt(claims: dict[str, Any], header: dict[str, Any]) -> None:
    if isinstance(header.get("alg"), list):
        header = {"alg": json.dumps(header["alg"])}
    assert refusal(forge({**CLAIMS, **claims}, header)) == "BadJwt"
    assert refusal("not.a-token") == "BadJwt"


def test_the_key_id_defaults_to_the_signing_key_and_others_need_permission() -> None:
    """XRPC-42, NEW-30."""
    labeler = forge(CLAIMS, {"kid": "#atproto_label"})
    assert refusal(labeler) == "BadJwtIss"
    parsed = parse_service_token(labeler)
    check_service_token(
        parsed, audiences=[AUD], lxm=LXM, now_s=NOW, key_ids=["#atproto", "#atproto_label"]
    )
    assert check(forge(CLAIMS, {"kid": "#atproto"}))
    assert refusal(forge(CLAIMS, {"kid": "atproto"})) == "BadJwtIss"
    old_style = parse_service_token(forge({**CLAIMS, "iss": DID + "#atproto_labeler"}))
    assert (old_style.iss, old_style.key_id) == (DID, "#atproto_labeler")
    both = forge({**CLAIMS, "iss": DID + "#atproto_labeler"}, {"kid": "#atproto"})
    assert refusal(both) == "BadJwtIss"


def test_the_replay_id_names_issuer_and_jti_and_survives_a_changed_signature() -> None:
    parsed = parse_service_token(forge(CLAIMS))
    replay_id = check_service_token(parsed, audiences=[AUD], lxm=LXM, now_s=NOW)
    assert replay_id == f"{DID} abc"
    without = forge({**CLAIMS, "jti": None})
    head = without.rpartition(".")[0]
    assert parse_service_token(without).replay_id == parse_service_token(head + ".AA").replay_id
    later = forge({**CLAIMS, "jti": None, "exp": NOW + 61})
    assert parse_service_token(without).replay_id != parse_service_token(later).replay_id


def test_a_token_without_a_method_can_be_minted_but_is_refused_here() -> None:
    """XRPC-45: other services may still take one."""
    token = sign_service_token(K256, iss=DID, aud=AUD, lxm=None, iat=NOW, exp=NOW + 60, jti="j")
    assert parse_service_token(token).lxm is None
    assert refusal(token) == "BadJwtLexiconMethod"
