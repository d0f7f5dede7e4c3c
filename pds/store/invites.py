"""Invite codes and their uses.

Owns the tables `invite_code` and `invite_use`. A code is usable while it is not disabled, has uses
left and its holder is neither taken down nor barred from inviting (ACC-25). Whether a host asks for
codes at all is a setting, not a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pds.store.engine import Txn

ADMIN_HOLDER = "admin"
"""`for_account` and `created_by` of codes that the operator made for no account."""


@dataclass(frozen=True, slots=True)
class InviteCode:
    """A code as made; `for_account` is a DID or `ADMIN_HOLDER`."""

    code: str
    use_count: int
    disabled: bool
    for_account: str
    created_by: str
    created_at: int


def insert_invite_codes(txn: Txn, codes: Sequence[InviteCode]) -> None:
    """Insert new codes."""
    txn.write_many(
        "INSERT INTO invite_code (code, use_count, disabled, for_account, created_by, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                code.code,
                code.use_count,
                int(code.disabled),
                code.for_account,
                code.created_by,
                code.created_at,
            )
            for code in codes
        ],
    )


def get_invite_code(txn: Txn, code: str) -> InviteCode | None:
    """Return a code, usable or not."""
    row = txn.read_one(
        "SELECT code, use_count, disabled, for_account, created_by, created_at "
        "FROM invite_code WHERE code = ?",
        (code,),
    )
    if row is None:
        return None
    return InviteCode(row[0], row[1], bool(row[2]), row[3], row[4], row[5])


def is_invite_code_usable(txn: Txn, code: str) -> bool:
    """Whether one more account may be made with this code (ACC-25)."""
    invite = get_invite_code(txn, code)
    if invite is None or invite.disabled:
        return False
    barred = txn.read_one(
        "SELECT 1 FROM account "
        "WHERE did = ? AND (takedown_ref IS NOT NULL OR invites_disabled <> 0)",
        (invite.for_account,),
    )
    return barred is None and count_invite_uses(txn, code) < invite.use_count


def count_invite_uses(txn: Txn, code: str) -> int:
    """Return how many accounts were made with this code."""
    return int(txn.read("SELECT count(*) FROM invite_use WHERE code = ?", (code,))[0][0])


def insert_invite_use(txn: Txn, code: str, *, aid: int, now_us: int) -> None:
    """Record that an account was made with this code."""
    txn.write("INSERT INTO invite_use (code, aid, used_at) VALUES (?, ?, ?)", (code, aid, now_us))


def disable_codes_of(txn: Txn, holder: str) -> None:
    """Disable all codes of a holder (a DID)."""
    txn.write("UPDATE invite_code SET disabled = 1 WHERE for_account = ?", (holder,))
