"""Loopback servers for the outbound client to meet, and a client that may reach them."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Network

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from pds.net.http import GuardedClient, HttpSettings
from tests.fakes.streams import stream_server

LOOPBACK_1 = IPv4Network("127.0.0.1/32")


class FixedResolver(AbstractResolver):
    """Answers with the next address list at each call; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def resolve(self, host, port=0, family=socket.AF_INET) -> list[ResolveResult]:
        self.calls += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_serving(talk):
    """A TCP server that hands each connection to `talk(reader, writer)`."""
    async with stream_server(talk) as port:
        yield port


def guarded(resolver=None, **changes) -> GuardedClient:
    """A guarded client that may reach 127.0.0.1 (and no other loopback address) over http."""
    settings = {
        "allow_http": True,
        "allowed_ports": None,
        "extra_networks": (LOOPBACK_1,),
        **changes,
    }
    return GuardedClient(
        HttpSettings(**settings), resolver=resolver or FixedResolver(["127.0.0.1"])
    )


async def ok(_request):
    return web.json_response({"ok": True})
