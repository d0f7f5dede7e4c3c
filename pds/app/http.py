"""The HTTP side: one root handler, the pages, the request log, the open port."""

import asyncio
import itertools
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from pds.app.options import EmbeddedPlc, Options
from pds.config import Config
from pds.errors import ConfigError
from pds.log import RequestLine, get_logger, log_request
from pds.metrics import Metrics
from pds.services import Services
from pds.services.admin_api import AdminApi
from pds.services.firehose import Firehose
from pds.web import admin_api as admin_routes
from pds.web import health as health_routes
from pds.web import mailbox as mailbox_routes
from pds.web import oauth_client as oauth_client_routes
from pds.web import pages as page_routes
from pds.web import well_known
from pds.web.pages import Pages
from pds.web.plc_directory import make_plc_app
from pds.web.router import WebRouter
from pds.xrpc import (
    app_bsky,
    com_atproto_admin,
    com_atproto_identity,
    com_atproto_lexicon,
    com_atproto_repo,
    com_atproto_server,
    com_atproto_sync,
    com_atproto_temp,
    subscribe_repos,
)
from pds.xrpc.listener import Listener, ServerRequest
from pds.xrpc.server import PREFIX, Finished, MethodTable, XrpcServer

HEALTH_PATH: Final = "/xrpc/_health"
HEALTH_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Others are refused like everything else below `/xrpc/`: in JSON (XRPC-7)."""
METRICS_HOST: Final = "127.0.0.1"
METRICS_PATH: Final = "/metrics"
METHOD_TABLES: Final[tuple[MethodTable, ...]] = (
    app_bsky.routes,
    com_atproto_admin.routes,
    com_atproto_identity.routes,
    com_atproto_lexicon.routes,
    com_atproto_repo.routes,
    com_atproto_server.routes,
    com_atproto_sync.routes,
    com_atproto_temp.routes,
    subscribe_repos.routes,
)
"""Every XRPC method of this server."""


def root_handler(
    xrpc: XrpcServer, router: WebRouter
) -> Callable[[ServerRequest], Awaitable[web.StreamResponse]]:
    """Return the handler of every request: XRPC, or a page."""

    async def handle(request: ServerRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        is_health = path == HEALTH_PATH and request.method in HEALTH_METHODS
        if path.startswith(PREFIX) and not is_health:
            return await xrpc.handle(request)
        return await router.handle(request)

    return handle


def build_router(services: Services, options: Options) -> WebRouter:
    """Collect everything outside XRPC."""
    router = WebRouter()
    pages = Pages()
    page_routes.add_routes(router, info=services.server_info, pages=pages)
    health_routes.add_routes(router, services.health)
    well_known.add_routes(router, info=services.server_info, accounts=services.accounts)
    admin_routes.add_routes(router, api=AdminApi(services), auth=services.admin)
    oauth_client_routes.add_routes(router, migration=services.migration, pages=pages)
    if options.mailbox is not None:
        mailbox_routes.add_routes(router, mailbox=options.mailbox, pages=pages)
    return router


def observer(metrics: Metrics) -> Callable[[Finished], None]:
    """Count each request, and write its one line."""
    log = get_logger("pds.request")
    count = metrics.counter("requests", "Answered XRPC requests.", ("method", "status"))
    seconds = metrics.histogram("request_seconds", "Time to answer XRPC requests.", ("method",))
    numbers = itertools.count(1)
    run = secrets.token_hex(3)
    series: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def observe(done: Finished) -> None:
        key = done.method, done.status
        if key not in series:
            series[key] = count.series(*key), seconds.series(done.method)
        add_one, add_seconds = series[key]
        add_one()
        add_seconds(done.duration_s)
        if log.is_enabled_for(logging.INFO):
            log_request(
                log,
                RequestLine(
                    request_id=f"{run}-{next(numbers)}",
                    method=done.method,
                    status=done.status,
                    duration_ms=done.duration_s * 1000,
                    did=done.did,
                    error=done.error,
                    response_bytes=done.size_bytes,
                    client=done.address,
                ),
            )

    return observe


@asynccontextmanager
async def listening(
    listener: Listener, config: Config, sock: socket.socket | None, firehose: Firehose
) -> AsyncIterator[None]:
    """Accept connections; at the end tell firehose readers, and let requests finish."""
    settings = config.listener
    loop = asyncio.get_running_loop()
    if sock is None:
        try:
            server = await loop.create_server(
                listener, settings.host, settings.port, reuse_address=True, backlog=1024
            )
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"cannot listen on {where}: {reason}; set PDS_BIND and PDS_PORT"
            ) from error
    else:
        server = await loop.create_server(listener, sock=sock, backlog=1024)
    try:
        yield
    finally:
        server.close()
        await firehose.close()
        await asyncio.sleep(0)  # Requests that have arrived are started first.
        listener.pre_shutdown()
        await listener.shutdown(settings.shutdown_timeout_s)


@asynccontextmanager
async def serving_plc(plc: EmbeddedPlc) -> AsyncIterator[None]:
    """Serve an embedded PLC directory until the block ends."""
    runner = web.AppRunner(make_plc_app(plc.directory), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, plc.socket).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_metrics(
    metrics: Metrics, port: int | None, *, shared: bool = False
) -> AsyncIterator[None]:
    """Serve `/metrics` to this machine until the block ends; without a port serve nothing.

    A `shared` port may be bound by others that say so too.
    """
    if port is None:
        yield
        return

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != METRICS_PATH:
            return web.Response(status=404)
        body, content_type = metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, METRICS_HOST, port, reuse_port=shared or None).start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {METRICS_HOST}:{port}; set PDS_METRICS_PORT to another port"
            ) from error
        yield
    finally:
        await runner.cleanup()
