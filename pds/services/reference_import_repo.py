"""Takes the repo of a stopped reference PDS apart into rows, every block checked on the way.

The tree is walked from the commit, whose signature must be of the key that lies beside the store;
every node and record is held against its CID, its place and its form. The index of records that the
reference keeps is not believed: it only says at which rev a record was written, and what was taken
down. Memory is bounded by the size of a batch and the depth of the tree.

Spec: (REPO-28, REPO-29, REPO-90, REPO-92)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pds.errors import ProtocolError
from pds.protocol.cid import Cid
from pds.protocol.keys import PublicKey
from pds.protocol.mst.tree import MissingBlock
from pds.protocol.repo import Head
from pds.protocol.repo_verify import VerifiedBlock, check_commit_block, verify_repo
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_tid
from pds.services.records_prepare import index_entries
from pds.store.records import Backlink
from pds.store.reference_reader import ReferenceStore

BATCH_ROWS: Final = 400
BATCH_BYTES: Final = 400_000
"""Rows and bytes that one job of the writer stores."""


class InvalidSource(ProtocolError):
    """A repo in which something is wrong; the message says what."""


@dataclass(frozen=True, slots=True)
class Takedown:
    """A record that was taken down."""

    path: str
    cid: Cid
    takedown_ref: str
    at: int


@dataclass(slots=True)
class Batch:
    """Rows to be stored together."""

    nodes: list[tuple[Cid, Tid, bytes]] = field(default_factory=list)
    records: list[tuple[str, Cid, Tid, bytes]] = field(default_factory=list)
    blob_refs: list[tuple[Cid, str, Tid]] = field(default_factory=list)
    backlinks: list[Backlink] = field(default_factory=list)
    takedowns: list[Takedown] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it should be stored before more is added."""
        rows = len(self.nodes) + len(self.records) + len(self.blob_refs) + len(self.backlinks)
        return rows >= BATCH_ROWS or self.size >= BATCH_BYTES


@dataclass(frozen=True, slots=True)
class Commit:
    """The head of a repo, with its block."""

    head: Head
    block: bytes


def read_commit(store: ReferenceStore, did: Did, key: PublicKey) -> Commit:
    """Return the commit that the store names as head, checked. Raises: InvalidSource."""
    root, rev = store.root()
    try:
        block = store.get(root)
        commit = check_commit_block(root, block, did=did, key=key)
    except MissingBlock as error:
        raise InvalidSource("the commit is missing") from error
    except ProtocolError as error:
        raise InvalidSource(str(error)) from error
    if commit.rev != rev:
        raise InvalidSource(f"the store says rev {rev}, the commit {commit.rev}")
    return Commit(Head(did, root, commit.rev, commit.data), block)


def read_batches(store: ReferenceStore, head: Head) -> Iterator[Batch]:
    """Yield the rows of a repo whose commit was checked; nothing counts before the walk has ended.

    Raises: InvalidSource, StoreError.
    """
    batch = Batch()
    try:
        for block in verify_repo(head.commit, store, did=head.did):
            if block.kind == "node":
                rev = _rev(store.block_rev(block.cid), head.rev)
                batch.nodes.append((block.cid, rev, block.block))
            elif block.kind == "record":
                _add_record(store, head, block, batch)
            batch.size += len(block.block)
            if batch.is_full:
                yield batch
                batch = Batch()
    except MissingBlock as error:
        raise InvalidSource(f"block {error.cid} is missing") from error
    except InvalidSource:
        raise
    except ProtocolError as error:
        raise InvalidSource(str(error)) from error
    yield batch


def _add_record(store: ReferenceStore, head: Head, found: VerifiedBlock, batch: Batch) -> None:
    path, block = found.path or "", found.block
    known = store.find_record(path)
    if known is None:
        raise InvalidSource(f"record {path} is in the repo and not in the index")
    if known.cid != str(found.cid):
        raise InvalidSource(f"record {path} is another one in the index than in the repo")
    rev = _rev(known.rev, head.rev)
    batch.records.append((path, found.cid, rev, block))
    if known.takedown_ref is not None:
        ref = known.takedown_ref
        batch.takedowns.append(Takedown(path, found.cid, ref, known.indexed_at))
    blobs, subject = index_entries(path, block)
    batch.blob_refs.extend((cid, path, rev) for cid in blobs)
    if subject is not None:
        batch.backlinks.append(Backlink(path.partition("/")[0], subject, path))


def _rev(text: str | None, head: Tid) -> Tid:
    """Return at which rev something was stored; the head's when that is not known."""
    try:
        rev = parse_tid(text or "")
    except InvalidSyntax:
        return head
    return min(rev, head)
