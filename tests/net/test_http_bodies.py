"""The outbound HTTP client against servers that send too much, too slowly or nonsense (XRPC-68)."""

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from pds.errors import BadAnswer, NotResolvable, Unreachable
from pds.net.http import HttpSettings, TrustedClient
from pds.net.http_errors import (
    AnswerTooLarge,
)
from tests.net.servers import FixedResolver, guarded, ok, raw_serving, serving


async def test_declared_and_streamed_oversize_bodies_are_cut_off():
    sent = 0

    async def handler(request):
        nonlocal sent
        if request.path == "/declared":
            return web.Response(body=b"x" * 2000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"x" * 10_000)
            sent += 10_000
        return response

    async with serving(handler) as port, guarded() as client:
        for path in ("declared", "streamed"):
            with pytest.raises(AnswerTooLarge):
                await client.get_bytes(f"http://pds.test:{port}/{path}", max_bytes=1000)
    assert sent < 50_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies_are_decoded_and_counted_after_decoding(coding):
    def pack(content: bytes) -> bytes:
        return gzip.compress(content) if coding == "gzip" else zlib.compress(content)

    bodies = {
        "/small": pack(b"hello"),
        "/bomb": pack(b"\0" * 50_000_000),
        "/cut": pack(b"hello")[:-4],
        "/broken": b"not compressed at all",
    }

    async def handler(request):
        return web.Response(body=bodies[request.path], headers={"Content-Encoding": coding})

    async with serving(handler) as port, guarded() as client:
        base = f"http://pds.test:{port}"
        assert (await client.get_bytes(f"{base}/small")).body == b"hello"
        with pytest.raises(AnswerTooLarge):
            await client.get_bytes(f"{base}/bomb")
        for path in ("/cut", "/broken"):
            with pytest.raises(BadAnswer):
                await client.get_bytes(base + path)


async def test_unknown_content_coding_is_a_bad_answer():
    async def handler(_request):
        return web.Response(body=b"x", headers={"Content-Encoding": "br"})

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(BadAnswer):
            await client.get_bytes(f"http://pds.test:{port}/")


async def test_trickling_headers_run_into_the_time_limit():
    async def talk(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            writer.write(f"X-{number}: y\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_serving(talk) as port, guarded() as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable):
            await client.get_bytes(f"http://pds.test:{port}/", timeout_s=0.2)
        assert asyncio.get_running_loop().time() - started < 2


async def test_trickling_body_runs_into_the_whole_time_limit():
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x")
            await asyncio.sleep(0.02)
        return response

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(Unreachable):
            await client.get_bytes(f"http://pds.test:{port}/", timeout_s=0.2)
        with pytest.raises(Unreachable):
            async with client.request(
                "GET", f"http://pds.test:{port}/", total_timeout_s=0.2
            ) as answer:
                async for _ in answer.iter_chunks():
                    pass


async def test_stalled_body_runs_into_the_idle_limit():
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.sleep(5)
        return response

    async with serving(handler) as port, guarded(idle_timeout_s=0.1) as client:
        with pytest.raises(Unreachable):
            async with client.request("GET", f"http://pds.test:{port}/") as answer:
                async for _ in answer.iter_chunks():
                    pass


async def test_server_that_hangs_up_or_talks_nonsense():
    async def hang_up(reader, _writer):
        await reader.readuntil(b"\r\n\r\n")

    async def nonsense(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        await writer.drain()

    async def short(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        await writer.drain()

    async def huge_header(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n")
        await writer.drain()

    for talk, kind in [
        (hang_up, Unreachable),
        (nonsense, BadAnswer),
        (short, Unreachable),
        (huge_header, BadAnswer),
    ]:
        async with raw_serving(talk) as port, guarded() as client:
            with pytest.raises(kind):
                await client.get_bytes(f"http://pds.test:{port}/")


async def test_refused_connection_is_unreachable_and_unknown_host_is_not_resolvable():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    async with guarded() as client:
        with pytest.raises(Unreachable):
            await client.get_bytes(f"http://pds.test:{port}/")

    class Failing(FixedResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            kind = socket.EAI_NONAME if host == "no.test" else socket.EAI_AGAIN
            raise socket.gaierror(kind, "x")

    async with guarded(Failing([])) as client:
        with pytest.raises(NotResolvable):
            await client.get_bytes("http://no.test/")
        with pytest.raises(Unreachable):
            await client.get_bytes("http://maybe.test/")
    async with guarded(FixedResolver([])) as client:
        with pytest.raises(NotResolvable):
            await client.get_bytes("http://empty.test/")


async def test_long_dns_answers_are_cut():
    tried = []
    resolver = FixedResolver([f"127.0.1.{n}" for n in range(100)])
    client = guarded(resolver)
    make = client._make_socket

    def counting(info):
        tried.append(info[4][0])
        return make(info)

    client._make_socket = counting
    async with client:
        with pytest.raises(NotResolvable):
            await client.get_bytes("http://many.test/")
    # aiohttp drops one address after each failed round and tries the rest again.
    assert len(set(tried)) <= 8


async def test_streamed_request_and_answer_pass_through_unchanged():
    packed = gzip.compress(b"hello" * 1000)

    async def handler(request):
        body = await request.read()
        assert request.headers["Content-Length"] == "300000"
        assert "Accept-Encoding" not in request.headers
        return web.Response(
            body=packed, headers={"Content-Encoding": "gzip", "X-Size": str(len(body))}, status=418
        )

    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100_000

    async with (
        serving(handler) as port,
        guarded() as client,
        client.request(
            "POST",
            f"http://pds.test:{port}/",
            headers={"Content-Length": "300000"},
            body=body(),
        ) as answer,
    ):
        assert answer.status == 418
        assert answer.headers["X-Size"] == "300000"
        assert b"".join([chunk async for chunk in answer.iter_chunks()]) == packed


async def test_slow_upload_may_take_longer_than_the_header_limit():
    async def handler(request):
        return web.json_response(len(await request.read()))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(6):
            await asyncio.sleep(0.1)
            yield b"x"

    client = guarded(headers_timeout_s=0.3)
    async with (
        serving(handler) as port,
        client,
        client.request("POST", f"http://pds.test:{port}/", body=body()) as answer,
    ):
        assert await answer.read() == b"6"


async def test_stalled_upload_source_runs_into_its_limit():
    async def handler(request):
        await request.read()
        return web.Response()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    async with serving(handler) as port, guarded(upload_idle_timeout_s=0.1) as client:
        with pytest.raises(Unreachable):
            async with client.request("POST", f"http://pds.test:{port}/", body=body()):
                pass


async def test_error_of_the_upload_source_is_raised_as_it_is():
    async def handler(request):
        await request.read()
        return web.Response()

    class Gone(Exception):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise Gone

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(Gone):
            async with client.request("POST", f"http://pds.test:{port}/", body=body()):
                pass


async def test_cancelled_requests_leave_no_connection_behind():
    arrived = asyncio.Semaphore(0)

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        arrived.release()
        await asyncio.sleep(30)
        return response

    async with serving(handler) as port, guarded() as client:
        tasks = [
            asyncio.create_task(client.get_bytes(f"http://pds.test:{port}/")) for _ in range(10)
        ]
        for _ in tasks:
            await arrived.acquire()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert client._session.connector._acquired == set()


async def test_connections_are_reused_after_whole_answers():
    ports = set()

    async def handler(request):
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.json_response({})

    async with serving(handler) as port, guarded() as client:
        for _ in range(5):
            await client.get_json(f"http://pds.test:{port}/")
    assert len(ports) == 1


async def test_date_of_fresh_answers_is_reported_and_of_cached_ones_not():
    dates = []

    async def handler(request):
        headers = {"Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
        if request.path == "/cached":
            headers["Age"] = "5"
        if request.path == "/odd":
            headers["Date"] = "yesterday"
        return web.Response(headers=headers)

    settings = HttpSettings.trusted(user_agent="x", allow_private=True)
    client = TrustedClient(settings, on_date=lambda host, us: dates.append((host, us)))
    async with serving(handler) as port, client:
        for path in ("fresh", "cached", "odd"):
            await client.get_bytes(f"http://127.0.0.1:{port}/{path}")
    assert dates == [("127.0.0.1", 1_792_567_680_000_000)]


async def test_post_json_sends_utf8_and_returns_any_body():
    async def handler(request):
        assert request.content_type == "application/json"
        return web.Response(body=await request.read())

    async with serving(handler) as port, guarded() as client:
        answer = await client.post_json(f"http://pds.test:{port}/", {"a": "é"})
        assert answer.body == '{"a":"é"}'.encode()
        assert answer.json() == {"a": "é"}


async def test_closed_client_answers_unreachable():
    client = guarded()
    await client.close()
    with pytest.raises(Unreachable):
        await client.get_bytes("http://pds.test/")


async def test_parallel_requests_over_the_connection_limit_wait_and_finish():
    async with serving(ok) as port, guarded(max_connections_per_host=2) as client:
        answers = await asyncio.gather(
            *(client.get_json(f"http://pds.test:{port}/") for _ in range(20))
        )
    assert answers == [{"ok": True}] * 20
