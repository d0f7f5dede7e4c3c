"""Record rows: the content of repos by path, and who likes or follows what.

Owns the tables `record` and `backlink`. A record is keyed by its repo and its path
("collection/rkey"), which names one record only (REPO-12), in byte order. That is also the order of
the tree, so an ordered scan meets records as a walk of the tree does. `rev` is the rev of the
commit that wrote the record last.

`backlink` remembers the subject of likes, reposts, follows and blocks, so that a second one for the
same subject can replace the first (XRPC-95).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pds.protocol.cid import Cid
from pds.protocol.syntax import Tid
from pds.store.engine import Txn

_AFTER_SLASH: Final = "0"
"""The character after "/": `collection + "0"` sorts right behind all paths of a collection."""


class Record(NamedTuple):
    """A stored record."""

    path: str
    cid: Cid
    block: bytes


@dataclass(frozen=True, slots=True)
class Backlink:
    """A record that stands for a relation of the account to `subject`, one per subject."""

    collection: str
    subject: str
    path: str


def get_record(txn: Txn, repo_id: int, path: str) -> Record | None:
    """Return the record under `path`."""
    row = txn.read_one(
        "SELECT cid, bytes FROM record WHERE repo_id = ? AND path = ?", (repo_id, path)
    )
    return None if row is None else Record(path, Cid(row[0]), row[1])


def find_record_block(txn: Txn, repo_id: int, cid: Cid) -> bytes | None:
    """Return the bytes of any record with this CID."""
    row = txn.read_one(
        "SELECT bytes FROM record WHERE repo_id = ? AND cid = ? LIMIT 1", (repo_id, bytes(cid))
    )
    return None if row is None else row[0]


def list_records(
    txn: Txn, repo_id: int, collection: str, *, cursor: str | None, limit: int, reverse: bool
) -> list[Record]:
    """Return records of a collection, greatest rkey first, or with `reverse` smallest first.

    `cursor` is the rkey behind which to begin.
    """
    rows = txn.read(
        "SELECT path, cid, bytes" + _page_of(reverse),
        (*_bounds(repo_id, collection, cursor, reverse), limit),
    )
    return [Record(path, Cid(cid), block) for path, cid, block in rows]


def list_record_sizes(
    txn: Txn, repo_id: int, collection: str, *, cursor: str | None, limit: int, reverse: bool
) -> list[int]:
    """Return the sizes in bytes of the records that `list_records` would return."""
    rows = txn.read(
        "SELECT length(bytes)" + _page_of(reverse),
        (*_bounds(repo_id, collection, cursor, reverse), limit),
    )
    return [row[0] for row in rows]


def _page_of(reverse: bool) -> str:
    order = "ASC" if reverse else "DESC"
    return f" FROM record WHERE repo_id = ? AND path > ? AND path < ? ORDER BY path {order} LIMIT ?"


def _bounds(
    repo_id: int, collection: str, cursor: str | None, reverse: bool
) -> tuple[int, str, str]:
    low, high = f"{collection}/", collection + _AFTER_SLASH
    if cursor is not None and reverse:
        low = f"{collection}/{cursor}"
    elif cursor is not None:
        high = f"{collection}/{cursor}"
    return repo_id, low, high


def list_collections(txn: Txn, repo_id: int) -> list[str]:
    """Return the collections in which there is a record: one index step for each."""
    collections: list[str] = []
    after = ""
    while True:
        row = txn.read_one(
            "SELECT path FROM record WHERE repo_id = ? AND path > ? ORDER BY path LIMIT 1",
            (repo_id, after),
        )
        if row is None:
            return collections
        collection = str(row[0]).split("/", 1)[0]
        collections.append(collection)
        after = collection + _AFTER_SLASH


def page_records(txn: Txn, repo_id: int, *, after: str, last: str) -> list[tuple[bytes, bytes]]:
    """Return `(cid, block)` of the records behind `after` up to `last`, in path order."""
    return txn.read(
        "SELECT cid, bytes FROM record WHERE repo_id = ? AND path > ? AND path <= ? ORDER BY path",
        (repo_id, after, last),
    )


def measure_page(txn: Txn, repo_id: int, *, after: str, limit: int) -> tuple[str | None, int]:
    """Return the last path and the size in bytes of the next `limit` records behind `after`.

    The path is None when there are no more.
    """
    row = txn.read_one(
        "SELECT max(path), sum(size) FROM (SELECT path, length(bytes) AS size FROM record"
        " WHERE repo_id = ? AND path > ? ORDER BY path LIMIT ?) AS page",
        (repo_id, after, limit),
    )
    return (None, 0) if row is None or row[0] is None else (row[0], row[1])


def measure_records(txn: Txn, repo_id: int, *, after: str, limit: int) -> list[tuple[str, int]]:
    """Return `(path, size in bytes)` of the records behind the path `after`, in path order."""
    return txn.read(
        "SELECT path, length(bytes) FROM record WHERE repo_id = ? AND path > ?"
        " ORDER BY path LIMIT ?",
        (repo_id, after, limit),
    )


def get_record_with_rev(txn: Txn, repo_id: int, path: str) -> tuple[bytes, Tid, bytes] | None:
    """Return `(cid, rev, block)` of the record under `path`."""
    return txn.read_one(
        "SELECT cid, rev, bytes FROM record WHERE repo_id = ? AND path = ?", (repo_id, path)
    )


def count_record_blocks(txn: Txn, repo_id: int) -> int:
    """Return how many blocks the records are: records of the same content are one block."""
    rows = txn.read("SELECT count(DISTINCT cid) FROM record WHERE repo_id = ?", (repo_id,))
    return int(rows[0][0])


def upsert_records(
    txn: Txn, repo_id: int, rev: Tid, records: Iterable[tuple[str, Cid, bytes]]
) -> None:
    """Store records `(path, cid, block)`, new or changed."""
    txn.write_many(
        "INSERT INTO record (repo_id, path, cid, rev, bytes) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (repo_id, path) DO UPDATE"
        " SET cid = excluded.cid, rev = excluded.rev, bytes = excluded.bytes",
        [(repo_id, path, bytes(cid), rev, block) for path, cid, block in records],
    )


def delete_records(txn: Txn, repo_id: int, paths: Sequence[str]) -> None:
    """Delete records by path."""
    txn.write_many(
        "DELETE FROM record WHERE repo_id = ? AND path = ?", [(repo_id, path) for path in paths]
    )


def insert_backlinks(txn: Txn, repo_id: int, links: Iterable[Backlink]) -> None:
    """Remember what records point at."""
    txn.write_many(
        "INSERT INTO backlink (repo_id, collection, subject, path) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (repo_id, collection, subject, path) DO NOTHING",
        [(repo_id, link.collection, link.subject, link.path) for link in links],
    )


def delete_backlinks(txn: Txn, repo_id: int, paths: Sequence[str]) -> None:
    """Forget what the records under `paths` pointed at."""
    txn.write_many(
        "DELETE FROM backlink WHERE repo_id = ? AND path = ?", [(repo_id, path) for path in paths]
    )


def find_backlinks(
    txn: Txn, repo_id: int, collection: str, subject: str, *, limit: int
) -> list[str]:
    """Return the first paths of the records of `collection` that point at `subject`."""
    rows = txn.read(
        "SELECT path FROM backlink WHERE repo_id = ? AND collection = ? AND subject = ?"
        " ORDER BY path LIMIT ?",
        (repo_id, collection, subject, limit),
    )
    return [row[0] for row in rows]
