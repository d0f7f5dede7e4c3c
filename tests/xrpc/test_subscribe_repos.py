"""The firehose over real sockets: handshake, refusals, client frames, slow readers, closing.

Spec: SYNC-1, SYNC-2, SYNC-3, SYNC-4, SYNC-6, SYNC-7, SYNC-15, SYNC-18, SYNC-21.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from pds.protocol.frames import Frame, decode_frame
from pds.services import Services
from pds.services.firehose import Firehose, FirehoseSettings
from pds.services.lexicons import load_catalog
from pds.services.limits import RequestLimits
from pds.store.engine import Txn
from pds.store.sqlite import SqliteEngine
from pds.xrpc import subscribe_repos
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.server import Finished, XrpcServer
from tests.fakes.clock import NOON_US, FakeClock
from tests.services.test_firehose import identity
from tests.suites.engines import open_engine

PATH = "/xrpc/com.atproto.sync.subscribeRepos"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # The example of RFC 6455.
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x01\x02\x03\x04"


@dataclass
class Host:
    engine: SqliteEngine
    firehose: Firehose
    listener: Listener
    finished: list[Finished]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    async def emit(self, count: int = 1, *, handle: str = "a.test") -> None:
        def job(txn: Txn) -> None:
            for _ in range(count):
                txn.emit("identity", 1, lambda seq, at_us: identity(seq, at_us, handle))

        await self.engine.transact("test.emit", job)

    async def readers(self, count: int) -> None:
        """Wait until so many readers are connected."""
        await until(lambda: self.firehose.reader_count == count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def _no_fallback(_call: Any) -> Any:
    raise AssertionError


@asynccontextmanager
async def serving(folder: Path, **limits: Any) -> AsyncIterator[Host]:
    async with open_engine(folder) as engine:
        firehose = Firehose(engine=engine, wall=FakeClock(), settings=FirehoseSettings(**limits))
        firehose.start()
        services = SimpleNamespace(
            catalog=load_catalog(), limits=RequestLimits(), firehose=firehose
        )
        finished: list[Finished] = []
        server = XrpcServer(
            cast(Services, services),
            [subscribe_repos.routes],
            fallback=_no_fallback,
            observe=finished.append,
        )
        listener = Listener(server.handle, ListenerSettings())
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        tcp = await asyncio.get_running_loop().create_server(listener, sock=sock)
        try:
            yield Host(engine, firehose, listener, finished, sock.getsockname()[1])
        finally:
            tcp.close()
            await firehose.close()
            await listener.shutdown(0.2)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def next_frame(ws: aiohttp.ClientWebSocketResponse) -> Frame:
    message = await ws.receive(timeout=60)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    return decode_frame(message.data)


class RawClient:
    """A WebSocket client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def upgrade(self, early: bytes = b"") -> None:
        self.writer.write(handshake() + early)
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 101 ")

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.writer.write(masked(opcode, payload, fin=fin))

    async def receive(self) -> tuple[int, bytes]:
        head = await asyncio.wait_for(self.reader.readexactly(2), 60)
        size = head[1]
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        return head[0], await asyncio.wait_for(self.reader.readexactly(size), 60)

    async def at_end(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 60) == b""


Connect = Callable[..., Awaitable[RawClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make upgraded connections, which are closed at the end of the test."""
    clients: list[RawClient] = []

    async def open_one(host: Host, *, early: bytes = b"") -> RawClient:
        clients.append(RawClient(*await asyncio.open_connection("127.0.0.1", host.port)))
        await clients[-1].upgrade(early)
        return clients[-1]

    yield open_one
    for client in clients:
        client.writer.close()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes([size | 0x80])
    elif size < 65536:
        head = bytes([126 | 0x80]) + size.to_bytes(2, "big")
    else:
        head = bytes([127 | 0x80]) + size.to_bytes(8, "big")
    body = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | opcode]) + head + MASK + body


def handshake(query: str = "", **changes: str | None) -> bytes:
    headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"GET {PATH}{query} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# --- What a client sees -----------------------------------------------------------------------


async def test_events_come_as_one_binary_message_each(
    host: Host, client: aiohttp.ClientSession
) -> None:
    await host.emit(2)
    async with client.ws_connect(f"{host.url}?cursor={NOON_US}") as ws:
        assert (await next_frame(ws)).payload["seq"] == NOON_US + 1
        await host.emit(1, handle="x" * 100_000)
        frame = await next_frame(ws)
        assert frame.type == "#identity"
        assert frame.payload["handle"] == "x" * 100_000
    await host.readers(0)


async def test_a_late_reader_gets_more_than_any_buffer_holds_without_waiting(
    host: Host, client: aiohttp.ClientSession
) -> None:
    for _ in range(30):
        await host.emit(handle="x" * 100_000)
    async with client.ws_connect(f"{host.url}?cursor={NOON_US}") as ws:
        found = [(await next_frame(ws)).payload["seq"] for _ in range(29)]
    assert found == list(range(NOON_US + 1, NOON_US + 30))


async def test_without_cursor_only_new_events_come(
    host: Host, client: aiohttp.ClientSession
) -> None:
    await host.emit(2)
    async with client.ws_connect(host.url) as ws:
        await host.readers(1)
        await host.emit()
        assert (await next_frame(ws)).payload["seq"] == NOON_US + 2


async def test_a_future_cursor_gets_the_error_then_a_close_with_its_name(
    host: Host, client: aiohttp.ClientSession
) -> None:
    await host.emit()
    async with client.ws_connect(f"{host.url}?cursor={NOON_US + 1}") as ws:
        frame = await next_frame(ws)
        assert (frame.op, frame.payload["error"]) == (-1, "FutureCursor")
        message = await ws.receive(timeout=60)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert (message.data, message.extra) == (1008, "FutureCursor")
    await until(lambda: len(host.finished) == 1)


async def test_the_handshake_is_that_of_the_rfc(host: Host) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    writer.write(handshake())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: " + ACCEPT in head
    assert b"\r\nServer: Freehold\r\n" in head
    assert b"atproto-relay" not in head
    assert b"Sec-WebSocket-Extensions" not in head
    assert b"Sec-WebSocket-Protocol" not in head
    writer.close()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("xrpc.v0.cbor", b"Sec-WebSocket-Protocol: xrpc.v0.cbor\r\n"),
        ("xrpc.v1.json , xrpc.v0.cbor", b"Sec-WebSocket-Protocol: xrpc.v0.cbor\r\n"),
        ("xrpc.v1.json, xrpc.v1.cbor", None),
        ("chat", None),
        ("", None),
    ],
)
async def test_only_the_framing_that_is_spoken_is_chosen(
    host: Host, offered: str, chosen: bytes | None
) -> None:
    """NEW-40, NEW-41: what is unknown is ignored, and the stream is the same."""
    await host.emit(2)
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    writer.write(handshake(f"?cursor={NOON_US}", Sec_WebSocket_Protocol=offered))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert (chosen in head) if chosen else (b"Sec-WebSocket-Protocol" not in head)
    assert (await asyncio.wait_for(reader.readexactly(1), 60)) == b"\x82"  # One binary message.
    writer.close()


# --- Refusals before the upgrade --------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 426),
        (f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode(), 405),
        (handshake(Upgrade="h2c"), 426),
        (handshake(Connection="keep-alive"), 426),
        (handshake(Sec_WebSocket_Version="8"), 426),
        (handshake(Sec_WebSocket_Version=None), 426),
        (handshake(Sec_WebSocket_Key=None), 400),
        (handshake(Sec_WebSocket_Key="c2hvcnQ="), 400),
        (handshake(Sec_WebSocket_Key="not base64!"), 400),
        (handshake("?cursor=-1"), 400),
        (handshake("?cursor=abc"), 400),
        (handshake("?cursor=1.5"), 400),
    ],
)
async def test_bad_handshakes_get_a_json_error(
    host: Host, request_bytes: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    writer.write(request_bytes)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert int(head.split()[1]) == status
    assert b"application/json" in head
    if status == 426:
        assert b"Upgrade: websocket" in head
    length = int(head.lower().split(b"content-length: ")[1].split()[0])
    body = json.loads(await reader.readexactly(length))
    assert body["error"] == "InvalidRequest"
    assert host.firehose.reader_count == 0
    writer.close()


async def test_head_is_not_upgraded(host: Host) -> None:
    """SYNC-4: 405 for everything but GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    writer.write(handshake().replace(b"GET", b"HEAD", 1))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert int(head.split()[1]) == 405
    assert host.firehose.reader_count == 0
    writer.close()


async def test_one_reader_too_many_gets_429_with_retry_after(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    async with serving(tmp_path, max_readers=1) as host, client.ws_connect(host.url):
        await host.readers(1)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(host.url)
        assert refused.value.status == 429
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "60"


# --- What clients say -------------------------------------------------------------------------


async def test_pings_are_answered_with_their_payload(host: Host, connect: Connect) -> None:
    client = await connect(host)
    client.send(0x9, b"are you there")
    assert await client.receive() == (0x8A, b"are you there")
    client.send(0x9)
    assert await client.receive() == (0x8A, b"")


async def test_a_frame_sent_too_early_is_not_lost(host: Host, connect: Connect) -> None:
    client = await connect(host, early=masked(0x9, b"early"))
    assert await client.receive() == (0x8A, b"early")


async def test_what_clients_send_is_ignored_in_any_size_and_pieces(
    host: Host, connect: Connect
) -> None:
    client = await connect(host)
    client.send(0x1, b"hello")
    client.send(0x2, b"x" * 200)
    client.send(0x2, b"x" * 70_000, fin=False)
    client.send(0x0, b"\x89\x00" * 50_000)
    client.send(0xA, b"a pong nobody asked for")
    for byte in masked(0x1, b"slowly" * 30) + masked(0x9, b"end"):
        client.writer.write(bytes([byte]))
        await client.writer.drain()
    assert await client.receive() == (0x8A, b"end")
    await host.readers(1)
    await host.emit()
    assert (await client.receive())[0] == 0x82


async def test_a_close_is_answered_with_its_code(host: Host, connect: Connect) -> None:
    client = await connect(host)
    client.send(0x8, (1001).to_bytes(2, "big") + b"bye")
    assert await client.receive() == (0x88, (1001).to_bytes(2, "big"))
    assert await client.at_end()
    await host.readers(0)


async def test_a_close_without_a_code_is_answered_without(host: Host, connect: Connect) -> None:
    client = await connect(host)
    client.send(0x8)
    assert await client.receive() == (0x88, b"")
    assert await client.at_end()


@pytest.mark.parametrize(
    "frame",
    [
        b"\x89\x00",  # not masked
        masked(0x3, b""),  # reserved
        masked(0xB, b""),
        masked(0x9, b"x" * 126),  # control frames are short
        masked(0x9, b"x", fin=False),  # and whole
    ],
)
async def test_a_client_that_breaks_the_protocol_is_sent_away(
    host: Host, connect: Connect, frame: bytes
) -> None:
    client = await connect(host)
    client.writer.write(frame)
    opcode, payload = await client.receive()
    assert (opcode, payload[:2]) == (0x88, (1002).to_bytes(2, "big"))
    assert await client.at_end()
    await host.readers(0)


async def test_a_client_that_vanishes_is_forgotten(host: Host, connect: Connect) -> None:
    client = await connect(host)
    await host.readers(1)
    client.writer.transport.abort()
    await host.readers(0)
    await until(lambda: len(host.finished) == 1)
    assert host.finished[0].status == 101
    await until(lambda: not host.listener.connections)


# --- Slow readers and the end -----------------------------------------------------------------


async def test_a_reader_that_takes_nothing_is_dropped_and_others_are_not(
    tmp_path: Path, connect: Connect
) -> None:
    limits = {"high_water_bytes": 100_000, "max_lag_bytes": 500_000, "lag_grace_s": 0.2}
    async with serving(tmp_path, **limits) as host:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, ("127.0.0.1", host.port))
        await loop.sock_sendall(stalled, handshake())
        good = await connect(host)
        await host.readers(2)
        task = asyncio.create_task(_look(host))
        received = 0
        for _ in range(80):
            await host.emit(handle="x" * 100_000)
            received += (await good.receive())[0] == 0x82
        await host.readers(1)
        assert received == 80
        await host.emit()
        assert (await good.receive())[0] == 0x82
        task.cancel()
        stalled.close()


async def _look(host: Host) -> None:
    while True:
        host.firehose.look_after_readers()
        await asyncio.sleep(0.05)


async def test_a_slow_reader_gets_everything_through_a_small_window(
    tmp_path: Path, connect: Connect
) -> None:
    limits = {"high_water_bytes": 20_000, "ring_events": 5, "page_bytes": 50_000}
    async with serving(tmp_path, **limits) as host:
        client = await connect(host)
        await host.readers(1)
        for _ in range(30):
            await host.emit(handle="x" * 50_000)
        found = [decode_frame((await client.receive())[1]).payload["seq"] for _ in range(30)]
        assert found == list(range(NOON_US, NOON_US + 30))


async def test_pings_that_nobody_reads_the_answers_of_fill_no_memory(
    host: Host, connect: Connect
) -> None:
    client = await connect(host)
    await host.readers(1)
    reader = next(iter(host.firehose._readers))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    pings = masked(0x9, b"x" * 125) * 1000
    worst = 0
    for _ in range(60):
        client.writer.write(pings)
        await client.writer.drain()
        worst = max(worst, reader.sink.buffered_bytes)
    assert worst < 200_000
    client.writer.transport.abort()


async def test_closing_the_firehose_ends_every_connection_cleanly(
    host: Host, connect: Connect
) -> None:
    one, two = await connect(host), await connect(host)
    await host.readers(2)
    await host.firehose.close()
    for client in (one, two):
        assert await client.receive() == (0x88, (1000).to_bytes(2, "big"))
        client.send(0x8, (1000).to_bytes(2, "big"))
        assert await client.at_end()
    await until(lambda: len(host.finished) == 2)


async def test_a_peer_that_never_answers_the_close_is_cut_off(
    host: Host, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pds.xrpc.websocket.CLOSE_TIMEOUT_S", 0.05)
    client = await connect(host)
    await host.readers(1)
    await host.firehose.close()
    assert (await client.receive())[0] == 0x88
    await until(lambda: len(host.finished) == 1)
    reading: Awaitable[bool] = client.at_end()
    try:
        assert await reading
    except ConnectionResetError:
        return
