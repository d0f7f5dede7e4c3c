"""Blob rows: what an account holds, what its records refer to, and what may be deleted.

A blob is *temporary* until a record refers to it (`stored_at` is null), then it is kept as long as
a record of the account does. A row that goes leaves a line in `blob_garbage`, in the same
transaction, and a later job deletes the bytes; so no row is ever without bytes because of us.

Any node may delete and any node may upload. Who wants to delete bytes first claims them here, which
fails when the blob has a row again. An upload that finds a claim has stored its bytes too early: it
waits for the claim to end, stores them again, and only then gets its row. A claim of a node that
died counts for `CLAIM_US`; so no deletion may last that long.

References stand in `blob_ref` whether or not the bytes are here: an imported repo may come before
its blobs (XRPC-86).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pds.errors import RequestError
from pds.protocol.cid import Cid
from pds.protocol.data import BlobRef
from pds.store.engine import Txn

CLAIM_US: Final = 60 * 1_000_000

_COLUMNS: Final = "cid, mime_type, size, created_at, stored_at, takedown_ref"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that an account holds; instants in unix microseconds."""

    cid: Cid
    mime_type: str
    size: int
    created_at: int
    stored_at: int | None
    takedown_ref: str | None

    @property
    def is_temporary(self) -> bool:
        """Whether no record has referred to it yet."""
        return self.stored_at is None

    @property
    def is_taken_down(self) -> bool:
        """Whether the operator has hidden it."""
        return self.takedown_ref is not None


@dataclass(frozen=True, slots=True)
class MissingBlob:
    """A blob that a record refers to and that is not here."""

    cid: Cid
    path: str


def get_blob(txn: Txn, aid: int, cid: Cid) -> Blob | None:
    """Return a blob of an account, in whatever state."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM blob WHERE aid = ? AND cid = ?", (aid, cid))
    return None if row is None else Blob(Cid(row[0]), *row[1:])


def insert_upload(
    txn: Txn, aid: int, *, cid: Cid, mime_type: str, size: int, now_us: int
) -> Blob | None:
    """Note an upload whose bytes are stored, and return the row.

    Returns None, and notes nothing, when a node may be deleting the bytes: store them again after
    the claim has ended.

    A blob that is there already keeps its type; a temporary one starts its time anew. If a record
    refers to the CID already (the repo was imported first), the blob is permanent at once.

    Raises: RequestError `InvalidRequest` when the blob was taken down. Spec: XRPC-83, XRPC-86
    """
    known = get_blob(txn, aid, cid)
    if known is not None and known.is_taken_down:
        raise RequestError("InvalidRequest", "This blob has been taken down and is not accepted")
    if (claimed_at := _claimed_at(txn, aid, cid)) is not None:
        if claimed_at <= now_us - CLAIM_US:
            txn.write("DELETE FROM blob_garbage WHERE aid = ? AND cid = ?", (aid, cid))
        return None
    txn.write("DELETE FROM blob_garbage WHERE aid = ? AND cid = ?", (aid, cid))
    if known is not None and not known.is_temporary:
        return known
    stored_at = now_us if _is_referenced(txn, aid, cid) else None
    if known is None:
        txn.write(
            f"INSERT INTO blob (aid, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (aid, cid, mime_type, size, now_us, stored_at),
        )
        return Blob(cid, mime_type, size, now_us, stored_at, None)
    txn.write(
        "UPDATE blob SET created_at = ?, stored_at = ? WHERE aid = ? AND cid = ?",
        (now_us, stored_at, aid, cid),
    )
    return replace(known, created_at=now_us, stored_at=stored_at)


def claim_blobs(
    txn: Txn, aid: int, repo_id: int, path: str, refs: Iterable[BlobRef], *, now_us: int, rev: str
) -> None:
    """Let the record at `path` refer to blobs; temporary ones become permanent.

    Raises: RequestError `BlobNotFound` for one that is missing or taken down, `InvalidMimeType` or
    `InvalidSize` for a temporary one that is not what the record says. Spec: XRPC-84
    """
    for ref in refs:
        blob = get_blob(txn, aid, ref.cid)
        if blob is None or blob.is_taken_down:
            raise RequestError("BlobNotFound", f"Could not find blob: {ref.cid}")
        if blob.is_temporary:
            if ref.mime_type != blob.mime_type:
                raise RequestError(
                    "InvalidMimeType",
                    f"Referenced MIME type does not match the uploaded blob: "
                    f"{ref.mime_type}, uploaded as {blob.mime_type}",
                )
            if ref.size != blob.size:
                raise RequestError(
                    "InvalidSize",
                    f"Referenced size does not match the uploaded blob: "
                    f"{ref.size}, uploaded {blob.size} bytes",
                )
            kept = txn.write(
                "UPDATE blob SET stored_at = ? WHERE aid = ? AND cid = ? RETURNING size",
                (now_us, aid, ref.cid),
            )
            if not kept:  # collected by another node since it was read
                raise RequestError("BlobNotFound", f"Could not find blob: {ref.cid}")
        txn.write(
            "INSERT INTO blob_ref (repo_id, cid, path, rev) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (repo_id, cid, path) DO UPDATE SET rev = excluded.rev",
            (repo_id, ref.cid, path, rev),
        )


def release_blobs(
    txn: Txn, aid: int, repo_id: int, path: str, *, keep: Collection[Cid], now_us: int
) -> None:
    """Drop the references of the record at `path` but those in `keep`.

    A blob that no record of the account refers to any more loses its row, and its bytes are
    queued for deletion. Spec: XRPC-85
    """
    rows = txn.read("SELECT cid FROM blob_ref WHERE repo_id = ? AND path = ?", (repo_id, path))
    for (raw,) in rows:
        cid = Cid(raw)
        if cid in keep:
            continue
        txn.write(
            "DELETE FROM blob_ref WHERE repo_id = ? AND cid = ? AND path = ?", (repo_id, cid, path)
        )
        blob = get_blob(txn, aid, cid)
        # What was taken down stays known, or a new upload would bring it back.
        if blob is not None and not blob.is_taken_down and not _is_referenced(txn, aid, cid):
            _discard(txn, aid, cid, now_us)


def has_blob_refs(txn: Txn, repo_id: int, path: str) -> bool:
    """Whether the record at `path` refers to blobs, here or not."""
    return (
        txn.read_one(
            "SELECT 1 FROM blob_ref WHERE repo_id = ? AND path = ? LIMIT 1", (repo_id, path)
        )
        is not None
    )


def hide_blob(txn: Txn, aid: int, cid: Cid, *, takedown_ref: str) -> None:
    """Put a blob in quarantine; the row and its bytes stay until it is let out (ACC-44)."""
    txn.write(
        "UPDATE blob SET takedown_ref = ? WHERE aid = ? AND cid = ?", (takedown_ref, aid, cid)
    )


def show_blob(txn: Txn, aid: int, cid: Cid, *, now_us: int) -> None:
    """Let a blob out of quarantine; if its records went meanwhile, it goes now (XRPC-85)."""
    txn.write("UPDATE blob SET takedown_ref = NULL WHERE aid = ? AND cid = ?", (aid, cid))
    blob = get_blob(txn, aid, cid)
    if blob is not None and not blob.is_temporary and not _is_referenced(txn, aid, cid):
        _discard(txn, aid, cid, now_us)


def list_held_blobs(
    txn: Txn, aid: int, *, after: Cid | None, limit: int, taken_down: bool = False
) -> list[Blob]:
    """Return the blobs of an account in whatever state, ascending by CID, for the operator."""
    only = " AND takedown_ref IS NOT NULL" if taken_down else ""
    rows = txn.read(
        f"SELECT {_COLUMNS} FROM blob WHERE aid = ? AND cid > ?{only} ORDER BY cid LIMIT ?",
        (aid, after or b"", limit),
    )
    return [Blob(Cid(row[0]), *row[1:]) for row in rows]


def list_blobs(
    txn: Txn,
    repo_id: int,
    *,
    since: str | None,
    after: Cid | None,
    limit: int,
    public_of: int | None = None,
) -> list[Cid]:
    """Return CIDs that current records refer to, ascending; `since` is a rev (SYNC-70).

    With `public_of`, the number of the account, those in quarantine are left out.
    """
    hidden: tuple[int, ...] = ()
    only = ""
    if public_of is not None and _has_hidden(txn, public_of):
        hidden = (public_of,)
        only = (
            " AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.aid = ? AND b.cid = r.cid"
            " AND b.takedown_ref IS NOT NULL)"
        )
    rows = txn.read(
        "SELECT DISTINCT r.cid FROM blob_ref r WHERE r.repo_id = ? AND r.cid > ? AND r.rev > ?"
        f"{only} ORDER BY r.cid LIMIT ?",
        (repo_id, after or b"", since or "", *hidden, limit),
    )
    return [Cid(row[0]) for row in rows]


def list_missing_blobs(
    txn: Txn, aid: int, repo_id: int, *, after: Cid | None, limit: int
) -> list[MissingBlob]:
    """Return blobs that records refer to and that are not here, ascending by CID (XRPC-86)."""
    rows = txn.read(
        "SELECT r.cid, min(r.path) FROM blob_ref r WHERE r.repo_id = ? AND r.cid > ?"
        " AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.aid = ? AND b.cid = r.cid)"
        " GROUP BY r.cid ORDER BY r.cid LIMIT ?",
        (repo_id, after or b"", aid, limit),
    )
    return [MissingBlob(Cid(cid), path) for cid, path in rows]


def collect_temporary(txn: Txn, *, before_us: int, now_us: int, limit: int) -> int:
    """Discard temporary blobs uploaded before an instant; returns how many (XRPC-82)."""
    rows = txn.read(
        "SELECT aid, cid FROM blob WHERE stored_at IS NULL AND takedown_ref IS NULL"
        " AND created_at < ? ORDER BY created_at LIMIT ?",
        (before_us, limit),
    )
    # Other nodes may have claimed some of them until they were locked.
    txn.lock_accounts({aid for aid, _ in rows})
    for aid, cid in rows:
        blob = get_blob(txn, aid, Cid(cid))
        if (
            blob is not None
            and blob.is_temporary
            and not blob.is_taken_down
            and blob.created_at < before_us
        ):
            _discard(txn, aid, blob.cid, now_us)
    return len(rows)


def discard_account_blobs(txn: Txn, aid: int, *, now_us: int, limit: int) -> int:
    """Discard blobs of an account that is gone, taken down or not; returns how many."""
    rows = txn.read("SELECT cid FROM blob WHERE aid = ? ORDER BY cid LIMIT ?", (aid, limit))
    for (cid,) in rows:
        _discard(txn, aid, Cid(cid), now_us)
    return len(rows)


def list_garbage(txn: Txn, *, now_us: int, limit: int) -> list[tuple[int, Cid]]:
    """Return blobs whose bytes wait for a node to delete them, the oldest first."""
    rows = txn.read(
        "SELECT aid, cid FROM blob_garbage WHERE claimed_at IS NULL OR claimed_at <= ?"
        " ORDER BY queued_at LIMIT ?",
        (now_us - CLAIM_US, limit),
    )
    return [(aid, Cid(cid)) for aid, cid in rows]


def claim_garbage(txn: Txn, aid: int, cid: Cid, *, now_us: int) -> bool:
    """Take the right to delete the bytes of a blob, queued or not; returns whether it was given.

    It is not when the blob has a row, or another node deletes the bytes already.
    """
    if get_blob(txn, aid, cid) is not None:
        txn.write("DELETE FROM blob_garbage WHERE aid = ? AND cid = ?", (aid, cid))
        return False
    if is_garbage_claimed(txn, aid, cid, now_us=now_us):
        return False
    txn.write(
        "INSERT INTO blob_garbage (aid, cid, queued_at, claimed_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (aid, cid) DO UPDATE SET claimed_at = excluded.claimed_at",
        (aid, cid, now_us, now_us),
    )
    return True


def is_garbage_claimed(txn: Txn, aid: int, cid: Cid, *, now_us: int) -> bool:
    """Whether a node may be deleting the bytes just now."""
    claimed_at = _claimed_at(txn, aid, cid)
    return claimed_at is not None and claimed_at > now_us - CLAIM_US


def release_garbage(txn: Txn, aid: int, cid: Cid, *, claimed_at: int) -> None:
    """Give a claim back: the bytes could not be deleted, and nobody is trying any more."""
    txn.write(
        "UPDATE blob_garbage SET claimed_at = NULL WHERE aid = ? AND cid = ? AND claimed_at = ?",
        (aid, cid, claimed_at),
    )


def forget_garbage(txn: Txn, aid: int, cid: Cid, *, claimed_at: int) -> None:
    """Note that the bytes are gone, under the claim of that instant."""
    txn.write(
        "DELETE FROM blob_garbage WHERE aid = ? AND cid = ? AND claimed_at = ?",
        (aid, cid, claimed_at),
    )


def known_blobs(txn: Txn, keys: Sequence[tuple[int, Cid]]) -> set[tuple[int, Cid]]:
    """Return those of `keys` that have a row."""
    return {key for key in keys if get_blob(txn, *key) is not None}


def count_blobs(txn: Txn, aid: int, repo_id: int) -> tuple[int, int]:
    """Return how many blobs records refer to, and how many of these are here (ACC-51)."""
    rows = txn.read(
        "SELECT count(*), count(b.cid) FROM"
        " (SELECT DISTINCT cid FROM blob_ref WHERE repo_id = ?) r"
        " LEFT JOIN blob b ON b.aid = ? AND b.cid = r.cid",
        (repo_id, aid),
    )
    return rows[0][0], rows[0][1]


def _has_hidden(txn: Txn, aid: int) -> bool:
    """Whether a blob of the account is in quarantine: one step into a small index."""
    # The comparison lets the planner take that index, and not the primary key.
    row = txn.read_one("SELECT 1 FROM blob WHERE aid = ? AND takedown_ref >= '' LIMIT 1", (aid,))
    return row is not None


def _is_referenced(txn: Txn, aid: int, cid: Cid) -> bool:
    """Whether a record of any generation of the account's repo refers to the blob."""
    row = txn.read_one(
        "SELECT 1 FROM repo p JOIN blob_ref r ON r.repo_id = p.repo_id"
        " WHERE p.aid = ? AND r.cid = ? LIMIT 1",
        (aid, cid),
    )
    return row is not None


def _discard(txn: Txn, aid: int, cid: Cid, now_us: int) -> None:
    txn.write("DELETE FROM blob WHERE aid = ? AND cid = ?", (aid, cid))
    _queue_garbage(txn, aid, cid, now_us)


def _claimed_at(txn: Txn, aid: int, cid: Cid) -> int | None:
    row = txn.read_one("SELECT claimed_at FROM blob_garbage WHERE aid = ? AND cid = ?", (aid, cid))
    return None if row is None else row[0]


def _queue_garbage(txn: Txn, aid: int, cid: Cid, now_us: int) -> None:
    txn.write(
        "INSERT INTO blob_garbage (aid, cid, queued_at) VALUES (?, ?, ?)"
        " ON CONFLICT (aid, cid) DO UPDATE SET queued_at = excluded.queued_at",
        (aid, cid, now_us),
    )
