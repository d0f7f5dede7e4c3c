"""A server with made-up methods behind the real listener and the real dispatch."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from pds.errors import RequestError
from pds.protocol.lexicon.catalog import Catalog
from pds.services import Services
from pds.services.admin_auth import AdminAuth
from pds.services.limits import RateSettings, RequestLimits
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.rate_limits import RateLimits
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.rate_hook import RateHook
from pds.xrpc.server import Auth, Call, Finished, MethodTable, XrpcServer

RATE_TIME_S = 1_760_000_000.0
SESSIONS = {
    "full": Scope.ACCESS,
    "app": Scope.APP_PASS,
    "takendown": Scope.TAKENDOWN,
}


class FakeSessions:
    async def authenticate_access(self, token: str) -> Principal:
        if token == "expired":
            raise RequestError("ExpiredToken", "Token has expired")
        if token not in SESSIONS:
            raise RequestError("InvalidToken", "Token could not be verified")
        return Principal(
            PrincipalKind.SESSION, did=cast(Any, "did:web:alice.test"), scope=SESSIONS[token]
        )


class FakeServiceTokens:
    def is_service_token(self, token: str) -> bool:
        return token.startswith("service")

    async def authenticate(self, token: str, *, lxm: str) -> Principal:
        if token != f"service:{lxm}":
            raise RequestError("BadJwtLexiconMethod", "wrong method", 401)
        return Principal(PrincipalKind.SERVICE, did=cast(Any, "did:web:mover.test"), lxm=lxm)


def _method(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    return {"lexicon": 1, "id": f"test.method.{name}", "defs": {"main": {"type": kind, **parts}}}


def _json(**properties: Any) -> dict[str, Any]:
    return {
        "encoding": "application/json",
        "schema": {"type": "object", "required": list(properties), "properties": properties},
    }


DOCUMENTS = [
    _method(
        "query",
        "echo",
        parameters={
            "type": "params",
            "required": ["word"],
            "properties": {
                "word": {"type": "string", "maxLength": 10},
                "times": {"type": "integer", "default": 1, "maximum": 5},
                "loud": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        },
        output=_json(params={"type": "unknown"}),
    ),
    _method(
        "query", "fail", parameters={"type": "params", "properties": {"how": {"type": "string"}}}
    ),
    _method("query", "stream"),
    _method("query", "endless"),
    _method(
        "procedure",
        "take",
        input=_json(text={"type": "string"}),
        output=_json(text={"type": "string"}),
    ),
    _method(
        "procedure", "upload", input={"encoding": "*/*"}, output=_json(size={"type": "integer"})
    ),
    _method("procedure", "importCar", input={"encoding": "application/vnd.ipld.car"}),
    _method("procedure", "nothing"),
    _method("subscription", "watch"),
    *(_method("query", f"auth{auth.name.title().replace('_', '')}") for auth in Auth),
]

routes = MethodTable()


@routes.method("test.method.echo", auth=Auth.NONE)
async def echo(call: Call) -> Any:
    return {"params": call.params}


@routes.method("test.method.fail", auth=Auth.NONE)
async def fail(call: Call) -> Any:
    match call.params.get("how"):
        case "named":
            raise RequestError("RepoNotFound", "Could not find repo: did:web:x")
        case "surrogate":
            raise RequestError("InvalidRequest", "odd \ud800 text")
        case "http":
            raise web.HTTPNotFound
        case "output":
            return {"not": "declared"}
    raise RuntimeError("secret detail")


@routes.method("test.method.stream", auth=Auth.NONE)
async def stream(call: Call) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(call.request)
    await response.write(b"half")
    raise RuntimeError("broken in the middle")


@routes.method("test.method.endless", auth=Auth.NONE)
async def endless(call: Call) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(call.request)
    while True:
        await response.write(b"x" * 65536)
        await asyncio.sleep(0)


@routes.method("test.method.take", auth=Auth.NONE)
async def take(call: Call) -> Any:
    return call.input


@routes.method("test.method.upload", auth=Auth.SESSION_OR_SERVICE)
async def upload(call: Call) -> Any:
    assert call.body is not None
    size = 0
    async for chunk in call.body:
        size += len(chunk)
    return {"size": size}


@routes.method("test.method.importCar", auth=Auth.NONE)
async def import_car(call: Call) -> None:
    assert call.body is not None
    await call.body.read()


@routes.method("test.method.nothing", auth=Auth.NONE)
async def nothing(call: Call) -> None:
    return None


@routes.method("test.method.watch", auth=Auth.NONE)
async def watch(call: Call) -> web.StreamResponse:
    socket_response = web.WebSocketResponse()
    await socket_response.prepare(call.request)
    await socket_response.send_str("hello")
    await socket_response.close()
    return socket_response


async def _who(call: Call) -> Any:
    principal = call.principal
    return {
        "kind": principal.kind if principal else None,
        "did": principal.did if principal else None,
        "token": call.token,
    }


for _auth in Auth:
    routes.method(f"test.method.auth{_auth.name.title().replace('_', '')}", auth=_auth)(_who)


@dataclass
class RunningServer:
    port: int
    server: XrpcServer
    listener: Listener
    finished: list[Finished] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def raw(self, request: bytes, *, until_close: bool = True) -> bytes:
        """Send bytes and return everything that comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            if until_close:
                return await asyncio.wait_for(reader.read(), 60)
            return await asyncio.wait_for(reader.read(65536), 60)
        finally:
            writer.close()


async def _fallback(call: Call) -> Any:
    assert call.principal is not None
    return {"proxied": call.nsid, "did": call.principal.did}


@asynccontextmanager
async def running_server(
    *,
    limits: RequestLimits | None = None,
    check_outputs: bool = False,
    rates: RateSettings | None = None,
    **settings: Any,
) -> AsyncIterator[RunningServer]:
    """Serve the made-up methods on loopback until the block ends.

    With `rates` requests are counted, by a clock that stands at `RATE_TIME_S`.
    """
    rate_hook = RateHook(RateLimits(now_s=lambda: RATE_TIME_S), rates) if rates else None
    services = cast(
        Services,
        SimpleNamespace(
            catalog=Catalog.from_documents(DOCUMENTS),
            limits=limits or RequestLimits(blob_bytes=2_000_000),
            sessions=FakeSessions(),
            service_tokens=FakeServiceTokens(),
            admin=AdminAuth("correct:horse"),
        ),
    )
    finished: list[Finished] = []
    server = XrpcServer(
        services,
        [routes],
        fallback=_fallback,
        observe=finished.append,
        check_outputs=check_outputs,
        rate_hook=rate_hook,
    )
    listener = Listener(server.handle, ListenerSettings(**settings))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    tcp = await asyncio.get_running_loop().create_server(listener, sock=sock)
    try:
        yield RunningServer(sock.getsockname()[1], server, listener, finished)
    finally:
        tcp.close()
        await listener.shutdown(1)
