"""Finds the handler for everything that is not XRPC: exact paths, then prefixes.

Answers carry headers that make a page harmless to embed, sniff or script. Documents under
`/.well-known/` are readable from everywhere (XRPC-11); pages for people are not.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from aiohttp import web

WebHandler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Route: TypeAlias = tuple[frozenset[str], WebHandler, bool]

PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PUBLIC_DOCUMENT_HEADERS: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Origin": "*",
    "X-Content-Type-Options": "nosniff",
}
PREFLIGHT_HEADERS: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "86400",
}

_log = logging.getLogger(__name__)


class WebRouter:
    """A table of paths."""

    def __init__(self) -> None:
        self._exact: dict[str, _Route] = {}
        self._prefixes: list[tuple[str, WebHandler]] = []

    def get(self, path: str, handler: WebHandler, *, is_public: bool = False) -> None:
        """Serve GET and HEAD of one path; `is_public` documents may be read from any origin."""
        self._exact[path] = (frozenset({"GET", "HEAD"}), handler, is_public)

    def mount(self, prefix: str, handler: WebHandler) -> None:
        """Hand every request below `prefix` (which ends in a slash) to `handler`."""
        self._prefixes.append((prefix, handler))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        found = self._exact.get(request.rel_url.raw_path)
        is_public = found is not None and found[2]
        try:
            response = await self._dispatch(request, found)
        except web.HTTPException as error:
            response = _plain(error.status, error.reason or "Error")
        except Exception:
            if request.writer.output_size > 0:
                raise
            _log.exception("page failed")
            response = _plain(500, "Internal Server Error")
        if not response.prepared:
            for name, value in (PUBLIC_DOCUMENT_HEADERS if is_public else PAGE_HEADERS).items():
                response.headers.setdefault(name, value)
        return response

    async def _dispatch(self, request: web.Request, found: "_Route | None") -> web.StreamResponse:
        if found is None:
            path = request.rel_url.raw_path
            for prefix, mounted in self._prefixes:
                if path.startswith(prefix):
                    return await mounted(request)
            return _plain(404, "Not Found")
        methods, handler, is_public = found
        if is_public and request.method == "OPTIONS":
            return web.Response(status=204, headers=PREFLIGHT_HEADERS)
        if request.method not in methods:
            response = _plain(405, "Method Not Allowed")
            response.headers["Allow"] = ", ".join(sorted(methods))
            return response
        return await handler(request)


def _plain(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=f"{text}\n")
    if status >= 400:
        response.force_close()  # Whatever body came along is not worth reading.
    return response
