"""Two versions of the program, request by request, in turn: CPU of the server process.

Each version serves from its own tree, side by side. One round asks each for the same number of the
same requests, the order of the two changing from round to round; printed are medians over the
rounds, and the median of the ratios of each round, which other work on the machine spoils least.

`python -m bench.versus OLD_TREE [NEW_TREE] [--rounds N]`
"""

import argparse
import asyncio
import contextlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from bench.http_load import ENDLESS_LIMITS, cpu_seconds, create
from bench.raw_client import RawConnection, get, post
from tests.fakes.plc import running_plc
from tests.support_load import Account, fill_repo, sign_up
from tests.support_process import ServerProcess, free_port

ACCOUNTS = 32
START_ROUNDS = 5
UNKNOWN_SETTING = re.compile(r"(PDS_\w+) is not a setting")


@dataclass(frozen=True)
class Case:
    """One kind of request: how many at a time, and how many in a round."""

    name: str
    connections: int
    operations: int
    make: Callable[[Sequence[Account], int], bytes]
    status: int = 200


def _record(account: Account, rkey: str) -> bytes:
    return get(
        f"com.atproto.repo.getRecord?repo={account.did}&collection=app.bsky.actor.profile&rkey={rkey}"
    )


def _page(account: Account, limit: int) -> bytes:
    return get(
        f"com.atproto.repo.listRecords?repo={account.did}"
        f"&collection=app.bsky.feed.post&limit={limit}"
    )


CASES = (
    Case("createRecord, c=1", 1, 400, lambda who, n: create(who[n % ACCOUNTS], n)),
    Case("createRecord, c=32", 32, 1200, lambda who, n: create(who[n % ACCOUNTS], n)),
    Case("getRecord, c=1", 1, 1500, lambda who, _: _record(who[0], "self")),
    Case("getRecord, c=16", 16, 3000, lambda who, _: _record(who[0], "self")),
    Case("listRecords 50, c=1", 1, 500, lambda who, _: _page(who[0], 50)),
    Case("RecordNotFound, c=1", 1, 1500, lambda who, _: _record(who[0], "none"), 400),
    Case("unknown method, c=1", 1, 3000, lambda *_: get("com.atproto.none.such"), 501),
    Case(
        "getSession, c=1",
        1,
        3000,
        lambda who, _: get("com.atproto.server.getSession", who[0].token),
    ),
    Case("describeServer, c=1", 1, 3000, lambda *_: get("com.atproto.server.describeServer")),
    Case(
        "proxied GET, c=1",
        1,
        700,
        lambda who, _: get("app.bsky.actor.getSuggestions", who[0].token),
    ),
)


class Version(ServerProcess):
    """A server of one tree, with accounts and a book of CPU per operation, in microseconds."""

    def __init__(self, tree: Path, folder: Path, plc_url: str, appview_url: str) -> None:
        super().__init__(
            folder,
            plc_url,
            LOG_ENABLED="false",
            PDS_RATE_LIMITS_ENABLED="true",
            PDS_BSKY_APP_VIEW_URL=appview_url,
            PDS_BSKY_APP_VIEW_DID="did:web:appview.test",
            **dict.fromkeys(ENDLESS_LIMITS, str(10**12)),
        )
        self.tree = tree
        self.accounts: list[Account] = []
        self.book: dict[str, list[float]] = {}

    async def start(self) -> None:
        """Start the server from its tree; settings that an older one does not know are left out."""
        with contextlib.chdir(self.tree):
            while True:
                try:
                    return await super().start()
                except AssertionError as error:
                    unknown = UNKNOWN_SETTING.findall(str(error))
                    if not unknown or unknown[-1] not in self.environment:
                        raise
                    del self.environment[unknown[-1]]

    def cpu(self) -> float:
        """Return the CPU that the server has used, in seconds."""
        assert self.process is not None
        return cpu_seconds(self.process.pid)

    def resident_mb(self) -> float:
        """Return the memory of the server."""
        assert self.process is not None
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        row = next(row for row in rows if row.startswith("VmRSS"))
        return int(row.split()[1]) / 1024

    async def prepare(self) -> None:
        """Make accounts, and records to read."""
        self.accounts = await sign_up(self.url, ACCOUNTS, "versus")
        one = self.accounts[0]
        await fill_repo(self.url, one, 200)
        body = {
            "repo": one.did,
            "collection": "app.bsky.actor.profile",
            "rkey": "self",
            "record": {"$type": "app.bsky.actor.profile", "displayName": "Versus"},
        }
        async with RawConnection("127.0.0.1", self.port) as connection:
            status, answer = await connection.send(
                post("com.atproto.repo.putRecord", one.token, body)
            )
        assert status == 200, answer

    async def measure(self, case: Case) -> float:
        """Send the requests of one round and return the CPU of one, in microseconds."""
        count = 0

        async def work() -> None:
            nonlocal count
            async with RawConnection("127.0.0.1", self.port) as connection:
                while count < case.operations:
                    count += 1
                    status, body = await connection.send(case.make(self.accounts, count))
                    if status != case.status:
                        raise AssertionError(f"{case.name}: {status} {body[:200]!r}")

        before = self.cpu()
        await asyncio.gather(*(work() for _ in range(case.connections)))
        return (self.cpu() - before) / case.operations * 1e6


@asynccontextmanager
async def running_appview() -> AsyncIterator[str]:
    """Run a service that answers everything with a small JSON."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"actors": [], "cursor": "x" * 40})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://localhost:{port}"
    finally:
        await runner.cleanup()


def import_cpu_s(tree: Path) -> float:
    """Return the CPU of a process that imports the server, and nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import gc; gc.disable(); import pds.app.server"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show(name: str, old: Sequence[float], new: Sequence[float], unit: str) -> str:
    """Return one printed line."""
    ratios = sorted(b / a for a, b in zip(old, new, strict=True))
    before, after = statistics.median(old), statistics.median(new)
    return (
        f"{name:<24}{before:>9.2f}{after:>9.2f} {unit:<3}{after - before:>+8.2f}"
        f"   ratio {statistics.median(ratios):.3f}  ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )


async def run_starts(pair: Sequence[Version], say: Callable[[str], None]) -> None:
    """Compare import, start and idle memory; the servers have databases already."""
    book: dict[str, list[list[float]]] = {}

    def note(what: str, place: int, value: float) -> None:
        book.setdefault(what, [[], []])[place].append(value)

    for number in range(START_ROUNDS):
        for place in (number % 2, 1 - number % 2):
            version = pair[place]
            note("import, CPU ms", place, import_cpu_s(version.tree) * 1e3)
            await version.start()
            note("first answer, CPU ms", place, version.cpu() * 1e3)
            note("first answer, ms", place, version.start_times_s[-1] * 1e3)
            await asyncio.sleep(1.0)
            note("idle memory, MB", place, version.resident_mb())
            await version.stop()
    for what, (old, new) in book.items():
        name, _, unit = what.rpartition(" ")
        say(show(name, old, new, unit))


async def run(
    trees: Sequence[Path], rounds: int, say: Callable[[str], None], only: str = ""
) -> None:
    """Print every line."""
    for tree in trees:  # As an installed package is.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "pds"], cwd=tree, check=True)
    with tempfile.TemporaryDirectory() as name:
        async with running_plc(rate_limits=None) as plc, running_appview() as appview:
            pair = [
                Version(tree.resolve(), Path(name) / str(number), plc.url, appview)
                for number, tree in enumerate(trees)
            ]
            for version in pair:
                await version.start()
            cases = [case for case in CASES if only in case.name]
            try:
                for version in pair:
                    await version.prepare()
                for number in range(rounds + 1):  # The first only warms up.
                    for case in cases:
                        for place in (number % 2, 1 - number % 2):
                            cost = await pair[place].measure(case)
                            if number > 0:
                                pair[place].book.setdefault(case.name, []).append(cost)
            finally:
                for version in pair:
                    await version.stop()
            say(f"{'':<24}{'old':>9}{'new':>9}")
            for case in cases:
                say(show(case.name, pair[0].book[case.name], pair[1].book[case.name], "us"))
            if only in ("", "start"):
                await run_starts(pair, say)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.versus")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=Path.cwd())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this, or: start")
    asked = parser.parse_args()
    asyncio.run(
        run(
            (asked.old, asked.new),
            asked.rounds,
            lambda line: print(line, flush=True),
            asked.only,
        )
    )


if __name__ == "__main__":
    main()
