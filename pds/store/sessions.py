"""Session rows: one per refresh token; the rows of one login share a `session_id`.

Owns the table `session`. Refreshing adds the successor's row and names it in `next_token_id` of the
old one, whose life is cut to the grace (XRPC-25). A session lives while one unexpired row of it is
there; revoking deletes rows, so an access token of it dies with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.store.engine import MAX_BULK_ROWS, Txn

_COLUMNS: Final = (
    "token_id, session_id, aid, scope, app_password_id, next_token_id, created_at, expires_at"
)


@dataclass(frozen=True, slots=True)
class Session:
    """One refresh token of a session, by its id (the token itself is not stored)."""

    token_id: str
    session_id: str
    aid: int
    scope: str
    app_password_id: int | None
    next_token_id: str | None
    created_at: int
    expires_at: int


def _session(row: Sequence[Any]) -> Session:
    return Session(*row)


def insert_session(txn: Txn, session: Session) -> None:
    """Insert one row."""
    txn.write(
        f"INSERT INTO session ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            session.token_id,
            session.session_id,
            session.aid,
            session.scope,
            session.app_password_id,
            session.next_token_id,
            session.created_at,
            session.expires_at,
        ),
    )


def get_session(txn: Txn, token_id: str) -> Session | None:
    """Return the row of one refresh token."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM session WHERE token_id = ?", (token_id,))
    return None if row is None else _session(row)


def get_session_owner(txn: Txn, session_id: str, now_us: int) -> int | None:
    """Return the `aid` of a session that still lives, else `None`."""
    row = txn.read_one(
        "SELECT aid FROM session WHERE session_id = ? AND expires_at > ? LIMIT 1",
        (session_id, now_us),
    )
    return None if row is None else int(row[0])


def count_sessions(txn: Txn, aid: int) -> int:
    """Return how many sessions of an account have a row."""
    row = txn.read("SELECT count(DISTINCT session_id) FROM session WHERE aid = ?", (aid,))[0]
    return int(row[0])


@dataclass(frozen=True, slots=True)
class OpenSession:
    """One login as its owner or an operator sees it: all its rows together."""

    session_id: str
    scope: str
    app_password_id: int | None
    opened_at: int
    renewed_at: int
    expires_at: int


def list_open_sessions(
    txn: Txn, aid: int, *, after: str, now_us: int, limit: int
) -> list[OpenSession]:
    """Return sessions of an account whose last token has not expired, by id from `after` on."""
    rows = txn.read(
        "SELECT session_id, max(scope), max(app_password_id), min(created_at), max(created_at),"
        " max(expires_at) FROM session WHERE aid = ? AND session_id > ? AND expires_at > ?"
        " GROUP BY session_id ORDER BY session_id LIMIT ?",
        (aid, after, now_us, limit),
    )
    return [OpenSession(*row) for row in rows]


def update_successor(txn: Txn, token_id: str, next_token_id: str, expires_at: int) -> None:
    """Name the successor of a used refresh token and shorten its life."""
    txn.write(
        "UPDATE session SET next_token_id = ?, expires_at = ? WHERE token_id = ?",
        (next_token_id, expires_at, token_id),
    )


def delete_session_chain(txn: Txn, session_id: str) -> None:
    """Delete all rows of one login."""
    txn.write("DELETE FROM session WHERE session_id = ?", (session_id,))


def delete_account_sessions(txn: Txn, aid: int, *, keep_session_id: str | None = None) -> None:
    """Delete all sessions of an account, except one if asked."""
    txn.write(
        "DELETE FROM session WHERE aid = ? AND session_id <> ?",
        (aid, keep_session_id or ""),
    )


def delete_app_password_sessions(txn: Txn, aid: int, app_password_id: int) -> None:
    """Delete the sessions that were opened with one app password."""
    txn.write("DELETE FROM session WHERE aid = ? AND app_password_id = ?", (aid, app_password_id))


def delete_expired_of_account(txn: Txn, aid: int, now_us: int) -> None:
    """Tidy the expired rows of one account."""
    txn.write("DELETE FROM session WHERE aid = ? AND expires_at <= ?", (aid, now_us))


def delete_expired_sessions(txn: Txn, now_us: int, *, limit: int = MAX_BULK_ROWS) -> int:
    """Tidy up to `limit` expired rows of any account and return how many there were."""
    expired = txn.read(
        "SELECT token_id FROM session WHERE expires_at <= ? ORDER BY expires_at, token_id LIMIT ?",
        (now_us, limit),
    )
    txn.write_many("DELETE FROM session WHERE token_id = ?", expired)
    return len(expired)
