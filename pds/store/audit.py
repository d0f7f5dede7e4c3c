"""The audit trail: what operators and moderators did, one row an act.

Owns the table `audit`. Rows are inserted in the transaction of the act and never changed or
deleted, also when the account that they are about goes. `subject` is a DID, an `at://` URI, a DID
with a blob's CID behind a space, an invite code, or the name of something of this host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.store.engine import Txn

_COLUMNS: Final = "audit_id, at, actor, act, subject, before, after, note"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One act; `before` and `after` are JSON, `at` is in unix microseconds."""

    audit_id: int
    at: int
    actor: str
    act: str
    subject: str
    before: bytes | None
    after: bytes | None
    note: str | None


def insert_audit(
    txn: Txn,
    *,
    at: int,
    actor: str,
    act: str,
    subject: str,
    before: bytes | None,
    after: bytes | None,
    note: str | None,
) -> int:
    """Add one act and return its number."""
    audit_id = txn.next_id("audit")
    txn.write(
        f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (audit_id, at, actor, act, subject, before, after, note),
    )
    return audit_id


def list_audit(
    txn: Txn, *, subject: str | None = None, before_id: int | None = None, limit: int = 50
) -> list[AuditRow]:
    """Return acts, the latest first, from the one before `before_id` on.

    With `subject` only those about it and about what belongs to it: of a DID also the acts about
    its records and blobs.
    """
    upper = (1 << 62) if before_id is None else before_id
    if subject is None:
        rows = txn.read(
            f"SELECT {_COLUMNS} FROM audit WHERE audit_id < ? ORDER BY audit_id DESC LIMIT ?",
            (upper, limit),
        )
        return [_row(row) for row in rows]
    found: list[AuditRow] = []
    for low, high in _ranges(subject):
        rows = txn.read(
            f"SELECT {_COLUMNS} FROM audit WHERE subject >= ? AND subject < ? AND audit_id < ?"
            " ORDER BY audit_id DESC LIMIT ?",
            (low, high, upper, limit),
        )
        found += [_row(row) for row in rows]
    return sorted(found, key=lambda row: row.audit_id, reverse=True)[:limit]


def _ranges(subject: str) -> list[tuple[str, str]]:
    """Return the ranges of subjects: itself; of a DID also its blobs, and its records."""
    ranges = [(subject, subject + "\x01")] if not subject.startswith("did:") else []
    if subject.startswith("did:"):
        # A space sorts before every character of a DID: this is the DID and its blobs only.
        ranges = [(subject, subject + "!"), (f"at://{subject}/", f"at://{subject}0")]
    return ranges


def _row(row: Sequence[Any]) -> AuditRow:
    return AuditRow(*row)
