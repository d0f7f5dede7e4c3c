"""Rows of the firehose: pages of events for readers that are behind, and their removal.

The engine inserts events (`Txn.emit`), by statements from here; they are read in order of `seq` and
deleted when they are older than the window, or when their account is gone (SYNC-22). `seq` is a
time in unix microseconds that never goes back, so the window is a range of the primary key.

What was deleted by age is remembered as the fact `events_deleted_through`: gaps in `seq` are
normal, so only this tells a reader with an old cursor whether it missed anything.

A host that was taken over from another program has that one's events with their old
numbers, which are no times. They are all up to the fact `events_foreign_through`, and their age is
that of the column `at`.

Spec: event-stream#sequence-numbers (SYNC-10, SYNC-17, SYNC-22)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, NamedTuple

from pds.store.engine import MAX_BULK_ROWS, Statement, Txn

DELETED_THROUGH: Final = "events_deleted_through"
FOREIGN_THROUGH: Final = "events_foreign_through"

MAX_INSERTED: Final = 64
"""Rows to a statement, so that there are not many different texts."""

CONTENT_KINDS: Final = ("commit", "sync")
"""Events that hand out content; they are not sent for accounts that are not active."""


class StoredEvent(NamedTuple):
    """One event as it was inserted."""

    seq: int
    aid: int
    kind: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events after a cursor.

    Every event up to and including `through` was looked at; those that may not be redistributed
    are left out. `is_last` says that there was nothing behind `through` in this snapshot.
    """

    events: tuple[StoredEvent, ...]
    through: int
    is_last: bool


_MAY_BE_SENT: Final = (
    "(e.kind NOT IN ('commit', 'sync') OR EXISTS (SELECT 1 FROM account a WHERE a.aid = e.aid"
    " AND a.takedown_ref IS NULL AND a.suspended_at IS NULL AND a.deactivated_at IS NULL))"
)
_LIST_SIZES: Final = (
    f"SELECT e.seq, CASE WHEN {_MAY_BE_SENT} THEN length(e.frame) END"
    " FROM event e WHERE e.seq > ? ORDER BY e.seq LIMIT ?"
)
_LIST_FRAMES: Final = (
    "SELECT e.seq, e.aid, e.kind, e.frame FROM event e"
    f" WHERE e.seq > ? AND e.seq <= ? AND {_MAY_BE_SENT} ORDER BY e.seq"
)


def insert_statements(rows: Sequence[tuple[int, int, str, int, bytes]]) -> list[Statement]:
    """Return what inserts events (seq, aid, kind, at, frame), many to a statement."""
    statements = []
    for at in range(0, len(rows), MAX_INSERTED):
        chunk = rows[at : at + MAX_INSERTED]
        sql = "INSERT INTO event (seq, aid, kind, at, frame) VALUES " + ", ".join(
            ["(?, ?, ?, ?, ?)"] * len(chunk)
        )
        statements.append(Statement(sql, (tuple(value for row in chunk for value in row),)))
    return statements


def get_event_page(txn: Txn, after: int, max_events: int, max_bytes: int) -> EventPage:
    """Return the events after `after`, in order, within both limits but at least one.

    Frames that may not be sent are not read either: an account that is hidden after many large
    commits must cost nobody memory.
    """
    rows = txn.read(_LIST_SIZES, (after, max_events))
    size = 0
    through = after
    for seq, length in rows:
        if size and length is not None and size + length > max_bytes:
            break
        through = seq
        size += length or 0
    is_cut = bool(rows) and through != rows[-1][0]
    is_last = not is_cut and len(rows) < max_events
    events = txn.read(_LIST_FRAMES, (after, through)) if size else []
    return EventPage(tuple(StoredEvent(*row) for row in events), through, is_last)


def list_events(
    txn: Txn,
    *,
    before: int | None = None,
    aid: int | None = None,
    kind: str | None = None,
    limit: int,
) -> list[tuple[StoredEvent, int]]:
    """Return stored events with their times, the latest first, hidden ones too: for the operator.

    `before` is the number to go back from.
    """
    clauses = ["seq < ?"]
    values: list[int | str] = [(1 << 62) if before is None else before]
    if aid is not None:
        clauses.append("aid = ?")
        values.append(aid)
    if kind is not None:
        clauses.append("kind = ?")
        values.append(kind)
    rows = txn.read(
        f"SELECT seq, aid, kind, frame, at FROM event WHERE {' AND '.join(clauses)}"
        " ORDER BY seq DESC LIMIT ?",
        (*values, limit),
    )
    return [(StoredEvent(*row[:4]), row[4]) for row in rows]


def get_last_seq(txn: Txn) -> int:
    """Return the highest number that any node has given out."""
    return int(txn.read("SELECT last_seq FROM seq WHERE id = 1")[0][0])


def get_missed_through(txn: Txn, window_start: int) -> int:
    """Return the highest number that readers can no longer get; 0 if they can get everything.

    `window_start` is the oldest number of the window: what is stored before it counts as gone.
    """
    deleted = _get_deleted_through(txn)
    start = window_start
    if foreign := _get_number(txn, FOREIGN_THROUGH):
        row = txn.read_one(
            "SELECT seq FROM event WHERE seq <= ? AND at >= ? ORDER BY seq LIMIT 1",
            (foreign, window_start),
        )
        start = row[0] if row is not None else window_start
    row = txn.read_one("SELECT MAX(seq) FROM event WHERE seq < ?", (start,))
    outside = row[0] if row is not None and row[0] is not None else 0
    return max(deleted, outside)


def delete_events_before(txn: Txn, window_start: int, limit: int = MAX_BULK_ROWS) -> int:
    """Delete at most `limit` of the oldest events before `window_start`; return how many."""
    found = txn.read(
        "SELECT seq, at FROM event WHERE seq < ? ORDER BY seq LIMIT ?", (window_start, limit)
    )
    foreign = _get_number(txn, FOREIGN_THROUGH) if found else 0
    rows = [
        (seq,) for seq, _ in takewhile(lambda row: row[0] > foreign or row[1] < window_start, found)
    ]
    if not rows:
        return 0
    last = rows[-1][0]
    txn.write_many("DELETE FROM event WHERE seq = ?", rows)
    if last > _get_deleted_through(txn):
        _put_number(txn, DELETED_THROUGH, last)
    return len(rows)


def delete_account_events(txn: Txn, aid: int, limit: int = MAX_BULK_ROWS) -> int:
    """Delete at most `limit` events of an account that is deleted; return how many (SYNC-22).

    The final `#account` is emitted in the same or a later transaction and so survives the call
    that is made before it.
    """
    rows = txn.read("SELECT seq FROM event WHERE aid = ? ORDER BY seq LIMIT ?", (aid, limit))
    if rows:
        txn.write_many("DELETE FROM event WHERE seq = ?", rows)
    return len(rows)


def delete_superseded_events(txn: Txn, aid: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Delete at most `limit` events of an account that is gone, all but its last (SYNC-22)."""
    rows = txn.read(
        "SELECT seq FROM event WHERE aid = ?"
        " AND seq < (SELECT max(e.seq) FROM event e WHERE e.aid = ?) ORDER BY seq LIMIT ?",
        (aid, aid, limit),
    )
    txn.write_many("DELETE FROM event WHERE seq = ?", rows)
    return len(rows)


def insert_foreign_events(
    txn: Txn, rows: Sequence[tuple[int, int, str, int, bytes]], *, through: int
) -> None:
    """Insert events `(seq, aid, kind, at, frame)` of another program, all up to `through`."""
    _put_number(txn, FOREIGN_THROUGH, through)
    txn.write_many(
        "INSERT INTO event (seq, aid, kind, at, frame) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (seq) DO NOTHING",
        rows,
    )


def note_missing_through(txn: Txn, seq: int) -> None:
    """Note that nothing up to this number can be had here, as if it had been deleted by age."""
    if seq > _get_deleted_through(txn):
        _put_number(txn, DELETED_THROUGH, seq)


def get_foreign_position(txn: Txn) -> int:
    """Return the highest number of the events of another program that are here, 0 for none."""
    through = _get_number(txn, FOREIGN_THROUGH)
    row = txn.read_one("SELECT MAX(seq) FROM event WHERE seq <= ?", (through,))
    return int(row[0]) if row is not None and row[0] is not None else 0


def _get_deleted_through(txn: Txn) -> int:
    return _get_number(txn, DELETED_THROUGH)


def _get_number(txn: Txn, name: str) -> int:
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (name,))
    return int(row[0]) if row is not None else 0


def _put_number(txn: Txn, name: str, number: int) -> None:
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, str(number).encode()),
    )
