"""indigo's relay crawls this server, through restarts and kills.

The relay is no package of any registry: name its program in PDS_TEST_RELAY. Its public requestCrawl
refuses loopback, so the host is written into its database.
"""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.independent import Follower, check_export
from tests.support import require
from tests.support_live import LiveServer, live_server_in
from tests.support_load import Writer
from tests.support_process import free_port

DOWN = ("host connection failed", "dialing failed")
"""What the relay says while we are gone."""
RESUMED = "dropping commit with old rev"
"""What it says of an event that it asked for twice after a reconnect."""


class Relay:
    """The program with its folder; started and stopped as often as a test needs."""

    def __init__(self, folder: Path, program: str, plc_url: str) -> None:
        self.folder, self.program, self.plc_url = folder, program, plc_url
        self.address = f"127.0.0.1:{free_port()}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        log = (self.folder / "relay.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            self.program,
            "serve",
            *("--bind", self.address),
            *("--metrics-listen", f"127.0.0.1:{free_port()}"),
            *("--persist-dir", str(self.folder / "persist")),
            "--allow-insecure-hosts",
            env={
                **os.environ,
                "DATABASE_URL": f"sqlite://{self.folder}/relay.sqlite",
                "RELAY_PLC_HOST": self.plc_url,
                "RELAY_ADMIN_PASSWORD": "only for this test",
                "LOG_LEVEL": "info",
            },
            stdout=log,
            stderr=log,
        )
        log.close()
        try:
            await self._wait()
            yield
        finally:
            process.terminate()
            await process.wait()

    async def _wait(self) -> None:
        async with asyncio.timeout(20), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://{self.address}/xrpc/_health") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    def insert_host(self, port: int) -> None:
        """Make the relay subscribe to a server on loopback, from the oldest event on."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        database = sqlite3.connect(self.folder / "relay.sqlite")
        database.execute(
            "INSERT INTO host (created_at, updated_at, hostname, no_ssl, account_limit, trusted,"
            " status, last_seq) VALUES (?, ?, ?, 1, 100, 0, 'active', 1)",
            (now, now, f"localhost:{port}"),
        )
        database.commit()
        database.close()

    def warnings(self) -> list[str]:
        lines = (self.folder / "relay.log").read_text().splitlines()
        return [line for line in lines if '"WARN"' in line or '"ERROR"' in line]


async def write_rounds(
    session: aiohttp.ClientSession, server: LiveServer, relay: Relay, writers: list[Writer]
) -> list[str]:
    """Write, stop with SIGTERM, write, stop with SIGKILL, write; return early warnings."""
    early: list[str] = []
    for number in range(3):
        for _ in range(8):
            for writer in writers:
                await writer.step(session)
                await asyncio.sleep(0.03)  # The relay takes 50 events a second.
        await asyncio.sleep(2)
        if number == 0:
            early = relay.warnings()
            assert await server.stop() == 0
            await server.start()
        elif number == 1:
            await server.kill()
            await server.start()
        await asyncio.sleep(5)
    return early


async def follow(
    session: aiohttp.ClientSession, relay: Relay, follower: Follower, until: asyncio.Event
) -> None:
    url = f"http://{relay.address}/xrpc/com.atproto.sync.subscribeRepos"
    async with session.ws_connect(url, params={"cursor": "0"}, max_msg_size=0) as stream:
        while not until.is_set():
            try:
                message = await stream.receive(timeout=0.5)
            except TimeoutError:
                continue
            assert message.type is aiohttp.WSMsgType.BINARY, message
            follower.take(message.data)


@pytest.mark.timeout(240)
async def test_the_real_relay_takes_every_event(tmp_path: Path) -> None:
    program = os.environ.get("PDS_TEST_RELAY", "")
    require("relay", is_here=bool(program), hint="a built relay in PDS_TEST_RELAY")
    async with live_server_in(tmp_path / "server") as server, aiohttp.ClientSession() as session:
        writers = [Writer(server.url, f"relayed{n}.test", random.Random(n)) for n in range(3)]
        for writer in writers:
            await writer.sign_up(session)
            for _ in range(5):
                await writer.step(session)
        did_keys = {writer.did: await server.signing_key(writer.did) for writer in writers}
        relay = Relay(tmp_path, program, server.plc_url)
        async with relay.running():
            pass  # It makes its database.
        relay.insert_host(server.port)
        async with relay.running():
            await asyncio.sleep(4)  # It flushes what it keeps for replay every few seconds.
            follower, done = Follower(did_keys), asyncio.Event()
            following = asyncio.create_task(follow(session, relay, follower, done))
            early = await write_rounds(session, server, relay, writers)
            warnings = relay.warnings()  # Before our own consumer leaves it, which it notes too.
            done.set()
            await following
            url = f"http://{relay.address}/xrpc/com.atproto.sync.getHostStatus"
            async with session.get(url, params={"hostname": f"localhost:{server.port}"}) as answer:
                status = await answer.json()
        for writer in writers:
            car = await server.export(writer.did)
            records = check_export(car, did=writer.did, did_key=did_keys[writer.did])
            assert records == follower.repos[writer.did].records
    print(f"\nrelay: {follower.events} events, {follower.commits} commits, host {status}")
    assert (status["status"], status["accountCount"]) == ("active", 3)
    assert early == [], "the relay warned while we were up"
    others = [line for line in warnings if not any(text in line for text in (*DOWN, RESUMED))]
    assert others == []
