"""That this database is older than what was sent, and how far the repair of that has come.

Owns the fact `restate_after`: the number of the last account whose repo was stated again. It is
there from the moment the rewind was seen until all are done.
"""

from typing import Final

from pds.store.engine import Txn

_NAME: Final = "restate_after"


def has_event(txn: Txn, seq: int) -> bool:
    """Whether the event with this number is stored."""
    return txn.read_one("SELECT 1 FROM event WHERE seq = ?", (seq,)) is not None


def get_restated_aid(txn: Txn) -> int | None:
    """Return the last account that was restated, 0 before the first, None if nothing is to do."""
    row = txn.read_one("SELECT value FROM fact WHERE name = ?", (_NAME,))
    return None if row is None else int(bytes(row[0]))


def put_restated_aid(txn: Txn, aid: int) -> None:
    """Note the last account that was restated; 0 begins anew."""
    txn.write(
        "INSERT INTO fact (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_NAME, str(aid).encode()),
    )


def delete_restated_aid(txn: Txn) -> None:
    """Note that all are done."""
    txn.write("DELETE FROM fact WHERE name = ?", (_NAME,))
