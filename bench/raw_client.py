"""A small HTTP/1.1 client for load: a kept-alive connection, prebuilt requests, little parsing.

A general client costs more CPU per request than the server under test; this one costs about 20 us.
"""

import asyncio
import json
from typing import Any


class RawConnection:
    """One connection that sends a request and reads its answer, again and again."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> "RawConnection":
        self._reader, self._writer = await asyncio.open_connection(
            self.host, self.port, limit=1 << 20
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._writer is not None
        self._writer.close()

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send one whole request and return status and body."""
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        if at >= 0:
            end = lowered.find(b"\r", at)
            return status, await self._reader.readexactly(int(lowered[at + 15 : end]))
        body = bytearray()
        while True:
            size = int(await self._reader.readline(), 16)
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
            if size == 0:
                return status, bytes(body)


def post(path: str, token: str, body: Any) -> bytes:
    """Return the bytes of a JSON POST."""
    content = json.dumps(body).encode()
    return (
        f"POST /xrpc/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def get(path: str, token: str = "") -> bytes:
    """Return the bytes of a GET."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET /xrpc/{path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n".encode()
