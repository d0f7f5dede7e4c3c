"""Signing keys that were handed out before their account exists.

Owns the table `reserved_key`. A row belongs to a DID, or to nobody in particular; the secret is
sealed under the master key. How long a reservation lasts is decided in `services/reserved_keys`.
"""

from dataclasses import dataclass

from pds.store.engine import MAX_BULK_ROWS, Txn


@dataclass(frozen=True, slots=True)
class ReservedKey:
    """One reservation; `secret` is sealed."""

    did_key: str
    did: str | None
    secret: bytes
    created_at: int


def get_reserved_key(txn: Txn, did: str, *, since_us: int) -> ReservedKey | None:
    """Return the key that is reserved for a DID, if that was done after an instant."""
    row = txn.read_one(
        "SELECT did_key, did, secret, created_at FROM reserved_key"
        " WHERE did = ? AND created_at > ?",
        (did, since_us),
    )
    return None if row is None else ReservedKey(row[0], row[1], bytes(row[2]), row[3])


def insert_reserved_key(txn: Txn, key: ReservedKey) -> None:
    """Reserve a key, in the place of an older one of the same DID."""
    if key.did is not None:
        delete_reserved_key(txn, key.did)
    txn.write(
        "INSERT INTO reserved_key (did_key, did, secret, created_at) VALUES (?, ?, ?, ?)",
        (key.did_key, key.did, key.secret, key.created_at),
    )


def delete_reserved_key(txn: Txn, did: str) -> None:
    """Drop the reservation of a DID: its key is in use now, or too old."""
    txn.write("DELETE FROM reserved_key WHERE did = ?", (did,))


def delete_reserved_did_key(txn: Txn, did_key: str) -> None:
    """Drop the reservation of a key, whoever it is for."""
    txn.write("DELETE FROM reserved_key WHERE did_key = ?", (did_key,))


def count_reserved_keys(txn: Txn) -> int:
    """Return how many keys are reserved."""
    return int(txn.read("SELECT count(*) FROM reserved_key")[0][0])


def delete_old_reserved_keys(txn: Txn, before_us: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Drop up to `limit` reservations made before an instant; return how many there were."""
    rows = txn.read(
        "SELECT did_key FROM reserved_key WHERE created_at <= ?"
        " ORDER BY created_at, did_key LIMIT ?",
        (before_us, limit),
    )
    txn.write_many("DELETE FROM reserved_key WHERE did_key = ?", rows)
    return len(rows)
