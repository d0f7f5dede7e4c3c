"""Session tokens: what makes one good, and every way in which it can be bad."""

from typing import Any

import pytest

from pds.errors import ConfigError, RequestError
from pds.protocol.jwt import decode_jwt, sign_hs256
from pds.services.principal import Scope
from pds.services.session_tokens import SessionTokens
from tests.services.account_host import ALICE, SECRET, SERVICE_DID

NOW_S = 1_760_000_000
TOKENS = SessionTokens(secrets=[SECRET], service_did=SERVICE_DID)
GOOD = {
    "scope": "com.atproto.access",
    "aud": SERVICE_DID,
    "sub": ALICE,
    "iat": NOW_S,
    "exp": NOW_S + 60,
    "sid": "session",
}


def signed(
    changes: dict[str, Any] | None = None, *, typ: object = "at+jwt", without: str = ""
) -> str:
    """Return a token signed with the real key over changed claims."""
    claims = {**GOOD, **(changes or {})}
    claims.pop(without, None)
    header = decode_jwt(access()).header
    header.pop("alg")
    header["typ"] = typ
    key = TOKENS._keys[header["kid"]]
    return sign_hs256(header, claims, key)


def access(tokens: SessionTokens = TOKENS) -> str:
    return tokens.issue_access(
        did=ALICE, scope=Scope.ACCESS, session_id="session", issued_s=NOW_S, expires_s=NOW_S + 60
    )


def refresh(tokens: SessionTokens = TOKENS) -> str:
    return tokens.issue_refresh(
        did=ALICE, token_id="token", session_id="session", issued_s=NOW_S, expires_s=NOW_S + 60
    )


def refused(token: str, now_s: float = NOW_S) -> tuple[str, int]:
    with pytest.raises(RequestError) as error:
        TOKENS.parse_access(token, now_s=now_s)
    return error.value.name, error.value.status


def test_token_with_the_good_claims_is_accepted() -> None:
    claims = TOKENS.parse_access(signed(), now_s=NOW_S)
    assert (claims.did, claims.scope, claims.session_id) == (ALICE, Scope.ACCESS, "session")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "did:web:other.test"},
        {"aud": [SERVICE_DID]},
        {"scope": "com.atproto.refresh"},
        {"scope": "com.atproto.signupQueued"},
        {"scope": "atproto"},
        {"scope": ["com.atproto.access"]},
        {"scope": None},
        {"lxm": "com.atproto.repo.uploadBlob"},
        {"lxm": None},
        {"cnf": {"jkt": "x"}},
        {"sub": ""},
        {"sub": 1},
        {"sid": ""},
        {"sid": None},
        {"exp": None},
        {"exp": "1760000060"},
        {"exp": True},
        {"exp": 1.8e9},
        {"iat": None},
        {"nbf": NOW_S + 1},
        {"nbf": "soon"},
    ],
)
def test_a_wrong_claim_makes_a_token_invalid(changes: dict[str, Any]) -> None:
    """XRPC-22, XRPC-23, XRPC-24."""
    assert refused(signed(changes)) == ("InvalidToken", 400)


@pytest.mark.parametrize("name", ["aud", "scope", "sub", "sid", "iat", "exp"])
def test_a_missing_claim_makes_a_token_invalid(name: str) -> None:
    assert refused(signed(without=name)) == ("InvalidToken", 400)


@pytest.mark.parametrize("typ", ["refresh+jwt", "JWT", "dpop+jwt", "AT+JWT", None, 1])
def test_a_wrong_type_makes_a_token_invalid(typ: object) -> None:
    """XRPC-22."""
    assert refused(signed(typ=typ)) == ("InvalidToken", 400)


@pytest.mark.parametrize("exp", [0, -1, NOW_S - 1, NOW_S])
def test_expiry_is_exclusive_and_zero_is_a_time(exp: int) -> None:
    """XRPC-24: exp 0 is long past, not absent."""
    assert refused(signed({"exp": exp})) == ("ExpiredToken", 400)


def test_expired_refresh_token_is_good_only_where_asked() -> None:
    """XRPC-25: deleteSession."""
    token = refresh()
    with pytest.raises(RequestError) as error:
        TOKENS.parse_refresh(token, now_s=NOW_S + 60)
    assert error.value.name == "ExpiredToken"
    claims = TOKENS.parse_refresh(token, now_s=NOW_S + 60, expired_ok=True)
    assert (claims.token_id, claims.session_id) == ("token", "session")


def test_refresh_scope_does_not_rescue_an_access_type() -> None:
    with pytest.raises(RequestError):
        TOKENS.parse_refresh(signed({"jti": "x"}, typ="refresh+jwt"), now_s=NOW_S)


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "." * 20_000])
def test_garbage_is_invalid(token: str) -> None:
    assert refused(token) == ("InvalidToken", 400)


def test_a_changed_byte_is_noticed_anywhere() -> None:
    token = access()
    for at in range(0, len(token), 7):
        other = "A" if token[at] != "A" else "B"
        assert refused(token[:at] + other + token[at + 1 :])[0] == "InvalidToken"


def test_unsigned_and_foreign_algorithms_are_refused() -> None:
    head, body, _ = access().split(".")
    none = "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0"
    for token in (f"{none}.{body}.", f"{head}.{body}."):
        assert refused(token) == ("InvalidToken", 400)


def test_new_secret_signs_and_the_old_one_still_verifies() -> None:
    """XRPC-22: rotation by kid."""
    rotated = SessionTokens(secrets=["another secret", SECRET], service_did=SERVICE_DID)
    rotated.parse_access(access(), now_s=NOW_S)
    assert refused(access(rotated)) == ("InvalidToken", 400)
    assert decode_jwt(access()).header["kid"] != decode_jwt(access(rotated)).header["kid"]


@pytest.mark.parametrize("secrets", [[], [""], ["short"], [SECRET, "short"]])
def test_missing_or_short_secrets_stop_the_start(secrets: list[str]) -> None:
    with pytest.raises(ConfigError, match="PDS_JWT_SECRET"):
        SessionTokens(secrets=secrets, service_did=SERVICE_DID)


def test_remembered_token_still_expires_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pds.services.session_tokens.MAX_REMEMBERED", 3)
    tokens = SessionTokens(secrets=[SECRET], service_did=SERVICE_DID)
    token = access(tokens)
    for _ in range(2):
        tokens.parse_access(token, now_s=NOW_S)
    with pytest.raises(RequestError) as error:
        tokens.parse_access(token, now_s=NOW_S + 60)
    assert error.value.name == "ExpiredToken"
    for number in range(10):
        tokens.parse_access(signed({"sid": f"session {number}"}), now_s=NOW_S)
    assert len(tokens._good) == 3
