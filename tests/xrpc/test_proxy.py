"""The service proxy over real sockets: streams both ways, limits, and what breaks in between.

Spec: XRPC-60, XRPC-66, XRPC-67, XRPC-69.
"""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from pds.net.http import HttpSettings, TrustedClient
from pds.services import Services
from pds.services.limits import RequestLimits
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.proxy import Proxy, ProxySettings, ServiceAddress
from pds.store.accounts import AccountStatus
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.proxy import proxy_call
from pds.xrpc.server import Finished, XrpcServer
from tests.services.test_proxy import ALICE, FakeDocuments, FakeTokens

NSID = "com.example.method"
AUTH = {"Authorization": "Bearer token"}
LIMIT = 1_000_000


class Upstream:
    """An AppView on loopback that does what the test says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.mood = "echo"
        self.was_left = False
        self.release = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = b""
        if self.mood != "deaf":
            body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.path_qs, headers, body))
        match self.mood:
            case "silent":
                await self.release.wait()
            case "trickle" | "break":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"first")
                if self.mood == "break":
                    assert request.transport is not None
                    request.transport.abort()
                await self.release.wait()
                await response.write(b"second")
                return response
            case "large":
                return web.Response(body=b"x" * (LIMIT + 1))
            case "endless":
                response = web.StreamResponse()
                await response.prepare(request)
                try:
                    while True:
                        await response.write(b"x" * 10_000)
                except ConnectionError:
                    self.was_left = True
                    return response
            case "gzip":
                packed = gzip.compress(b'{"a":1}')
                headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
                return web.Response(body=packed, headers=headers)
            case "gzip error":
                packed = gzip.compress(b'{"error":"Nope","message":"no"}')
                return web.Response(status=400, body=packed, headers={"Content-Encoding": "gzip"})
            case "fail":
                return web.Response(status=500, text="trace of a secret")
        return web.json_response({"echo": body.decode()}, headers={"Atproto-Repo-Rev": "rev"})


class FakeSessions:
    async def authenticate_access(self, _token: str) -> Principal:
        return Principal(
            PrincipalKind.SESSION, did=ALICE, scope=Scope.ACCESS, status=AccountStatus.ACTIVE
        )


class Host:
    def __init__(self, url: str, upstream: Upstream, finished: list[Finished]) -> None:
        self.url = url
        self.upstream = upstream
        self.finished = finished

    @property
    def method(self) -> str:
        return f"{self.url}/xrpc/{NSID}"


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    app = web.Server(upstream.handle)  # type: ignore[arg-type]
    above = await loop.create_server(app, "127.0.0.1", 0)
    above_url = f"http://127.0.0.1:{above.sockets[0].getsockname()[1]}"
    http = TrustedClient(
        HttpSettings.trusted(user_agent="test", allow_private=True, idle_timeout_s=2.0)
    )
    proxy = Proxy(
        trusted=http,
        guarded=http,
        documents=FakeDocuments(),
        tokens=FakeTokens(),
        settings=ProxySettings(
            appview=ServiceAddress("did:web:appview.example", above_url),
            headers_timeout_s=0.5,
            max_answer_bytes=LIMIT,
            max_request_bytes=LIMIT,
        ),
    )
    services = SimpleNamespace(
        catalog=None, limits=RequestLimits(body_idle_s=0.5), sessions=FakeSessions(), proxy=proxy
    )
    finished: list[Finished] = []
    server = XrpcServer(cast(Services, services), [], fallback=proxy_call, observe=finished.append)
    listener = Listener(server.handle, ListenerSettings())
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    tcp = await loop.create_server(listener, sock=sock)
    yield Host(f"http://127.0.0.1:{sock.getsockname()[1]}", upstream, finished)
    upstream.release.set()
    tcp.close()
    await listener.shutdown(0.2)
    await http.close()
    above.close()
    await app.shutdown(0.2)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=AUTH, auto_decompress=False) as session:
        yield session


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, Any]:
    return answer.status, (await answer.json())["error"]


async def test_a_query_goes_up_unchanged_and_comes_back(
    host: Host, client: aiohttp.ClientSession
) -> None:
    url = f"{host.method}?a=1&b=%2Fx%20y&b=2&empty="
    from yarl import URL

    async with client.get(URL(url, encoded=True)) as answer:
        assert answer.status == 200
        assert await answer.json() == {"echo": ""}
        assert answer.headers["atproto-repo-rev"] == "rev"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "private" in answer.headers["Cache-Control"]
    method, path, headers, _body = host.upstream.requests[0]
    assert (method, path) == ("GET", f"/xrpc/{NSID}?a=1&b=%2Fx%20y&b=2&empty=")
    assert headers["authorization"] == f"Bearer {ALICE}|did:web:appview.example|{NSID}"
    assert "content-type" not in headers


async def test_headers_that_are_repeated_are_joined(
    host: Host, client: aiohttp.ClientSession
) -> None:
    labelers = [("Atproto-Accept-Labelers", f"did:web:l{place}") for place in range(2)]
    async with client.get(host.method, headers=labelers) as answer:
        assert answer.status == 200
    sent = host.upstream.requests[0][2]
    assert sent["atproto-accept-labelers"] == "did:web:l0, did:web:l1"


async def test_bodies_are_passed_on_with_and_without_a_length(
    host: Host, client: aiohttp.ClientSession
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"abcd"

    for data in (b"abcd" * 5, chunks()):
        async with client.post(host.method, data=data) as answer:
            assert await answer.json() == {"echo": "abcd" * 5}
    with_length, without = (headers for _m, _p, headers, _b in host.upstream.requests)
    assert with_length["content-length"] == "20"
    assert "content-length" not in without
    async with client.post(host.method) as answer:
        assert await answer.json() == {"echo": ""}


async def test_head_is_passed_on(host: Host, client: aiohttp.ClientSession) -> None:
    async with client.head(host.method) as answer:
        assert answer.status == 200
        assert await answer.read() == b""
    assert host.upstream.requests[0][0] == "HEAD"


async def test_answers_are_streamed_not_collected(
    host: Host, client: aiohttp.ClientSession
) -> None:
    host.upstream.mood = "trickle"
    async with client.get(host.method) as answer:
        assert await asyncio.wait_for(answer.content.readany(), 60) == b"first"
        host.upstream.release.set()
        assert await answer.content.read() == b"second"


async def test_compressed_answers_come_through_as_they_are(
    host: Host, client: aiohttp.ClientSession
) -> None:
    host.upstream.mood = "gzip"
    async with client.get(host.method, headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await answer.read()) == b'{"a":1}'
    assert host.upstream.requests[0][2]["accept-encoding"] == "gzip"


async def test_compressed_errors_are_read_and_worded_anew(
    host: Host, client: aiohttp.ClientSession
) -> None:
    host.upstream.mood = "gzip error"
    async with client.get(host.method) as answer:
        assert "Content-Encoding" not in answer.headers
        assert await answer.json() == {"error": "Nope", "message": "no"}


async def test_a_fault_of_theirs_is_a_502_without_details(
    host: Host, client: aiohttp.ClientSession
) -> None:
    host.upstream.mood = "fail"
    async with client.get(host.method) as answer:
        assert answer.status == 502
        assert "secret" not in await answer.text()


@pytest.mark.parametrize("mood", ["silent", "large"])
async def test_silence_and_announced_excess_are_502(
    host: Host, client: aiohttp.ClientSession, mood: str
) -> None:
    host.upstream.mood = mood
    async with client.get(host.method) as answer:
        assert await error_of(answer) == (502, "UpstreamFailure")


@pytest.mark.parametrize("mood", ["break", "endless"])
async def test_an_answer_cut_in_the_middle_is_seen_as_cut(
    host: Host, client: aiohttp.ClientSession, mood: str
) -> None:
    host.upstream.mood = mood
    async with client.get(host.method) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_too_large_a_body_is_refused_announced_or_not(
    host: Host, client: aiohttp.ClientSession
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    async with client.post(host.method, data=b"x" * (LIMIT + 1)) as answer:
        assert await error_of(answer) == (413, "PayloadTooLarge")
    assert host.upstream.requests == []
    async with client.post(host.method, data=chunks()) as answer:
        assert await error_of(answer) == (413, "PayloadTooLarge")
    assert host.upstream.requests == []


async def test_a_body_that_stops_arriving_is_given_up(host: Host) -> None:
    port = int(host.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /xrpc/{NSID} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n"
        "Content-Length: 100\r\n\r\nhalf".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_waits_for_continue_is_told_to(host: Host) -> None:
    port = int(host.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /xrpc/{NSID} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n"
        "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode()
    )
    interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert interim.startswith(b"HTTP/1.1 100 ")
    writer.write(b"body")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert host.upstream.requests[0][3] == b"body"
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_ends_the_call_upstream(host: Host) -> None:
    host.upstream.mood = "endless"
    port = int(host.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /xrpc/{NSID} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n\r\n".encode()
    )
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    writer.transport.abort()
    async with asyncio.timeout(60):
        while not host.upstream.was_left:
            await asyncio.sleep(0.005)
