"""What happens to a repo inside a transaction: create, commit, announce.

These are plain functions for jobs of `Engine.transact`. A commit changes the head, the tree nodes,
the record index, the backlinks and the blob references, and adds its event, all in the caller's
transaction: there is no second step that could be lost (promise A1). The previous head is read in
the same transaction, so two writers can never build on the same commit, and the events of one
account come in the order of its commits (SYNC-44).

Signing happens in here too. It takes about 25 us and must come after the rev is known.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pds.errors import Corrupt, ProtocolError
from pds.protocol.car import encode_car
from pds.protocol.cid import Cid
from pds.protocol.data import BlobRef
from pds.protocol.frames import (
    encode_account_frame,
    encode_commit_frame,
    encode_identity_frame,
    encode_sync_frame,
)
from pds.protocol.keys import Signer
from pds.protocol.mst.node import InvalidNode
from pds.protocol.mst.tree import MissingBlock, NodeCache
from pds.protocol.repo import (
    FinishedCommit,
    Write,
    empty_repo,
    finish_commit,
    plan_writes,
    restate,
)
from pds.protocol.syntax import Did, Handle, Tid
from pds.protocol.tid import next_tid
from pds.services.records_prepare import BACKLINK_COLLECTIONS, PreparedWrite
from pds.store.blobs import claim_blobs, release_blobs
from pds.store.engine import Txn
from pds.store.records import (
    Backlink,
    delete_backlinks,
    delete_records,
    find_backlinks,
    insert_backlinks,
    upsert_records,
)
from pds.store.repos import (
    AccountRepo,
    Repo,
    StoredNodes,
    delete_nodes,
    insert_nodes,
    insert_repo,
    update_head,
)

COMMIT: Final = "commit"
SYNC: Final = "sync"
IDENTITY: Final = "identity"
ACCOUNT: Final = "account"


MAX_DUPLICATES: Final = 100
"""Older records that one create replaces; with more of them the next create goes on, so that an
account with many never runs into the limit of operations (REPO-80)."""


class Moment(NamedTuple):
    """When a commit is made and by which clock: revs are made of it."""

    now_us: int
    clock_id: int

    def rev_after(self, previous: Tid | None) -> Tid:
        """Return a rev of now that is greater than `previous` (REPO-3)."""
        return next_tid(previous, self.now_us, self.clock_id)


def create_repo(
    txn: Txn, aid: int, did: Did, signer: Signer, *, rev: Tid, now_us: int
) -> FinishedCommit:
    """Make the first, empty commit of an account's repo and make it the live one.

    Emits nothing. Spec: repository#commit-objects (REPO-24, SYNC-40)
    """
    finished = finish_commit(empty_repo(did, rev), signer)
    nodes = finished.plan.new_nodes
    repo_id = insert_repo(txn, aid, finished.head, finished.signed.block, now_us=now_us)
    insert_nodes(txn, repo_id, rev, nodes)
    _move_head(txn, repo_id, finished, now_us=now_us)
    txn.write("UPDATE account SET repo_id = ? WHERE aid = ?", (repo_id, aid))
    return finished


def commit_writes(
    txn: Txn,
    account: AccountRepo,
    repo: Repo,
    writes: Sequence[PreparedWrite],
    signer: Signer,
    *,
    moment: Moment,
    cache: NodeCache,
) -> FinishedCommit | None:
    """Apply a batch to a repo, announce the commit and return it; None when nothing changed.

    `account` and `repo` were read in this transaction.

    Raises: RecordExists, RecordMissing, SwapMismatch, TreeLimit, CommitTooLarge; RequestError for
    blobs; Corrupt. Spec: sync#commit-events (REPO-60..REPO-82, XRPC-84, XRPC-95)
    """
    rev = moment.rev_after(repo.head.rev)
    nodes = cache.over(StoredNodes(txn, repo.repo_id))
    asked = [*_duplicates(txn, repo.repo_id, writes), *(write.write for write in writes)]
    try:
        plan = plan_writes(repo.head, asked, nodes, did=account.did, rev=rev)
    except (MissingBlock, InvalidNode) as error:
        raise Corrupt(f"the tree of {account.did} is damaged: {error}") from error
    if plan.is_empty:
        return None
    finished = finish_commit(plan, signer)
    insert_nodes(txn, repo.repo_id, rev, plan.new_nodes)
    delete_nodes(txn, repo.repo_id, plan.removed_nodes)
    _store_records(
        txn, account.aid, repo.repo_id, finished=finished, writes=writes, now_us=moment.now_us
    )
    _move_head(txn, repo.repo_id, finished, now_us=moment.now_us)
    for node in plan.tree_nodes:
        cache.add(node)
    emit_commit(txn, account.aid, finished)
    return finished


def restate_head(
    txn: Txn,
    account: AccountRepo,
    repo: Repo,
    signer: Signer,
    *,
    moment: Moment,
    cache: NodeCache,
) -> FinishedCommit:
    """Sign the same tree again under a new rev, and announce it (REPO-4, REPO-7)."""
    nodes = cache.over(StoredNodes(txn, repo.repo_id))
    rev = moment.rev_after(repo.head.rev)
    finished = finish_commit(restate(repo.head, nodes, rev=rev), signer)
    _move_head(txn, repo.repo_id, finished, now_us=moment.now_us)
    emit_commit(txn, account.aid, finished)
    return finished


def _duplicates(txn: Txn, repo_id: int, writes: Sequence[PreparedWrite]) -> list[Write]:
    """Return deletions of older records that stand for the same relation (XRPC-95)."""
    own = {write.path for write in writes}
    found: dict[str, Write] = {}
    for write in writes:
        if write.replaces_duplicates and write.subject is not None:
            links = find_backlinks(
                txn, repo_id, write.collection, write.subject, limit=MAX_DUPLICATES
            )
            for path in links:
                if path not in own:
                    found[path] = Write("delete", path)
    return list(found.values())


def _store_records(
    txn: Txn,
    aid: int,
    repo_id: int,
    *,
    finished: FinishedCommit,
    writes: Sequence[PreparedWrite],
    now_us: int,
) -> None:
    """Bring index, backlinks and blob references in line with the commit's operations."""
    plan = finished.plan
    last = {write.path: write for write in writes}
    stored: list[tuple[str, Cid, bytes]] = []
    deleted: list[str] = []
    unlinked: list[str] = []
    linked: list[Backlink] = []
    for op in plan.ops:
        collection = op.path.split("/", 1)[0]
        write = last.get(op.path)
        if op.prev is not None and collection in BACKLINK_COLLECTIONS:
            unlinked.append(op.path)
        if op.cid is None:
            deleted.append(op.path)
        else:
            stored.append((op.path, op.cid, plan.record_blocks[op.cid]))
            if write is not None and write.subject is not None:
                linked.append(Backlink(collection, write.subject, op.path))
    _settle_blobs(txn, aid, repo_id, finished=finished, writes=last, now_us=now_us)
    if deleted:
        delete_records(txn, repo_id, deleted)
    if unlinked:
        delete_backlinks(txn, repo_id, unlinked)
    if stored:
        upsert_records(txn, repo_id, plan.rev, stored)
    if linked:
        insert_backlinks(txn, repo_id, linked)


def _settle_blobs(
    txn: Txn,
    aid: int,
    repo_id: int,
    *,
    finished: FinishedCommit,
    writes: Mapping[str, PreparedWrite],
    now_us: int,
) -> None:
    """Claim what records refer to now, then let go of what they referred to before.

    All claims come first, so that a blob which moves to another record is never without one.
    """
    kept: dict[str, tuple[BlobRef, ...]] = {}
    for op in finished.plan.ops:
        if op.cid is not None and op.path in writes:
            refs = writes[op.path].blob_refs
            if refs:
                kept[op.path] = refs
                claim_blobs(txn, aid, repo_id, op.path, refs, now_us=now_us, rev=finished.plan.rev)
    for op in finished.plan.ops:
        if op.prev is not None:
            keep = {ref.cid for ref in kept.get(op.path, ())}
            release_blobs(txn, aid, repo_id, op.path, keep=keep, now_us=now_us)


def _move_head(txn: Txn, repo_id: int, finished: FinishedCommit, *, now_us: int) -> None:
    plan = finished.plan
    created = sum(op.action == "create" for op in plan.ops)
    deleted = sum(op.action == "delete" for op in plan.ops)
    update_head(
        txn,
        repo_id,
        finished.head,
        finished.signed.block,
        more_records=created - deleted,
        more_nodes=len(plan.new_nodes) - len(plan.removed_nodes),
        now_us=now_us,
    )


def emit_commit(txn: Txn, aid: int, finished: FinishedCommit) -> None:
    """Add the `#commit` event of a commit (SYNC-30)."""
    plan = finished.plan

    def build_frame(seq: int, at_us: int) -> bytes:
        return encode_commit_frame(
            seq=seq,
            at_us=at_us,
            did=plan.did,
            commit=finished.signed.cid,
            rev=plan.rev,
            since=plan.since,
            blocks=finished.car,
            ops=plan.ops,
            prev_data=plan.prev_data,
        )

    txn.emit(COMMIT, aid, build_frame)


def emit_sync(
    txn: Txn, aid: int, did: Did, commit_cid: Cid, commit_block: bytes, *, rev: Tid
) -> None:
    """Add a `#sync` event that states the head of a repo (SYNC-33)."""
    blocks = encode_car((commit_cid,), [(commit_cid, commit_block)])

    def build_frame(seq: int, at_us: int) -> bytes:
        return encode_sync_frame(seq=seq, at_us=at_us, did=did, rev=rev, blocks=blocks)

    txn.emit(SYNC, aid, build_frame)


def emit_identity(txn: Txn, aid: int, did: Did, handle: Handle | str | None) -> None:
    """Add an `#identity` event; None leaves the handle out (SYNC-34)."""

    def build_frame(seq: int, at_us: int) -> bytes:
        return encode_identity_frame(seq=seq, at_us=at_us, did=did, handle=handle)

    txn.emit(IDENTITY, aid, build_frame)


def emit_account(txn: Txn, aid: int, did: Did, *, active: bool, status: str | None) -> None:
    """Add an `#account` event; an inactive account says why (SYNC-35, SYNC-81).

    Raises: ProtocolError when `active` and `status` do not fit: a mistake of the caller.
    """
    if active == (status is not None):
        raise ProtocolError("an inactive account, and only that, needs a status")

    def build_frame(seq: int, at_us: int) -> bytes:
        return encode_account_frame(seq=seq, at_us=at_us, did=did, active=active, status=status)

    txn.emit(ACCOUNT, aid, build_frame)
