"""Three nodes on one PostgreSQL under load, a random one killed again and again, the database
restarted once: nothing acknowledged is lost or doubled, and everybody sees one order."""

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.plc import running_plc
from tests.independent import check_export, cid_text
from tests.scenarios.test_two_nodes import SHARED, Reader
from tests.support_load import Failed, Writer
from tests.support_postgres import make_database, private_server
from tests.support_process import ServerProcess

DURATION_S = float(os.environ.get("PDS_SOAK_NODES_S", "120"))
KILL_EVERY_S = 5.0
MAX_FAILED_STARTS = 3
GONE = (aiohttp.ClientError, ConnectionError, TimeoutError, Failed)


class Cluster:
    """The nodes, the books and the consumers."""

    def __init__(self, nodes: list[ServerProcess], session: aiohttp.ClientSession) -> None:
        self.nodes = nodes
        self.session = session
        self.did_keys: dict[str, str] = {}
        self.stop = asyncio.Event()
        self.failures = 0
        self.kills = 0
        self.failed_starts = 0
        self.starting: list[ServerProcess] = []

    def any_url(self, rng: random.Random) -> str:
        return rng.choice([n for n in self.nodes if n.process is not None] or self.nodes).url

    async def export(self, writer: Writer) -> dict[str, str]:
        """The repository as any node has it, verified."""
        while True:
            url = f"{self.any_url(writer.rng)}/xrpc/com.atproto.sync.getRepo"
            try:
                async with self.session.get(url, params={"did": writer.did}) as answer:
                    if answer.status == 200:
                        car = await answer.read()
                        break
            except GONE:
                pass
            await asyncio.sleep(0.2)
        records = check_export(car, did=writer.did, did_key=self.did_keys[writer.did])
        return {path: cid_text(cid) for path, cid in records.items()}

    async def write(self, writer: Writer) -> None:
        """Write through whatever node answers; after each failure compare the books."""
        while not self.stop.is_set():
            writer.url = self.any_url(writer.rng)
            try:
                await writer.step(self.session)
            except GONE:
                self.failures += 1
                await asyncio.sleep(1.0)  # a COMMIT may be on its way still
                writer.settle(await self.export(writer))

    async def kill_one(self, rng: random.Random) -> None:
        """Kill one of those that run, and start it again."""
        node = rng.choice([node for node in self.nodes if node not in self.starting])
        self.starting.append(node)
        await node.kill()
        self.kills += 1
        while True:
            try:
                await node.start()
                break
            except AssertionError:
                # A start that meets the restart of the database fails, and is made again by
                # whoever looks after the process.
                assert node.process is not None
                if node.process.returncode != 1 or self.failed_starts == MAX_FAILED_STARTS:
                    raise
                self.failed_starts += 1
        self.starting.remove(node)

    async def follow(self, reader: Reader) -> None:
        """Read on where it was, however often the node goes."""
        while True:
            with contextlib.suppress(GONE):
                await reader.read(self.session)
            await asyncio.sleep(0.1)


@pytest.mark.timeout(900)
async def test_nodes_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    server = private_server()
    rng = random.Random(11)
    shared = SHARED | {
        "PDS_DATABASE_URL": make_database(server.url),
        "PDS_BLOBSTORE_DISK_LOCATION": str(tmp_path / "blobs"),
    }
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        nodes = [ServerProcess(tmp_path / f"node{n}", plc.url, **shared) for n in range(3)]
        for node in nodes:
            node.start_timeout_s = 90  # with all the others on the same cores
        cluster = Cluster(nodes, session)
        try:
            await asyncio.gather(*(node.start() for node in nodes))
            writers = [
                Writer(nodes[n % 3].url, f"writer{n}.test", random.Random(n)) for n in range(6)
            ]
            for writer in writers:
                await writer.sign_up(session)
                async with session.get(f"{plc.url}/{writer.did}/data") as answer:
                    keys = (await answer.json())["verificationMethods"]
                cluster.did_keys[writer.did] = keys["atproto"]
            readers = [Reader(node.url, cluster.did_keys) for node in nodes]
            following = [asyncio.create_task(cluster.follow(reader)) for reader in readers]
            writing = [asyncio.create_task(cluster.write(writer)) for writer in writers]
            began = time.monotonic()
            killing: list[asyncio.Task[None]] = []
            for number in range(1, round(DURATION_S / KILL_EVERY_S) + 1):
                await asyncio.sleep(began + number * KILL_EVERY_S - time.monotonic())
                if len(cluster.starting) < len(nodes):
                    killing.append(asyncio.create_task(cluster.kill_one(rng)))
                if number == round(DURATION_S / KILL_EVERY_S / 2):
                    await asyncio.to_thread(server.stop, signal.SIGINT)
                    await asyncio.to_thread(server.start)
            await asyncio.gather(*killing)
            cluster.stop.set()
            await asyncio.gather(*writing)
            for writer in writers:
                writer.settle(await cluster.export(writer))
            last = max(reader.follower.last_seq for reader in readers)
            await asyncio.gather(*(reader.reach(last) for reader in readers))
            await asyncio.sleep(1.0)
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            assert readers[0].frames == readers[1].frames == readers[2].frames
            for writer in writers:
                found = {
                    path: cid_text(cid)
                    for path, cid in readers[0].follower.repos[writer.did].records.items()
                }
                assert found == writer.records, "events are not the repository"
            print(
                f"\nkills {cluster.kills}, acknowledged {sum(w.acknowledged for w in writers)},"
                f" failed requests {cluster.failures}, events {readers[0].follower.events},"
                f" failed starts {cluster.failed_starts}"
            )
        finally:
            for node in nodes:
                if node.process is not None and node.process.returncode is None:
                    await node.kill()
            server.remove()
