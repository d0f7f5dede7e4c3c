"""Rows of the firehose: pages of events for readers that are behind, and their removal.

The engine inserts events (`Txn.emit`); here they are read in order of `seq` and deleted when they
are older than the window, or when their account is gone (SYNC-22). `seq` is a time in unix
microseconds that never goes back, so the window is a range of the primary key.

What was deleted by age is remembered as the fact `events_deleted_through`: gaps in `seq` are
normal, so only this tells a reader with an old cursor whether it missed anything.

Spec: sync#sequence-numbers-and-cursors (SYNC-10, SYNC-17, SYNC-22)
"""

from dataclasses import dataclass
from typing import Final

from pds.store.engine import MAX_BULK_ROWS, Txn

DELETED_THROUGH: Final = "events_deleted_through"

CONTENT_KINDS: Final = ("commit", "sync")
"""Events that hand out content; they are not sent for accounts that are not active."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
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


_LIST_SIZES: Final = """
SELECT e.seq, length(e.frame),
  CASE WHEN e.kind NOT IN ('commit', 'sync') THEN 1
       WHEN a.aid IS NULL OR a.takedown_ref IS NOT NULL OR a.suspended_at IS NOT NULL
         OR a.deactivated_at IS NOT NULL THEN 0
       ELSE 1 END
FROM event e LEFT JOIN account a ON a.aid = e.aid
WHERE e.seq > ? ORDER BY e.seq LIMIT ?
"""


def get_event_page(txn: Txn, after: int, max_events: int, max_bytes: int) -> EventPage:
    """Return the events after `after`, in order, within both limits but at least one."""
    rows = txn.read(_LIST_SIZES, (after, max_events))
    wanted: list[int] = []
    size = 0
    through = after
    for seq, length, may_be_sent in rows:
        if wanted and size + length > max_bytes:
            break
        through = seq
        if may_be_sent:
            wanted.append(seq)
            size += length
    is_cut = bool(rows) and through != rows[-1][0]
    is_last = not is_cut and len(rows) < max_events
    return EventPage(_get_events(txn, after, through, set(wanted)), through, is_last)


def _get_events(txn: Txn, after: int, through: int, wanted: set[int]) -> tuple[StoredEvent, ...]:
    if not wanted:
        return ()
    first, last = min(wanted), max(wanted)
    rows = txn.read(
        "SELECT seq, aid, kind, frame FROM event WHERE seq >= ? AND seq <= ? ORDER BY seq",
        (max(first, after + 1), min(last, through)),
    )
    return tuple(StoredEvent(*row) for row in rows if row[0] in wanted)


def get_missed_through(txn: Txn, window_start: int) -> int:
    """Return the highest number that readers can no longer get; 0 if they can get everything.

    `window_start` is the oldest number of the window: what is stored before it counts as gone.
    """
    deleted = _get_deleted_through(txn)
    row = txn.read_one("SELECT MAX(seq) FROM event WHERE seq < ?", (window_start,))
    outside = row[0] if row is not None and row[0] is not None else 0
    return max(deleted, outside)


def delete_events_before(txn: Txn, window_start: int, limit: int = MAX_BULK_ROWS) -> int:
    """Delete at most `limit` of the oldest events before `window_start`; return how many."""
    rows = txn.read(
        "SELECT seq FROM event WHERE seq < ? ORDER BY seq LIMIT ?", (window_start, limit)
    )
    if not rows:
        return 0
    last = rows[-1][0]
    txn.write_many("DELETE FROM event WHERE seq = ?", rows)
    if last > _get_deleted_through(txn):
        txn.write(
            "INSERT INTO fact (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (DELETED_THROUGH, str(last).encode()),
        )
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


def _get_deleted_through(txn: Txn) -> int:
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (DELETED_THROUGH,))
    return int(row[0]) if row is not None else 0
