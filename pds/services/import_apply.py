"""Stores a judged difference (`import_difference`) as a commit of the repo that is here.

A whole repo that was judged by `import_check` goes another way: `store/repo_staging` and a swap of
generations (`repo_import`).

One job of the writer, which decides nothing and computes nothing but a signature: which nodes and
rows come and go was found out before, in a snapshot of the same repo, and the caller has made sure
that the repo is still the same. As with a whole repo that is imported, nothing is announced, and
blobs may be referred to before they are here.

Spec: (REPO-3, REPO-92, XRPC-85, XRPC-86, ACC-41)
"""

from collections import defaultdict

from pds.protocol.cid import Cid
from pds.protocol.commit import SignedCommit
from pds.protocol.repo import Head
from pds.services.import_check import RowBatch
from pds.services.import_difference import Difference
from pds.services.records_prepare import BACKLINK_COLLECTIONS
from pds.store.blobs import release_blobs
from pds.store.engine import Txn
from pds.store.records import (
    Backlink,
    delete_backlinks,
    delete_records,
    insert_backlinks,
    upsert_records,
)
from pds.store.repo_staging import insert_blob_refs
from pds.store.repos import delete_nodes, insert_nodes, update_head


def apply_difference(
    txn: Txn, aid: int, repo_id: int, difference: Difference, signed: SignedCommit, *, now_us: int
) -> Head:
    """Bring the rows of a repo in line with a commit of ours, and return the new head."""
    commit = signed.commit
    batches = difference.batches()
    gone = [op for op in difference.ops if op.after is None]
    replaced = [op.path for op in difference.ops if op.before is not None]
    delete_nodes(txn, repo_id, difference.removed_nodes)
    delete_records(txn, repo_id, [op.path for op in gone])
    delete_backlinks(
        txn, repo_id, [path for path in replaced if path.split("/", 1)[0] in BACKLINK_COLLECTIONS]
    )
    for batch in batches:
        insert_nodes(txn, repo_id, commit.rev, dict(batch.nodes))
        upsert_records(txn, repo_id, commit.rev, batch.records)
        insert_blob_refs(txn, aid, repo_id, batch.blob_refs, rev=commit.rev, now_us=now_us)
        insert_backlinks(txn, repo_id, (Backlink(*row) for row in batch.backlinks))
    _release(txn, aid, repo_id, difference, batches, now_us=now_us)
    head = Head(commit.did, signed.cid, commit.rev, commit.data)
    created = sum(op.before is None for op in difference.ops)
    update_head(
        txn,
        repo_id,
        head,
        signed.block,
        more_records=created - len(gone),
        more_nodes=difference.new_nodes - len(difference.removed_nodes),
        now_us=now_us,
    )
    return head


def _release(
    txn: Txn,
    aid: int,
    repo_id: int,
    difference: Difference,
    batches: list[RowBatch],
    *,
    now_us: int,
) -> None:
    """Let go of blobs that records referred to before; all that are referred to now are noted."""
    kept: defaultdict[str, set[Cid]] = defaultdict(set)
    for batch in batches:
        for cid, path in batch.blob_refs:
            kept[path].add(cid)
    for path in sorted(difference.with_blobs):
        release_blobs(txn, aid, repo_id, path, keep=kept[path], now_us=now_us)
