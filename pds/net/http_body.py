"""Bodies of outbound requests and answers: streamed, counted, limited in time.

A body is never held whole unless a caller asks for it and says how large it may be; sizes are
counted after decompression, so that a small answer cannot unfold into a large one.
"""

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from pds.errors import BadAnswer
from pds.net.http_errors import AnswerTooLarge, remote_errors


class StreamedAnswer:
    """An answer whose body is still on the way. Valid inside its `async with` only."""

    def __init__(
        self, response: aiohttp.ClientResponse, *, idle_s: float, ends_at: float, max_bytes: int
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = str(response.url)
        self._response = response
        self._idle_s = idle_s
        self._ends_at = ends_at
        self._max_bytes = max_bytes

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, content coding untouched.

        Raises: Unreachable when it stalls or breaks off; AnswerTooLarge.
        """
        host = self._response.url.host
        declared = self._response.content_length
        if declared is not None and declared > self._max_bytes and not self._is_bodyless():
            raise AnswerTooLarge(f"{host} announced {declared} bytes")
        loop = asyncio.get_running_loop()
        received = 0
        while True:
            with remote_errors(host):
                async with asyncio.timeout_at(min(loop.time() + self._idle_s, self._ends_at)):
                    chunk = await self._response.content.readany()
            if not chunk:
                return
            received += len(chunk)
            if received > self._max_bytes:
                raise AnswerTooLarge(f"{host} sent more than {self._max_bytes} bytes")
            yield chunk

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, decompressed, refusing more than `max_bytes`."""
        limit = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        coding = self.headers.get("Content-Encoding", "identity").strip().lower()
        decoder = _Decoder(coding, self._response.url.host)
        parts: list[bytes] = []
        size = 0
        async for chunk in self.iter_chunks():
            part = decoder.decode(chunk, limit - size + 1)
            size += len(part)
            if size > limit:
                raise AnswerTooLarge(f"{self._response.url.host} sent more than {limit} bytes")
            parts.append(part)
        decoder.finish()
        return b"".join(parts)

    def _is_bodyless(self) -> bool:
        return self._response.method == "HEAD" or self.status in (204, 304)


@dataclass(slots=True)
class Upload:
    """The request body, which moves the deadline for the headers while it is being sent."""

    body: bytes | AsyncIterable[bytes] | None
    wait_s: float
    source_wait_s: float
    ends_at: float
    deadline: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    error: BaseException | None = None

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """Return what aiohttp shall send."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return self._stream(self.body)

    async def _stream(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        chunks = aiter(body)
        while True:
            self.allow(self.source_wait_s)
            try:
                chunk = await anext(chunks)
            except StopAsyncIteration:
                break
            except Exception as error:
                self.error = error
                raise
            self.allow(self.wait_s)
            yield chunk
        self.allow(self.wait_s)

    def allow(self, seconds: float) -> None:
        """Let the headers take `seconds` from now, unless they have come."""
        try:
            self.deadline.reschedule(min(asyncio.get_running_loop().time() + seconds, self.ends_at))
        except RuntimeError:
            return  # the block that waits for the headers has ended


class _Decoder:
    """Undoes one content coding, a chunk at a time and never more than asked for."""

    def __init__(self, coding: str, host: str | None) -> None:
        if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise BadAnswer(f"{host} answered in the coding {coding[:20]!r}")
        self._host = host
        self._stream = (
            None if coding in ("", "identity") else zlib.decompressobj(zlib.MAX_WBITS | 32)
        )

    def decode(self, chunk: bytes, limit: int) -> bytes:
        """Return at most `limit` (above zero) decoded bytes of `chunk`."""
        if self._stream is None:
            return chunk
        try:
            return self._stream.decompress(chunk, limit)
        except zlib.error as error:
            raise BadAnswer(f"{self._host} sent a broken compressed body") from error

    def finish(self) -> None:
        """Check that the body was whole."""
        if self._stream is not None and not self._stream.eof:
            raise BadAnswer(f"{self._host} sent a truncated compressed body")
