"""A PLC directory on loopback that judges as the real one does, and misbehaves on demand."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Any

from aiohttp import web

from pds.protocol.plc_log import DEFAULT_RATE_LIMITS, PlcRateLimits
from pds.services.plc_directory import PlcDirectory
from pds.web.plc_directory import make_plc_app

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Mood(Enum):
    """How the directory behaves."""

    KIND = auto()
    DOWN = auto()
    """Breaks every connection without a word."""
    SLOW = auto()
    """Answers after `delay_s`."""
    FAULTY = auto()
    """Answers 503."""
    RATE_LIMITED = auto()
    """Refuses operations as the real one does when there are too many."""
    FORGETFUL = auto()
    """Takes an operation, then breaks the connection instead of answering."""
    LAGGING = auto()
    """Knows of no identity when asked, like a replica far behind; takes operations."""
    BABBLING = auto()
    """Answers 200 with something that is not JSON."""


class FakePlc:
    """Start it with `async with running_plc() as plc`.

    `overrides` are answers to GET by path, whatever the mood; `requests` is what came in.
    """

    def __init__(
        self,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        rate_limits: PlcRateLimits | None = DEFAULT_RATE_LIMITS,
    ) -> None:
        self.directory = PlcDirectory(now_us=now_us, rate_limits=rate_limits)
        self.url = ""
        self.delay_s = 5.0
        self.read_mood = Mood.KIND
        self.write_mood = Mood.KIND
        self.requests: list[tuple[str, str]] = []
        self.overrides: dict[str, Any] = {}

    @property
    def mood(self) -> Mood:
        """Set it to change reads and writes together."""
        return self.write_mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        self.read_mood = self.write_mood = mood

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if request.method == "GET" and request.path in self.overrides:
            return web.json_response(self.overrides[request.path])
        mood = self.read_mood if request.method == "GET" else self.write_mood
        match mood:
            case Mood.DOWN:
                return _hang_up(request)
            case Mood.SLOW:
                await asyncio.sleep(self.delay_s)
            case Mood.FAULTY:
                return web.json_response({"message": "Service Unavailable"}, status=503)
            case Mood.BABBLING:
                return web.Response(text="<html>hello</html>")
            case Mood.RATE_LIMITED if request.method == "POST":
                message = "Too many operations within the last hour. (Max is 10)"
                return web.json_response({"message": message}, status=400)
            case Mood.FORGETFUL if request.method == "POST":
                await handler(request)
                return _hang_up(request)
            case Mood.LAGGING if request.method == "GET":
                return web.json_response({"message": "DID not registered: not yet"}, status=404)
        return await handler(request)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakePlc"]:
        app = make_plc_app(self.directory)
        app.middlewares.insert(0, self._misbehave)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"http://127.0.0.1:{port}"
            yield self
        finally:
            await runner.cleanup()


@asynccontextmanager
async def running_plc(
    *,
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    rate_limits: PlcRateLimits | None = DEFAULT_RATE_LIMITS,
) -> AsyncIterator[FakePlc]:
    """Run a fake directory on a free loopback port; `plc.url` says where."""
    async with FakePlc(now_us=now_us, rate_limits=rate_limits).running() as plc:
        yield plc


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
