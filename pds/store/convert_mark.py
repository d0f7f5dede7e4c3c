"""What a database says of a conversion that it takes part in, and what follows from it.

A host is moved by copying its rows into an empty database while it goes on serving, then refusing
writes for as long as it takes to copy what changed, and at last by making the old database one that
nobody starts on and the new one complete. At most one of the two can be written to at any moment,
whatever is killed when: each says in the table `conversion` where it stands. That row stays behind.

Every group of writes looks at the row inside its own transaction, so no write is committed after
the one that sets it (`SqliteWriteConnection.begin`, `PostgresWriter.begin`), and a server does not
start on a database that it must not write to.

Owns the table `conversion`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec

from pds.errors import Corrupt, Paused, Unavailable
from pds.store.engine import Params, Row

TABLE: Final = "conversion"
READ_MARK: Final = "SELECT mark FROM conversion WHERE id = 1"
WRITE_MARK: Final = (
    "INSERT INTO conversion (id, mark) VALUES (1, ?)"
    " ON CONFLICT (id) DO UPDATE SET mark = excluded.mark"
)
DELETE_MARK: Final = "DELETE FROM conversion WHERE id = 1"


class Stage(StrEnum):
    """Where a database stands in a conversion."""

    COPYING = "copying"
    """Its rows are being copied elsewhere; it is used as ever."""
    PAUSED = "paused"
    """It is being left: no writes until the copy is complete or given up."""
    MOVED = "moved"
    """It has been left: the host lives in the other database."""
    FILLING = "filling"
    """Rows are being copied into it; it is not complete."""
    ARRIVED = "arrived"
    """It was filled completely, and is used as ever."""


class Superseded(Unavailable):
    """A server was to start on a database that is not, or no longer, the host's."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The row. `conversion_id` is the same in both databases; `other` names the other one."""

    stage: Stage
    conversion_id: str
    other: str
    at_us: int


class MarkConnection(Protocol):
    """What reading the mark of a database that is just being opened needs."""

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one statement."""


def encode_mark(mark: Mark) -> bytes:
    """Return the value of the row."""
    return msgspec.json.encode(mark)


def decode_mark(value: bytes) -> Mark:
    """Return the mark that `value` is; raises Corrupt."""
    try:
        return msgspec.json.decode(value, type=Mark)
    except msgspec.MsgspecError as error:
        raise Corrupt("the row of the table `conversion` cannot be read") from error


def read_mark(connection: MarkConnection) -> Mark | None:
    """Return what a database says, which may be empty."""
    if not connection.has_table(TABLE):
        return None
    rows = connection.execute(READ_MARK, ())
    return decode_mark(rows[0][0]) if rows else None


def check_may_write(rows: Sequence[Sequence[Any]]) -> None:
    """Let a group of writes pass, or not, by what `READ_MARK` answered in its transaction.

    Raises: Paused.
    """
    if not rows:
        return
    mark = decode_mark(rows[0][0])
    match mark.stage:
        case Stage.COPYING | Stage.ARRIVED:
            return
        case Stage.PAUSED | Stage.FILLING:
            raise Paused("the host is being moved to another database")
        case Stage.MOVED:
            raise Paused("the host has been moved to another database")


def check_may_start(connection: MarkConnection) -> None:
    """Refuse to open a database that is being moved, has been, or is not complete.

    Raises: Superseded, with what to do.
    """
    mark = read_mark(connection)
    if mark is None:
        return
    on = datetime.fromtimestamp(mark.at_us // 1_000_000, UTC).isoformat(" ", "minutes")
    match mark.stage:
        case Stage.COPYING | Stage.ARRIVED:
            return
        case Stage.PAUSED:
            raise Superseded(
                f"this database is being moved to {mark.other} (since {on}): run the same"
                " `pds convert database` again to finish that, or `pds convert cancel` to stay"
            )
        case Stage.FILLING:
            raise Superseded(
                f"this database is not complete: it is being filled from {mark.other} (since {on});"
                " run `pds convert database` there again"
            )
        case Stage.MOVED:
            raise Superseded(
                f"this host was moved to {mark.other} on {on}: start it there. To go back to this"
                " database, and lose what was written there since: `pds convert cancel --yes`"
            )
