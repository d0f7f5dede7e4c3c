"""Request bodies: read within a limit, decompressed within the same limit, never buffered if large.

aiohttp decompresses streamed bodies without any bound, so the listener switches that off and this
module does it: what counts is the number of bytes after decoding (XRPC-5). Nothing is read before
the first call here; a client that sent `Expect: 100-continue` is asked for its body only then, so
a request refused earlier never uploads anything.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from aiohttp import web

from pds.errors import RequestError, invalid_request
from pds.xrpc.errors import payload_too_large

DECODED_CHUNK_BYTES: Final = 256 * 1024
"""Largest piece that one call of a decompressor may yield: a bomb never becomes one big string."""
MAX_GZIP_MEMBERS: Final = 1000
READ_PATIENCE: Final = 2
"""A body that is read whole must be here after this many times the longest pause: without anything
to prove, one byte a minute would hold a connection for weeks."""
REFUSED_BODY_DRAIN_BYTES: Final = 1024 * 1024
REFUSED_BODY_DRAIN_S: Final = 1.0

_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15
_RAW_DEFLATE_WBITS: Final = -15


class BodyReader:
    """The decoded body of one request, at most `limit_bytes` of it.

    `content_length` is the exact size to expect, if the client announced it and the bytes are not
    compressed. Iterate for large bodies; `read` for those that fit in memory. While iterating,
    `on_bytes` is told the size of each piece, and may refuse to go on.
    Spec: xrpc#lexicon-http-endpoints (XRPC-4, XRPC-5, XRPC-80)
    """

    __slots__ = (
        "_coding",
        "_idle_s",
        "_limit",
        "_request",
        "content_length",
        "content_type",
        "on_bytes",
    )

    def __init__(self, request: web.BaseRequest, *, limit_bytes: int | None, idle_s: float) -> None:
        self._request = request
        self._limit = limit_bytes
        self._idle_s = idle_s
        self._coding = parse_content_coding(request.headers.get("Content-Encoding"))
        self.on_bytes: Callable[[int], object] | None = None
        self.content_type = request.headers.get("Content-Type", "")
        announced = request.content_length
        if announced is not None and limit_bytes is not None and announced > limit_bytes:
            raise payload_too_large(limit_bytes)
        self.content_length = announced if self._coding is None else None

    @property
    def is_absent(self) -> bool:
        """Whether the request has no body at all (an empty chunked one may still follow)."""
        return self._request.content.at_eof()

    async def read(self) -> bytes:
        """The whole body.

        Raises: RequestError PayloadTooLarge, RequestTimeout, or InvalidRequest if it ends early.
        """
        content = self._request.content
        if self._coding is None and content.is_eof() and content.exception() is None:
            body = content.read_nowait()  # All of it came with the headers: the usual case.
            if self._limit is not None and len(body) > self._limit:
                raise payload_too_large(self._limit)
            return body
        try:
            async with asyncio.timeout(self._idle_s * READ_PATIENCE):
                return b"".join([chunk async for chunk in self])
        except TimeoutError:
            raise RequestError(
                "RequestTimeout", "The request body arrived too slowly", 408
            ) from None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        limit = self._limit
        total = 0
        decoder = None if self._coding is None else _Inflater(self._coding)
        async for raw in self._raw_chunks():
            for chunk in (raw,) if decoder is None else decoder.feed(raw):
                total += len(chunk)
                if limit is not None and total > limit:
                    raise payload_too_large(limit)
                if self.on_bytes is not None:
                    self.on_bytes(len(chunk))
                yield chunk
        if decoder is not None:
            decoder.finish()

    async def _raw_chunks(self) -> AsyncIterator[bytes]:
        content = self._request.content
        await self._ask_for_body()
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    chunk = await content.readany()
            except TimeoutError:
                raise RequestError(
                    "RequestTimeout", "The request body stopped arriving", 408
                ) from None
            except (web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError):
                raise invalid_request("The request body ended early or was malformed") from None
            if not chunk:
                return
            yield chunk

    async def _ask_for_body(self) -> None:
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.output_size = 0  # An interim answer: the real one has not begun.


async def drain_refused_body(request: web.BaseRequest) -> None:
    """Read a little more of a body nobody wants, so that the client sees our answer.

    Closing at once would reset the connection under a client that is still sending; reading on
    to the end could take hundreds of megabytes. So: one megabyte, one second.
    """
    left = REFUSED_BODY_DRAIN_BYTES
    try:
        async with asyncio.timeout(REFUSED_BODY_DRAIN_S):
            while left > 0:
                chunk = await request.content.readany()
                if not chunk:
                    return
                left -= len(chunk)
    except (TimeoutError, web.RequestPayloadError, ConnectionError):
        return


def parse_content_coding(header: str | None) -> str | None:
    """The coding of the body, None for plain bytes.

    Only codings whose output can be bounded by the standard library are spoken.
    Raises: RequestError UnsupportedMediaType.
    """
    if header is None:
        return None
    coding = header.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return "gzip"
    if coding == "deflate":
        return "deflate"
    raise RequestError("UnsupportedMediaType", "Unsupported content encoding", 415)


class _Inflater:
    """Push decompressor for gzip (several members) and deflate (with or without zlib header)."""

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding == "gzip"
        self._engine: zlib._Decompress | None = None
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        is_full = False  # A full chunk may leave a little output inside the engine.
        while data or is_full:
            engine = self._engine or self._start(data)
            try:
                chunk = engine.decompress(data, DECODED_CHUNK_BYTES)
            except zlib.error:
                raise invalid_request("The request body is not valid compressed data") from None
            if chunk:
                yield chunk
            if engine.eof:
                data = engine.unused_data
                self._engine = None
                is_full = False
            else:
                data = engine.unconsumed_tail
                is_full = len(chunk) == DECODED_CHUNK_BYTES

    def finish(self) -> None:
        """Check that the data ended where a compressed stream ends."""
        if self._engine is not None:
            raise invalid_request("The compressed request body ended early")

    def _start(self, data: bytes) -> "zlib._Decompress":
        self._members += 1
        if self._members > (MAX_GZIP_MEMBERS if self._is_gzip else 1):
            raise invalid_request("Unexpected bytes after the compressed request body")
        if self._is_gzip:
            wbits = _GZIP_WBITS
        else:  # RFC 9110 means zlib; some clients send raw deflate. The low nibble tells.
            wbits = _ZLIB_WBITS if data[0] & 0x0F == 8 else _RAW_DEFLATE_WBITS
        self._engine = zlib.decompressobj(wbits)
        return self._engine
