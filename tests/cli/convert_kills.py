"""Kills a conversion before statements chosen at random: `convert_kills.py FOLDER URL SEED`.

Each run is a fork of this process, so that it costs no start of Python, and ends as kill -9 would
have it: at once, with nothing put in order.
"""

import contextlib
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pds.services.database_conversion import DatabaseConversion, Finished
from pds.store.convert_mark import Stage
from pds.store.convert_postgres import CopyConnection, PostgresSide
from pds.store.convert_schema import read_schema
from pds.store.convert_side import Side
from pds.store.convert_sqlite import SqliteSide
from pds.store.migrate import load_migrations
from pds.store.sqlite import SqliteConnection
from tests.store.test_convert import contents, fill

KILLED = 9
KILLS = 8
SCHEMA = read_schema(load_migrations())
OPEN = {Stage.COPYING, Stage.ARRIVED, None}

Open = Callable[[], Side]


def convert(source: Open, target: Open, kill_at: int | None, counted: Path) -> None:
    """Run a conversion in a child, which ends before statement number `kill_at`."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in ({0} if kill_at is None else {0, KILLED}), status
        return
    count = 0

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os._exit(KILLED)
            return method(*args, **kwargs)

        return call

    code = 1
    try:
        for kind, names in (
            (CopyConnection, ("execute", "execute_many", "copy_in", "copy_out")),
            (SqliteConnection, ("execute", "execute_many", "iterate")),
        ):
            for name in names:
                setattr(kind, name, counting(getattr(kind, name)))
        conversion = DatabaseConversion(
            source(), target(), SCHEMA, new_id=os.urandom(8).hex(),
            now_us=lambda: time.time_ns() // 1000,
        )  # fmt: skip
        with contextlib.suppress(Finished):
            conversion.run(lambda _progress: None)
        counted.write_text(str(count))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def stage_of(side: Open) -> Stage | None:
    """Where a database stands."""
    opened = side()
    mark = opened.read_mark()
    opened.close()
    return mark.stage if mark is not None else None


def move(source: Open, target: Open, rng: random.Random, folder: Path, statements: int) -> int:
    """Convert with kills; return how many there were. Never may both sides be open."""
    kills = 0
    for _ in range(KILLS):
        convert(source, target, rng.randrange(30, statements), folder / "count")
        kills += 1
        assert not (stage_of(source) in OPEN and stage_of(target) is Stage.ARRIVED)
    convert(source, target, None, folder / "count")
    assert (stage_of(source), stage_of(target)) == (Stage.MOVED, Stage.ARRIVED)
    return kills


def main(folder: Path, url: str, seed: int) -> None:
    """There and back, and the rows at the end are those of the beginning."""
    rng = random.Random(seed)
    old, new = folder / "old" / "a.sqlite", folder / "new" / "b.sqlite"
    side = SqliteSide(old, is_target=True)
    side.create(1)
    fill(side, SCHEMA, rng, 40)
    before = contents(side, SCHEMA)
    side.close()
    kills = move(
        lambda: SqliteSide(old), lambda: PostgresSide(url, is_target=True), rng, folder, 500
    )
    kills += move(
        lambda: PostgresSide(url), lambda: SqliteSide(new, is_target=True), rng, folder, 500
    )
    found = SqliteSide(new)
    assert contents(found, SCHEMA) == before
    print(f"killed {kills} times; a whole run has {(folder / 'count').read_text()} statements")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
