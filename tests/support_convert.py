"""A host under load that moves from SQLite to PostgreSQL and back, and what must hold meanwhile.

Writers never stop asking; they keep the books, as a client would, and after each failure hold them
against the repository. A consumer of the firehose that believes nothing follows over all restarts.
"""

import asyncio
import contextlib
import hashlib
import random
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.fakes.plc import FakePlc
from tests.independent import check_export, cid_text
from tests.scenarios.test_two_nodes import Reader
from tests.support_load import Failed, Writer
from tests.support_process import ServerProcess

GONE = (aiohttp.ClientError, ConnectionError, TimeoutError, Failed)
RETRY_S = 0.05
PAUSED = "503"
MASTER_KEY = "42" * 32
_SUMMARY = re.compile(r"([\d,]+) rows, ([\d,]+) bytes: the same")
_TIMES = re.compile(r"in ([\d.]+) s; no writes for ([\d.]+) s")


@dataclass
class Move:
    """What one conversion said (nothing but zeros if it was killed at its end) and clients saw."""

    to: str
    rows: int
    content_bytes: int
    copy_s: float
    pause_s: float
    kills: int
    outage_s: float = 0.0
    """From the last write that was acknowledged to the first one after the switch, without the
    time that comparing took."""


@dataclass
class MovingHost:
    """One host with its writers and its consumer."""

    folder: Path
    plc: FakePlc
    session: aiohttp.ClientSession
    database_url: str
    pace_s: float = 0.0
    """Pause of a writer after each request, so that a short test does not write all the time."""
    did_keys: dict[str, str] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    refused: int = 0
    last_ack: float = 0.0
    first_ack: float | None = None

    def __post_init__(self) -> None:
        self.server = ServerProcess(self.folder, self.plc.url, PDS_MASTER_KEY=MASTER_KEY)
        self.server.environment.pop("PDS_DATABASE_URL", None)
        self.gate = asyncio.Event()
        self.stop = asyncio.Event()
        self.reader = Reader(self.server.url, self.did_keys)

    async def open(self, writers: int) -> None:
        """Start on SQLite and make the accounts."""
        await self.server.start()
        for number in range(writers):
            writer = Writer(self.server.url, f"mover{number}.test", random.Random(number))
            await writer.sign_up(self.session)
            async with self.session.get(f"{self.plc.url}/{writer.did}/data") as answer:
                keys = (await answer.json())["verificationMethods"]
            self.did_keys[writer.did] = keys["atproto"]
            self.writers.append(writer)
        self.gate.set()

    async def write(self, writer: Writer) -> None:
        """Write without end; after a failure, see what became of it."""
        while not self.stop.is_set():
            await self.gate.wait()
            try:
                await writer.step(self.session)
            except GONE as error:
                self.refused += 1
                await asyncio.sleep(RETRY_S)
                if isinstance(error, Failed):
                    if PAUSED not in str(error):
                        raise
                    writer.doubt = None  # a refusal in the pause is certain: nothing was done
                    continue
                with contextlib.suppress(*GONE):
                    writer.settle(await self.records(writer))
            else:
                self.last_ack = time.monotonic()
                self.first_ack = self.first_ack or self.last_ack
                await asyncio.sleep(self.pace_s)

    async def follow(self) -> None:
        """Read the firehose on from where it was, however often the server goes."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                await self.reader.read(self.session)
            await asyncio.sleep(RETRY_S)

    async def export(self, did: str) -> bytes:
        url = f"{self.server.url}/xrpc/com.atproto.sync.getRepo"
        async with self.session.get(url, params={"did": did}) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def records(self, writer: Writer) -> dict[str, str]:
        """The repository, verified."""
        car = await self.export(writer.did)
        found = check_export(car, did=writer.did, did_key=self.did_keys[writer.did])
        return {path: cid_text(cid) for path, cid in found.items()}

    async def digests(self) -> dict[str, str]:
        """One digest for the export of each repository of the host, and for each blob."""
        found = {}
        for did in self.did_keys:
            found[did] = hashlib.sha256(await self.export(did)).hexdigest()
        for writer in self.writers:
            for _, cid, content in writer.blobs.values():
                url = f"{self.server.url}/xrpc/com.atproto.sync.getBlob"
                query = {"did": writer.did, "cid": cid}
                async with self.session.get(url, params=query) as answer:
                    got = await answer.read()
                    # Its record may have been deleted since, and the blob with it.
                    assert answer.status != 200 or got == content
                    digest = hashlib.sha256(got).hexdigest()
                    found[f"{writer.did} {cid}"] = f"{answer.status} {digest}"
        return found

    async def convert(self, to: str, *, kill_after_s: list[float]) -> Move:
        """Run the command beside the server, killed and run again as often as asked."""
        kills = 0
        for delay_s in [*kill_after_s, None]:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pds", "convert", "database", "--to", to,
                env=self.server.environment,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            if delay_s is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), delay_s)
                if process.returncode is None:
                    process.kill()
                    kills += 1
            out, error = await process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -9, error.decode()
        assert process.returncode == 0
        kind = "sqlite" if to == "sqlite" else "postgresql"
        if kills and "already" in out.decode():  # Killed between its last row and its last word.
            return Move(kind, 0, 0, 0.0, 0.0, kills)
        summary, times = _SUMMARY.search(out.decode()), _TIMES.search(out.decode())
        assert summary is not None, out.decode()
        assert times is not None, out.decode()
        rows, size = (int(text.replace(",", "")) for text in summary.groups())
        return Move(kind, rows, size, float(times[1]), float(times[2]), kills)

    async def move(self, to: str, *, kill_after_s: list[float]) -> Move:
        """Convert, switch and compare the host before with the host after."""
        done = await self.convert(to, kill_after_s=kill_after_s)
        last_ack = self.last_ack
        self.gate.clear()  # so that both sides of the comparison are the same moment
        began = time.monotonic()
        before = await self.digests()
        stopping = time.monotonic()
        assert await self.server.stop() == 0
        if to == "sqlite":
            del self.server.environment["PDS_DATABASE_URL"]
        else:
            self.server.environment["PDS_DATABASE_URL"] = to
        await self.server.start()
        started = time.monotonic()
        assert await self.digests() == before
        compared_s = stopping - began + time.monotonic() - started
        self.first_ack = None
        self.gate.set()
        async with asyncio.timeout(60):
            while self.first_ack is None:
                await asyncio.sleep(0.01)
        done.outage_s = self.first_ack - last_ack - compared_s
        return done

    async def check(self) -> None:
        """Everything acknowledged is there once, in the repositories and in the firehose."""
        written = {writer.did for writer in self.writers}
        for did in self.did_keys.keys() - written:
            check_export(await self.export(did), did=did, did_key=self.did_keys[did])
        for writer in self.writers:
            writer.settle(await self.records(writer))
            assert writer.acknowledged > 0
            for path, (record_cid, cid, content) in writer.blobs.items():
                if writer.records.get(path) == record_cid:
                    url = f"{self.server.url}/xrpc/com.atproto.sync.getBlob"
                    query = {"did": writer.did, "cid": cid}
                    async with self.session.get(url, params=query) as answer:
                        assert await answer.read() == content
        async with asyncio.timeout(60):
            while not all(self.has_heard_all(writer) for writer in self.writers):
                await asyncio.sleep(0.05)

    def has_heard_all(self, writer: Writer) -> bool:
        """Whether the events, each of which was verified, add up to the repository."""
        state = self.reader.follower.repos.get(writer.did)
        found = state.records if state is not None else {}
        return {path: cid_text(cid) for path, cid in found.items()} == writer.records


async def move_there_and_back(
    host: MovingHost, *, writers: int, before_s: float, kill_after_s: list[float]
) -> list[Move]:
    """SQLite to PostgreSQL and back to SQLite, written to all the time."""
    await host.open(writers)
    tasks = [asyncio.create_task(host.write(writer)) for writer in host.writers]
    following = asyncio.create_task(host.follow())
    try:
        await asyncio.sleep(before_s)
        moves = [await host.move(host.database_url, kill_after_s=kill_after_s)]
        await asyncio.sleep(before_s)
        file = host.folder / "freehold.sqlite"
        for suffix in ("", "-wal", "-shm"):
            left = Path(f"{file}{suffix}")
            if left.exists():
                left.rename(f"{file}.old{suffix}")
        moves.append(await host.move("sqlite", kill_after_s=kill_after_s))
        await asyncio.sleep(before_s)
        host.stop.set()
        await asyncio.gather(*tasks)
        await host.check()
    finally:
        for task in (*tasks, following):
            task.cancel()
        await asyncio.gather(*tasks, following, return_exceptions=True)
        if host.server.process is not None:
            await host.server.kill()
    return moves
