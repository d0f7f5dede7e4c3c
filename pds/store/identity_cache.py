"""Identities of strangers, kept across restarts so that a start asks nobody for what was known.

Owns the table `identity_cache` (scratch: losing it costs only requests).
"""

from pds.store.engine import MAX_BULK_ROWS, Txn


def get_saved_identity(txn: Txn, subject: str) -> tuple[bytes, int] | None:
    """Return what was saved about a subject, and when it was fetched (unix microseconds)."""
    row = txn.read_one("SELECT value, fetched_at FROM identity_cache WHERE subject = ?", (subject,))
    return None if row is None else (bytes(row[0]), int(row[1]))


def save_identity(txn: Txn, subject: str, value: bytes, fetched_at_us: int) -> None:
    """Save an answer over an older one."""
    txn.write(
        "INSERT INTO identity_cache (subject, value, fetched_at) VALUES (?, ?, ?)"
        " ON CONFLICT (subject) DO UPDATE SET value = excluded.value,"
        " fetched_at = excluded.fetched_at",
        (subject, value, fetched_at_us),
    )


def delete_saved_identity(txn: Txn, subject: str) -> None:
    """Drop what was saved about a subject."""
    txn.write("DELETE FROM identity_cache WHERE subject = ?", (subject,))


def delete_old_identities(txn: Txn, before_us: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Drop at most `limit` answers fetched before a time; return how many there were."""
    rows = txn.read(
        "SELECT subject FROM identity_cache WHERE fetched_at < ? ORDER BY subject LIMIT ?",
        (before_us, limit),
    )
    txn.write_many("DELETE FROM identity_cache WHERE subject = ?", rows)
    return len(rows)
