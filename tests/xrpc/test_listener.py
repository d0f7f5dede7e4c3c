"""Connections: deadlines, counts, plain refusals, and whose address counts."""

import asyncio
import logging
from ipaddress import ip_network

import aiohttp
import pytest
from aiohttp import web

from pds.xrpc.listener import (
    MAX_HEADERS,
    MAX_WAITING_REQUESTS,
    Listener,
    ListenerSettings,
)
from tests.support_loop import pass_time
from tests.xrpc.support_server import running_server

HEADER_S = ListenerSettings().header_timeout_s
ECHO = b"GET /xrpc/test.method.echo?word=a HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_unfinished_headers_are_cut(sent: bytes) -> None:
    async with running_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        while not server.listener.connections:
            await asyncio.sleep(0)
        answer = asyncio.create_task(reader.read())
        pass_time(HEADER_S - 1)
        await asyncio.sleep(0.05)
        assert not answer.done()
        pass_time(2)
        assert await answer == b""
        writer.close()


async def test_slow_headers_after_a_first_request_are_cut_too() -> None:
    async with running_server(keepalive_s=600) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(ECHO + b"\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}}"), 60)
        [connection] = server.listener.connections
        assert connection._header_timer is None
        writer.write(b"GET / HTT")
        while connection._header_timer is None:
            await asyncio.sleep(0)
        pass_time(HEADER_S + 1)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_an_idle_connection_is_kept_for_the_next_request() -> None:
    async with running_server(keepalive_s=600) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(2):
            writer.write(ECHO + b"\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}}"), 60)
            pass_time(HEADER_S + 1)
            await asyncio.sleep(0.05)
        writer.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_server() as server:
        answer = await server.raw(
            ECHO + b"\r\n" + ECHO.replace(b"word=a", b"word=b") + b"Connection: close\r\n\r\n"
        )
        assert answer.count(b"200 OK") == 2
        assert answer.index(b'"word":"a"') < answer.index(b'"word":"b"')


async def test_connections_from_one_address_are_counted() -> None:
    async with running_server(connections_per_address=2, trusted_proxies=()) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        assert await _is_refused(server.port)
        held[0][1].close()
        for _ in range(100):
            if not await _is_refused(server.port):
                break
        else:
            pytest.fail("a closed connection still counts")
        held[1][1].close()


async def _is_refused(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(ECHO + b"\r\n")
        return not await asyncio.wait_for(reader.read(10), 60)
    except ConnectionError:
        return True
    finally:
        writer.close()


async def test_trusted_proxies_are_not_counted() -> None:
    async with running_server(connections_per_address=1) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        assert not await _is_refused(server.port)
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /xrpc/a HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /xrpc/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /xrpc/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_one_plain_refusal(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """(XRPC-7)"""
    async with running_server() as server:
        with caplog.at_level(logging.INFO):
            answer = await server.raw(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert body == b'{"error":"InvalidRequest","message":"Malformed HTTP request"}'
    assert b"Python" not in head
    assert not caplog.records


@pytest.mark.parametrize(
    ("forwarded", "proxies", "expected"),
    [
        (None, ("127.0.0.0/8",), "127.0.0.1"),
        ("203.0.113.7", (), "127.0.0.1"),
        ("203.0.113.7", ("127.0.0.0/8",), "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", ("127.0.0.0/8",), "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", ("127.0.0.0/8", "203.0.113.0/24"), "198.51.100.1"),
        ("2001:db8::1", ("127.0.0.0/8",), "2001:db8::1"),
        ("::ffff:203.0.113.7", ("127.0.0.0/8",), "203.0.113.7"),
        ("junk", ("127.0.0.0/8",), "127.0.0.1"),
        ("198.51.100.1, junk", ("127.0.0.0/8",), "127.0.0.1"),
    ],
)
async def test_forwarded_addresses_count_only_behind_a_proxy(
    forwarded: str | None, proxies: tuple[str, ...], expected: str
) -> None:
    networks = tuple(ip_network(text) for text in proxies)
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    async with (
        running_server(trusted_proxies=networks) as server,
        aiohttp.ClientSession() as http,
        http.get(f"{server.url}/xrpc/test.method.echo?word=a", headers=headers),
    ):
        pass
    assert server.finished[0].address == expected


async def test_two_lines_of_forwarding_are_one_list() -> None:
    """A client's own line comes first and never wins."""
    async with running_server() as server:
        await server.raw(
            ECHO
            + b"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.7\r\n"
            + b"Connection: close\r\n\r\n"
        )
    assert server.finished[0].address == "203.0.113.7"


async def test_an_ipv6_network_is_one_address_and_an_embedded_ipv4_is_itself() -> None:
    """What a dual-stack socket shows for an IPv4 proxy is still that proxy."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    listener = Listener(handler, ListenerSettings(connections_per_address=2))
    assert listener.is_proxy("::ffff:127.0.0.1")
    assert listener.admit("2001:db8::1")
    assert listener.admit("2001:db8::2")
    assert not listener.admit("2001:db8::3")
    assert listener.admit("2001:db8:0:1::1")
    assert listener.admit("::ffff:203.0.113.1")
    assert listener.admit("203.0.113.1")
    assert not listener.admit("203.0.113.1")
    assert listener.admit("203.0.113.2")
    listener.forget("2001:db8::1")
    assert listener.admit("2001:db8::3")


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """Promise B1 for plain answers: who does not read holds nothing for long."""
    async with running_server(write_idle_s=0.1) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(ECHO.replace(b"echo?word=a", b"endless") + b"\r\n")
        for _ in range(100):
            await asyncio.sleep(0.05)
            if server.finished:
                break
        assert [entry.error for entry in server.finished] == ["ClientGone"]
        writer.close()


async def test_a_client_that_reads_slowly_is_served() -> None:
    async with running_server(write_idle_s=0.1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(ECHO.replace(b"echo?word=a", b"endless") + b"\r\n")
        for _ in range(10):
            assert len(await reader.readexactly(2_000_000)) == 2_000_000
            await asyncio.sleep(0.04)
        assert not server.finished
        writer.close()


async def test_what_follows_a_malformed_piece_is_thrown_away() -> None:
    """Promise C1: one connection cost 17 MB of errors, one for each piece that came."""
    async with running_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /xrpc/test.method.take HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        await asyncio.sleep(0.05)
        [connection] = server.listener.connections
        for _ in range(20):
            connection.data_received(b"no chunk\r\n")
        assert len(connection._messages) == 1
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.count(b"HTTP/1.1 400") == 1
        assert b"malformed" in answer
        writer.close()


async def test_few_requests_are_read_ahead() -> None:
    async with running_server(write_idle_s=60) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(ECHO.replace(b"echo?word=a", b"endless") + b"\r\n")
        await asyncio.sleep(0.2)
        [connection] = server.listener.connections
        for _ in range(20):
            writer.write(ECHO + b"\r\n")
            await asyncio.sleep(0.01)
        assert len(connection._messages) == MAX_WAITING_REQUESTS
        writer.transport.abort()


async def test_headers_are_limited_in_number() -> None:
    async with running_server() as server:
        more = b"".join(b"A%d: b\r\n" % number for number in range(MAX_HEADERS + 1))
        assert (await server.raw(ECHO + more + b"\r\n")).split()[1] == b"400"


async def test_a_stalled_client_delays_the_end_once() -> None:
    async with running_server(write_idle_s=60) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(ECHO.replace(b"echo?word=a", b"endless") + b"\r\n")
        await asyncio.sleep(0.2)
        loop = asyncio.get_running_loop()
        started = loop.time()
        server.listener.pre_shutdown()
        await server.listener.shutdown(0.6)
        assert loop.time() - started < 1.0
        writer.transport.abort()
