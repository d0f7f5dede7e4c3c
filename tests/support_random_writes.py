"""Random writes over many accounts while an independent consumer follows the firehose."""

import asyncio
import random
from dataclasses import dataclass

import aiohttp

from tests.independent import Follower, check_export
from tests.support_live import LiveServer
from tests.support_load import Writer


@dataclass(frozen=True)
class Outcome:
    """What was seen."""

    accounts: int
    requests: int
    commits: int
    events: int


async def random_writes(server: LiveServer, *, accounts: int, writes: int, seed: int) -> Outcome:
    """Make `writes` acknowledged requests and verify every event and every export (SYNC-10..52).

    The consumer checks order, chain (since, prevData), signature, covering proof by inversion and
    rebuilds every tree from its records; at the end exports equal what the events add up to.
    """
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        writers = [
            Writer(server.url, f"random{number}.test", random.Random(seed + number))
            for number in range(accounts)
        ]
        did_keys: dict[str, str] = {}
        follower = Follower(did_keys)
        for writer in writers:
            await writer.sign_up(session)
            did_keys[writer.did] = await server.signing_key(writer.did)

        last_rev = {writer.did: "" for writer in writers}
        finished = asyncio.Event()

        def caught_up() -> bool:
            return finished.is_set() and all(
                (follower.repos[did].rev or "") >= rev for did, rev in last_rev.items()
            )

        async def follow() -> None:
            url = f"{server.url}/xrpc/com.atproto.sync.subscribeRepos"
            async with session.ws_connect(url, params={"cursor": "0"}, max_msg_size=0) as stream:
                while not caught_up():
                    try:
                        message = await stream.receive(timeout=1)
                    except TimeoutError:
                        continue  # Nothing new: look whether this was all.
                    assert message.type is aiohttp.WSMsgType.BINARY, message
                    follower.take(message.data)

        following = asyncio.create_task(follow())
        share = -(-writes // accounts)

        async def work(writer: Writer) -> None:
            for _ in range(share):
                await writer.step(session)

        await asyncio.gather(*(work(writer) for writer in writers))
        for writer in writers:
            params = {"did": writer.did}
            url = f"{server.url}/xrpc/com.atproto.sync.getLatestCommit"
            async with session.get(url, params=params) as answer:
                last_rev[writer.did] = (await answer.json())["rev"]
        finished.set()
        async with asyncio.timeout(60):
            await following

        for writer in writers:
            car = await server.export(writer.did)
            records = check_export(car, did=writer.did, did_key=did_keys[writer.did])
            assert records == follower.repos[writer.did].records
            assert set(records) == set(writer.records)
    return Outcome(
        accounts, sum(w.acknowledged for w in writers), follower.commits, follower.events
    )
