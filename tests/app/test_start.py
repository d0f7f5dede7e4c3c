"""Starting: what relays and clocks elsewhere say, and that silence delays nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pds.app import Options, RunningServer, accept_clock, running_server
from pds.app.foundation import lay_foundation
from pds.app.wiring import build_services
from pds.blobstore.base import BlobKey
from pds.blobstore.disk import DiskBlobStore
from pds.cli.dev import dev_config
from pds.config import Config, load_config
from pds.errors import ConfigError, RequestError
from pds.protocol.syntax import parse_did
from pds.services.passwords import Passwords
from pds.services.rate_limits import RateLimits
from pds.store.events import get_event_page
from tests.scenarios.conftest import bound_socket
from tests.support_ports import free_port

HOUR_US = 3600 * 1_000_000


class SmallRelay:
    """Knows one number, and tells the time it is told to tell."""

    def __init__(self) -> None:
        self.seq = 0
        self.is_silent = False
        self.clock_ahead_s = 0
        self.url = ""
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.is_silent:
            await asyncio.sleep(3600)
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
    """SYNC-13: the database is new, as after a loss, and the relay remembers."""
    async with small_relay() as relay:
        relay.seq = time.time_ns() // 1000 + HOUR_US
        async with server_with(tmp_path, relay) as server:
            async with asyncio.timeout(60):  # The port opens before a slow relay has answered.
                while server.engine.last_seq < relay.seq:
                    await asyncio.sleep(0.01)
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


async def test_silence_elsewhere_delays_neither_the_start_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that is waited for longer than a test may last is not waited for by the port."""
    monkeypatch.setattr("pds.app.background.ASK_TIMEOUT_S", 3600.0)
    async with small_relay() as relay:
        relay.is_silent = True
        async with (
            asyncio.timeout(60),
            server_with(tmp_path, relay) as server,
            aiohttp.ClientSession() as http,
            http.get(f"{server.url}/xrpc/_health") as answer,
        ):
            assert answer.status == 200
            assert relay.asked


async def test_readers_come_only_when_relays_were_heard_or_had_their_time(tmp_path: Path) -> None:
    """SYNC-13, SYNC-15: a relay that is ahead of us is not told so before we could catch up."""
    async with small_relay() as relay:
        relay.is_silent = True
        async with server_with(tmp_path, relay) as server, aiohttp.ClientSession() as http:
            url = f"{server.url}/xrpc/com.atproto.sync.subscribeRepos"
            upgrade = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            async with http.get(url, headers=upgrade) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "3"
                assert (await answer.json())["error"] == "NotEnoughResources"
            server.services.firehose.release()
            async with http.ws_connect(url):
                assert server.services.firehose.reader_count == 1


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


async def test_a_replica_of_the_directory_answers_questions(tmp_path: Path) -> None:
    """ID-60: reads go to the replica, everything that decides to the directory."""
    did = parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
    async with small_relay() as replica:
        sock = bound_socket()
        config = dev_config(tmp_path, port=sock.getsockname()[1], plc_port=9)
        config = replace(config, identity=replace(config.identity, plc_read_url=replica.url))
        async with running_server(config, sock=sock) as server:
            with pytest.raises(RequestError, match="Unable to resolve DID"):
                await server.services.identity.resolve_did(did)
        assert f"/{did}" in replica.asked
        assert config.identity.plc_url != replica.url


async def test_metrics_are_served_on_a_port_of_their_own(tmp_path: Path) -> None:
    sock, port = bound_socket(), free_port()
    config = dev_config(tmp_path, port=sock.getsockname()[1], plc_port=9)
    config = replace(config, listener=replace(config.listener, metrics_port=port))
    async with running_server(config, sock=sock) as server, aiohttp.ClientSession() as http:
        async with http.get(f"{server.url}/xrpc/com.atproto.server.describeServer"):
            pass
        async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.content_type == "text/plain"
            text = await answer.text()
        assert 'pds_requests_total{method="com.atproto.server.describeServer",status="200"}' in text
        for url in (f"{server.url}/metrics", f"http://127.0.0.1:{port}/"):
            async with http.get(url) as answer:
                assert answer.status == 404


@pytest.mark.parametrize(("setting", "refused"), [("true", 1), ("false", 0)])
async def test_the_limits_on_signing_in_can_be_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, refused: int
) -> None:
    """30 attempts in 5 minutes, as in the reference; a setting apart from all other limits.

    The clock of the limits stands still, so that no window ends meanwhile.
    """

    def standing(**parts: Any) -> RateLimits:
        return RateLimits(**{**parts, "now_s": lambda: 1_760_000_000.0})

    monkeypatch.setattr("pds.app.wiring.RateLimits", standing)
    sock = bound_socket()
    config = dev_config(tmp_path, port=sock.getsockname()[1], plc_port=9)
    rates = load_config(
        {"PDS_SIGN_IN_LIMITS_ENABLED": setting, "PDS_RATE_LIMITS_ENABLED": "false"}
    ).rates
    attempt = {"identifier": "nobody.test", "password": "wrong"}
    async with (
        running_server(replace(config, rates=rates), sock=sock) as server,
        aiohttp.ClientSession() as http,
    ):
        url = f"{server.url}/xrpc/com.atproto.server.createSession"

        async def sign_in() -> int:
            async with http.post(url, json=attempt) as answer:
                return answer.status

        statuses = await asyncio.gather(*(sign_in() for _ in range(31)))
    assert statuses.count(429) == refused
    assert statuses.count(401) == 31 - refused


async def test_calls_for_users_cannot_take_the_connections_of_look_ups(tmp_path: Path) -> None:
    config = dev_config(tmp_path, port=1, plc_port=9)
    async with AsyncExitStack() as stack:
        base = await lay_foundation(config, stack)
        clients = {base.trusted, base.guarded, base.proxy_trusted, base.proxy_guarded}
        assert len(clients) == 4
        passwords = Passwords()
        stack.callback(passwords.close)
        proxy = build_services(base, passwords, Options()).proxy
        assert (proxy._trusted, proxy._guarded) == (base.proxy_trusted, base.proxy_guarded)


async def test_damaged_blobs_are_found_without_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise A7, for blobs too large to be checked at each read."""
    sock = bound_socket()
    config = dev_config(tmp_path, port=sock.getsockname()[1], plc_port=9)
    store = DiskBlobStore(config.blob_location)
    await store.start()

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * 1000

    async with store.stage(content()) as staged:
        key = BlobKey(1, staged.cid)
        await staged.store(key.aid)
    await store.close()
    [file] = [path for path in config.blob_location.rglob("*") if path.stat().st_size == 1000]
    file.chmod(0o600)
    file.write_bytes(b"y" * 1000)
    monkeypatch.setattr("pds.app.background.SCRUB_FIRST_AFTER_S", 0.0)
    async with running_server(config, sock=sock) as server:
        async with asyncio.timeout(60):
            while key not in server.services.blobs._damaged:
                await asyncio.sleep(0.05)
        assert server.services.blobs._damaged == {key}
