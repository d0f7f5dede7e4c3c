"""Tokens that work once and were used: what keeps them from working again, at any node.

Only digests are kept, each until the token would have expired anyhow.
"""

from pds.store.engine import MAX_BULK_ROWS, Txn


def use_token(txn: Txn, digest: bytes, *, expires_at: int, now_us: int) -> bool:
    """Note that a token was used; False when it was used before. Instants in microseconds."""
    rows = txn.write(
        "INSERT INTO used_token (digest, expires_at) VALUES (?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET expires_at = excluded.expires_at"
        " WHERE used_token.expires_at <= ? RETURNING digest",
        (digest, expires_at, now_us),
    )
    return bool(rows)


def delete_expired_tokens(txn: Txn, now_us: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Forget up to `limit` tokens that have expired; return how many."""
    rows = txn.read(
        "SELECT digest FROM used_token WHERE expires_at <= ? ORDER BY expires_at, digest LIMIT ?",
        (now_us, limit),
    )
    txn.write_many("DELETE FROM used_token WHERE digest = ?", rows)
    return len(rows)
