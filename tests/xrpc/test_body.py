"""Bodies: limits hold on decoded bytes, nothing refused is uploaded, nothing swallowed."""

import asyncio
import gzip
import zlib

import aiohttp
import pytest

from pds.services.limits import RequestLimits
from pds.xrpc.body import REFUSED_BODY_DRAIN_BYTES
from tests.xrpc.support_server import running_server

AUTH = {"Authorization": "Bearer full"}
BLOB_LIMIT = 2_000_000


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, b"x" * 1000),
        ("identity", b"x" * 1000),
        ("gzip", gzip.compress(b"x" * 1000, mtime=0)),
        ("GZIP", gzip.compress(b"x" * 600, mtime=0) + gzip.compress(b"x" * 400, mtime=0)),
        ("deflate", zlib.compress(b"x" * 1000)),
        ("deflate", raw_deflate(b"x" * 1000)),
        ("gzip", gzip.compress(b"x" * 1_900_000, mtime=0)),
    ],
)
async def test_codings_are_decoded(coding: str | None, body: bytes) -> None:
    """(XRPC-5)"""
    headers = AUTH | ({"Content-Encoding": coding} if coding else {})
    async with running_server() as server, aiohttp.ClientSession() as http:
        url = f"{server.url}/xrpc/test.method.upload"
        async with http.post(url, data=body, headers=headers) as answer:
            size = 1_900_000 if len(body) > 1500 else 1000
            assert await answer.json() == {"size": size}


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b"x" * 1000, mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b"", mtime=0) * 1001, 400),
        ("deflate", zlib.compress(b"x") + b"more", 400),
        ("gzip", gzip.compress(b"\0" * 50_000_000, mtime=0), 413),
        ("gzip", gzip.compress(b"x" * 1000, mtime=0) + b"trailing", 400),
    ],
)
async def test_bad_codings_are_refused(coding: str, body: bytes, status: int) -> None:
    """(XRPC-5)"""
    headers = AUTH | {"Content-Encoding": coding}
    async with running_server() as server, aiohttp.ClientSession() as http:
        url = f"{server.url}/xrpc/test.method.upload"
        async with http.post(url, data=body, headers=headers) as answer:
            assert answer.status == status
            assert set(await answer.json()) == {"error", "message"}


async def test_each_kind_of_body_has_its_limit() -> None:
    """(XRPC-5)"""
    limits = RequestLimits(json_bytes=1000, blob_bytes=2000, repo_import_bytes=3000)
    car = {"Content-Type": "application/vnd.ipld.car"}
    json_type = {"Content-Type": "application/json"}
    async with running_server(limits=limits) as server, aiohttp.ClientSession() as http:
        for name, headers, limit in (
            ("take", json_type, 1000),
            ("upload", AUTH, 2000),
            ("importCar", car, 3000),
        ):
            url = f"{server.url}/xrpc/test.method.{name}"
            fill = b'{"text": "%s"}' % (b"x" * (limit - 12))
            assert len(fill) == limit
            async with http.post(url, data=fill, headers=headers) as answer:
                assert answer.status == 200
            async with http.post(url, data=fill + b" ", headers=headers) as answer:
                assert answer.status == 413
                assert (await answer.json())["error"] == "PayloadTooLarge"
                assert answer.headers["Connection"] == "close"


async def test_a_chunked_body_is_counted_while_it_arrives() -> None:
    """(XRPC-5, XRPC-80)"""
    sent = 0

    async def endless() -> "asyncio.AsyncIterator[bytes]":  # type: ignore[name-defined]
        nonlocal sent
        for _ in range(100_000):
            sent += 65536
            yield b"x" * 65536

    async with running_server() as server, aiohttp.ClientSession() as http:
        url = f"{server.url}/xrpc/test.method.upload"
        try:
            async with http.post(url, data=endless(), headers=AUTH) as answer:
                assert answer.status == 413
        except aiohttp.ClientError:
            pass  # The connection may be cut while we still send.
        # What fits into socket buffers on the way is counted too.
        assert sent < BLOB_LIMIT + REFUSED_BODY_DRAIN_BYTES + 16_000_000


async def test_refused_uploads_are_never_asked_for() -> None:
    head = (
        b"POST /xrpc/test.method.upload HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\n%s\r\n"
    )
    async with running_server() as server:
        no_auth = await server.raw(head % (1000, b""))
        assert no_auth.startswith(b"HTTP/1.1 401")
        assert b"100 Continue" not in no_auth
        auth = b"Authorization: Bearer full\r\n"
        too_large = await server.raw(head % (BLOB_LIMIT + 1, auth))
        assert too_large.startswith(b"HTTP/1.1 413")
        asked = await server.raw(head % (1000, auth), until_close=False)
        assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_an_expected_body_is_answered_after_it_was_asked_for() -> None:
    async with running_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /xrpc/test.method.upload HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 4\r\nExpect: 100-continue\r\nAuthorization: Bearer full\r\n\r\n"
        )
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"body")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(10) == b'{"size":4}'
        writer.close()


async def test_a_stalled_body_is_given_up() -> None:
    limits = RequestLimits(body_idle_s=0.05)
    async with running_server(limits=limits) as server:
        answer = await server.raw(
            b"POST /xrpc/test.method.upload HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 400\r\nAuthorization: Bearer full\r\n\r\nhalf"
        )
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"RequestTimeout" in answer


async def test_missing_bodies_and_types_are_refused() -> None:
    """(XRPC-4)"""
    async with running_server() as server, aiohttp.ClientSession() as http:
        url = f"{server.url}/xrpc/test.method.upload"
        async with http.post(url, headers=AUTH | {"Content-Type": "image/png"}) as answer:
            assert answer.status == 400
        async with http.post(url, data=b"x", headers=AUTH | {"Content-Type": ""}) as answer:
            assert answer.status == 400
        url = f"{server.url}/xrpc/test.method.importCar"
        async with http.post(url, data=b"x", headers={"Content-Type": "image/png"}) as answer:
            assert answer.status == 400


async def test_a_body_that_trickles_in_is_given_up() -> None:
    """Promise B3: each pause is short enough, all of them together are not."""
    async with running_server(limits=RequestLimits(body_idle_s=0.3)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /xrpc/test.method.take HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        )
        answer = asyncio.ensure_future(reader.read())
        for _ in range(40):
            writer.write(b" ")
            await asyncio.sleep(0.1)
            if answer.done():
                break
        assert (await asyncio.wait_for(answer, 60)).startswith(b"HTTP/1.1 408")
        writer.close()
