"""The identity methods over HTTP, with the shipped schemas on input and output (ID-13, ID-15)."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from pds.errors import RequestError, Unreachable
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.plc import render_document
from pds.protocol.syntax import Did, Handle
from pds.services import Services
from pds.services.admin_auth import AdminAuth
from pds.services.identity import ResolvedIdentity
from pds.services.lexicons import load_catalog
from pds.services.limits import RequestLimits
from pds.xrpc.com_atproto_identity import routes
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.server import Call, XrpcServer
from tests.identity.people import make_person
from tests.xrpc.support_server import FakeServiceTokens, FakeSessions

ALICE = make_person("alice")


def alice_document() -> DidDocument:
    assert ALICE.genesis.state is not None
    return parse_did_document(render_document(ALICE.did, ALICE.genesis.state), ALICE.did)


class TableIdentity:
    """The service, with one person in the world."""

    async def resolve_handle(self, handle: Handle) -> Did:
        if handle == "down.example.com":
            raise Unreachable("down")
        if handle != ALICE.handle:
            raise RequestError("HandleNotFound", "Unable to resolve handle")
        return ALICE.did

    async def resolve_did(self, did: Did) -> DidDocument:
        if did != ALICE.did:
            raise RequestError("DidNotFound", "Unable to resolve DID")
        return alice_document()

    async def resolve_identity(self, identifier: Did | Handle) -> ResolvedIdentity:
        if identifier not in (ALICE.did, ALICE.handle):
            raise RequestError("DidDeactivated", "DID has been deactivated")
        return ResolvedIdentity(ALICE.did, ALICE.handle, alice_document())

    async def refresh_identity(self, text: str) -> ResolvedIdentity:
        return await self.resolve_identity(cast("Did", text))


@dataclass
class Client:
    url: str
    session: aiohttp.ClientSession

    async def get(self, method: str, **params: str) -> tuple[int, Any]:
        url = f"{self.url}/xrpc/com.atproto.identity.{method}"
        async with self.session.get(url, params=params) as answer:
            return answer.status, await answer.json()

    async def post(self, method: str, body: Any, token: str | None) -> tuple[int, Any]:
        url = f"{self.url}/xrpc/com.atproto.identity.{method}"
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self.session.post(url, data=json.dumps(body), headers=headers) as answer:
            return answer.status, await answer.json()


async def _no_fallback(_call: Call) -> None:
    raise RequestError("MethodNotImplemented", "no", 501)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    services = SimpleNamespace(
        catalog=load_catalog(),
        limits=RequestLimits(),
        sessions=FakeSessions(),
        service_tokens=FakeServiceTokens(),
        admin=AdminAuth("correct:horse"),
        identity=TableIdentity(),
    )
    server = XrpcServer(
        cast("Services", services),
        [routes],
        fallback=_no_fallback,
        observe=lambda _finished: None,
        check_outputs=True,
    )
    listener = Listener(server.handle, ListenerSettings())
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    tcp = await asyncio.get_running_loop().create_server(listener, sock=sock)
    async with aiohttp.ClientSession() as session:
        yield Client(f"http://127.0.0.1:{sock.getsockname()[1]}", session)
    tcp.close()
    await listener.shutdown(1)


async def test_handles_and_dids_are_answered_in_the_published_shape(client: Client) -> None:
    info = {"did": ALICE.did, "handle": ALICE.handle, "didDoc": dict(alice_document().source)}
    assert await client.get("resolveHandle", handle="Alice.Example.Com") == (
        200,
        {"did": ALICE.did},
    )
    assert await client.get("resolveDid", did=ALICE.did) == (200, {"didDoc": info["didDoc"]})
    for identifier in (ALICE.did, ALICE.handle):
        assert await client.get("resolveIdentity", identifier=identifier) == (200, info)
    body = {"identifier": ALICE.did}
    assert await client.post("refreshIdentity", body, "full") == (200, info)


async def test_refusals_have_the_published_names(client: Client) -> None:
    other = "did:plc:" + "a" * 24
    for method, params, status, name in (
        ("resolveHandle", {"handle": "bob.example.com"}, 400, "HandleNotFound"),
        ("resolveHandle", {"handle": "down.example.com"}, 502, "UpstreamFailure"),
        ("resolveHandle", {"handle": "no handle"}, 400, "InvalidRequest"),
        ("resolveHandle", {}, 400, "InvalidRequest"),
        ("resolveDid", {"did": other}, 400, "DidNotFound"),
        ("resolveDid", {"did": "alice.example.com"}, 400, "InvalidRequest"),
        ("resolveIdentity", {"identifier": other}, 400, "DidDeactivated"),
        ("resolveIdentity", {"identifier": "-"}, 400, "InvalidRequest"),
    ):
        found, body = await client.get(method, **params)
        assert (found, body["error"]) == (status, name), (method, params)


async def test_refreshing_needs_a_session(client: Client) -> None:
    status, body = await client.post("refreshIdentity", {"identifier": ALICE.did}, None)
    assert (status, body["error"]) == (401, "AuthMissing")
    status, body = await client.post("refreshIdentity", {}, "full")
    assert (status, body["error"]) == (400, "InvalidRequest")
