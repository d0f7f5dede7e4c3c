"""Codes that were sent by mail, as digests: one for an account and a purpose.

Owns the table `mail_token`. How long a code is good, how it reads and how often it may be tried is
decided in `services/mail_tokens`.
"""

from dataclasses import dataclass

from pds.store.engine import MAX_BULK_ROWS, Txn


@dataclass(frozen=True, slots=True)
class MailToken:
    """The code of one account for one purpose; `attempts` are the wrong ones since it was made."""

    aid: int
    purpose: str
    digest: bytes
    attempts: int
    created_at: int


def replace_mail_token(txn: Txn, *, aid: int, purpose: str, digest: bytes, now_us: int) -> None:
    """Store a new code in the place of an older one."""
    txn.write(
        "INSERT INTO mail_token (aid, purpose, digest, attempts, created_at) "
        "VALUES (?, ?, ?, 0, ?) "
        "ON CONFLICT (aid, purpose) DO UPDATE SET "
        "digest = excluded.digest, attempts = 0, created_at = excluded.created_at",
        (aid, purpose, digest, now_us),
    )


def get_mail_token(txn: Txn, aid: int, purpose: str) -> MailToken | None:
    """Return the code of an account for a purpose, expired or not."""
    row = txn.read_one(
        "SELECT aid, purpose, digest, attempts, created_at FROM mail_token "
        "WHERE aid = ? AND purpose = ?",
        (aid, purpose),
    )
    return None if row is None else MailToken(row[0], row[1], bytes(row[2]), row[3], row[4])


def get_mail_token_owner(txn: Txn, purpose: str, digest: bytes) -> int | None:
    """Return whose code this is, expired or not."""
    row = txn.read_one(
        "SELECT aid FROM mail_token WHERE digest = ? AND purpose = ?", (digest, purpose)
    )
    return None if row is None else int(row[0])


def update_mail_token_attempts(txn: Txn, aid: int, purpose: str, attempts: int) -> None:
    """Set how many wrong codes were tried."""
    txn.write(
        "UPDATE mail_token SET attempts = ? WHERE aid = ? AND purpose = ?",
        (attempts, aid, purpose),
    )


def delete_mail_token(txn: Txn, aid: int, purpose: str) -> None:
    """Delete the code of an account for one purpose."""
    txn.write("DELETE FROM mail_token WHERE aid = ? AND purpose = ?", (aid, purpose))


def delete_account_mail_tokens(txn: Txn, aid: int) -> None:
    """Delete all codes of an account."""
    txn.write("DELETE FROM mail_token WHERE aid = ?", (aid,))


def delete_old_mail_tokens(txn: Txn, before_us: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Tidy up to `limit` codes that were made before an instant; return how many there were."""
    old = txn.read(
        "SELECT aid, purpose FROM mail_token WHERE created_at < ? "
        "ORDER BY created_at, aid, purpose LIMIT ?",
        (before_us, limit),
    )
    txn.write_many("DELETE FROM mail_token WHERE aid = ? AND purpose = ?", old)
    return len(old)
