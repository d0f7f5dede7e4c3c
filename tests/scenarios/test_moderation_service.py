"""A moderation service acts under its own name: its key, this method, this server, once.

Spec: (XRPC-28, XRPC-42, XRPC-44)
"""

import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from pds.config import Config
from pds.protocol.diddoc import parse_did_document
from pds.protocol.keys import make_signer
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, sign_up
from tests.support_operator import ADMIN, REPO, Operator, refused

MODERATOR = Did("did:web:mod.example.com")
MODERATOR_SIGNER = make_signer("k256", b"\x33" * 32)
ACCOUNT_SIGNER = make_signer("k256", b"\x34" * 32)


@pytest.fixture
async def alice(client: Client) -> Person:
    return await sign_up(client, "alice.test")


async def test_the_moderation_service_does_what_it_may_under_its_own_name(tmp_path: Any) -> None:
    """XRPC-28, XRPC-42: the labeler's key, this method, this server; each token once."""

    def with_moderator(config: Config) -> Config:
        federation = replace(
            config.federation,
            mod_service_did=str(MODERATOR),
            mod_service_url="https://mod.example.com",
        )
        return replace(config, federation=federation)

    async with host_in(tmp_path, change=with_moderator) as host:
        operator, client = Operator(host), host.client
        alice = await sign_up(client, "alice.test")
        document = parse_did_document(
            {
                "id": MODERATOR,
                "verificationMethod": [
                    _method("#atproto", ACCOUNT_SIGNER),
                    _method("#atproto_label", MODERATOR_SIGNER),
                ],
            },
            MODERATOR,
        )
        _know(host, document)
        aud = host.server.config.service_did
        take_down = {
            "subject": {"$type": REPO, "did": alice.did},
            "takedown": {"applied": True, "ref": "42"},
        }

        async def act(token: str, method: str = "updateSubjectStatus", **body: Any) -> Any:
            return await client.with_token(token).post(ADMIN + method, body or take_down)

        good = _token(f"{MODERATOR}#atproto_labeler", aud, "updateSubjectStatus")
        await act(good)
        assert (await refused(act(good)))[0] == 401
        modern = _token(str(MODERATOR), aud, "updateSubjectStatus", kid="#atproto_label")
        await act(modern)
        acts = (await operator.order("audit.list", subject=alice.did))["acts"]
        assert {entry["actor"] for entry in acts} == {str(MODERATOR)}
        issuer = f"{MODERATOR}#atproto_labeler"
        for wrong, name in (
            (_token(issuer, aud, "getAccountInfo"), "BadJwtLexiconMethod"),
            (_token(issuer, "did:web:other.example.com", "updateSubjectStatus"), "BadJwtAudience"),
            (_token("did:web:other.example.com", aud, "updateSubjectStatus"), "UntrustedIss"),
            (
                _token(str(MODERATOR), aud, "updateSubjectStatus", signer=ACCOUNT_SIGNER),
                "BadJwtIss",
            ),
            (_token(issuer, aud, "updateSubjectStatus", signer=ACCOUNT_SIGNER), "BadJwtSignature"),
            (alice.client.token or "", "BadJwtType"),
        ):
            assert await refused(act(wrong)) == (401, name)
        for method in ("updateAccountEmail", "updateAccountPassword", "deleteAccount"):
            body = {
                "did": alice.did,
                "account": alice.did,
                "email": "a@b.cd",
                "password": "12345678",
            }
            token = _token(issuer, aud, method)
            assert (await refused(act(token, method, **body)))[0] == 401


async def test_without_a_moderation_service_no_token_is_one(host: Host, alice: Person) -> None:
    """XRPC-28: and an account of this host is no moderator either."""
    for token in (
        _token(f"{MODERATOR}#atproto_labeler", host.server.config.service_did, "getInviteCodes"),
        alice.client.token or "",
    ):
        asked = host.client.with_token(token).get(ADMIN + "getInviteCodes")
        assert await refused(asked) == (401, "UntrustedIss")
    for malformed in ("Bearer", "Bearer one two"):
        asked = host.client.call(
            "GET", ADMIN + "getInviteCodes", headers={"Authorization": malformed}
        )
        assert await refused(asked) == (400, "InvalidToken")
    assert await refused(host.client.get(ADMIN + "getInviteCodes")) == (
        401,
        "AuthenticationRequired",
    )


def _method(name: str, signer: Any) -> dict[str, str]:
    return {
        "id": f"{MODERATOR}{name}",
        "type": "Multikey",
        "controller": MODERATOR,
        "publicKeyMultibase": signer.public_key.did_key.removeprefix("did:key:"),
    }


def _know(host: Host, document: Any) -> None:
    """Let the server know a document as if it had resolved it."""
    resolver = host.server.services.service_tokens._resolver

    async def resolve_did(did: Did, *, refresh: bool = False) -> Any:
        return document if did == MODERATOR else await real(did, refresh=refresh)

    real = resolver.resolve_did
    resolver.resolve_did = resolve_did


_numbers = iter(range(10_000))


def _token(
    iss: str, aud: str, method: str, *, kid: str | None = None, signer: Any = MODERATOR_SIGNER
) -> str:
    now_s = int(time.time())
    jti = f"token {next(_numbers)}"
    if kid is None:
        return sign_service_token(
            signer,
            iss=Did(iss),
            aud=aud,
            lxm=Nsid(ADMIN + method),
            iat=now_s,
            exp=now_s + 60,
            jti=jti,
        )
    header = {"typ": "JWT", "alg": "ES256K", "kid": kid}
    claims = {"iss": iss, "aud": aud, "lxm": ADMIN + method, "exp": now_s + 60, "jti": jti}
    signing_input = ".".join(_segment(part) for part in (header, claims))
    signature = base64.urlsafe_b64encode(signer.sign(signing_input.encode())).rstrip(b"=").decode()
    return f"{signing_input}.{signature}"


def _segment(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
