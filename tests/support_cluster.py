"""Load on a host of several processes: writers and readers that come back when one of them goes."""

import asyncio
from collections import Counter
from collections.abc import Callable

import aiohttp

from tests.independent import check_export, cid_text
from tests.scenarios.test_two_nodes import Reader
from tests.support_load import Failed, Writer

GONE = (aiohttp.ClientError, ConnectionError, TimeoutError, Failed)


class Load:
    """Writers and readers that take whatever process answers, and come back when it goes."""

    def __init__(self, url: str, writers: list[Writer], keys: dict[str, str]) -> None:
        self.url = url
        self.writers = writers
        self.did_keys = keys
        self.readers = [Reader(url, keys) for _ in range(6)]
        self.failures = 0
        self.reasons: Counter[str] = Counter()
        self.stop = asyncio.Event()

    async def write(self, writer: Writer) -> None:
        """Every request on a connection of its own."""
        while not self.stop.is_set():
            async with aiohttp.ClientSession() as session:
                try:
                    await writer.step(session)
                except GONE as error:
                    self.failures += 1
                    self.reasons[f"{type(error).__name__}: {error}"[:80]] += 1
                    writer.settle(await self.export(writer))

    async def export(self, writer: Writer, url: str | None = None) -> dict[str, str]:
        """The repository as whoever answers has it, verified."""
        async with asyncio.timeout(60):
            while True:
                try:
                    async with (
                        aiohttp.ClientSession() as session,
                        session.get(
                            f"{url or self.url}/xrpc/com.atproto.sync.getRepo",
                            params={"did": writer.did},
                        ) as answer,
                    ):
                        if answer.status == 200:
                            car = await answer.read()
                            break
                except GONE:
                    await asyncio.sleep(0.02)
        found = check_export(car, did=writer.did, did_key=self.did_keys[writer.did])
        return {path: cid_text(cid) for path, cid in found.items()}

    async def follow(self, reader: Reader) -> None:
        """Read on where it was, however often the connection ends."""
        while True:
            async with aiohttp.ClientSession() as session:
                try:
                    await reader.read(session)
                except GONE:
                    await asyncio.sleep(0.02)

    async def acknowledge(self, count: int) -> None:
        """Wait for so many more acknowledged writes."""
        goal = self.total + count
        await until(lambda: self.total >= goal)

    @property
    def total(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
