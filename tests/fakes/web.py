"""Many hosts on one loopback port: well-known pages, redirects, faults and silence."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult


@dataclass(slots=True)
class Page:
    """What a path answers; `delay_s` before, `hang_up` instead."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang_up: bool = False


class LoopbackResolver(AbstractResolver):
    """Finds every host at 127.0.0.1, except those that do not exist or do not answer."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.down: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host in self.missing:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        if host in self.down:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=flags,
            )
        ]

    async def close(self) -> None:
        return None


class FakeWeb:
    """Pages by host and path, with or without the query; everything else answers 404."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, str], Page] = {}
        self.resolver = LoopbackResolver()
        self.requests: list[tuple[str, str]] = []
        self.port = 0

    def set_page(self, host: str, path: str, page: Page | bytes) -> None:
        """Publish a page."""
        self.pages[host, path] = Page(page) if isinstance(page, bytes) else page

    def set_handle(self, handle: str, page: Page | bytes) -> None:
        """Publish the well-known page of a handle."""
        self.set_page(handle, "/.well-known/atproto-did", page)

    @property
    def well_known_url(self) -> str:
        """The pattern with which a handle resolver finds the pages of this server."""
        return f"http://{{handle}}:{self.port}/.well-known/atproto-did"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        host = request.host.partition(":")[0]
        self.requests.append((host, request.path))
        page = self.pages.get((host, request.path_qs)) or self.pages.get((host, request.path))
        page = page or Page(b"not here", 404)
        await asyncio.sleep(page.delay_s)
        if page.hang_up and request.transport is not None:
            request.transport.abort()
        return web.Response(body=page.body, status=page.status, headers=page.headers)


@asynccontextmanager
async def running_web() -> AsyncIterator[FakeWeb]:
    """Run the hosts on a free loopback port."""
    fake = FakeWeb()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake._answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.port = runner.addresses[0][1]
        yield fake
    finally:
        await runner.cleanup()
