"""Starting: what relays and clocks elsewhere say, and that silence delays nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pds.app import RunningServer, accept_clock, running_server
from pds.cli.dev import dev_config
from pds.config import Config
from pds.errors import ConfigError
from pds.store.events import get_event_page
from tests.scenarios.conftest import bound_socket

HOUR_US = 3600 * 1_000_000


class SmallRelay:
    """Knows one number, and tells the time it is told to tell."""

    def __init__(self) -> None:
        self.seq = 0
        self.is_silent = False
        self.clock_ahead_s = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if self.is_silent:
            await asyncio.sleep(60)
        date = formatdate(time.time() + self.clock_ahead_s, usegmt=True)
        body = {"hostname": request.query.get("hostname", ""), "seq": self.seq}
        return web.json_response(body, headers={"Date": date})


@asynccontextmanager
async def small_relay() -> AsyncIterator[SmallRelay]:
    relay = SmallRelay()
    app = web.Application()
    app.router.add_get("/{path:.*}", relay.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    sock = bound_socket()
    relay.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    await web.SockSite(runner, sock).start()
    try:
        yield relay
    finally:
        await runner.cleanup()


@asynccontextmanager
async def server_with(folder: Path, relay: SmallRelay) -> AsyncIterator[RunningServer]:
    sock = bound_socket()
    config = config_in(folder, relay, sock.getsockname()[1])
    async with running_server(config, sock=sock) as server:
        yield server


def config_in(folder: Path, relay: SmallRelay, port: int = 1) -> Config:
    config = dev_config(folder, port=port, plc_port=9)
    federation = replace(config.federation, crawlers=(relay.url,))
    return replace(config, federation=federation)


def _write(txn) -> None:  # type: ignore[no-untyped-def]
    txn.emit("identity", 1, lambda seq, at_us: b"frame")


async def test_numbers_continue_above_what_a_relay_has_seen(tmp_path: Path) -> None:
    async with small_relay() as relay:
        relay.seq = time.time_ns() // 1000 + HOUR_US
        async with server_with(tmp_path, relay) as server:
            assert server.engine.last_seq >= relay.seq
            await server.engine.transact("test", _write)
            page = await server.engine.read("test", get_event_page, 0, 10, 1000)
    assert page.through > relay.seq


@pytest.mark.parametrize("seq", [0, -5, 25 * HOUR_US, "text", None])
async def test_numbers_that_cannot_be_are_ignored(tmp_path: Path, seq: object) -> None:
    async with small_relay() as relay:
        now_us = time.time_ns() // 1000
        relay.seq = now_us + seq if isinstance(seq, int) and seq > HOUR_US else seq  # type: ignore[assignment]
        async with server_with(tmp_path, relay) as server:
            assert server.engine.last_seq <= now_us + HOUR_US


async def test_silence_elsewhere_does_not_delay_the_start(tmp_path: Path) -> None:
    async with small_relay() as relay:
        relay.is_silent = True
        began = time.monotonic()
        async with server_with(tmp_path, relay) as server, aiohttp.ClientSession() as http:
            async with http.get(f"{server.url}/xrpc/_health") as answer:
                assert answer.status == 200
            assert time.monotonic() - began < 1
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 2


async def test_writes_wait_while_the_clock_is_in_doubt(tmp_path: Path) -> None:
    async with small_relay() as relay:
        relay.clock_ahead_s = 3600
        async with server_with(tmp_path, relay) as server, aiohttp.ClientSession() as http:
            assert server.clock.doubt is not None
            async with http.get(f"{server.url}/xrpc/_health") as answer:
                assert answer.status == 200
            login = {"identifier": "nobody.test", "password": "x"}
            url = f"{server.url}/xrpc/com.atproto.server.createAccount"
            body = {"handle": "alice.test", "email": "a@example.test", "password": "long enough"}
            async with http.post(url, json=body) as answer:
                assert (answer.status, (await answer.json())["error"]) == (
                    503,
                    "NotEnoughResources",
                )
                assert "Retry-After" in answer.headers
            url = f"{server.url}/xrpc/com.atproto.server.createSession"
            async with http.post(url, json=login) as answer:
                assert answer.status == 401
        await accept_clock(config_in(tmp_path, relay))
        async with server_with(tmp_path, relay) as server:
            assert server.clock.doubt is None


async def test_a_lost_master_key_is_not_replaced(tmp_path: Path) -> None:
    async with small_relay() as relay:
        async with server_with(tmp_path, relay):
            pass
        key = tmp_path / "master-key"
        assert key.stat().st_mode & 0o777 == 0o600
        key.unlink()
        with pytest.raises(ConfigError, match="master key"):
            async with server_with(tmp_path, relay):
                pytest.fail("it started")


async def test_everything_below_xrpc_is_refused_in_json(tmp_path: Path) -> None:
    """(XRPC-7)"""
    async with (
        small_relay() as relay,
        server_with(tmp_path, relay) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        for verb, path in (
            ("POST", "_health"),
            ("PUT", "_health"),
            ("GET", "_health/"),
            ("GET", ""),
        ):
            async with http.request(verb, f"/xrpc/{path}") as answer:
                assert answer.status == 400
                assert (await answer.json())["error"] == "InvalidRequest"
