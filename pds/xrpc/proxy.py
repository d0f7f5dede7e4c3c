"""The catch-all below `/xrpc/`: methods that are not ours go through the service proxy (XRPC-60).

`proxy_call` is the fallback of `XrpcServer`, which has authenticated the caller. What may be asked
and where it goes is decided in `pds.services.proxy`; here bytes are moved, both ways, in chunks.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from pds.errors import RemoteError, RequestError, invalid_request
from pds.services.proxy import ProxiedCall
from pds.services.proxy_answers import ProxiedAnswer
from pds.xrpc.errors import payload_too_large
from pds.xrpc.server import Answer, Call

ANSWER_HEADERS = {"Content-Security-Policy": "default-src 'none'; sandbox"}
"""Somebody else's bytes under our name: a browser must not take them for a page of ours."""


async def proxy_call(call: Call) -> Answer:
    """Pass a call on to the service that it is meant for, and its answer back."""
    if call.principal is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    request = call.request
    proxy = call.services.proxy
    body = None
    if request.method == "POST":
        announced = request.content_length
        if announced is not None and announced > proxy.max_request_bytes:
            raise payload_too_large(proxy.max_request_bytes)
        body = _raw_body(request, proxy.max_request_bytes, call.services.limits.body_idle_s)
    async with proxy.forward(call.principal, make_proxied(call, body=body)) as answer:
        return await stream_answer(request, answer)


def make_proxied(
    call: Call,
    *,
    body: AsyncIterator[bytes] | None = None,
    is_read_here: bool = False,
) -> ProxiedCall:
    """Return a call as it goes on to another service."""
    request = call.request
    return ProxiedCall(
        nsid=call.nsid,
        method=request.method,
        query=request.rel_url.raw_query_string,
        headers=_joined(request.headers),
        body=body,
        is_read_here=is_read_here,
    )


async def stream_answer(request: web.Request, answer: ProxiedAnswer) -> web.StreamResponse:
    """Send an answer on to the client as it arrives."""
    chunks = await answer.stream()
    response = web.StreamResponse(
        status=answer.status, headers={**answer.headers, **ANSWER_HEADERS}
    )
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except RemoteError as error:
        # The status is out already: cut the connection, so that nobody takes what was sent for
        # the whole.
        raise ConnectionResetError("the upstream answer broke off") from error
    await response.write_eof()
    return response


def _joined(headers: CIMultiDictProxy[str]) -> Mapping[str, str]:
    """Return headers each of which is there once; those that were repeated are joined."""
    names = {name.lower() for name in headers}
    if len(names) == len(headers):
        return headers
    return CIMultiDict((name, ", ".join(headers.getall(name))) for name in names)


async def _raw_body(
    request: web.BaseRequest, limit_bytes: int, idle_s: float
) -> AsyncIterator[bytes]:
    """Yield the request body as it comes, content coding untouched."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # An interim answer: the real one has not begun.
    total = 0
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await request.content.readany()
        except TimeoutError:
            raise RequestError("RequestTimeout", "The request body stopped arriving", 408) from None
        except (web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError):
            raise invalid_request("The request body ended early or was malformed") from None
        if not chunk:
            return
        total += len(chunk)
        if total > limit_bytes:
            raise payload_too_large(limit_bytes)
        yield chunk
