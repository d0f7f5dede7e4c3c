"""Rows of accounts that move in or out: how far each move is, and which node works on it.

Owns the table `move`. A DID has one open move at a time. A node that works on a move holds it by a
lease, as with scheduled work (`pds.store.jobs`): every write of the worker is conditional on it, so
of several nodes that try at once one goes on, and one that was held up writes nothing any more.

`state` is the service's JSON, `secrets` is sealed; nothing here reads either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import Conflict
from pds.store.engine import MAX_BULK_ROWS, Txn

RUNNING: Final = "running"
"""`move.status` of moves that a node shall work on."""

_COLUMNS: Final = (
    "move_id, did, direction, step, status, state, secrets, lease_node, lease_until, switched_at,"
    " created_at, updated_at, finished_at"
)


@dataclass(frozen=True, slots=True)
class MoveRow:
    """One move. `switched_at` is when the identity was changed, `finished_at` when it was over."""

    move_id: int
    did: str
    direction: str
    step: str
    status: str
    state: bytes
    secrets: bytes | None
    lease_node: str | None
    lease_until: int | None
    switched_at: int | None
    created_at: int
    updated_at: int
    finished_at: int | None

    def is_leased(self, now_us: int) -> bool:
        """Whether some node is at work on it."""
        return self.lease_until is not None and self.lease_until > now_us


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveChange:
    """What a worker writes; `is_over` ends the move."""

    move_id: int
    node: str
    step: str
    status: str
    state: bytes
    secrets: bytes | None
    switched_at: int | None
    now_us: int
    is_over: bool = False


def insert_move(
    txn: Txn,
    *,
    did: str,
    direction: str,
    step: str,
    status: str,
    state: bytes,
    node: str,
    lease_until: int,
    now_us: int,
) -> int:
    """Begin a move, held by `node`; return its number.

    Raises: Conflict when the DID has an open one.
    """
    if get_open_move(txn, did) is not None:
        raise Conflict(f"a move of {did} is under way")
    move_id = txn.next_id("move")
    txn.write(
        f"INSERT INTO move ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?, NULL, ?, ?, NULL)",
        (move_id, did, direction, step, status, state, node, lease_until, now_us, now_us),
    )
    return move_id


def get_move(txn: Txn, move_id: int) -> MoveRow | None:
    """Return one move."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM move WHERE move_id = ?", (move_id,))
    return None if row is None else _move_row(row)


def get_open_move(txn: Txn, did: str) -> MoveRow | None:
    """Return the move of a DID that is not over."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM move WHERE did = ? AND finished_at IS NULL", (did,))
    return None if row is None else _move_row(row)


def get_last_move(txn: Txn, did: str) -> MoveRow | None:
    """Return the newest move of a DID, over or not."""
    row = txn.read_one(
        f"SELECT {_COLUMNS} FROM move WHERE did = ? ORDER BY move_id DESC LIMIT 1", (did,)
    )
    return None if row is None else _move_row(row)


def list_moves(txn: Txn, *, before: int | None, limit: int) -> list[MoveRow]:
    """Return moves, newest first, numbers below `before`."""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM move WHERE move_id < ? ORDER BY move_id DESC LIMIT ?",
        (1 << 62 if before is None else before, limit),
    )
    return [_move_row(row) for row in rows]


def list_running_moves(txn: Txn) -> list[MoveRow]:
    """Return the moves that a node shall work on, oldest first."""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM move WHERE status = ? ORDER BY move_id LIMIT ?",
        (RUNNING, MAX_BULK_ROWS),
    )
    return [_move_row(row) for row in rows]


def take_move(
    txn: Txn, move_id: int, *, node: str, now_us: int, lease_until: int, is_alone: bool
) -> MoveRow | None:
    """Take an open move that nobody holds, and return it.

    With `is_alone` nobody else uses the database, so a lease of another is one of a process that is
    gone.
    """
    rows = txn.write(
        "UPDATE move SET lease_node = ?, lease_until = ? WHERE move_id = ? AND finished_at IS NULL"
        " AND (lease_until IS NULL OR lease_until <= ? OR (? = 1 AND lease_node <> ?))"
        f" RETURNING {_COLUMNS}",
        (node, lease_until, move_id, now_us, int(is_alone), node),
    )
    return _move_row(rows[0]) if rows else None


def renew_move(txn: Txn, move_id: int, *, node: str, lease_until: int) -> bool:
    """Hold a move for longer; False when it is no longer held by `node`."""
    sql = "UPDATE move SET lease_until = ? WHERE move_id = ? AND lease_node = ? RETURNING move_id"
    return bool(txn.write(sql, (lease_until, move_id, node)))


def release_move(txn: Txn, move_id: int, *, node: str) -> None:
    """Let go of a move."""
    txn.write(
        "UPDATE move SET lease_node = NULL, lease_until = NULL"
        " WHERE move_id = ? AND lease_node = ?",
        (move_id, node),
    )


def update_move(txn: Txn, change: MoveChange) -> bool:
    """Write how far a move is; False, and nothing written, when `node` does not hold it."""
    rows = txn.write(
        "UPDATE move SET step = ?, status = ?, state = ?, secrets = ?, switched_at = ?,"
        " updated_at = ?, finished_at = ? WHERE move_id = ? AND lease_node = ?"
        " AND finished_at IS NULL RETURNING move_id",
        (
            change.step,
            change.status,
            change.state,
            change.secrets,
            change.switched_at,
            change.now_us,
            change.now_us if change.is_over else None,
            change.move_id,
            change.node,
        ),
    )
    return bool(rows)


def count_switched_moves(txn: Txn, since_us: int) -> tuple[int, int | None]:
    """Return how many identities were changed since an instant, and when the first of these was."""
    rows = txn.read(
        "SELECT count(*), min(switched_at) FROM move WHERE switched_at >= ?", (since_us,)
    )
    return int(rows[0][0]), rows[0][1]


def delete_old_moves(txn: Txn, before_us: int) -> int:
    """Drop moves that were over before an instant; return how many."""
    rows = txn.read(
        "SELECT move_id FROM move WHERE finished_at IS NOT NULL AND finished_at < ?"
        " ORDER BY move_id LIMIT ?",
        (before_us, MAX_BULK_ROWS),
    )
    txn.write_many("DELETE FROM move WHERE move_id = ?", rows)
    return len(rows)


def _move_row(row: Sequence[Any]) -> MoveRow:
    values = list(row)
    values[5] = bytes(values[5])
    values[6] = None if values[6] is None else bytes(values[6])
    return MoveRow(*values)
