"""The one path of all methods: what is refused, how, and what every answer carries."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pds.errors import ConfigError
from pds.protocol.data import parse_json
from pds.xrpc.server import Auth, MethodTable, XrpcServer
from tests.xrpc.support_server import RunningServer, echo, running_server


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"{server.url}/xrpc/") as session:
        yield session


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and name of an error answer, which must have the one right shape (XRPC-7)."""
    body = await answer.json()
    assert set(body) == {"error", "message"}
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    return answer.status, body["error"]


async def test_parameters_are_typed_and_defaulted(http: aiohttp.ClientSession) -> None:
    async with http.get("test.method.echo?word=hi&loud=true&tags=a&tags=b&junk=1") as answer:
        assert await answer.json() == {
            "params": {"word": "hi", "loud": True, "tags": ["a", "b"], "times": 1}
        }


@pytest.mark.parametrize(
    "query",
    [
        "",
        "word=",
        "word=hi&times=6",
        "word=hi&times=1x",
        "word=hi&loud=yes",
        "word=%ff",
        "word=" + "x" * 11,
    ],
)
async def test_bad_parameters_are_refused(http: aiohttp.ClientSession, query: str) -> None:
    """(XRPC-3)"""
    async with http.get(f"test.method.echo?{query}") as answer:
        assert await error_of(answer) == (400, "InvalidRequest")


async def test_wrong_verb_is_a_400(http: aiohttp.ClientSession) -> None:
    """(XRPC-2)"""
    for verb, name in (("POST", "echo"), ("GET", "take"), ("PUT", "take"), ("DELETE", "echo")):
        async with http.request(verb, f"test.method.{name}") as answer:
            assert await error_of(answer) == (400, "InvalidRequest")
            assert f"({verb})" in (await answer.json())["message"]


async def test_head_is_tolerated_and_a_trailing_slash_too(http: aiohttp.ClientSession) -> None:
    """(XRPC-1)"""
    async with http.head("test.method.echo?word=hi") as answer:
        assert answer.status == 200
        assert await answer.read() == b""
    async with http.get("test.method.echo/?word=hi") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "path", ["", "..a", "a..b", "a.b.", "-a.b", "a/b", "a%20b", "%ff", "word", "a.b.1c"]
)
async def test_bad_paths_are_a_400(server: RunningServer, path: str) -> None:
    """(XRPC-1)"""
    answer = await server.raw(
        f"GET /xrpc/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"invalid xrpc path" in answer


async def test_unknown_methods_go_to_the_proxy_only_with_a_session(
    http: aiohttp.ClientSession,
) -> None:
    """(XRPC-10, XRPC-64)"""
    async with http.get("app.example.getThing") as answer:
        assert await error_of(answer) == (401, "AuthMissing")
    headers = {"Authorization": "Bearer full"}
    async with http.get("app.example.getThing", headers=headers) as answer:
        assert await answer.json() == {
            "proxied": "app.example.getThing",
            "did": "did:web:alice.test",
        }
    async with http.get("com.atproto.made.up", headers=headers) as answer:
        assert await error_of(answer) == (501, "MethodNotImplemented")
    headers["atproto-proxy"] = "did:web:x#y"
    async with http.get("com.atproto.made.up", headers=headers) as answer:
        assert answer.status == 200
    async with http.delete("app.example.getThing", headers=headers) as answer:
        assert await error_of(answer) == (501, "MethodNotImplemented")


async def test_reports_of_taken_down_accounts_are_proxied_and_nothing_else(
    http: aiohttp.ClientSession,
) -> None:
    """(XRPC-64)"""
    headers = {"Authorization": "Bearer takendown"}
    async with http.post("com.atproto.moderation.createReport", headers=headers) as answer:
        assert answer.status == 200
    async with http.get("app.example.getThing", headers=headers) as answer:
        assert await error_of(answer) == (401, "AccountTakedown")


async def test_json_bodies_are_checked(http: aiohttp.ClientSession) -> None:
    """(XRPC-4)"""
    async with http.post("test.method.take", json={"text": "hi"}) as answer:
        assert await answer.json() == {"text": "hi"}
    json_type = {"Content-Type": "application/json; charset=utf-8"}
    bad: list[tuple[bytes, dict[str, str]]] = [
        (b"", json_type),
        (b"{", json_type),
        (b"[]", json_type),
        (b'{"text": 1}', json_type),
        (b'{"text": "a", "more": 1.5}', json_type),
        (b'{"text": "a", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}", json_type),
        (b'{"text": "\xff"}', json_type),
        (b'{"text": "hi"}', {"Content-Type": "text/plain"}),
        (b'{"text": "hi"}', {"Content-Type": ""}),
    ]
    for body, headers in bad:
        async with http.post("test.method.take", data=body, headers=headers) as answer:
            assert await error_of(answer) == (400, "InvalidRequest"), body[:40]


async def test_large_json_is_parsed_beside_the_event_loop(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MB of small values takes 100 ms, which nobody else shall wait for (promise B5)."""
    threads: list[threading.Thread] = []

    def parse(body: bytes) -> Any:
        threads.append(threading.current_thread())
        return parse_json(body)

    monkeypatch.setattr("pds.xrpc.server.parse_json", parse)
    for text in ("small", "x" * 70_000):
        async with http.post("test.method.take", json={"text": text}) as answer:
            assert await answer.json() == {"text": text}
    async with http.post("test.method.take", json={"text": "x" * 70_000, "more": 1.5}) as answer:
        assert await error_of(answer) == (400, "InvalidRequest")
    main = threading.main_thread()
    assert [thread is main for thread in threads] == [True, False, False]


async def test_a_body_where_none_is_expected_is_refused(
    http: aiohttp.ClientSession, server: RunningServer
) -> None:
    """(XRPC-4, XRPC-6)"""
    async with http.post("test.method.nothing") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    async with http.post("test.method.nothing", data=b"x") as answer:
        assert await error_of(answer) == (400, "InvalidRequest")
    chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    answer_bytes = await server.raw(
        b"POST /xrpc/test.method.nothing HTTP/1.1\r\nHost: x\r\n" + chunked
    )
    assert answer_bytes.startswith(b"HTTP/1.1 200")


async def test_faults_of_ours_say_nothing_and_log_one_traceback(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """(XRPC-8)"""
    with caplog.at_level(logging.ERROR):
        async with http.get("test.method.fail") as answer:
            assert await error_of(answer) == (500, "InternalServerError")
            assert "secret detail" not in await answer.text()
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_refusals_keep_their_name_and_status(http: aiohttp.ClientSession) -> None:
    """(XRPC-7)"""
    expected = {
        "named": (400, "RepoNotFound"),
        "surrogate": (400, "InvalidRequest"),
        "http": (404, "XRPCNotSupported"),
    }
    for how, outcome in expected.items():
        async with http.get(f"test.method.fail?how={how}") as answer:
            assert await error_of(answer) == outcome


async def test_an_answer_that_breaks_off_is_never_taken_for_the_whole(
    http: aiohttp.ClientSession, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aiohttp.ClientError):
        async with http.get("test.method.stream") as answer:
            await answer.read()
    assert len(caplog.records) == 1
    assert (server.finished[0].status, server.finished[0].error) == (500, "InternalServerError")


async def test_a_client_that_leaves_is_noted_and_no_fault(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /xrpc/test.method.endless HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    writer.transport.abort()
    async with asyncio.timeout(60):
        while not server.finished:
            await asyncio.sleep(0.01)
    assert (server.finished[0].status, server.finished[0].error) == (499, "ClientGone")
    assert not caplog.records


async def test_outputs_are_held_against_the_lexicon_when_asked() -> None:
    async with running_server(check_outputs=True) as server:
        answer = await server.raw(b"GET /xrpc/test.method.echo?word=a HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200")


async def test_cors_allows_everything(http: aiohttp.ClientSession) -> None:
    """(XRPC-11)"""
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Headers": "authorization,atproto-proxy",
    }
    for name in ("test.method.take", "app.unknown.method"):
        async with http.options(name, headers=headers) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization,atproto-proxy"
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Max-Age"] == "86400"
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
    async with http.get("test.method.echo?word=a") as answer:
        assert "WWW-Authenticate" in answer.headers["Access-Control-Expose-Headers"]


async def test_private_answers_are_marked_and_the_server_header_has_no_versions(
    http: aiohttp.ClientSession,
) -> None:
    """(XRPC-12)"""
    async with http.get("test.method.echo?word=a") as answer:
        assert "Cache-Control" not in answer.headers
        assert answer.headers["Server"] == "Freehold"
    headers = {"Authorization": "Bearer full"}
    for name in ("test.method.authSession", "app.example.getThing"):
        async with http.get(name, headers=headers) as answer:
            assert answer.headers["Cache-Control"] == "private"
            assert "Authorization" in answer.headers["Vary"]
            assert "atproto-proxy" in answer.headers["Vary"]


async def test_subscriptions_need_a_websocket(http: aiohttp.ClientSession) -> None:
    async with http.get("test.method.watch") as answer:
        assert await error_of(answer) == (426, "InvalidRequest")
    async with http.ws_connect("test.method.watch") as socket:
        assert await socket.receive_str() == "hello"


async def test_each_request_is_observed_once(
    http: aiohttp.ClientSession, server: RunningServer
) -> None:
    async with http.get("test.method.echo?word=a"):
        pass
    async with http.get("no.such.method"):
        pass
    async with http.get("test.method.authSession", headers={"Authorization": "Bearer full"}):
        pass
    seen = [(line.method, line.status, line.error, line.did) for line in server.finished]
    assert seen == [
        ("test.method.echo", 200, None, None),
        ("proxy", 401, "AuthMissing", None),
        ("test.method.authSession", 200, None, "did:web:alice.test"),
    ]
    assert server.finished[0].size_bytes == len(b'{"params":{"word":"a","times":1}}')


async def test_handlers_without_a_lexicon_and_doubles_are_refused_at_start(
    server: RunningServer,
) -> None:
    services: Any = server.server._services
    unknown, double = MethodTable(), MethodTable()
    unknown.method("test.method.noLexicon", auth=Auth.NONE)(echo)
    double.method("test.method.echo", auth=Auth.NONE)(echo)
    double.method("test.method.echo", auth=Auth.NONE)(echo)
    for table in (unknown, double):
        with pytest.raises(ConfigError):
            XrpcServer(services, [table], fallback=echo, observe=lambda _: None)
