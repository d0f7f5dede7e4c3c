"""The first day of an account: sign up, write, read, sign out, over real HTTP."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from pds.config import Config
from pds.protocol.frames import decode_frame
from tests.scenarios.conftest import host_in
from tests.support_client import Client, XrpcError, sign_up
from tests.support_pace import slowness


async def test_sign_up_write_and_read(client: Client) -> None:
    alice = await sign_up(client, "alice.test")
    made = await alice.post("hello")
    assert made["validationStatus"] == "valid"
    read = await client.get(
        "com.atproto.repo.getRecord",
        repo="alice.test",
        collection="app.bsky.feed.post",
        rkey=made["uri"].rpartition("/")[2],
    )
    assert read["value"]["text"] == "hello"
    assert read["cid"] == made["cid"]
    assert (await client.get("com.atproto.identity.resolveHandle", handle="alice.test"))[
        "did"
    ] == alice.did
    session = await alice.client.get("com.atproto.server.getSession")
    assert (session["did"], session["handle"], session["active"]) == (
        alice.did,
        "alice.test",
        True,
    )


async def test_signing_out_ends_the_session_at_once(client: Client) -> None:
    alice = await sign_up(client, "alice.test")
    await client.with_token(alice.refresh_token).post("com.atproto.server.deleteSession")
    with pytest.raises(XrpcError) as caught:
        await alice.client.get("com.atproto.server.getSession")
    assert (caught.value.status, caught.value.name) == (400, "ExpiredToken")


async def test_nobody_writes_into_the_repo_of_another(client: Client) -> None:
    alice = await sign_up(client, "alice.test")
    bob = await sign_up(client, "bob.test")
    alice.client = bob.client
    with pytest.raises(XrpcError) as caught:
        await alice.post("not mine")
    assert caught.value.status == 401


async def test_an_account_survives_a_restart(tmp_path: Path) -> None:
    async with host_in(tmp_path) as host:
        alice = await sign_up(host.client, "alice.test")
        made = await alice.post("before")
        seq = host.server.engine.last_seq
    async with host_in(tmp_path) as host:
        alice.client = host.client.with_token(
            (
                await host.client.post(
                    "com.atproto.server.createSession",
                    identifier="alice.test",
                    password=alice.password,
                )
            )["accessJwt"]
        )
        after = await alice.post("after")
        assert after["commit"]["rev"] > made["commit"]["rev"]
        assert host.server.engine.last_seq > seq


async def test_the_server_stops_in_order_with_requests_in_progress(tmp_path: Path) -> None:
    async with host_in(tmp_path) as host:
        alice = await sign_up(host.client, "alice.test")
        writes = [asyncio.create_task(alice.post(f"post {number}")) for number in range(50)]
        await asyncio.sleep(0.05)
    results = await asyncio.gather(*writes, return_exceptions=True)
    written = {result["uri"] for result in results if isinstance(result, dict)}
    assert all(isinstance(result, dict | aiohttp.ClientError) for result in results)
    async with host_in(tmp_path) as host:
        found = await host.client.get(
            "com.atproto.repo.listRecords",
            repo=alice.did,
            collection="app.bsky.feed.post",
            limit=100,
        )
    assert written <= {record["uri"] for record in found["records"]}


async def test_firehose_readers_are_told_that_the_server_stops(tmp_path: Path) -> None:
    def patient(config: Config) -> Config:
        """Requests may go on for as long as they like; who listens is not waited for."""
        return replace(config, listener=replace(config.listener, shutdown_timeout_s=3600.0))

    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        async with host_in(tmp_path, change=patient) as host:
            url = f"{host.url}/xrpc/com.atproto.sync.subscribeRepos?cursor=0"
            reader = await http.ws_connect(url)
            await (await sign_up(host.client, "alice.test")).post("hello")
            seen: list[str] = []
            reading = asyncio.create_task(_read_frames(reader, seen))
            while "#commit" not in seen:
                await asyncio.sleep(0.01)
        await reading
        assert reader.close_code == 1000


async def _read_frames(reader: aiohttp.ClientWebSocketResponse, seen: list[str]) -> None:
    async for message in reader:
        seen.append(decode_frame(message.data).type or "")


async def test_a_server_starts_with_a_second_of_work(tmp_path: Path) -> None:
    began = time.process_time()
    async with (
        host_in(tmp_path) as host,
        host.client.http.get(f"{host.url}/xrpc/_health") as answer,
    ):
        assert answer.status == 200
        assert time.process_time() - began < 1 * slowness()


async def test_a_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    def with_sqlite(config: Config) -> Config:
        return replace(config, data=replace(config.data, database_url=None))

    async with host_in(tmp_path, change=with_sqlite):
        with pytest.raises(Exception, match=r"(?i)lock|running|use"):
            async with host_in(tmp_path, change=with_sqlite):
                pytest.fail("two servers on one folder")
