"""`/xrpc/_health`: what load balancers and monitors ask (XRPC-14)."""

import orjson
from aiohttp import web

from pds.services.health import Health
from pds.web.router import WebHandler, WebRouter


def add_routes(router: WebRouter, health: Health) -> None:
    """Serve the health check."""
    router.get("/xrpc/_health", _health_handler(health), is_public=True)


def _health_handler(health: Health) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        report = await health.check()
        body = {"version": report.version}
        if report.problem is not None:
            body["error"] = report.problem
        return web.Response(
            status=200 if report.is_well else 503,
            body=orjson.dumps(body),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    return handle
