"""Service tokens: what is minted for whom, and which foreign ones are believed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError, Unreachable
from pds.protocol.encodings import encode_base64url
from pds.protocol.jwt import encode_segment
from pds.protocol.keys import Signer, make_signer, parse_did_key
from pds.protocol.service_auth import (
    check_service_token,
    parse_service_token,
    sign_service_token,
    verify_service_signature,
)
from pds.protocol.syntax import Did, Nsid
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.service_tokens import ServiceTokens
from pds.store.accounts import update_takedown
from tests.services.account_host import SERVICE_DID
from tests.services.creation_host import CreationHost, creation_host

AUD = "did:web:api.example.com"
CREATE = "com.atproto.server.createAccount"
UPLOAD = "com.atproto.repo.uploadBlob"
FEED = "app.bsky.feed.getTimeline"
MOVER = Did("did:web:mover.example.com")
KEY = make_signer("p256", b"\x21" * 32)
OTHER_KEY = make_signer("k256", b"\x22" * 32)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[CreationHost]:
    async with creation_host(tmp_path) as host:
        yield host


@pytest.fixture
def tokens(host: CreationHost) -> ServiceTokens:
    return ServiceTokens(
        engine=host.engine,
        wall=host.clock,
        keystore=host.keystore,
        accounts=host.cache,
        resolver=host.resolver,
        service_did=SERVICE_DID,
    )


async def refusal(call: Any) -> tuple[str, int]:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.name, refused.value.status


async def sign_up(host: CreationHost, scope: Scope = Scope.ACCESS) -> Principal:
    view = await host.accounts.create(host.request())
    return Principal(PrincipalKind.SESSION, did=view.did, aid=1, scope=scope)


# Minting


async def test_minted_token_is_one_that_a_verifier_accepts(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    """XRPC-40, XRPC-45: 60 seconds, signed with the account's key."""
    principal = await sign_up(host)
    assert principal.did is not None
    aud = f"{AUD}#bsky_appview"
    for token in (
        await tokens.mint(principal.did, aud=aud, lxm=FEED),
        await tokens.mint_for_client(principal, aud=aud, lxm=FEED, exp=None),
    ):
        parsed = parse_service_token(token)
        now_s = host.clock.now_us() // 1_000_000
        check_service_token(parsed, audiences={aud}, lxm=FEED, now_s=now_s)
        assert (parsed.iss, parsed.iat, parsed.exp) == (principal.did, now_s, now_s + 60)
        assert len(parsed.jti or "") == 32
        [(did_key,)] = await host.rows("SELECT did_key FROM signing_key")
        assert verify_service_signature(parsed, parse_did_key(did_key))


@pytest.mark.parametrize(
    ("life_s", "lxm", "name"),
    [
        (-1, FEED, "BadExpiration"),
        (3601, FEED, "BadExpiration"),
        (3600, FEED, None),
        (0, FEED, None),
        (61, None, "BadExpiration"),
        (60, None, "InvalidRequest"),
    ],
)
async def test_expiry_asked_for_is_bounded(
    host: CreationHost, tokens: ServiceTokens, life_s: int, lxm: str | None, name: str | None
) -> None:
    """XRPC-45; and a token always names a method."""
    principal = await sign_up(host)
    exp = host.clock.now_us() // 1_000_000 + life_s
    call = tokens.mint_for_client(principal, aud=AUD, lxm=lxm, exp=exp)
    if name is None:
        assert parse_service_token(await call).exp == exp
    else:
        assert await refusal(call) == (name, 400)


@pytest.mark.parametrize(
    ("scope", "lxm", "name"),
    [
        (Scope.ACCESS, "com.atproto.server.updateEmail", "InvalidRequest"),
        (Scope.ACCESS, "com.atproto.Server.UPDATEEMAIL", "InvalidRequest"),
        (Scope.ACCESS, "com.atproto.identity.signPlcOperation", "InvalidRequest"),
        (Scope.ACCESS, "chat.bsky.convo.getLog", None),
        (Scope.ACCESS, CREATE, None),
        (Scope.APP_PASS_PRIVILEGED, "chat.bsky.convo.getLog", None),
        (Scope.APP_PASS, "chat.bsky.convo.getLog", "InvalidRequest"),
        (Scope.APP_PASS, "Chat.Bsky.convo.somethingNew", "InvalidRequest"),
        (Scope.APP_PASS, CREATE, "InvalidRequest"),
        (Scope.APP_PASS, FEED, None),
        (Scope.APP_PASS, None, "InvalidRequest"),
        (Scope.TAKENDOWN, CREATE, None),
        (Scope.TAKENDOWN, FEED, "InvalidToken"),
        (Scope.TAKENDOWN, None, "InvalidToken"),
    ],
)
async def test_who_may_have_a_token_for_what(
    host: CreationHost, tokens: ServiceTokens, scope: Scope, lxm: str | None, name: str | None
) -> None:
    """XRPC-45, XRPC-62, XRPC-63, ACC-45."""
    principal = await sign_up(host, scope)
    call = tokens.mint_for_client(principal, aud=AUD, lxm=lxm, exp=None)
    if name is None:
        assert parse_service_token(await call).lxm == lxm
    else:
        assert await refusal(call) == (name, 400)


@pytest.mark.parametrize(
    ("aud", "accepted"),
    [
        (AUD, True),
        (f"{AUD}#bsky_appview", True),
        ("did:plc:" + "a" * 24, True),
        ("did:web:localhost%3A80", False),
        ("did:example:x", False),
        ("did:web:host.example.com:path", False),
        (f"{AUD}#", False),
        (f"{AUD}#a#b", False),
        (f"{AUD}#a b", False),
        ("https://api.example.com", False),
        ("", False),
        (f"{AUD}#{'x' * 2048}", False),
    ],
)
async def test_audience_is_a_did_or_a_service_of_one(
    host: CreationHost, tokens: ServiceTokens, aud: str, accepted: bool
) -> None:
    """XRPC-45."""
    principal = await sign_up(host)
    call = tokens.mint_for_client(principal, aud=aud, lxm=FEED, exp=None)
    if accepted:
        assert parse_service_token(await call).aud == aud
    else:
        assert await refusal(call) == ("InvalidRequest", 400)


async def test_nothing_is_minted_for_strangers(tokens: ServiceTokens) -> None:
    assert await refusal(tokens.mint(MOVER, aud=AUD, lxm=FEED)) == ("AccountNotFound", 403)


# Accepting


def publish(host: CreationHost, signer: Signer | None, did: Did = MOVER) -> None:
    methods = []
    if signer is not None:
        methods = [
            {
                "id": "#atproto",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": signer.public_key.multibase,
            }
        ]
    host.resolver.documents[did] = {"id": did, "verificationMethod": methods}


def foreign(host: CreationHost, signer: Signer = KEY, **changes: Any) -> str:
    now_s = host.clock.now_us() // 1_000_000
    fields = {
        "iss": MOVER,
        "aud": SERVICE_DID,
        "lxm": Nsid(CREATE),
        "iat": now_s,
        "exp": now_s + 60,
        "jti": "one",
        **changes,
    }
    return sign_service_token(signer, **fields)


@pytest.mark.parametrize("aud", [SERVICE_DID, f"{SERVICE_DID}#atproto_pds"])
async def test_token_of_a_stranger_opens_account_creation(
    host: CreationHost, tokens: ServiceTokens, aud: str
) -> None:
    """ACC-20, XRPC-41."""
    publish(host, KEY)
    principal = await tokens.authenticate(foreign(host, aud=aud), lxm=CREATE)
    assert (principal.kind, principal.did, principal.aid, principal.lxm) == (
        PrincipalKind.SERVICE,
        MOVER,
        None,
        CREATE,
    )
    assert not principal.is_full


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"aud": AUD}, "BadJwtAudience"),
        ({"aud": f"{SERVICE_DID}#other"}, "BadJwtAudience"),
        ({"lxm": Nsid(UPLOAD)}, "BadJwtLexiconMethod"),
        ({"lxm": None}, "BadJwtLexiconMethod"),
        ({"exp": 1}, "JwtExpired"),
        ({"exp": 1_760_010_000}, "BadJwt"),
        ({"iat": 1_760_000_090, "exp": 1_760_000_100}, "BadJwt"),
        ({"signer": OTHER_KEY}, "BadJwtSignature"),
        ({"iss": Did("did:web:unknown.example.com")}, "BadJwtIss"),
    ],
)
async def test_wrong_tokens_are_refused_by_name(
    host: CreationHost, tokens: ServiceTokens, changes: dict[str, Any], name: str
) -> None:
    """XRPC-43, XRPC-44."""
    publish(host, KEY)
    assert await refusal(tokens.authenticate(foreign(host, **changes), lxm=CREATE)) == (name, 401)
    await tokens.authenticate(foreign(host), lxm=CREATE)


@pytest.mark.parametrize("token", ["", "x", "a.b.c"])
async def test_garbage_is_refused(tokens: ServiceTokens, token: str) -> None:
    assert await refusal(tokens.authenticate(token, lxm=CREATE)) == ("BadJwt", 401)
    assert not tokens.is_service_token(token)


async def test_changed_key_is_found_by_one_fresh_look(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    """(ACC-60, XRPC-43)"""
    real = host.resolver.resolve_did
    publish(host, OTHER_KEY)

    async def resolve_stale(did: Did, *, refresh: bool = False) -> Any:
        if refresh:
            publish(host, KEY)
        return await real(did, refresh=refresh)

    host.resolver.resolve_did = resolve_stale  # type: ignore[method-assign]
    await tokens.authenticate(foreign(host), lxm=CREATE)
    assert host.resolver.refreshed == [MOVER]


async def test_issuer_without_key_is_refused(host: CreationHost, tokens: ServiceTokens) -> None:
    publish(host, None)
    assert await refusal(tokens.authenticate(foreign(host), lxm=CREATE)) == ("BadJwtIss", 401)


async def test_key_that_cannot_be_found_out_is_not_a_no(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    async def unreachable(did: Did, *, refresh: bool = False) -> Any:
        raise Unreachable("no network")

    host.resolver.resolve_did = unreachable  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        await tokens.authenticate(foreign(host), lxm=CREATE)


@pytest.mark.parametrize(("nbf_s", "is_good"), [(0, True), (50, True), (61, False), (True, False)])
async def test_a_token_may_say_from_when_on_it_counts(
    host: CreationHost, tokens: ServiceTokens, nbf_s: int, is_good: bool
) -> None:
    """Promise C5: nbf is checked, with a minute for the issuer's clock."""
    publish(host, KEY)
    now_s = host.clock.now_us() // 1_000_000
    nbf = nbf_s if nbf_s is True else now_s + nbf_s
    header = {"typ": "JWT", "alg": KEY.public_key.jwt_alg}
    claims = {"iss": MOVER, "aud": SERVICE_DID, "lxm": CREATE, "exp": now_s + 60, "nbf": nbf}
    signing_input = f"{encode_segment(header)}.{encode_segment(claims)}"
    signature = encode_base64url(KEY.sign(signing_input.encode()))
    outcome = tokens.authenticate(f"{signing_input}.{signature}", lxm=CREATE)
    if is_good:
        assert (await outcome).did == MOVER
    else:
        assert await refusal(outcome) == ("BadJwt", 401)


async def test_long_ids_take_no_more_memory_than_short_ones(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    """Anybody with a DID can show us tokens whose ids are as long as they like."""
    publish(host, KEY)
    await tokens.authenticate(foreign(host, jti="x" * 2000), lxm=CREATE)
    assert sum(len(used) for used in tokens._used) == 32


async def test_token_works_once(host: CreationHost, tokens: ServiceTokens) -> None:
    """XRPC-44: also without jti; a refused token is not used up."""
    publish(host, KEY)
    for jti in ("one", "two"):
        token = foreign(host, jti=jti)
        tampered = token[:-8] + "A" * 8
        assert (await refusal(tokens.authenticate(tampered, lxm=CREATE)))[1] == 401
        await tokens.authenticate(token, lxm=CREATE)
        assert await refusal(tokens.authenticate(token, lxm=CREATE)) == ("BadJwt", 401)


async def test_only_creation_is_open_to_dids_without_account(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    publish(host, KEY)
    token = foreign(host, lxm=Nsid(UPLOAD))
    assert await refusal(tokens.authenticate(token, lxm=UPLOAD)) == ("AccountNotFound", 403)


async def test_own_account_uploads_with_its_own_token_unless_taken_down(
    host: CreationHost, tokens: ServiceTokens
) -> None:
    """XRPC-20: the video service's way."""
    principal = await sign_up(host)
    assert principal.did is not None
    token = await tokens.mint(principal.did, aud=SERVICE_DID, lxm=UPLOAD)
    assert tokens.is_service_token(token)
    uploader = await tokens.authenticate(token, lxm=UPLOAD)
    assert (uploader.did, uploader.aid) == (principal.did, 1)

    def take_down(txn: Any) -> None:
        update_takedown(txn, 1, "ref")
        host.cache.forget_after(txn, 1)

    await host.engine.transact("test", take_down)
    token = await tokens.mint(principal.did, aud=SERVICE_DID, lxm=UPLOAD)
    assert await refusal(tokens.authenticate(token, lxm=UPLOAD)) == ("AccountTakedown", 401)
