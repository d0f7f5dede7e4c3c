"""The newest records of a collection, with the revs of the commits that wrote them.

Reads the table `record` (`records.py`). "Newest" is by record key: keys of posts are TIDs, so the
end of the collection is what was written last, and finding it costs no index of its own.
"""

from dataclasses import dataclass
from typing import Final

from pds.protocol.cid import Cid
from pds.protocol.syntax import Tid
from pds.store.engine import Txn

_AFTER_SLASH: Final = "0"
"""The character after "/": `collection + "0"` sorts right behind all paths of a collection."""


@dataclass(frozen=True, slots=True)
class DatedRecord:
    """A stored record and the rev of the commit that wrote it last."""

    path: str
    cid: Cid
    rev: Tid
    block: bytes


def get_dated_record(txn: Txn, repo_id: int, path: str) -> DatedRecord | None:
    """Return the record under `path`."""
    row = txn.read_one(
        "SELECT cid, rev, bytes FROM record WHERE repo_id = ? AND path = ?", (repo_id, path)
    )
    return None if row is None else DatedRecord(path, Cid(row[0]), row[1], row[2])


def list_newest_records(
    txn: Txn, repo_id: int, collection: str, *, before: str | None = None, limit: int
) -> list[DatedRecord]:
    """Return records of a collection, greatest key first, those below the key `before`."""
    end = collection + _AFTER_SLASH if before is None else f"{collection}/{before}"
    rows = txn.read(
        "SELECT path, cid, rev, bytes FROM record WHERE repo_id = ? AND path > ? AND path < ?"
        " ORDER BY path DESC LIMIT ?",
        (repo_id, f"{collection}/", end, limit),
    )
    return [DatedRecord(path, Cid(cid), rev, block) for path, cid, rev, block in rows]


def list_newest_revs(
    txn: Txn, repo_id: int, collection: str, *, limit: int
) -> list[tuple[str, Tid]]:
    """Return `(path, rev)` of records of a collection, greatest key first."""
    return txn.read(
        "SELECT path, rev FROM record WHERE repo_id = ? AND path > ? AND path < ?"
        " ORDER BY path DESC LIMIT ?",
        (repo_id, f"{collection}/", collection + _AFTER_SLASH, limit),
    )


def count_collection(txn: Txn, repo_id: int, collection: str) -> int:
    """Return how many records a collection has: reads that part of the index."""
    rows = txn.read(
        "SELECT count(*) FROM record WHERE repo_id = ? AND path > ? AND path < ?",
        (repo_id, f"{collection}/", collection + _AFTER_SLASH),
    )
    return int(rows[0][0])
