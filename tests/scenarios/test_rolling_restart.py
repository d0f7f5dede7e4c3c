"""Two nodes behind a balancer, each restarted in turn under load: nobody loses anything."""

import asyncio
from pathlib import Path

import aiohttp

from tests.fakes.balancer import running_balancer
from tests.fakes.plc import running_plc
from tests.scenarios.test_two_nodes import Reader, sign_up, two_nodes
from tests.support_cluster import Load
from tests.support_postgres import database_url

__all__ = ["database_url"]


async def test_a_rolling_restart_keeps_every_position_and_write(
    tmp_path: Path, database_url: str
) -> None:
    """Subscribers come back with their cursor to whatever node, and end up with one sequence
    without gap or duplicate; every acknowledged write is there (SYNC-10, SYNC-11)."""
    async with (
        running_plc() as plc,
        two_nodes(tmp_path, database_url, plc.url) as nodes,
        running_balancer([node.port for node in nodes]) as balancer,
        aiohttp.ClientSession() as session,
    ):
        made = [await sign_up(session, nodes[n % 2], plc.url, f"writer{n}") for n in range(4)]
        writers, keys = [w for w, _ in made], {w.did: key for w, key in made}
        for writer in writers:
            writer.url = balancer.url
        load = Load(balancer.url, writers, keys)
        steady = Reader(nodes[0].url, keys)  # reads at the end, from the database alone
        following = [asyncio.create_task(load.follow(reader)) for reader in load.readers]
        writing = [asyncio.create_task(load.write(writer)) for writer in writers]
        await load.acknowledge(40)
        for node in nodes:
            assert await node.stop() == 0
            await load.acknowledge(20)
            await node.start()
            await load.acknowledge(20)
        load.stop.set()
        await asyncio.gather(*writing)
        for writer in writers:
            for node in nodes:
                writer.settle(await load.export(writer, node.url))
        last = max(reader.follower.last_seq for reader in load.readers)
        reading = asyncio.create_task(steady.read(session))
        await asyncio.gather(*(reader.reach(last) for reader in (*load.readers, steady)))
        for task in (*following, reading):
            task.cancel()
        await asyncio.gather(*following, reading, return_exceptions=True)
        for reader in load.readers:
            assert reader.frames == steady.frames
        for writer in writers:
            found = steady.follower.repos[writer.did].records
            assert sorted(found) == sorted(writer.records)
        assert min(balancer.given.values()) > 10
        print(f"\nwrites {load.total}, failed {load.failures}, connections {balancer.given}")
