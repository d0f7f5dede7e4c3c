"""Accounts that rest, return, leave and move in, over real HTTP, with a strict relay listening.

Spec: (ACC-5, ACC-15, ACC-20, ACC-21, ACC-40, ACC-46, ACC-47, ACC-51, ACC-58, ID-70, SYNC-42)
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pds.protocol.diddoc import render_web_document
from pds.protocol.keys import PublicKey, make_signer, parse_did_key
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from tests.fakes.relay_server import FakeRelay, running_relay
from tests.fakes.web import FakeWeb, running_web
from tests.scenarios.conftest import Host
from tests.support_client import Client, Person, XrpcError, sign_up

SERVER = "com.atproto.server."
MOVER_SIGNER = make_signer("p256", b"\x41" * 32)


@asynccontextmanager
async def following(host: Host) -> AsyncIterator[FakeRelay]:
    hostname = host.server.config.netloc
    plc_url = host.server.config.identity.plc_url
    async with running_relay(plc_url, {hostname: host.url}) as relay:
        relay.follow(hostname)
        async with asyncio.timeout(60):
            while host.server.services.firehose.reader_count == 0:
                await asyncio.sleep(0.005)
        yield relay


async def refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(XrpcError) as caught:
        await call
    return caught.value.status, caught.value.name


async def status_of(client: Client, did: str) -> Any:
    return await client.get("com.atproto.sync.getRepoStatus", did=did)


async def mailed_code(host: Host, person: Person) -> str:
    """Ask for a code to delete the account, and read it in the mailbox."""
    await person.client.post(SERVER + "requestAccountDelete")
    async with asyncio.timeout(60):
        while True:
            for received in reversed(host.mailbox.received()):
                found = re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", received.mail.text)
                if found:
                    return found.group()
            await asyncio.sleep(0.005)


async def test_an_account_rests_and_returns_and_the_relay_agrees(host: Host) -> None:
    async with following(host) as relay:
        alice = await sign_up(host.client, "alice.test")
        await alice.post("hello")
        await alice.client.post(SERVER + "deactivateAccount", {})
        assert await status_of(host.client, alice.did) == {
            "did": alice.did,
            "active": False,
            "status": "deactivated",
        }
        assert (await alice.client.get(SERVER + "getSession"))["status"] == "deactivated"
        assert await refusal(alice.post("resting")) == (401, "AccountDeactivated")
        record = host.client.get(
            "com.atproto.repo.listRecords", repo=alice.did, collection="app.bsky.feed.post"
        )
        assert await refusal(record) == (400, "RepoDeactivated")
        await alice.client.get("com.atproto.sync.getRepo", did=alice.did)
        report = await alice.client.get(SERVER + "checkAccountStatus")
        assert (report["activated"], report["validDid"], report["indexedRecords"]) == (
            False,
            True,
            1,
        )
        await alice.client.post(SERVER + "activateAccount")
        await alice.post("back")
        passed = await relay.wait_for(4 + 1 + 1 + 3 + 1)
        assert [kind for kind, _ in passed[5:]] == [
            "#account",
            "#account",
            "#identity",
            "#sync",
            "#commit",
        ]
        assert relay.rules is not None
        assert relay.rules.dropped == []
        report = await alice.client.get(SERVER + "checkAccountStatus")
        assert (report["activated"], report["validDid"]) == (True, True)
        assert report["repoRev"] == (await status_of(host.client, alice.did))["rev"]


async def test_a_deleted_account_is_unknown_at_once_and_its_name_is_free(host: Host) -> None:
    alice = await sign_up(host.client, "alice.test")
    await alice.post("hello")
    code = await mailed_code(host, alice)
    fields = {"did": alice.did, "password": alice.password, "token": code}
    wrong = {**fields, "password": "wrong password"}
    assert await refusal(host.client.post(SERVER + "deleteAccount", wrong)) == (
        401,
        "AuthenticationRequired",
    )
    await host.client.post(SERVER + "deleteAccount", fields)
    assert await refusal(alice.client.get(SERVER + "getSession")) == (403, "AccountNotFound")
    refresh = alice.client.with_token(alice.refresh_token).post(SERVER + "refreshSession")
    assert await refusal(refresh) == (400, "ExpiredToken")
    assert await refusal(status_of(host.client, alice.did)) == (400, "RepoNotFound")
    repo = host.client.get("com.atproto.sync.getRepo", did=alice.did)
    assert await refusal(repo) == (400, "RepoNotFound")
    assert await refusal(host.client.post(SERVER + "deleteAccount", fields)) == (
        401,
        "AuthenticationRequired",
    )
    again = await sign_up(host.client, "alice.test")
    assert again.did != alice.did
    found = await host.client.get("com.atproto.identity.resolveHandle", handle="alice.test")
    assert found["did"] == again.did


async def test_app_passwords_move_nothing(host: Host) -> None:
    """ACC-34, promise D2."""
    alice = await sign_up(host.client, "alice.test")
    made = await alice.client.post(SERVER + "createAppPassword", name="phone", privileged=True)
    session = await host.client.post(
        SERVER + "createSession", identifier="alice.test", password=made["password"]
    )
    phone = host.client.with_token(session["accessJwt"])
    for method in ("activateAccount", "deactivateAccount", "requestAccountDelete"):
        body = {} if method == "deactivateAccount" else None
        assert await refusal(phone.post(SERVER + method, body)) == (400, "InvalidToken")
    assert (await phone.get(SERVER + "checkAccountStatus"))["activated"] is True


# did:web


@dataclass
class WebIdentity:
    """A did:web whose document somebody publishes on loopback."""

    web: FakeWeb
    did: Did

    def publish(self, key: PublicKey, endpoint: str) -> None:
        document = render_web_document(
            self.did,
            services={"atproto_pds": ("AtprotoPersonalDataServer", endpoint)},
            keys={"atproto": key},
            also_known_as=("at://mover.test",),
        )
        content = json.dumps(document).encode()
        self.web.set_page("localhost", "/.well-known/did.json", content)

    def token(self, host: Host, **claims: Any) -> str:
        now_s = int(time.time())
        fields: dict[str, Any] = {
            "iss": self.did,
            "aud": host.server.config.service_did,
            "lxm": Nsid(SERVER + "createAccount"),
            "iat": now_s,
            "exp": now_s + 60,
            "jti": f"mover-{time.monotonic_ns()}",
        }
        return sign_service_token(MOVER_SIGNER, **{**fields, **claims})

    async def move_in(self, host: Host, token: str | None) -> Any:
        return await host.client.with_token(token).post(
            SERVER + "createAccount",
            handle="mover.test",
            did=self.did,
            email="mover@example.test",
            password="mover-password",
        )


@pytest.fixture
async def mover() -> AsyncIterator[WebIdentity]:
    async with running_web() as web:
        identity = WebIdentity(web, Did(f"did:web:localhost%3A{web.port}"))
        identity.publish(MOVER_SIGNER.public_key, "https://old.example")
        yield identity


async def test_a_did_web_account_from_reserved_key_to_first_post(
    host: Host, mover: WebIdentity
) -> None:
    """ACC-15, ACC-20, ACC-21, ACC-58: its owner publishes what this host cannot."""
    reserved = await host.client.post(SERVER + "reserveSigningKey", did=mover.did)
    again = await host.client.post(SERVER + "reserveSigningKey", did=mover.did)
    assert again == reserved
    assert await refusal(mover.move_in(host, None)) == (401, "AuthenticationRequired")
    other = mover.token(host, lxm=Nsid(SERVER + "getSession"))
    assert (await refusal(mover.move_in(host, other)))[0] == 401
    session = await mover.move_in(host, mover.token(host))
    assert (session["did"], session["handle"]) == (mover.did, "mover.test")
    client = host.client.with_token(session["accessJwt"])
    report = await client.get(SERVER + "checkAccountStatus")
    assert (report["activated"], report["validDid"]) == (False, False)
    activate = client.post(SERVER + "activateAccount")
    assert await refusal(activate) == (400, "InvalidRequest")
    ours = parse_did_key(reserved["signingKey"])
    mover.publish(ours, "https://old.example")
    assert await refusal(client.post(SERVER + "activateAccount")) == (400, "InvalidRequest")
    mover.publish(ours, host.server.config.public_url)
    report = await client.get(SERVER + "checkAccountStatus")
    assert (report["activated"], report["validDid"]) == (False, True)
    seq = host.server.engine.last_seq
    await client.post(SERVER + "activateAccount")
    assert host.server.engine.last_seq > seq
    person = Person(mover.did, "mover.test", "mover-password", session["refreshJwt"], client)
    await person.post("moved in")
    assert (await status_of(host.client, mover.did))["active"] is True
    fresh = await host.client.post(SERVER + "reserveSigningKey", did=mover.did)
    assert fresh != reserved


async def test_a_did_plc_account_that_comes_back_after_its_deletion(host: Host) -> None:
    """ACC-20, ACC-46: the DID is not ended with the account; who holds its key may bring it."""
    alice = await sign_up(host.client, "alice.test")
    signer = make_signer("k256", b"\x42" * 32)
    code = await mailed_code(host, alice)
    await host.client.post(
        SERVER + "deleteAccount", did=alice.did, password=alice.password, token=code
    )
    token = sign_service_token(
        signer,
        iss=Did(alice.did),
        aud=host.server.config.service_did,
        lxm=Nsid(SERVER + "createAccount"),
        iat=int(time.time()),
        exp=int(time.time()) + 60,
        jti="not-the-key-of-the-document",
    )
    back = host.client.with_token(token).post(
        SERVER + "createAccount",
        handle="alice.test",
        did=alice.did,
        email="alice@example.test",
        password="alice-password",
    )
    assert (await refusal(back))[0] == 401
    assert await refusal(status_of(host.client, alice.did)) == (400, "RepoNotFound")


async def test_a_reserved_key_without_a_did_is_new_each_time(host: Host) -> None:
    """ACC-15."""
    made = [await host.client.post(SERVER + "reserveSigningKey", {}) for _ in range(2)]
    keys = {parse_did_key(answer["signingKey"]).did_key for answer in made}
    assert len(keys) == 2
