"""The strict relay on loopback: takes requestCrawl, follows the firehose, keeps its cursor.

It behaves as the deployed ones do where that can hurt a host: before it crawls it calls
describeServer and refuses a host that does not answer; after a FutureCursor it goes idle and stays
away until the next requestCrawl, with its old cursor.

Spec: SYNC-50, SYNC-51, SYNC-15, SYNC-60
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import libipld
from aiohttp import web

from tests.fakes.relay import Relay
from tests.independent import Refused

STREAM = "/xrpc/com.atproto.sync.subscribeRepos"


class FakeRelay:
    """A relay that knows one host. `urls` says where a host name really is."""

    def __init__(self, plc_url: str, urls: Mapping[str, str]) -> None:
        self.url = ""
        self.plc_url = plc_url
        self.urls = dict(urls)
        self.requests: list[str] = []
        self.status = "idle"
        self.cursor: int | None = None
        self.rules: Relay | None = None
        self.connections = 0
        self.refuse: web.Response | None = None
        self._http: aiohttp.ClientSession | None = None
        self._follower: asyncio.Task[None] | None = None

    @property
    def http(self) -> aiohttp.ClientSession:
        assert self._http is not None
        return self._http

    # What the host calls

    async def request_crawl(self, request: web.Request) -> web.Response:
        """Take a host in, if it answers describeServer (SYNC-50)."""
        hostname = (await request.json())["hostname"]
        self.requests.append(hostname)
        if self.refuse is not None:
            return self.refuse
        url = self.urls.get(hostname)
        try:
            async with self.http.get(
                f"{url}/xrpc/com.atproto.server.describeServer",
                timeout=aiohttp.ClientTimeout(total=60),
            ) as answer:
                described = answer.status == 200 and "did" in await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            described = False
        if url is None or not described:
            body = {"error": "HostNotFound", "message": "describeServer failed"}
            return web.json_response(body, status=400)
        self.follow(hostname)
        return web.json_response({})

    async def host_status(self, request: web.Request) -> web.Response:
        """Say what is known of a host."""
        if self.rules is None or request.query.get("hostname") != self.rules.hostname:
            return web.json_response({"error": "HostNotFound", "message": "unknown"}, status=400)
        body = {"hostname": self.rules.hostname, "status": self.status, "seq": self.cursor or 0}
        return web.json_response(body)

    # Following

    def follow(self, hostname: str) -> None:
        """Connect to a host, if not connected."""
        if self._follower is not None and not self._follower.done():
            return
        if self.rules is None:
            self.rules = Relay(
                hostname=hostname,
                resolve=self._resolve,
                ask_status=self._ask_status,
                now_s=time.time,
            )
        self._follower = asyncio.create_task(self._read(self.rules))

    async def disconnect(self) -> None:
        """Break the connection, as an outage does; the cursor stays."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)

    async def _read(self, rules: Relay) -> None:
        query = "" if self.cursor is None else f"?cursor={self.cursor}"
        url = self.urls[rules.hostname] + STREAM + query
        self.status = "active"
        try:
            async with self.http.ws_connect(url, heartbeat=30, max_msg_size=5_000_000) as socket:
                self.connections += 1
                assert "atproto-relay" not in socket._response.headers.get("Server", "")
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.BINARY:
                        rules.failures.append(f"not a binary message: {message.type}")
                    elif _error_of(message.data) == "FutureCursor":
                        # The host is out of the network until it asks again.
                        self.status = "idle"
                        rules.failures.append("FutureCursor")
                        return
                    else:
                        await rules.take(message.data)
                        self.cursor = rules.last_seq or self.cursor
        except aiohttp.ClientError as error:
            rules.failures.append(f"connection: {error}")
        finally:
            if self.status == "active":
                self.status = "offline"

    async def _resolve(self, did: str) -> Mapping[str, Any]:
        if not did.startswith("did:plc:"):
            raise Refused(f"cannot resolve {did}")
        async with self.http.get(f"{self.plc_url}/{did}") as answer:
            if answer.status != 200:
                raise Refused(f"{did} does not resolve: {answer.status}")
            document: Mapping[str, Any] = await answer.json(content_type=None)
            return document

    async def _ask_status(self, did: str) -> Mapping[str, Any]:
        assert self.rules is not None
        url = f"{self.urls[self.rules.hostname]}/xrpc/com.atproto.sync.getRepoStatus"
        async with self.http.get(url, params={"did": did}) as answer:
            status: Mapping[str, Any] = await answer.json()
            return status

    # For tests

    async def wait_for(self, count: int, *, timeout_s: float = 60) -> list[tuple[str, Any]]:
        """Wait until so many messages have passed and return them; fails at the first failure."""
        async with asyncio.timeout(timeout_s):
            while self.rules is None or len(self.rules.passed) < count:
                if self.rules is not None:
                    assert self.rules.failures == []
                await asyncio.sleep(0.005)
        assert self.rules.failures == []
        return self.rules.passed


def _error_of(frame: bytes) -> object:
    header, payload = libipld.decode_dag_cbor_multi(frame)
    return payload.get("error") if header.get("op") == -1 else None


@asynccontextmanager
async def running_relay(plc_url: str, urls: Mapping[str, str]) -> AsyncIterator[FakeRelay]:
    """Run a relay on loopback until the block ends."""
    relay = FakeRelay(plc_url, urls)
    app = web.Application()
    app.router.add_post("/xrpc/com.atproto.sync.requestCrawl", relay.request_crawl)
    app.router.add_get("/xrpc/com.atproto.sync.getHostStatus", relay.host_status)
    app.router.add_get("/xrpc/_health", _health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    relay.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        relay._http = session
        try:
            yield relay
        finally:
            await relay.disconnect()
            await runner.cleanup()


async def _health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})
