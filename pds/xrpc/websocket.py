"""The server's side of a WebSocket that only sends: handshake, and a protocol of our own.

After the handshake the transport is taken from aiohttp's protocol and given to `WebSocket`, which
writes ready-made messages, answers pings, and ignores whatever else the client says, without
buffering it (SYNC-1). One reader costs one small object; nothing runs for it while it is idle.

aiohttp's protocol stays behind and is told when the connection is lost, so its book-keeping holds.

Spec: RFC 6455; event-stream#connection (SYNC-1, SYNC-3, SYNC-4, SYNC-6, NEW-40, NEW-41)
"""

import asyncio
import base64
import binascii
from hashlib import sha1
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from pds.errors import RequestError
from pds.xrpc.listener import SERVER_NAME

CLOSE_TIMEOUT_S: Final = 4.0
"""How long a peer may take to answer a close frame before the connection is cut."""
MAX_CONTROL_BYTES: Final = 125
SUBPROTOCOL: Final = "xrpc.v0.cbor"
"""What is spoken, named or not; the other framings of the draft are not (NEW-40, NEW-41)."""

_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA
_PROTOCOL_ERROR: Final = 1002


class Listener(Protocol):
    """Who is told what happens to the connection."""

    def heard(self) -> None:
        """The peer sent something."""

    def drained(self) -> None:
        """There is room in the buffer again."""

    def gone(self) -> None:
        """The connection is closed."""


def check_handshake(request: web.BaseRequest) -> str:
    """Check the headers of a WebSocket request and return the accept key.

    Raises: RequestError, 426 when the client must speak WebSocket version 13 (SYNC-4).
    """
    headers = request.headers
    if headers.get("Upgrade", "").strip().lower() != "websocket" or "upgrade" not in {
        part.strip().lower() for part in headers.get("Connection", "").split(",")
    }:
        raise _upgrade_required("This method is a WebSocket subscription")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise _upgrade_required("Only WebSocket version 13 is supported")
    key = headers.get("Sec-WebSocket-Key", "")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise RequestError("InvalidRequest", "Sec-WebSocket-Key is missing or malformed")
    return base64.b64encode(sha1(key.encode() + _MAGIC, usedforsecurity=False).digest()).decode()


def _chosen_subprotocol(request: web.BaseRequest) -> bytes:
    """Return the header that names the subprotocol, if the client has offered ours."""
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
    if SUBPROTOCOL not in (name.strip() for name in offered.split(",")):
        return b""
    return f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode()


def _upgrade_required(message: str) -> RequestError:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    return RequestError("InvalidRequest", message, 426, headers=headers)


class Upgraded(web.StreamResponse):
    """Stands for an answer that was sent elsewhere; aiohttp has nothing left to send."""

    def __init__(self) -> None:
        super().__init__(status=101)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send nothing."""
        return None

    async def write_eof(self, data: Any = b"") -> None:
        """Send nothing."""


def control_frame(opcode: int, payload: bytes = b"") -> bytes:
    """Return an unmasked control frame."""
    return bytes((0x80 | opcode, len(payload))) + payload


class WebSocket(asyncio.Protocol):
    """One upgraded connection: a `Sink` of the firehose, and the reader of what clients say."""

    __slots__ = (
        "_buffer", "_former", "_is_closing", "_listener", "_skip", "_timer", "_transport", "closed",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, former: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._former = former
        self._listener: Listener | None = None
        self._buffer = b""
        self._skip = 0
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    def upgrade(cls, request: web.BaseRequest, accept: str, *, buffer_bytes: int) -> "WebSocket":
        """Answer the handshake and take the connection over.

        `resume_writing` comes when the buffer has been above a half of `buffer_bytes` and is
        nearly empty again.
        Raises: ConnectionResetError when the client has gone already.
        """
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        former = transport.get_protocol()
        socket = cls(transport, former)
        transport.set_write_buffer_limits(high=buffer_bytes // 2, low=buffer_bytes // 8)
        transport.set_protocol(socket)
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%bServer: %b\r\n\r\n"
            % (accept.encode(), _chosen_subprotocol(request), SERVER_NAME.encode())
        )
        early = getattr(former, "_message_tail", b"")
        if early:
            socket.data_received(early)
        return socket

    def attach(self, listener: Listener) -> None:
        """Name who is told what happens from now on."""
        self._listener = listener
        if self.closed.done():
            listener.gone()

    # Sending

    @property
    def buffered_bytes(self) -> int:
        """Bytes written and not yet taken by the kernel."""
        return self._transport.get_write_buffer_size()

    def write(self, messages: bytes) -> None:
        """Send whole messages; nothing after the close frame."""
        if not self._is_closing:
            self._transport.write(messages)

    def ping(self) -> None:
        """Send a ping."""
        self.write(control_frame(_PING))

    def finish(self, code: int, reason: str) -> None:
        """Send a close frame and give the peer some seconds to take all and to answer."""
        payload = code.to_bytes(2, "big") + reason.encode()[: MAX_CONTROL_BYTES - 2]
        self.write(control_frame(_CLOSE, payload))
        self._is_closing = True
        self._start_timer()

    def abort(self) -> None:
        """Hang up at once."""
        self._is_closing = True
        self._transport.abort()

    # Protocol

    def data_received(self, data: bytes) -> None:
        """Read frames of the client; keep at most one incomplete control frame."""
        if self._listener is not None:
            self._listener.heard()
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        data = self._buffer + data
        at, size = 0, len(data)
        while at < size:
            end = self._read_frame(data, at)
            if end == at:
                break
            at = end
        self._buffer = data[at:]

    def _read_frame(self, data: bytes, at: int) -> int:
        """Handle the frame that starts at `at`; return where it ends, or `at` if it is cut."""
        size = len(data)
        if size - at < 2:
            return at
        opcode, length = data[at] & 0x0F, data[at + 1] & 0x7F
        is_control = opcode >= _CLOSE
        if (
            not data[at + 1] & 0x80
            or opcode not in {0, 1, 2, _CLOSE, _PING, _PONG}
            or (is_control and (length > MAX_CONTROL_BYTES or not data[at] & 0x80))
        ):
            self.finish(_PROTOCOL_ERROR, "")
            self._transport.close()
            return size
        start = at + 2 + {126: 2, 127: 8}.get(length, 0) + 4
        if size < start:
            return at
        if length >= 126:
            length = int.from_bytes(data[at + 2 : start - 4], "big")
        end = start + length
        if not is_control:
            self._skip = max(end - size, 0)
            return min(end, size)
        if size < end:
            return at
        self._take_control(opcode, data[start - 4 : start], data[start:end])
        return end

    def _take_control(self, opcode: int, mask: bytes, payload: bytes) -> None:
        if opcode == _CLOSE:
            if not self._is_closing:
                code = bytes(a ^ b for a, b in zip(payload[:2], mask, strict=False))
                self.write(control_frame(_CLOSE, code if len(code) == 2 else b""))
                self._is_closing = True
            self._transport.close()
            self._start_timer()
        elif opcode == _PING and self.buffered_bytes <= MAX_CONTROL_BYTES * 100:
            # A peer that pings and takes no answers must not fill our memory.
            keys = mask * (len(payload) // 4 + 1)
            self.write(
                control_frame(_PONG, bytes(a ^ b for a, b in zip(payload, keys, strict=False)))
            )

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)

    def resume_writing(self) -> None:
        """Go on with what was held back."""
        if self._listener is not None:
            self._listener.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody that this is over."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.gone()
        if not self.closed.done():
            self.closed.set_result(None)
        self._former.connection_lost(exc)
