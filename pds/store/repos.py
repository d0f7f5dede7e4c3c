"""Repo rows: heads and tree nodes, and the generations of a repo.

Owns the tables `repo`, `node` and `repo_garbage`. All per-repo tables are keyed by `repo_id`, and
`account.repo_id` names the live generation: whoever rebuilds or imports a repo writes a new
generation in small jobs, makes it live with `swap_repo` (one UPDATE), and `delete_garbage` takes
the old one away, a few hundred rows at a time. A generation that was never made live is put on the
same list with `discard_repo`.

`node` holds the nodes of the live tree only: a commit deletes what it replaces. `rev` is the rev at
which a node was stored, so a node that is older than some rev has nothing newer below it.

Spec: REPO-31, REPO-45
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from pds.errors import Corrupt
from pds.protocol.cid import Cid
from pds.protocol.mst.tree import MissingBlock
from pds.protocol.repo import Head
from pds.protocol.syntax import Did, Handle, Tid
from pds.store.accounts import AccountStatus
from pds.store.blobs import release_blobs
from pds.store.engine import MAX_BULK_ROWS, FirstRead, Txn

PATH_NODES: Final = 12
"""Most nodes that a commit of one record changes, but for one in thousands."""
NODE_BATCH: Final = 32
"""Nodes read by one statement; a fixed number, so that the statement is compiled once."""

_REPO_COLUMNS: Final = (
    "repo_id, aid, commit_cid, rev, data_cid, commit_block, record_count, node_count, updated_at"
)
_ACCOUNT: Final = (
    "SELECT a.aid, a.did, a.handle, a.key_id, a.takedown_ref, a.suspended_at, a.deactivated_at,"
    " a.repo_id, r.commit_cid, r.rev, r.data_cid, r.commit_block, r.record_count, r.node_count"
    " FROM account a LEFT JOIN repo r ON r.repo_id = a.repo_id WHERE "
)
"""One statement, as each is a round trip where the database is elsewhere."""
_BY_AID: Final = _ACCOUNT + "a.aid = ?"
_BY_DID: Final = _ACCOUNT + "a.did = ?"
_BY_HANDLE: Final = _ACCOUNT + "a.handle = ?"
_AFTER_AID: Final = _ACCOUNT + "a.aid > ? AND a.repo_id IS NOT NULL ORDER BY a.aid LIMIT ?"
_NODES: Final = (
    f"SELECT cid, rev, bytes FROM node WHERE repo_id = ? AND cid IN ({', '.join('?' * NODE_BATCH)})"
)
_INSERT_NODES: Final = tuple(
    f"INSERT INTO node (repo_id, cid, rev, bytes) VALUES {', '.join(['(?, ?, ?, ?)'] * rows)}"
    for rows in range(PATH_NODES + 1)
)
_DELETE_NODES: Final = tuple(
    f"DELETE FROM node WHERE repo_id = ? AND cid IN ({', '.join('?' * rows)})"
    for rows in range(PATH_NODES + 1)
)
"""By the number of nodes; one statement for several costs less than one for each."""


class Repo(NamedTuple):
    """One generation of a repo, with its head."""

    repo_id: int
    head: Head
    commit_block: bytes
    record_count: int
    node_count: int


class AccountRepo(NamedTuple):
    """An account's state and its live repo, read together; `repo` is None before there is one."""

    aid: int
    did: Did
    handle: Handle | None
    key_id: int | None
    status: AccountStatus
    repo: Repo | None

    @property
    def is_active(self) -> bool:
        """Whether records may be written and shown."""
        return self.status is AccountStatus.ACTIVE


def _account_repo(row: Sequence[Any]) -> AccountRepo:
    """Return what a row of `_ACCOUNT` says.

    The status is what this host decided, whatever others say of the account (SYNC-81).
    """
    aid, did, handle, key_id, takedown_ref, suspended_at, deactivated_at, repo_id, *found = row
    if takedown_ref is not None:
        status = AccountStatus.TAKENDOWN
    elif suspended_at is not None:
        status = AccountStatus.SUSPENDED
    elif deactivated_at is not None:
        status = AccountStatus.DEACTIVATED
    else:
        status = AccountStatus.ACTIVE
    repo = None
    if repo_id is not None:
        commit, rev, data, commit_block, records, nodes = found
        if commit is None:
            raise Corrupt(f"the repo of {did} is missing")
        head = Head(did, Cid(commit), rev, Cid(data))
        repo = Repo(repo_id, head, commit_block, records, nodes)
    return AccountRepo(aid, did, handle, key_id, status, repo)


def account_repo_read(aid: int) -> FirstRead:
    """Return what `get_account_repo` reads, for a job that begins with it."""
    return FirstRead(_BY_AID, (aid,))


def get_account_repo(txn: Txn, aid: int) -> AccountRepo | None:
    """Return the account with this number and its live repo."""
    row = txn.read_one(_BY_AID, (aid,))
    return None if row is None else _account_repo(row)


def find_account_repo(txn: Txn, did_or_handle: str) -> AccountRepo | None:
    """Return the account named by a DID or a (lower-case) handle, and its live repo."""
    sql = _BY_DID if did_or_handle.startswith("did:") else _BY_HANDLE
    row = txn.read_one(sql, (did_or_handle,))
    return None if row is None else _account_repo(row)


def list_account_repos(txn: Txn, *, after_aid: int, limit: int) -> list[AccountRepo]:
    """Return accounts that have a repo, in any state, in the order of their creation."""
    return [_account_repo(row) for row in txn.read(_AFTER_AID, (after_aid, limit))]


def list_repos_with(
    txn: Txn, collection: str, *, after_aid: int, last_aid: int, limit: int
) -> list[tuple[int, Did]]:
    """Return `(aid, did)` of active accounts up to `last_aid` with a record in `collection`."""
    return txn.read(
        "SELECT a.aid, a.did FROM account a WHERE a.aid > ? AND a.aid <= ?"
        " AND a.takedown_ref IS NULL AND a.suspended_at IS NULL AND a.deactivated_at IS NULL"
        " AND EXISTS (SELECT 1 FROM record r WHERE r.repo_id = a.repo_id"
        " AND r.path > ? AND r.path < ?) ORDER BY a.aid LIMIT ?",
        (after_aid, last_aid, f"{collection}/", f"{collection}0", limit),
    )


def count_repos(txn: Txn) -> int:
    """Return how many accounts have a repo here, in any state."""
    return int(txn.read("SELECT count(repo_id) FROM account")[0][0])


def get_highest_aid(txn: Txn) -> int:
    """Return the highest account number, 0 when there is no account."""
    return int(txn.read("SELECT max(aid) FROM account")[0][0] or 0)


def insert_repo(
    txn: Txn, aid: int, head: Head, commit_block: bytes, *, now_us: int, record_count: int = 0
) -> int:
    """Insert a generation that is not live yet, without nodes, and return its number."""
    repo_id = txn.next_id("repo")
    txn.write(
        f"INSERT INTO repo ({_REPO_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            repo_id,
            aid,
            bytes(head.commit),
            head.rev,
            bytes(head.data),
            commit_block,
            record_count,
            0,
            now_us,
        ),
    )
    return repo_id


def update_head(
    txn: Txn,
    repo_id: int,
    head: Head,
    commit_block: bytes,
    *,
    more_records: int,
    more_nodes: int,
    now_us: int,
) -> None:
    """Move a repo to its next commit; the counts change by the given numbers."""
    txn.write(
        "UPDATE repo SET commit_cid = ?, rev = ?, data_cid = ?, commit_block = ?,"
        " record_count = record_count + ?, node_count = node_count + ?, updated_at = ?"
        " WHERE repo_id = ?",
        (
            bytes(head.commit),
            head.rev,
            bytes(head.data),
            commit_block,
            more_records,
            more_nodes,
            now_us,
            repo_id,
        ),
    )


def insert_nodes(txn: Txn, repo_id: int, rev: Tid, nodes: Mapping[Cid, bytes]) -> None:
    """Store tree nodes."""
    rows = [(repo_id, bytes(cid), rev, block) for cid, block in nodes.items()]
    if 0 < len(rows) < len(_INSERT_NODES):
        txn.write(_INSERT_NODES[len(rows)], list(chain.from_iterable(rows)))
    else:
        txn.write_many(_INSERT_NODES[1], rows)


def delete_nodes(txn: Txn, repo_id: int, cids: Collection[Cid]) -> None:
    """Delete tree nodes that a commit replaced."""
    if 0 < len(cids) < len(_DELETE_NODES):
        txn.write(_DELETE_NODES[len(cids)], [repo_id, *map(bytes, cids)])
    else:
        txn.write_many(_DELETE_NODES[1], [(repo_id, bytes(cid)) for cid in cids])


class StoredNodes:
    """The nodes of one repo generation, as a `BlockSource` inside a transaction."""

    __slots__ = ("_repo_id", "_txn")

    def __init__(self, txn: Txn, repo_id: int) -> None:
        self._txn = txn
        self._repo_id = repo_id

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a node. Raises: MissingBlock."""
        row = self._txn.read_one(
            "SELECT bytes FROM node WHERE repo_id = ? AND cid = ?", (self._repo_id, bytes(cid))
        )
        if row is None:
            raise MissingBlock(cid)
        block: bytes = row[0]
        return block


def read_nodes(txn: Txn, repo_id: int, cids: Sequence[Cid]) -> dict[Cid, tuple[Tid, bytes]]:
    """Return rev and bytes of those nodes that exist, few statements for many nodes."""
    found: dict[Cid, tuple[Tid, bytes]] = {}
    for start in range(0, len(cids), NODE_BATCH):
        batch = [bytes(cid) for cid in cids[start : start + NODE_BATCH]]
        batch += batch[-1:] * (NODE_BATCH - len(batch))
        for cid, rev, block in txn.read(_NODES, (repo_id, *batch)):
            found[Cid(cid)] = (rev, block)
    return found


def list_nodes(txn: Txn, repo_id: int) -> dict[bytes, bytes]:
    """Return the bytes of all nodes by CID: for repos that are known not to be huge."""
    return dict(txn.read("SELECT cid, bytes FROM node WHERE repo_id = ?", (repo_id,)))


def swap_repo(txn: Txn, aid: int, repo_id: int, *, now_us: int) -> None:
    """Make a generation the live one; the old one is put on the list of garbage.

    The caller drops the account from caches (`AccountCache.forget_after`).
    """
    row = txn.read_one("SELECT repo_id FROM account WHERE aid = ?", (aid,))
    txn.write("UPDATE account SET repo_id = ? WHERE aid = ?", (repo_id, aid))
    if row is not None and row[0] is not None and row[0] != repo_id:
        discard_repo(txn, row[0], now_us=now_us)


def discard_repo(txn: Txn, repo_id: int, *, now_us: int) -> None:
    """Put a generation that is not live on the list of garbage."""
    txn.write(
        "INSERT INTO repo_garbage (repo_id, queued_at) VALUES (?, ?)"
        " ON CONFLICT (repo_id) DO NOTHING",
        (repo_id, now_us),
    )


def discard_account_repos(txn: Txn, aid: int, *, now_us: int) -> None:
    """Put all generations of an account's repo on the list of garbage, the live one included."""
    for (repo_id,) in txn.read("SELECT repo_id FROM repo WHERE aid = ?", (aid,)):
        discard_repo(txn, repo_id, now_us=now_us)


def list_garbage(txn: Txn, *, limit: int = 100) -> list[int]:
    """Return generations that wait for deletion, oldest first."""
    rows = txn.read(
        "SELECT repo_id FROM repo_garbage ORDER BY queued_at, repo_id LIMIT ?", (limit,)
    )
    return [row[0] for row in rows]


_GARBAGE_TABLES: Final = (
    ("record", ("path",)),
    ("node", ("cid",)),
    ("backlink", ("collection", "subject", "path")),
)


def delete_garbage(txn: Txn, repo_id: int, *, max_rows: int = MAX_BULK_ROWS) -> bool:
    """Delete up to `max_rows` rows of a generation; return whether nothing of it is left.

    Blobs that only this generation referred to are let go with it.
    """
    left = max_rows - _release_garbage_blobs(txn, repo_id, max_rows)
    for table, keys in _GARBAGE_TABLES:
        if left <= 0:
            return False
        columns = ", ".join(keys)
        rows = txn.read(
            f"SELECT {columns} FROM {table} WHERE repo_id = ? ORDER BY {columns} LIMIT ?",
            (repo_id, left),
        )
        where = " AND ".join(f"{key} = ?" for key in keys)
        txn.write_many(
            f"DELETE FROM {table} WHERE repo_id = ? AND {where}", [(repo_id, *row) for row in rows]
        )
        left -= len(rows)
    if left <= 0:
        return False
    txn.write("DELETE FROM repo WHERE repo_id = ?", (repo_id,))
    txn.write("DELETE FROM repo_garbage WHERE repo_id = ?", (repo_id,))
    return True


def _release_garbage_blobs(txn: Txn, repo_id: int, max_rows: int) -> int:
    """Drop blob references of a generation; return how many rows that took."""
    owner = txn.read_one(
        "SELECT r.aid, g.queued_at FROM repo r JOIN repo_garbage g ON g.repo_id = r.repo_id"
        " WHERE r.repo_id = ?",
        (repo_id,),
    )
    if owner is None:
        return 0
    aid, queued_at = owner
    txn.lock_accounts((aid,))
    rows = txn.read(
        "SELECT path FROM blob_ref WHERE repo_id = ? ORDER BY path LIMIT ?", (repo_id, max_rows)
    )
    for path in dict.fromkeys(row[0] for row in rows):
        release_blobs(txn, aid, repo_id, path, keep=(), now_us=queued_at)
    return len(rows)
