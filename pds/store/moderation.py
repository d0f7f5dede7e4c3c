"""Record takedowns: which paths of an account are hidden from everybody but their owner.

Owns the table `record_takedown`. A takedown names a path, whether or not a record is there: writing
the record anew does not bring it back to light. `cid` is the version that was judged, for the
moderator; it decides nothing. The takedowns of accounts and blobs are columns of their own rows
(`accounts.py`, `blobs.py`). Every read of records asks here: `repos`, `export`, `export_car` and
`local_records` of the services.

Spec: ACC-44
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pds.protocol.cid import Cid
from pds.store.engine import Txn
from pds.store.records import Record

NOTHING_HIDDEN: Final[frozenset[bytes]] = frozenset()
_AFTER_SLASH: Final = "0"
"""The character after "/": `collection + "0"` sorts right behind all paths of a collection."""


@dataclass(frozen=True, slots=True)
class RecordTakedown:
    """One hidden path; `taken_down_at` in unix microseconds."""

    path: str
    cid: Cid
    takedown_ref: str
    taken_down_at: int


def put_record_takedown(
    txn: Txn, aid: int, path: str, *, cid: Cid, takedown_ref: str, now_us: int
) -> None:
    """Hide a path; hiding it again replaces the reference and keeps the time."""
    txn.write(
        "INSERT INTO record_takedown (aid, path, cid, takedown_ref, taken_down_at)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (aid, path) DO UPDATE"
        " SET cid = excluded.cid, takedown_ref = excluded.takedown_ref",
        (aid, path, cid, takedown_ref, now_us),
    )


def delete_record_takedown(txn: Txn, aid: int, path: str) -> None:
    """Show a path again."""
    txn.write("DELETE FROM record_takedown WHERE aid = ? AND path = ?", (aid, path))


def get_record_takedown(txn: Txn, aid: int, path: str) -> RecordTakedown | None:
    """Return the takedown of a path, if it is hidden."""
    row = txn.read_one(
        "SELECT path, cid, takedown_ref, taken_down_at FROM record_takedown"
        " WHERE aid = ? AND path = ?",
        (aid, path),
    )
    return None if row is None else RecordTakedown(row[0], Cid(row[1]), row[2], row[3])


def list_record_takedowns(
    txn: Txn, aid: int, *, after: str = "", limit: int = 500
) -> list[RecordTakedown]:
    """Return hidden paths of an account behind `after`, in path order."""
    rows = txn.read(
        "SELECT path, cid, takedown_ref, taken_down_at FROM record_takedown"
        " WHERE aid = ? AND path > ? ORDER BY path LIMIT ?",
        (aid, after, limit),
    )
    return [RecordTakedown(path, Cid(cid), ref, at) for path, cid, ref, at in rows]


def is_record_hidden(txn: Txn, aid: int, path: str) -> bool:
    """Whether a path is hidden: one step into an index that is empty on most hosts."""
    row = txn.read_one("SELECT 1 FROM record_takedown WHERE aid = ? AND path = ?", (aid, path))
    return row is not None


def get_record_and_hidden(
    txn: Txn, aid: int, repo_id: int, path: str
) -> tuple[Record, bool] | None:
    """Return the record under a path of an account, and whether it is hidden: by one statement."""
    row = txn.read_one(
        "SELECT r.cid, r.bytes,"
        " (SELECT 1 FROM record_takedown t WHERE t.aid = ? AND t.path = r.path)"
        " FROM record r WHERE r.repo_id = ? AND r.path = ?",
        (aid, repo_id, path),
    )
    return None if row is None else (Record(path, Cid(row[0]), row[1]), row[2] is not None)


def hidden_paths(txn: Txn, aid: int, collection: str) -> frozenset[str]:
    """Return the hidden paths of a collection."""
    rows = txn.read(
        "SELECT path FROM record_takedown WHERE aid = ? AND path > ? AND path < ?",
        (aid, f"{collection}/", collection + _AFTER_SLASH),
    )
    return frozenset(row[0] for row in rows)


def hidden_record_cids(txn: Txn, aid: int, repo_id: int) -> frozenset[bytes]:
    """Return the CIDs of current records that stand under hidden paths only.

    The same content under a path that is not hidden is public there.
    """
    rows = txn.read("SELECT path FROM record_takedown WHERE aid = ?", (aid,))
    if not rows:
        return NOTHING_HIDDEN
    hidden = {str(row[0]) for row in rows}
    return frozenset(
        cid
        for cid in _current_cids(txn, repo_id, hidden)
        if not any(path not in hidden for path in _paths_of(txn, repo_id, cid))
    )


def _current_cids(txn: Txn, repo_id: int, paths: Iterable[str]) -> set[bytes]:
    found = (
        txn.read_one("SELECT cid FROM record WHERE repo_id = ? AND path = ?", (repo_id, path))
        for path in paths
    )
    return {bytes(row[0]) for row in found if row is not None}


def _paths_of(txn: Txn, repo_id: int, cid: bytes) -> list[str]:
    rows = txn.read("SELECT path FROM record WHERE repo_id = ? AND cid = ?", (repo_id, cid))
    return [row[0] for row in rows]
