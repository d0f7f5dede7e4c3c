"""App password rows: extra passwords with narrower rights, stored as hashes only.

Owns the table `app_password`. Names are unique within an account (ACC-33).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.store.engine import Txn

_COLUMNS: Final = "app_password_id, aid, name, hash, privileged, created_at"


@dataclass(frozen=True, slots=True)
class AppPassword:
    """One app password; `hash` is a keyed hash of a secret of 80 random bits.

    Of one that came from a reference server, and was not used here yet, it is that one's hash.
    """

    app_password_id: int
    aid: int
    name: str
    hash: bytes
    privileged: bool
    created_at: int


def _app_password(row: Sequence[Any]) -> AppPassword:
    return AppPassword(row[0], row[1], row[2], bytes(row[3]), bool(row[4]), row[5])


def list_app_passwords(txn: Txn, aid: int) -> list[AppPassword]:
    """Return the app passwords of an account, oldest first."""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM app_password WHERE aid = ? ORDER BY app_password_id", (aid,)
    )
    return [_app_password(row) for row in rows]


def get_app_password_by_name(txn: Txn, aid: int, name: str) -> AppPassword | None:
    """Return the app password of this name."""
    row = txn.read_one(
        f"SELECT {_COLUMNS} FROM app_password WHERE aid = ? AND name = ?", (aid, name)
    )
    return None if row is None else _app_password(row)


def insert_app_password(
    txn: Txn, *, aid: int, name: str, hash: bytes, privileged: bool, now_us: int
) -> int:
    """Insert an app password whose name is free, and return its id."""
    app_password_id = txn.next_id("app_password")
    txn.write(
        f"INSERT INTO app_password ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
        (app_password_id, aid, name, hash, int(privileged), now_us),
    )
    return app_password_id


def update_app_password_hash(txn: Txn, app_password_id: int, hash: bytes) -> None:
    """Replace the stored form; the password is the same."""
    txn.write("UPDATE app_password SET hash = ? WHERE app_password_id = ?", (hash, app_password_id))


def delete_app_password(txn: Txn, app_password_id: int) -> None:
    """Delete one app password; its sessions are the caller's business."""
    txn.write("DELETE FROM app_password WHERE app_password_id = ?", (app_password_id,))
