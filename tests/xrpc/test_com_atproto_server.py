"""Accounts, sessions, preferences, service tokens and invites over HTTP, by the shipped schemas.

Real services behind the real listener and dispatch; answers are held against the schemas. Error
names and statuses are those that clients act on.
"""

import asyncio
import json
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from pds.errors import RequestError
from pds.protocol.keys import make_signer
from pds.protocol.service_auth import parse_service_token, sign_service_token
from pds.protocol.syntax import Did, Nsid
from pds.services import Services
from pds.services.admin_auth import AdminAuth
from pds.services.app_passwords import AppPasswords
from pds.services.invites import Invites
from pds.services.lexicons import load_catalog
from pds.services.limits import RequestLimits
from pds.services.preferences import Preferences
from pds.services.server_info import ServerInfo, ServerInfoSettings
from pds.services.service_tokens import ServiceTokens
from pds.store.accounts import update_deactivation, update_takedown
from pds.xrpc import app_bsky, com_atproto_server
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.server import Call, XrpcServer
from tests.fakes.plc import Mood
from tests.services.account_host import SERVICE_DID
from tests.services.creation_host import PASSWORD, PUBLIC_URL, CreationHost, creation_host

ADMIN = "Basic " + b64encode(b"admin:correct:horse").decode()
MOVER = Did("did:web:mover.example.com")
MOVER_SIGNER = make_signer("p256", b"\x21" * 32)
SIGN_UP = {"handle": "alice.pds.test", "email": "alice@mail.test", "password": PASSWORD}
ADULT = {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}


@dataclass
class Client:
    url: str
    session: aiohttp.ClientSession
    host: CreationHost

    async def call(
        self, method: str, body: Any = None, *, auth: str | None = None, post: bool = True
    ) -> tuple[int, Any]:
        """Call a method of com.atproto.server, or of another namespace by its full name."""
        nsid = method if method.partition("?")[0].count(".") > 1 else f"com.atproto.server.{method}"
        headers = {} if auth is None else {"Authorization": auth}
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body)
        verb = "POST" if post else "GET"
        url = f"{self.url}/xrpc/{nsid}"
        async with self.session.request(verb, url, data=data, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def get(self, method: str, auth: str | None = None) -> tuple[int, Any]:
        return await self.call(method, auth=auth, post=False)

    async def sign_up(self, **changes: Any) -> dict[str, Any]:
        status, answer = await self.call("createAccount", {**SIGN_UP, **changes})
        assert status == 200, answer
        return cast("dict[str, Any]", answer)


def bearer(token: str) -> str:
    return f"Bearer {token}"


def failure(answer: tuple[int, Any]) -> tuple[int, str]:
    assert set(answer[1]) == {"error", "message"}
    return answer[0], answer[1]["error"]


async def _no_fallback(_call: Call) -> None:
    raise RequestError("MethodNotImplemented", "no", 501)


def build_services(host: CreationHost) -> Services:
    engine = host.engine
    info = ServerInfoSettings(
        version="1",
        service_did=SERVICE_DID,
        hostname="pds.test",
        public_url=PUBLIC_URL,
        handle_domains=(".pds.test",),
        invite_required=False,
        blob_upload_limit=1000,
    )
    services = SimpleNamespace(
        catalog=load_catalog(),
        limits=RequestLimits(),
        proxy=SimpleNamespace(appview=None),
        accounts=host.accounts,
        sessions=host.sessions,
        app_passwords=AppPasswords(engine=engine, clock=host.clock, sessions=host.sessions),
        preferences=Preferences(engine=engine, wall=host.clock),
        invites=Invites(engine=engine, clock=host.clock, hostname="pds.test"),
        admin=AdminAuth("correct:horse"),
        server_info=ServerInfo(info),
        service_tokens=ServiceTokens(
            engine=engine,
            wall=host.clock,
            keystore=host.keystore,
            accounts=host.cache,
            resolver=host.resolver,
            service_did=SERVICE_DID,
        ),
    )
    return cast("Services", services)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with creation_host(tmp_path) as host:
        server = XrpcServer(
            build_services(host),
            [com_atproto_server.routes, app_bsky.routes],
            fallback=_no_fallback,
            observe=lambda _finished: None,
            check_outputs=True,
        )
        listener = Listener(server.handle, ListenerSettings())
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        tcp = await asyncio.get_running_loop().create_server(listener, sock=sock)
        try:
            async with aiohttp.ClientSession() as session:
                yield Client(f"http://127.0.0.1:{sock.getsockname()[1]}", session, host)
        finally:
            tcp.close()
            await listener.shutdown(1)


async def test_a_life_of_a_session(client: Client) -> None:
    """ACC-13, XRPC-23, XRPC-25."""
    created = await client.sign_up()
    assert set(created) == {"did", "handle", "didDoc", "accessJwt", "refreshJwt"}
    assert created["didDoc"]["id"] == created["did"]

    credentials = {"identifier": "alice.pds.test", "password": PASSWORD}
    status, opened = await client.call("createSession", credentials)
    assert status == 200
    account = {
        "did": created["did"],
        "handle": "alice.pds.test",
        "email": "alice@mail.test",
        "emailConfirmed": False,
        "active": True,
    }
    assert {name: opened[name] for name in account} == account
    assert await client.get("getSession", bearer(opened["accessJwt"])) == (200, account)

    status, renewed = await client.call("refreshSession", auth=bearer(opened["refreshJwt"]))
    assert status == 200
    assert {name: renewed[name] for name in account} == account

    answer = await client.call("deleteSession", auth=bearer(renewed["refreshJwt"]))
    assert answer == (200, None)
    ended = await client.get("getSession", bearer(renewed["accessJwt"]))
    assert failure(ended) == (400, "ExpiredToken")
    ended = await client.call("refreshSession", auth=bearer(renewed["refreshJwt"]))
    assert failure(ended) == (400, "ExpiredToken")
    assert (await client.get("getSession", bearer(created["accessJwt"])))[0] == 200


async def test_errors_of_sessions_have_the_names_that_clients_know(client: Client) -> None:
    """XRPC-24, XRPC-27."""
    created = await client.sign_up()
    wrong = {"identifier": "alice.pds.test", "password": "wrong password"}
    assert failure(await client.call("createSession", wrong)) == (401, "AuthenticationRequired")
    assert failure(await client.get("getSession")) == (401, "AuthMissing")
    assert failure(await client.call("refreshSession")) == (401, "AuthMissing")
    assert failure(await client.get("getSession", "Bearer x.y.z")) == (400, "InvalidToken")
    refresh = bearer(created["refreshJwt"])
    assert failure(await client.get("getSession", refresh)) == (400, "InvalidToken")
    access = bearer(created["accessJwt"])
    assert failure(await client.call("refreshSession", auth=access)) == (400, "InvalidToken")
    client.host.clock.advance(7200)
    assert failure(await client.get("getSession", access)) == (400, "ExpiredToken")


async def test_takedown_and_deactivation_show_in_the_session(client: Client) -> None:
    """SYNC-80, ACC-45."""
    created = await client.sign_up()
    host = client.host

    def deactivate(txn: Any, at: int | None) -> None:
        update_deactivation(txn, 1, deactivated_at=at, delete_after=None)
        host.cache.forget_after(txn, 1)

    await host.engine.transact("test", deactivate, 5)
    _, shown = await client.get("getSession", bearer(created["accessJwt"]))
    assert (shown["active"], shown["status"]) == (False, "deactivated")

    def take_down(txn: Any) -> None:
        update_takedown(txn, 1, "ref")
        host.cache.forget_after(txn, 1)

    await host.engine.transact("test", take_down)
    credentials: dict[str, Any] = {"identifier": "alice.pds.test", "password": PASSWORD}
    refused = await client.call("createSession", credentials)
    assert failure(refused) == (401, "AccountTakedown")
    status, narrow = await client.call("createSession", {**credentials, "allowTakendown": True})
    assert (status, narrow["active"], narrow["status"]) == (200, False, "takendown")
    token = bearer(narrow["accessJwt"])
    assert failure(await client.get("getSession", token)) == (401, "AccountTakedown")
    assert (await client.get("app.bsky.actor.getPreferences", token))[0] == 200
    put = await client.call("app.bsky.actor.putPreferences", {"preferences": []}, auth=token)
    assert failure(put) == (401, "AccountTakedown")
    aud = "getServiceAuth?aud=did:web:new.example.com&lxm="
    assert (await client.get(f"{aud}com.atproto.server.createAccount", token))[0] == 200
    refused = await client.get(f"{aud}app.bsky.feed.getTimeline", token)
    assert failure(refused) == (400, "InvalidToken")


@pytest.mark.parametrize(
    ("changes", "status", "name"),
    [
        ({"handle": "not a handle"}, 400, "InvalidRequest"),
        ({"handle": "ab.pds.test"}, 400, "InvalidHandle"),
        ({"handle": "admin.pds.test"}, 400, "HandleNotAvailable"),
        ({"handle": "alice.example.com"}, 400, "UnsupportedDomain"),
        ({"password": "short"}, 400, "InvalidPassword"),
        ({"email": "nonsense"}, 400, "InvalidRequest"),
        ({"plcOp": {"type": "plc_operation"}}, 400, "InvalidRequest"),
        ({"did": MOVER}, 401, "AuthenticationRequired"),
        ({"did": "nonsense"}, 400, "InvalidRequest"),
    ],
)
async def test_refused_sign_ups_change_nothing(
    client: Client, changes: dict[str, Any], status: int, name: str
) -> None:
    """ACC-10, ACC-20, ID-20."""
    answer = await client.call("createAccount", {**SIGN_UP, **changes})
    assert failure(answer) == (status, name)
    assert await client.host.count("account") == 0
    assert client.host.live_dids() == []


async def test_silent_directory_is_an_upstream_failure(client: Client) -> None:
    client.host.plc.mood = Mood.DOWN
    answer = await client.call("createAccount", SIGN_UP)
    assert failure(answer) == (502, "UpstreamFailure")


async def test_account_moves_in_with_a_service_token(client: Client) -> None:
    """ACC-20, ACC-21, ACC-24."""
    client.host.resolver.documents[MOVER] = {
        "id": MOVER,
        "verificationMethod": [
            {
                "id": "#atproto",
                "type": "Multikey",
                "controller": MOVER,
                "publicKeyMultibase": MOVER_SIGNER.public_key.multibase,
            }
        ],
    }

    def token(jti: str, lxm: str = "com.atproto.server.createAccount") -> str:
        now_s = client.host.clock.now_us() // 1_000_000
        signed = sign_service_token(
            MOVER_SIGNER,
            iss=MOVER,
            aud=SERVICE_DID,
            lxm=Nsid(lxm),
            iat=now_s,
            exp=now_s + 60,
            jti=jti,
        )
        return bearer(signed)

    body = {**SIGN_UP, "did": MOVER}
    answer = await client.call(
        "createAccount", body, auth=token("0", "com.atproto.repo.uploadBlob")
    )
    assert failure(answer) == (401, "BadJwtLexiconMethod")
    for jti in ("1", "2"):
        status, moved = await client.call("createAccount", body, auth=token(jti))
        assert (status, moved["did"]) == (200, MOVER)
        _, shown = await client.get("getSession", bearer(moved["accessJwt"]))
        assert (shown["active"], shown["status"]) == (False, "deactivated")
    assert await client.host.count("account") == 1
    assert await client.host.count("event") == 0


async def test_service_tokens_are_minted(client: Client) -> None:
    """XRPC-45."""
    created = await client.sign_up()
    auth = bearer(created["accessJwt"])
    method = "getServiceAuth?aud=did:web:api.example.com%23x&lxm=app.bsky.feed.getTimeline"
    status, answer = await client.get(method, auth)
    assert status == 200
    parsed = parse_service_token(answer["token"])
    assert (parsed.iss, parsed.aud, parsed.lxm) == (
        created["did"],
        "did:web:api.example.com#x",
        "app.bsky.feed.getTimeline",
    )
    assert failure(await client.get(f"{method}&exp=1", auth)) == (400, "BadExpiration")
    assert failure(await client.get(method)) == (401, "AuthMissing")


async def test_app_passwords_come_and_go(client: Client) -> None:
    """ACC-33, ACC-34: and cannot make or see others."""
    created = await client.sign_up()
    full = bearer(created["accessJwt"])
    status, made = await client.call("createAppPassword", {"name": "phone"}, auth=full)
    assert (status, made["name"], made["privileged"]) == (200, "phone", False)
    _, opened = await client.call(
        "createSession", {"identifier": created["did"], "password": made["password"]}
    )
    app = bearer(opened["accessJwt"])
    assert (await client.get("getSession", app))[0] == 200
    for answer in (
        await client.call("createAppPassword", {"name": "other"}, auth=app),
        await client.get("listAppPasswords", app),
        await client.call("revokeAppPassword", {"name": "phone"}, auth=app),
    ):
        assert failure(answer) == (400, "InvalidToken")
    _, listed = await client.get("listAppPasswords", full)
    assert listed == {
        "passwords": [{"name": "phone", "createdAt": made["createdAt"], "privileged": False}]
    }
    assert (await client.call("revokeAppPassword", {"name": "phone"}, auth=full))[0] == 200
    assert failure(await client.get("getSession", app)) == (400, "ExpiredToken")
    assert (await client.get("getSession", full))[0] == 200


async def test_preferences_are_kept(client: Client) -> None:
    created = await client.sign_up()
    auth = bearer(created["accessJwt"])
    method = "app.bsky.actor.putPreferences"
    assert await client.call(method, {"preferences": [ADULT]}, auth=auth) == (200, None)
    shown = await client.get("app.bsky.actor.getPreferences", auth)
    assert shown == (200, {"preferences": [ADULT]})
    answer = await client.call(method, {"preferences": [{"enabled": True}]}, auth=auth)
    assert failure(answer) == (400, "InvalidRequest")
    assert failure(await client.get("app.bsky.actor.getPreferences")) == (401, "AuthMissing")


async def test_invite_codes_are_the_operators_business(client: Client) -> None:
    """ACC-26, XRPC-28."""
    created = await client.sign_up()
    refused = await client.call("createInviteCode", {"useCount": 1})
    assert failure(refused) == (401, "AuthenticationRequired")
    user = bearer(created["accessJwt"])
    assert (await client.call("createInviteCode", {"useCount": 1}, auth=user))[0] == 401
    status, made = await client.call("createInviteCode", {"useCount": 1}, auth=ADMIN)
    assert status == 200
    assert made["code"].startswith("pds-test-")
    body = {"codeCount": 2, "useCount": 1, "forAccounts": [created["did"]]}
    status, several = await client.call("createInviteCodes", body, auth=ADMIN)
    assert (status, several["codes"][0]["account"]) == (200, created["did"])
    assert len(several["codes"][0]["codes"]) == 2


async def test_server_describes_itself(client: Client) -> None:
    status, answer = await client.get("describeServer")
    assert status == 200
    assert answer["did"] == SERVICE_DID
    assert answer["availableUserDomains"] == [".pds.test"]
    assert answer["inviteCodeRequired"] is False
