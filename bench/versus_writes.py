"""Two versions of the program, record writes without HTTP, in turn: CPU of many small batches.

32 writers create a record each through the service, two rounds of it in a batch, and then one
writer alone twelve. Printed are the best batch and the quartile of each version, here and, on
PostgreSQL (which does not sync), in the database. Other work on the machine spoils a batch but
seldom all of them, so the best ones can be compared where means cannot.

`python -m bench.versus_writes OLD_TREE [NEW_TREE] [--rounds N] [--sqlite]`
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.postgres_writes import WRITERS, make_accounts, post
from pds.store.base import ThreadedEngine
from pds.store.clock import SystemClock
from pds.store.engine import SWITCH_INTERVAL_S
from pds.store.postgres import PostgresEngine
from pds.store.postgres_link import PostgresSettings
from pds.store.sqlite import SqliteEngine, SqliteSettings
from tests.support_postgres import OwnServer, private_server

BATCHES = 25
ALONE = 12
Costs = dict[str, list[float]]
"""Microseconds of CPU for one write, of each batch."""


def database_cpu(server: OwnServer | None) -> float:
    """Return the CPU seconds of a database server and its children, to the nanosecond."""
    if server is None or server.process is None:
        return 0.0
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(time.clock_gettime(~int(one) << 3 | 2) for one in (pid, *children))


async def measure(name: str, engine: ThreadedEngine, server: OwnServer | None) -> Costs:
    """Time batches on an engine that is not started."""
    costs: Costs = {}
    await engine.start()
    repos, aids = await make_accounts(engine)

    async def together() -> None:
        for _ in range(2):
            await asyncio.gather(*(repos.write(aid, [post(n)]) for n, aid in enumerate(aids)))

    async def alone() -> None:
        for number in range(ALONE):
            await repos.write(aids[number], [post(number)])

    for number in range(-3, BATCHES):  # The first ones only warm up.
        for what, work, writes in (("together", together, 2 * WRITERS), ("alone", alone, ALONE)):
            ours, theirs = time.process_time(), database_cpu(server)
            await work()
            ours, theirs = time.process_time() - ours, database_cpu(server) - theirs
            if number >= 0:
                costs.setdefault(f"{name}, {what}", []).append(ours / writes * 1e6)
            if number >= 0 and server is not None:
                costs.setdefault(f"{name}, {what}, database", []).append(theirs / writes * 1e6)
    await engine.close()
    return costs


async def measure_here(*, sqlite_only: bool) -> Costs:
    """Time this version on each engine."""
    with tempfile.TemporaryDirectory() as folder:
        sqlite = SqliteEngine(SqliteSettings(Path(folder) / "db.sqlite"), SystemClock())
        costs = await measure("SQLite", sqlite, None)
    if not sqlite_only:
        server = private_server()
        try:
            engine = PostgresEngine(PostgresSettings(server.url), SystemClock())
            costs |= await measure("PostgreSQL", engine, server)
        finally:
            server.remove()
    return costs


def measure_tree(tree: Path, *, sqlite_only: bool) -> Costs:
    """Time the version of a tree, in a process of its own."""
    command = [sys.executable, __file__, "--here", *(["--sqlite"] if sqlite_only else [])]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    found: Costs = json.loads(done.stdout)
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.versus_writes")
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?", default=Path.cwd())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sqlite", action="store_true", help="leave PostgreSQL out")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        logging.getLogger("pds").setLevel(logging.ERROR)  # A busy machine makes jobs slow.
        print(json.dumps(uvloop.run(measure_here(sqlite_only=asked.sqlite))))
        return
    if asked.old is None:
        parser.error("name the tree of the old version")
    book: list[Costs] = [{}, {}]
    for number in range(asked.rounds):
        for place in (number % 2, 1 - number % 2):
            tree = (asked.old, asked.new)[place].resolve()
            for name, costs in measure_tree(tree, sqlite_only=asked.sqlite).items():
                book[place].setdefault(name, []).extend(costs)
    print(f"{'':<32}{'best':>8}{'':>8}{'':>9}{'quartile':>16}")
    for name in book[1]:
        old, new = sorted(book[0][name]), sorted(book[1][name])
        line = f"{name:<32}"
        for at in (0.0, 0.25):
            before, after = (costs[int(at * len(costs))] for costs in (old, new))
            line += f"{before:>8.0f} ->{after:>6.0f} us ({after / before:.2f})"
        print(line)


if __name__ == "__main__":
    main()
