"""Schemas of others, kept over restarts and for all nodes; also that there is none.

Owns the table `lexicon_cache` (scratch: losing it costs only requests). `document` is the record as
its authority signed it, with `uri` and `cid`; a row without them says that there was definitely no
such schema at `fetched_at`. What could not be found out is never written here.
"""

from dataclasses import dataclass
from typing import Final

from pds.store.engine import MAX_BULK_ROWS, Txn

FOUND: Final = "found"
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class SavedLexicon:
    """What was found out about one NSID; `document` is None for a definite no."""

    nsid: str
    uri: str | None
    cid: str | None
    document: bytes | None
    fetched_at: int


def get_saved_lexicon(txn: Txn, nsid: str) -> SavedLexicon | None:
    """Return what was saved about an NSID."""
    row = txn.read_one(
        "SELECT nsid, uri, cid, document, fetched_at FROM lexicon_cache WHERE nsid = ?", (nsid,)
    )
    if row is None:
        return None
    document = None if row[3] is None else bytes(row[3])
    return SavedLexicon(row[0], row[1], row[2], document, int(row[4]))


def save_lexicon(txn: Txn, saved: SavedLexicon) -> None:
    """Save an answer over an older one; one that another node found later is left alone."""
    txn.write(
        "INSERT INTO lexicon_cache (nsid, uri, cid, document, outcome, fetched_at)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (nsid) DO UPDATE SET uri = excluded.uri,"
        " cid = excluded.cid, document = excluded.document, outcome = excluded.outcome,"
        " fetched_at = excluded.fetched_at WHERE lexicon_cache.fetched_at <= excluded.fetched_at",
        (
            saved.nsid,
            saved.uri,
            saved.cid,
            saved.document,
            NONE if saved.document is None else FOUND,
            saved.fetched_at,
        ),
    )


def delete_old_lexicons(
    txn: Txn, *, found_before: int, none_before: int, limit: int = MAX_BULK_ROWS
) -> int:
    """Drop at most `limit` answers fetched before a time, by outcome; return how many."""
    rows = txn.read(
        "SELECT nsid FROM lexicon_cache WHERE (outcome = ? AND fetched_at < ?)"
        " OR (outcome = ? AND fetched_at < ?) ORDER BY nsid LIMIT ?",
        (FOUND, found_before, NONE, none_before, limit),
    )
    txn.write_many("DELETE FROM lexicon_cache WHERE nsid = ?", rows)
    return len(rows)


def delete_surplus_lexicons(txn: Txn, *, keep: int, limit: int = MAX_BULK_ROWS) -> int:
    """Drop at most `limit` answers beyond the `keep` youngest; return how many."""
    rows = txn.read(
        "SELECT nsid FROM lexicon_cache ORDER BY fetched_at DESC, nsid LIMIT ? OFFSET ?",
        (limit, keep),
    )
    txn.write_many("DELETE FROM lexicon_cache WHERE nsid = ?", rows)
    return len(rows)
