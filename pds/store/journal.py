"""The journal: acts that touch our database and another system, written before the outer call.

Owns the table `journal`. A row says what is being attempted (`kind`, `subject`) and holds what is
needed to finish or undo it (`state`, encoded by the service; secrets in it are sealed). The last
transaction of the act deletes the row. A row that is still there when nobody works on it belongs to
an act that a crash or a dead peer cut short; the recovery job of the service finishes or undoes it.

`(kind, subject)` is unique, so a row also reserves its subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.store.engine import Txn

_COLUMNS: Final = "journal_id, kind, subject, state, created_at, updated_at, attempts"


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One act under way; `attempts` counts recoveries that could not finish."""

    journal_id: int
    kind: str
    subject: str
    state: bytes
    created_at: int
    updated_at: int
    attempts: int


def _journal_row(row: Sequence[Any]) -> JournalRow:
    return JournalRow(row[0], row[1], row[2], bytes(row[3]), row[4], row[5], row[6])


def insert_journal(txn: Txn, *, kind: str, subject: str, state: bytes, now_us: int) -> int:
    """Insert a row whose subject is free, and return its id."""
    journal_id = txn.next_id("journal")
    txn.write(
        f"INSERT INTO journal ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, 0)",
        (journal_id, kind, subject, state, now_us, now_us),
    )
    return journal_id


def get_journal(txn: Txn, kind: str, subject: str) -> JournalRow | None:
    """Return the row that reserves this subject."""
    row = txn.read_one(
        f"SELECT {_COLUMNS} FROM journal WHERE kind = ? AND subject = ?", (kind, subject)
    )
    return None if row is None else _journal_row(row)


def list_journal(txn: Txn, kind: str, *, limit: int = 500) -> list[JournalRow]:
    """Return the open acts of a kind, oldest first."""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM journal WHERE kind = ? ORDER BY journal_id LIMIT ?", (kind, limit)
    )
    return [_journal_row(row) for row in rows]


def get_journal_by_id(txn: Txn, journal_id: int) -> JournalRow | None:
    """Return an act if it is still open."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM journal WHERE journal_id = ?", (journal_id,))
    return None if row is None else _journal_row(row)


def update_journal(txn: Txn, journal_id: int, *, state: bytes, attempts: int, now_us: int) -> None:
    """Replace the state of an open act."""
    txn.write(
        "UPDATE journal SET state = ?, attempts = ?, updated_at = ? WHERE journal_id = ?",
        (state, attempts, now_us, journal_id),
    )


def delete_journal(txn: Txn, journal_id: int) -> None:
    """Close an act."""
    txn.write("DELETE FROM journal WHERE journal_id = ?", (journal_id,))
