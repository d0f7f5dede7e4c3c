"""The story of two S3 servers of which one is stopped, wiped and replaced under load."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from pds.blobstore.base import BlobKey, BlobStore
from pds.blobstore.copying import CopyState, check_copy
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.blobstore.s3 import S3BlobStore
from pds.blobstore.spool import Spool
from pds.errors import StoreError
from pds.protocol.cid import Cid
from tests.suites.blobstore_suite import keys, put, read
from tests.support_s3 import S3Server, started

WORKERS = 4


@dataclass
class Load:
    """Clients that write blobs and read back what was acknowledged, one by one."""

    store: BlobStore
    largest: int
    pause_s: float
    stored: list[BlobKey] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def phase(self, seconds: float, *, writes: int = 8) -> None:
        """Let them go on for so long, and until they have written so much more."""
        goal = self.writes + writes
        await asyncio.sleep(seconds)
        async with asyncio.timeout(60):
            while self.writes < goal:
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        await asyncio.gather(*(self._work(random.Random(number)) for number in range(WORKERS)))

    async def _work(self, dice: random.Random) -> None:
        while not self.stop.is_set():
            await asyncio.sleep(self.pause_s)
            content = dice.randbytes(dice.randrange(1, self.largest))
            key = await self._timed("write", put(self.store, dice.randrange(5), content))
            if key is not None:
                self.writes += 1
                self.stored.append(key)
            for key in dice.choices(self.stored, k=2) if self.stored else []:
                content = await self._timed("read", read(self.store, key))
                self.reads += 1
                if content is not None and Cid.of_raw(content) != key.cid:
                    self.failures.append(f"other bytes for {key}")

    async def _timed(self, act, call):
        began = asyncio.get_running_loop().time()
        try:
            return await call
        except StoreError as error:
            self.failures.append(f"{act}: {error}")
            return None
        finally:
            self.slowest_s = max(self.slowest_s, asyncio.get_running_loop().time() - began)


async def tell(
    folder: Path, *, phase_s: float, largest: int, rounds: int, pause_s: float, least: int = 60
) -> Load:
    """Kill, wipe and replace one server after the other; return what the clients saw.

    They write at least `least` blobs, however busy the machine is.
    """
    servers = [S3Server(folder / name) for name in ("a", "b")]
    spool = Spool(folder / "spool")
    await spool.start()
    try:
        await started(*servers)
        members = [S3BlobStore(server.settings(), spool) for server in servers]
        store = ReplicatedBlobStore(members, spool, quorum=1)
        load = Load(store, largest, pause_s)
        working = asyncio.create_task(load.run())
        for number in range(rounds):
            victim = servers[number % 2]
            await load.phase(phase_s)
            victim.stop()
            await load.phase(phase_s)
            victim.wipe()
            await started(victim)
            await load.phase(phase_s)
            # Before the other one may go, this one must have everything.
            await make_whole(store, load)
        await load.phase(0, writes=max(0, least - load.writes))
        load.stop.set()
        await working
        await store.close()
        await make_whole(store, load)
        await check_all(members, load)
    finally:
        for server in servers:
            server.stop()
        await spool.close()
    assert spool.used_bytes == 0
    return load


async def make_whole(store: ReplicatedBlobStore, load: Load) -> None:
    """Repair what is known to be missing, and compare lists for the rest.

    What is written meanwhile may be in one list and not yet in the other: only what was
    acknowledged before counts.
    """
    acknowledged = set(load.stored)
    unsound = acknowledged
    while unsound:
        await store.repair()
        found = [result async for result in store.scrub(verify=False)]
        assert not [result for result in found if result.is_lost]
        assert acknowledged <= {result.key for result in found}
        unsound = {result.key for result in found if not result.is_sound} & acknowledged


async def check_all(members: list[S3BlobStore], load: Load) -> None:
    """Each server alone has every acknowledged blob, byte by byte."""
    acknowledged = set(load.stored)
    for member in members:
        assert acknowledged <= await keys(member)
        rest = [*acknowledged]
        while rest:
            batch, rest = rest[:16], rest[16:]
            states = await asyncio.gather(*(check_copy(member, key) for key in batch))
            assert set(states) == {CopyState.GOOD}
