"""Two nodes on one PostgreSQL, both written to at once: one host, whichever node answers."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from pds.services.account_cache import TTL_S
from tests.fakes.plc import running_plc
from tests.independent import Follower, check_export, cid_text
from tests.support_client import Client, XrpcError
from tests.support_load import Writer, call
from tests.support_postgres import database_url
from tests.support_process import ServerProcess

__all__ = ["database_url"]

NOTE = "com.example.note"
SHARED = {"PDS_MASTER_KEY": "42" * 32, "PDS_SERVICE_DID": "did:web:localhost"}


class Reader:
    """A consumer at one node that keeps every frame."""

    def __init__(self, url: str, did_keys: dict[str, str]) -> None:
        self.url = f"{url}/xrpc/com.atproto.sync.subscribeRepos"
        self.follower = Follower(did_keys)
        self.frames: list[bytes] = []

    async def read(self, session: aiohttp.ClientSession) -> None:
        cursor = {"cursor": str(self.follower.last_seq)}
        async with session.ws_connect(self.url, params=cursor, max_msg_size=0) as stream:
            async for message in stream:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                self.follower.take(message.data)
                self.frames.append(message.data)

    async def reach(self, seq: int) -> None:
        async with asyncio.timeout(60):
            while self.follower.last_seq < seq:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def two_nodes(folder: Path, url: str, plc_url: str) -> AsyncIterator[list[ServerProcess]]:
    shared = SHARED | {
        "PDS_DATABASE_URL": url,
        "PDS_BLOBSTORE_DISK_LOCATION": str(folder / "blobs"),
    }
    nodes = [ServerProcess(folder / name, plc_url, **shared) for name in ("one", "two")]
    try:
        await asyncio.gather(*(node.start() for node in nodes))  # both find an empty database
        yield nodes
    finally:
        for node in nodes:
            if node.process is not None:
                await node.stop()


async def sign_up(
    session: aiohttp.ClientSession, node: ServerProcess, plc_url: str, name: str
) -> tuple[Writer, str]:
    """An account made at a node, and its key as the directory has it."""
    writer = Writer(node.url, f"{name}.test", random.Random(name))
    await writer.sign_up(session)
    async with session.get(f"{plc_url}/{writer.did}/data") as answer:
        return writer, (await answer.json())["verificationMethods"]["atproto"]


async def test_three_consumers_see_one_order(tmp_path: Path, database_url: str) -> None:
    """Writers at both nodes, one account through both; every event verifies (SYNC-10, SYNC-11)."""
    async with (
        running_plc() as plc,
        two_nodes(tmp_path, database_url, plc.url) as nodes,
        aiohttp.ClientSession() as session,
    ):
        made = await asyncio.gather(
            *(sign_up(session, nodes[n % 2], plc.url, f"writer{n}") for n in range(6))
        )
        writers = [writer for writer, _ in made]
        did_keys = {writer.did: key for writer, key in made}
        readers = [Reader(nodes[n].url, did_keys) for n in (0, 1, 1)]
        reading = [asyncio.create_task(reader.read(session)) for reader in readers]
        both = writers.pop()
        stop = asyncio.Event()

        async def write_to_both(node: ServerProcess, count: int) -> list[str]:
            """Write to the same account at the same time as the other node does."""
            bodies = [
                {"repo": both.did, "collection": NOTE, "record": {"$type": NOTE, "n": n}}
                for n in range(count)
            ]
            nsid = "com.atproto.repo.createRecord"
            return [
                (await call(session, node.url, nsid, token=both.token, body=body))["cid"]
                for body in bodies
            ]

        running = [asyncio.create_task(writer.run(session, stop)) for writer in writers]
        shared = await asyncio.gather(*(write_to_both(node, 40) for node in nodes))
        stop.set()
        await asyncio.gather(*running)
        last = await _last_seq(database_url)
        await asyncio.gather(*(reader.reach(last) for reader in readers))
        assert readers[0].frames == readers[1].frames == readers[2].frames
        for writer in writers:
            assert writer.acknowledged > 0
            found = await _export(session, nodes[0].url, writer.did, did_keys)
            writer.settle(found)
            assert found == await _export(session, nodes[1].url, writer.did, did_keys)
        found = await _export(session, nodes[1].url, both.did, did_keys)
        assert len(found) == 80
        assert set(found.values()) == {cid for cids in shared for cid in cids}
        # A consumer that changes node goes on where it was.
        reading[1].cancel()
        await asyncio.gather(reading[1], return_exceptions=True)
        moved = Reader(nodes[0].url, did_keys)
        moved.follower = readers[1].follower
        following = asyncio.create_task(moved.read(session))
        await write_to_both(nodes[1], 1)
        await moved.reach(await _last_seq(database_url))
        assert len(moved.frames) == 1
        for task in (*reading, following):
            task.cancel()


async def test_what_changes_at_one_node_holds_at_the_other(
    tmp_path: Path, database_url: str
) -> None:
    """Sessions, sign-outs, names taken and blobs, whichever node is asked (XRPC-25, XRPC-44)."""
    async with (
        running_plc() as plc,
        two_nodes(tmp_path, database_url, plc.url) as nodes,
        aiohttp.ClientSession() as session,
    ):
        here, there = (Client(session, node.url) for node in nodes)
        fields = {"handle": "alice.test", "email": "a@example.com", "password": "a long password"}
        made = await here.post("com.atproto.server.createAccount", fields)
        with pytest.raises(XrpcError) as refused:
            await there.post("com.atproto.server.createAccount", fields | {"email": "b@b.example"})
        assert refused.value.status == 400
        alice = there.with_token(made["accessJwt"])
        assert (await alice.get("com.atproto.server.getSession"))["did"] == made["did"]
        blob = await alice.upload(b"bytes of a blob", "image/x-test")
        record = {"$type": NOTE, "picture": blob}
        mine = here.with_token(made["accessJwt"])
        await mine.post(
            "com.atproto.repo.createRecord", repo=made["did"], collection=NOTE, record=record
        )
        found = await there.get("com.atproto.repo.listRecords", repo=made["did"], collection=NOTE)
        assert [entry["value"] for entry in found["records"]] == [record]
        # A service token works once, also when both nodes are shown it at the same moment.
        shown = await mine.get(
            "com.atproto.server.getServiceAuth",
            aud=SHARED["PDS_SERVICE_DID"],
            lxm="com.atproto.repo.uploadBlob",
        )
        uploads = await asyncio.gather(
            *(
                client.with_token(shown["token"]).upload(name, "text/plain")
                for client, name in ((here, b"here"), (there, b"there"))
            ),
            return_exceptions=True,
        )
        [used] = [outcome for outcome in uploads if isinstance(outcome, XrpcError)]
        assert (used.status, used.name) == (401, "BadJwt")
        # Each refresh token works once, also when both nodes are asked at the same moment.
        renewing = [
            client.with_token(made["refreshJwt"]).post("com.atproto.server.refreshSession")
            for client in (here, there)
        ]
        first, second = await asyncio.gather(*renewing)
        assert first["did"] == second["did"] == made["did"]
        await there.with_token(first["refreshJwt"]).post("com.atproto.server.deleteSession")
        async with asyncio.timeout(TTL_S / 2):  # told with the commit; before entries grow old
            while True:
                try:
                    await mine.get("com.atproto.server.getSession")
                except XrpcError:
                    break
                await asyncio.sleep(0.02)
        with pytest.raises(XrpcError):
            await here.with_token(second["refreshJwt"]).post("com.atproto.server.refreshSession")


async def _export(
    session: aiohttp.ClientSession, url: str, did: str, did_keys: dict[str, str]
) -> dict[str, str]:
    async with session.get(f"{url}/xrpc/com.atproto.sync.getRepo", params={"did": did}) as answer:
        car = await answer.read()
    records = check_export(car, did=did, did_key=did_keys[did])
    return {path: cid_text(cid) for path, cid in records.items()}


async def _last_seq(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT MAX(seq) FROM event").fetchone()
    assert row is not None
    return int(row[0])
