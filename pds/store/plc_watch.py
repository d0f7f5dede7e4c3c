"""How far the PLC logs of our accounts were read, and the operations on them that count as known.

Owns the tables `plc_watch` and `plc_operation`. `plc_watch.seen_at` is the time (the directory's)
of the newest operation that was judged, `last_cid` the operation that was in effect then; an
account without a row is new here, and what its log holds is taken as it is. `plc_operation` has a
row for an operation that we passed on for an owner (written before it is sent), and one for each
that came from elsewhere.

An account that has not finished moving in (`account.delete_after`) is not watched yet, nor is one
that has been deactivated for days.
"""

from dataclasses import dataclass
from enum import StrEnum

from pds.protocol.syntax import Did
from pds.store.engine import Txn


class Origin(StrEnum):
    """Where an operation came from."""

    PASSED_ON = "passed_on"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class WatchedAccount:
    """An account that is due; `last_cid` and `seen_at` are None when it was never looked at."""

    aid: int
    did: Did
    last_cid: str | None
    seen_at: int | None


@dataclass(frozen=True, slots=True)
class ForeignOperation:
    """An operation on an identity of ours that we neither made nor passed on."""

    aid: int
    cid: str
    signer: str
    accepted_at: int
    noted_at: int


def list_due(
    txn: Txn, *, looked_before: int, deactivated_after: int, limit: int
) -> list[WatchedAccount]:
    """Return accounts that were not looked at since, those that waited longest first."""
    rows = txn.read(
        "SELECT a.aid, a.did, w.last_cid, w.seen_at"
        " FROM account a LEFT JOIN plc_watch w ON w.aid = a.aid"
        " WHERE a.did >= 'did:plc:' AND a.did < 'did:plc;' AND a.delete_after IS NULL"
        " AND (a.deactivated_at IS NULL OR a.deactivated_at > ?)"
        " AND (w.aid IS NULL OR w.looked_at <= ?)"
        " ORDER BY COALESCE(w.looked_at, 0), a.aid LIMIT ?",
        (deactivated_after, looked_before, limit),
    )
    return [WatchedAccount(row[0], Did(row[1]), row[2], row[3]) for row in rows]


def get_watched(txn: Txn, aid: int) -> WatchedAccount | None:
    """Return how far the log of one account was read."""
    row = txn.read_one(
        "SELECT a.aid, a.did, w.last_cid, w.seen_at"
        " FROM account a LEFT JOIN plc_watch w ON w.aid = a.aid WHERE a.aid = ?",
        (aid,),
    )
    return None if row is None else WatchedAccount(row[0], Did(row[1]), row[2], row[3])


def put_look(txn: Txn, aid: int, *, last_cid: str, seen_at: int, now_us: int) -> None:
    """Note that the log of an account was read up to `seen_at`."""
    txn.write(
        "INSERT INTO plc_watch (aid, last_cid, seen_at, looked_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (aid) DO UPDATE SET last_cid = excluded.last_cid,"
        " seen_at = excluded.seen_at, looked_at = excluded.looked_at",
        (aid, last_cid, seen_at, now_us),
    )


def has_idle(txn: Txn, deactivated_before: int) -> bool:
    """Return whether `forget_idle` has something to forget."""
    row = txn.read_one(
        "SELECT w.aid FROM plc_watch w JOIN account a ON a.aid = w.aid"
        " WHERE a.deactivated_at IS NOT NULL AND a.deactivated_at <= ? LIMIT 1",
        (deactivated_before,),
    )
    return row is not None


def forget_idle(txn: Txn, deactivated_before: int) -> None:
    """Forget how far logs were read of accounts that have been deactivated for long.

    Their owners are elsewhere; should they come back, the log is taken as it is then.
    """
    txn.write(
        "DELETE FROM plc_watch WHERE aid IN"
        " (SELECT aid FROM account WHERE deactivated_at IS NOT NULL AND deactivated_at <= ?)",
        (deactivated_before,),
    )


def note_passed_on(txn: Txn, aid: int, cid: str, *, now_us: int) -> None:
    """Note an operation that is about to be sent for an owner."""
    txn.write(
        "INSERT INTO plc_operation (aid, cid, origin, noted_at, told_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (aid, cid) DO NOTHING",
        (aid, cid, Origin.PASSED_ON.value, now_us, now_us),
    )


def insert_foreign(txn: Txn, operation: ForeignOperation) -> bool:
    """Note an operation of somebody else; return False when it is known in whatever way."""
    rows = txn.write(
        "INSERT INTO plc_operation (aid, cid, origin, signer, accepted_at, noted_at)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (aid, cid) DO NOTHING RETURNING aid",
        (
            operation.aid,
            operation.cid,
            Origin.FOREIGN.value,
            operation.signer,
            operation.accepted_at,
            operation.noted_at,
        ),
    )
    return bool(rows)


def list_foreign(txn: Txn, aid: int) -> list[ForeignOperation]:
    """Return the foreign operations of an account, oldest first."""
    rows = txn.read(
        "SELECT aid, cid, signer, accepted_at, noted_at FROM plc_operation"
        " WHERE aid = ? AND origin = ? ORDER BY accepted_at, cid",
        (aid, Origin.FOREIGN.value),
    )
    return [ForeignOperation(*row) for row in rows]


def list_untold(txn: Txn, limit: int) -> list[ForeignOperation]:
    """Return foreign operations of which nobody was told yet."""
    rows = txn.read(
        "SELECT aid, cid, signer, accepted_at, noted_at FROM plc_operation"
        " WHERE told_at IS NULL ORDER BY noted_at LIMIT ?",
        (limit,),
    )
    return [ForeignOperation(*row) for row in rows]


def set_told(txn: Txn, aid: int, cid: str, now_us: int) -> None:
    """Note that people were told of a foreign operation."""
    txn.write("UPDATE plc_operation SET told_at = ? WHERE aid = ? AND cid = ?", (now_us, aid, cid))


def count_recent(txn: Txn, accepted_after: int) -> int:
    """Return how many foreign operations can still be answered."""
    row = txn.read_one(
        "SELECT COUNT(*) FROM plc_operation WHERE origin = ? AND accepted_at > ?",
        (Origin.FOREIGN.value, accepted_after),
    )
    return 0 if row is None else int(row[0])
