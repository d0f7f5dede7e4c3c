"""Choices of accounts that are no preference of a client: one text under a name.

Owns the table `account_choice`, save for the rows named `identity_trouble`
(`identity_troubles.py`). Rows go with their account (`erasure.py`).
"""

from pds.store.engine import Txn


def get_choice(txn: Txn, aid: int, name: str) -> str | None:
    """Return what an account has chosen under `name`."""
    row = txn.read_one("SELECT value FROM account_choice WHERE aid = ? AND name = ?", (aid, name))
    return None if row is None else bytes(row[0]).decode()


def put_choice(txn: Txn, aid: int, name: str, value: str) -> None:
    """Note a choice, over the one before."""
    txn.write(
        "INSERT INTO account_choice (aid, name, value) VALUES (?, ?, ?)"
        " ON CONFLICT (aid, name) DO UPDATE SET value = excluded.value",
        (aid, name, value.encode()),
    )


def delete_choice(txn: Txn, aid: int, name: str) -> None:
    """Take a choice back."""
    txn.write("DELETE FROM account_choice WHERE aid = ? AND name = ?", (aid, name))
