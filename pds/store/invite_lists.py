"""Invite codes as operators list them: with who used each, in pages, by holder.

Reads the tables `invite_code` and `invite_use` of `invites.py`. Of an account that was deleted the
use still counts, but nobody can say any more who it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pds.protocol.syntax import Did
from pds.store.engine import Txn

_COLUMNS: Final = "c.code, c.use_count, c.disabled, c.for_account, c.created_by, c.created_at"


class InviteSort(StrEnum):
    """What comes first in a list: the newest, or the most used."""

    RECENT = "recent"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class InviteUse:
    """An account that was made with a code."""

    used_by: Did
    used_at: int


@dataclass(frozen=True, slots=True)
class ListedInvite:
    """A code with its uses, the latest first; `position` is where it stands in its list."""

    code: str
    use_count: int
    disabled: bool
    for_account: str
    created_by: str
    created_at: int
    uses: tuple[InviteUse, ...]
    position: int


def list_invites(
    txn: Txn, sort: InviteSort, *, after: tuple[int, str] | None = None, limit: int
) -> list[ListedInvite]:
    """Return codes in the order of `sort`, from behind the position and code `after` on."""
    position, code = after or (1 << 62, "")
    if sort is InviteSort.RECENT:
        sql = (
            f"SELECT {_COLUMNS}, c.created_at FROM invite_code c"
            " WHERE c.created_at < ? OR (c.created_at = ? AND c.code < ?)"
            " ORDER BY c.created_at DESC, c.code DESC LIMIT ?"
        )
    else:
        sql = (
            f"SELECT {_COLUMNS}, c.uses FROM (SELECT i.*, (SELECT count(*) FROM invite_use u"
            " WHERE u.code = i.code) AS uses FROM invite_code i) AS c"
            " WHERE c.uses < ? OR (c.uses = ? AND c.code < ?)"
            " ORDER BY c.uses DESC, c.code DESC LIMIT ?"
        )
    return [_listed(txn, row) for row in txn.read(sql, (position, position, code, limit))]


def list_invites_of(txn: Txn, holder: str, *, limit: int = 500) -> list[ListedInvite]:
    """Return the codes of a holder (a DID)."""
    rows = txn.read(
        f"SELECT {_COLUMNS}, c.created_at FROM invite_code c WHERE c.for_account = ?"
        " ORDER BY c.code LIMIT ?",
        (holder, limit),
    )
    return [_listed(txn, row) for row in rows]


def get_invite_used_by(txn: Txn, aid: int) -> ListedInvite | None:
    """Return the code with which an account was made."""
    row = txn.read_one(
        f"SELECT {_COLUMNS}, c.created_at FROM invite_use u JOIN invite_code c ON c.code = u.code"
        " WHERE u.aid = ? ORDER BY u.used_at LIMIT 1",
        (aid,),
    )
    return None if row is None else _listed(txn, row)


def disable_invite_code(txn: Txn, code: str) -> bool:
    """Disable a code; returns whether it was usable before as far as this goes."""
    return bool(
        txn.write(
            "UPDATE invite_code SET disabled = 1 WHERE code = ? AND disabled = 0 RETURNING code",
            (code,),
        )
    )


def disable_invites_of(txn: Txn, holder: str) -> int:
    """Disable all codes of a holder (a DID); returns how many were not disabled before."""
    return len(
        txn.write(
            "UPDATE invite_code SET disabled = 1 WHERE for_account = ? AND disabled = 0"
            " RETURNING code",
            (holder,),
        )
    )


def _listed(txn: Txn, row: Sequence[Any]) -> ListedInvite:
    code, use_count, disabled, for_account, created_by, created_at, position = row
    uses = txn.read(
        "SELECT a.did, u.used_at FROM invite_use u JOIN account a ON a.aid = u.aid"
        " WHERE u.code = ? ORDER BY u.used_at DESC",
        (code,),
    )
    return ListedInvite(
        code,
        use_count,
        bool(disabled),
        for_account,
        created_by,
        created_at,
        tuple(InviteUse(Did(did), used_at) for did, used_at in uses),
        position,
    )
