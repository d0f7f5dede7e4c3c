"""Private preference rows: JSON objects of clients, in the order the client gave.

Owns the table `preference`. The bytes are stored as they were encoded once; nothing here reads
them, `type` is beside them so that a namespace can be replaced without decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pds.store.engine import Txn


@dataclass(frozen=True, slots=True)
class Preference:
    """One preference: its `$type` and the whole object as JSON text."""

    type: str
    value: bytes


def list_preferences(txn: Txn, aid: int) -> list[Preference]:
    """Return all preferences of an account in order."""
    rows = txn.read("SELECT type, value FROM preference WHERE aid = ? ORDER BY position", (aid,))
    return [Preference(row[0], bytes(row[1])) for row in rows]


def replace_preferences(txn: Txn, aid: int, preferences: Sequence[Preference]) -> None:
    """Replace all preferences of an account by these, in this order."""
    txn.write("DELETE FROM preference WHERE aid = ?", (aid,))
    txn.write_many(
        "INSERT INTO preference (aid, position, type, value) VALUES (?, ?, ?, ?)",
        [
            (aid, position, preference.type, preference.value)
            for position, preference in enumerate(preferences)
        ],
    )


def count_preferences(txn: Txn, aid: int) -> int:
    """Return how many preferences an account has."""
    return int(txn.read("SELECT count(*) FROM preference WHERE aid = ?", (aid,))[0][0])
