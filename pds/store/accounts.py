"""Account rows: who lives on this host, under which handle, in which state.

Owns the table `account`. The `aid` is the small number that every other table uses; `did`, `handle`
and `email` are unique (ACC-2), handles and addresses are stored lower-case. The state of an account
is never stored as a word: it is derived from three columns, takedown first (ACC-3).

Instants are unix microseconds here as in all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pds.protocol.syntax import Did, Handle
from pds.store.engine import Txn

_COLUMNS: Final = (
    "aid, did, handle, email, email_confirmed_at, password_hash, created_at, repo_id, key_id, "
    "takedown_ref, suspended_at, deactivated_at, delete_after, invites_disabled"
)


class AccountStatus(StrEnum):
    """The derived state of an account; every member but `ACTIVE` is a wire word (SYNC-80)."""

    ACTIVE = "active"
    TAKENDOWN = "takendown"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"


_IS: Final = {
    AccountStatus.ACTIVE: (
        "takedown_ref IS NULL AND suspended_at IS NULL AND deactivated_at IS NULL"
    ),
    AccountStatus.TAKENDOWN: "takedown_ref IS NOT NULL",
    AccountStatus.SUSPENDED: "takedown_ref IS NULL AND suspended_at IS NOT NULL",
    AccountStatus.DEACTIVATED: (
        "takedown_ref IS NULL AND suspended_at IS NULL AND deactivated_at IS NOT NULL"
    ),
}


@dataclass(frozen=True, slots=True)
class Account:
    """One account as stored; `repo_id` and `key_id` name the live repo and signing key."""

    aid: int
    did: Did
    handle: Handle | None
    email: str | None
    email_confirmed_at: int | None
    password_hash: str | None
    created_at: int
    repo_id: int | None
    key_id: int | None
    takedown_ref: str | None
    suspended_at: int | None
    deactivated_at: int | None
    delete_after: int | None
    invites_disabled: bool

    @property
    def status(self) -> AccountStatus:
        """The state that counts: takedown, then suspension, then deactivation (ACC-3)."""
        if self.takedown_ref is not None:
            return AccountStatus.TAKENDOWN
        if self.suspended_at is not None:
            return AccountStatus.SUSPENDED
        if self.deactivated_at is not None:
            return AccountStatus.DEACTIVATED
        return AccountStatus.ACTIVE

    @property
    def is_active(self) -> bool:
        """Whether records may be written and shown."""
        return self.status is AccountStatus.ACTIVE


def _account(row: Sequence[Any]) -> Account:
    values: list[Any] = [*row[:13], bool(row[13])]
    return Account(*values)


def _get(txn: Txn, column: str, value: str | int) -> Account | None:
    row = txn.read_one(f"SELECT {_COLUMNS} FROM account WHERE {column} = ?", (value,))
    return None if row is None else _account(row)


def get_account_by_aid(txn: Txn, aid: int) -> Account | None:
    """Return the account with this number."""
    return _get(txn, "aid", aid)


def get_account_by_did(txn: Txn, did: str) -> Account | None:
    """Return the account with this DID, whatever its state."""
    return _get(txn, "did", did)


def get_account_by_handle(txn: Txn, handle: str) -> Account | None:
    """Return the account with this (lower-case) handle, whatever its state."""
    return _get(txn, "handle", handle)


def get_account_by_email(txn: Txn, email: str) -> Account | None:
    """Return the account with this (lower-case) address, whatever its state."""
    return _get(txn, "email", email)


def get_account(txn: Txn, did_or_handle: str) -> Account | None:
    """Return the account named by a DID or a (lower-case) handle."""
    if did_or_handle.startswith("did:"):
        return get_account_by_did(txn, did_or_handle)
    return get_account_by_handle(txn, did_or_handle)


def list_accounts(txn: Txn, *, after_aid: int = 0, limit: int = 500) -> list[Account]:
    """Return accounts in the order of their creation, from the one behind `after_aid` on."""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM account WHERE aid > ? ORDER BY aid LIMIT ?", (after_aid, limit)
    )
    return [_account(row) for row in rows]


def count_accounts(txn: Txn) -> int:
    """Return how many accounts there are, in any state."""
    return int(txn.read("SELECT count(*) FROM account")[0][0])


def insert_account(
    txn: Txn,
    *,
    did: Did,
    handle: Handle | None,
    email: str | None,
    password_hash: str | None,
    now_us: int,
    deactivated_at: int | None = None,
    delete_after: int | None = None,
    aid: int | None = None,
) -> int:
    """Insert an account without repo and key, and return its new `aid`.

    The caller has checked in the same transaction that `did`, `handle` and `email` are free. An
    `aid` that is given was drawn from the counter before.
    """
    if aid is None:
        aid = txn.next_id("account")
    txn.write(
        f"INSERT INTO account ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            aid,
            did,
            handle,
            email,
            None,
            password_hash,
            now_us,
            None,
            None,
            None,
            None,
            deactivated_at,
            delete_after,
            0,
        ),
    )
    return aid


def update_key(txn: Txn, aid: int, key_id: int) -> None:
    """Name the live signing key."""
    txn.write("UPDATE account SET key_id = ? WHERE aid = ?", (key_id, aid))


def update_repo(txn: Txn, aid: int, repo_id: int) -> None:
    """Name the live repo generation."""
    txn.write("UPDATE account SET repo_id = ? WHERE aid = ?", (repo_id, aid))


def update_handle(txn: Txn, aid: int, handle: Handle | None) -> None:
    """Set the handle; the caller has checked that it is free."""
    txn.write("UPDATE account SET handle = ? WHERE aid = ?", (handle, aid))


def update_email(txn: Txn, aid: int, email: str | None, *, confirmed_at: int | None) -> None:
    """Set the (lower-case) address and when it was confirmed."""
    txn.write(
        "UPDATE account SET email = ?, email_confirmed_at = ? WHERE aid = ?",
        (email, confirmed_at, aid),
    )


def update_password_hash(txn: Txn, aid: int, password_hash: str | None) -> None:
    """Set the hash of the main password, or with `None` let none open the account.

    Revoking sessions is the caller's business (XRPC-26).
    """
    txn.write("UPDATE account SET password_hash = ? WHERE aid = ?", (password_hash, aid))


def update_deactivation(
    txn: Txn, aid: int, *, deactivated_at: int | None, delete_after: int | None
) -> None:
    """Deactivate since an instant, or with `None` activate again."""
    txn.write(
        "UPDATE account SET deactivated_at = ?, delete_after = ? WHERE aid = ?",
        (deactivated_at, delete_after, aid),
    )


def update_takedown(txn: Txn, aid: int, takedown_ref: str | None) -> None:
    """Take down under a reference, or with `None` lift it."""
    txn.write("UPDATE account SET takedown_ref = ? WHERE aid = ?", (takedown_ref, aid))


def update_suspension(txn: Txn, aid: int, suspended_at: int | None) -> None:
    """Suspend since an instant, or with `None` lift it."""
    txn.write("UPDATE account SET suspended_at = ? WHERE aid = ?", (suspended_at, aid))


def list_overdue_accounts(txn: Txn, now_us: int, *, limit: int = 100) -> list[int]:
    """Return accounts whose owners wanted them deleted by now, the most overdue first."""
    rows = txn.read(
        "SELECT aid FROM account WHERE delete_after IS NOT NULL AND delete_after <= ?"
        " AND deactivated_at IS NOT NULL ORDER BY delete_after, aid LIMIT ?",
        (now_us, limit),
    )
    return [row[0] for row in rows]


def update_invites_disabled(txn: Txn, aid: int, *, is_disabled: bool) -> None:
    """Bar an account from inviting, or let it invite again (ACC-26)."""
    txn.write("UPDATE account SET invites_disabled = ? WHERE aid = ?", (int(is_disabled), aid))


def search_accounts(
    txn: Txn,
    *,
    text: str | None = None,
    email: str | None = None,
    status: AccountStatus | None = None,
    after_aid: int = 0,
    limit: int = 50,
) -> list[Account]:
    """Return accounts in the order of their creation, for the operator: reads the whole table.

    `text` is part of the DID, the handle or the address, `email` part of the address.
    """
    clauses = ["aid > ?"]
    values: list[int | str] = [after_aid]
    if email is not None:
        clauses.append("email LIKE ? ESCAPE '!'")
        values.append(_pattern(email))
    if text is not None:
        parts = [f"{column} LIKE ? ESCAPE '!'" for column in ("did", "handle", "email")]
        clauses.append(f"({' OR '.join(parts)})")
        values += [_pattern(text)] * 3
    if status is not None:
        clauses.append(_IS[status])
    where = " AND ".join(clauses)
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM account WHERE {where} ORDER BY aid LIMIT ?",
        (*values, limit),
    )
    return [_account(row) for row in rows]


def _pattern(text: str) -> str:
    """Return the LIKE pattern of texts that contain `text`."""
    for sign in "!%_":
        text = text.replace(sign, "!" + sign)
    return f"%{text.lower()}%"


def delete_account(txn: Txn, aid: int) -> None:
    """Delete the row; the rows of other tables are the caller's business."""
    txn.write("DELETE FROM account WHERE aid = ?", (aid,))
