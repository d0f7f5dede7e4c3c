"""Kill the server at random moments under load, and hold what is left against the writers' books.

Shown after every restart: each acknowledged write is there with its event, no event is without its
commit, seq strictly increases over all lives of the server, every repository verifies, and nothing
that a live subscriber had received is missing or changed (promises A1 to A4).
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

import aiohttp

from tests.independent import Follower, check_export, cid_text
from tests.support_load import Writer, call
from tests.support_process import ServerProcess

WRITES_OF_A_ROUND = 6
"""At least so many are acknowledged before the server is killed, however busy the machine is."""


@dataclass
class KillRun:
    """The state over all rounds."""

    server: ServerProcess
    plc_url: str
    accounts: int
    seed: int
    writers: list[Writer] = field(default_factory=list)
    did_keys: dict[str, str] = field(default_factory=dict)
    follower: Follower = field(init=False)
    delivered: list[tuple[int, bytes]] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.follower = Follower(self.did_keys)

    async def _sign_up(self, session: aiohttp.ClientSession) -> None:
        for number in range(self.accounts):
            writer = Writer(
                self.server.url, f"writer{number}.test", random.Random(self.seed * 1000 + number)
            )
            await writer.sign_up(session)
            async with session.get(f"{self.plc_url}/{writer.did}/data") as answer:
                self.did_keys[writer.did] = (await answer.json())["verificationMethods"]["atproto"]
            self.writers.append(writer)

    async def _subscribe(self, session: aiohttp.ClientSession) -> None:
        """Follow the firehose from where we are until the server dies."""
        url = f"{self.server.url}/xrpc/com.atproto.sync.subscribeRepos"
        cursor = str(self.follower.last_seq)
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with session.ws_connect(url, params={"cursor": cursor}, max_msg_size=0) as stream:
                async for message in stream:
                    if message.type is not aiohttp.WSMsgType.BINARY:
                        break
                    self.follower.take(message.data)
                    self.delivered.append((self.follower.last_seq, message.data))

    @property
    def acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    async def round(self, session: aiohttp.ClientSession, load_s: float) -> None:
        """Load, kill, restart, compare."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(writer.run(session, stop)) for writer in self.writers]
        live = asyncio.create_task(self._subscribe(session))
        goal = self.acknowledged + WRITES_OF_A_ROUND
        await asyncio.sleep(load_s)
        async with asyncio.timeout(60):
            while self.acknowledged < goal:
                await asyncio.sleep(0.005)
        await self.server.kill()
        await asyncio.gather(*tasks)
        await live
        await self.server.start()
        await self._compare(session)
        self.rounds += 1

    async def _compare(self, session: aiohttp.ClientSession) -> None:
        marker = self.writers[0]
        answer = await call(
            session,
            self.server.url,
            "com.atproto.repo.createRecord",
            token=marker.token,
            body={
                "repo": marker.did,
                "collection": "com.example.marker",
                "rkey": f"round-{self.rounds}",
                "record": {"$type": "com.example.marker"},
                "validate": False,
            },
        )
        mark = answer["commit"]["rev"]
        async with asyncio.timeout(60):
            while self.follower.repos.get(marker.did) is None or (
                (self.follower.repos[marker.did].rev or "") < mark
            ):
                await self._catch_up(session, marker.did, mark)
        path = f"com.example.marker/round-{self.rounds}"
        for writer in self.writers:
            async with session.get(
                f"{self.server.url}/xrpc/com.atproto.sync.getRepo", params={"did": writer.did}
            ) as export:
                assert export.status == 200, await export.text()
                car = await export.read()
            records = check_export(car, did=writer.did, did_key=self.did_keys[writer.did])
            assert records == self.follower.repos[writer.did].records, "events are not the repo"
            found = {key: cid_text(cid) for key, cid in records.items()}
            if writer is marker:
                writer.records[path] = found[path]
            writer.settle(found)
            await self._compare_blobs(session, writer)

    async def _compare_blobs(self, session: aiohttp.ClientSession, writer: Writer) -> None:
        for path, (record, blob, content) in list(writer.blobs.items()):
            if writer.records.get(path) != record:
                del writer.blobs[path]
                continue
            async with session.get(
                f"{self.server.url}/xrpc/com.atproto.sync.getBlob",
                params={"did": writer.did, "cid": blob},
            ) as answer:
                assert answer.status == 200, f"an acknowledged blob is lost: {await answer.text()}"
                assert await answer.read() == content

    async def _catch_up(self, session: aiohttp.ClientSession, did: str, rev: str) -> None:
        url = f"{self.server.url}/xrpc/com.atproto.sync.subscribeRepos"
        cursor = str(self.follower.last_seq)
        async with session.ws_connect(url, params={"cursor": cursor}, max_msg_size=0) as stream:
            async for message in stream:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                self.follower.take(message.data)
                self.delivered.append((self.follower.last_seq, message.data))
                state = self.follower.repos.get(did)
                if state is not None and (state.rev or "") >= rev:
                    return

    async def replay_from_zero(self, session: aiohttp.ClientSession) -> None:
        """Read the whole window again: the same frames, byte for byte, in the same order."""
        url = f"{self.server.url}/xrpc/com.atproto.sync.subscribeRepos"
        async with asyncio.timeout(60):
            async with session.ws_connect(url, params={"cursor": "0"}, max_msg_size=0) as stream:
                for seq, frame in self.delivered:
                    message = await stream.receive()
                    assert message.data == frame, f"event {seq} is not the one that was delivered"


async def kill_many(
    server: ServerProcess, plc_url: str, *, rounds: int, accounts: int, seed: int
) -> KillRun:
    """Run `rounds` of load, kill and restart; returns the books."""
    run = KillRun(server, plc_url, accounts, seed)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        await server.start()
        await run._sign_up(session)
        for _ in range(rounds):
            await run.round(session, run.rng.uniform(0.05, 0.8))
        await run.replay_from_zero(session)
        assert await server.stop() == 0
    return run
