"""Judge commits and repos that somebody else made (and, in tests, our own).

* `verify_commit_event` is what a strict relay does with a `#commit`: structure, signature, sizes,
  and taking the operations back to the previous root from the blocks in the event alone.
* `verify_repo` walks a whole repo and yields each block once it is proven to belong there: one
  commit, every node in its one valid form and place, every record present, hashed and well formed.
  Blocks that the commit does not reach are never asked for and so never stored (REPO-90).
* `verify_record_proof` is what a reader of `sync.getRecord` does.

Memory is bounded by the depth of the tree. Blocks come from a `BlockSource`; `StreamedBlocks` makes
one of a CAR in streamable order without keeping the CAR.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from pds.errors import ProtocolError
from pds.protocol.car import read_car
from pds.protocol.cbor import CborError, Data, decode
from pds.protocol.cid import Cid
from pds.protocol.commit import Commit, decode_commit, verify_commit
from pds.protocol.frames import MAX_COMMIT_CAR_BYTES, MAX_COMMIT_OPS, RepoOp
from pds.protocol.keys import PublicKey
from pds.protocol.mst.diff import walk_verified
from pds.protocol.mst.node import MAX_DEPTH, Node
from pds.protocol.mst.proof import Change, check_path, invert_changes
from pds.protocol.mst.tree import BlockSource, ForeignNodes, MissingBlock
from pds.protocol.repo import MAX_RECORD_BLOCK_BYTES, Head
from pds.protocol.syntax import Did, Tid, parse_record_path


class InvalidRepo(ProtocolError):
    """A commit, proof or repo that breaks a rule; the message says which."""


@dataclass(frozen=True, slots=True)
class RepoLimits:
    """How much of a foreign repo is read at most (REPO-29)."""

    max_blocks: int = 16_000_000
    max_bytes: int = 8_000_000_000
    max_depth: int = MAX_DEPTH


DEFAULT_LIMITS: Final = RepoLimits()


@dataclass(frozen=True, slots=True)
class VerifiedBlock:
    """A block that belongs to the repo. `path` is set for records only."""

    kind: Literal["commit", "node", "record"]
    cid: Cid
    block: bytes
    path: str | None = None


@final
class BlockMap:
    """A `BlockSource` over a mapping."""

    def __init__(self, blocks: Mapping[Cid, bytes]) -> None:
        self._blocks = blocks

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block. Raises: MissingBlock."""
        block = self._blocks.get(cid)
        if block is None:
            raise MissingBlock(cid)
        return block


@final
class StreamedBlocks:
    """A `BlockSource` over blocks that arrive one after another.

    Blocks that come before they are asked for wait in memory, `max_waiting_bytes` at most. A CAR in
    streamable order (REPO-43) needs none of it; for any other order the caller stores the CAR
    first. Each block is handed out once.
    """

    def __init__(
        self, blocks: Iterable[tuple[Cid, bytes]], *, max_waiting_bytes: int = 8_000_000
    ) -> None:
        self._blocks = iter(blocks)
        self._waiting: dict[Cid, bytes] = {}
        self._waiting_bytes = 0
        self._max_waiting_bytes = max_waiting_bytes

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block, reading on until it comes.

        Raises: MissingBlock at the end of the stream; InvalidRepo when too much waits.
        """
        block = self._waiting.pop(cid, None)
        if block is not None:
            self._waiting_bytes -= len(block)
            return block
        for found, block in self._blocks:
            if found == cid:
                return block
            if found not in self._waiting:
                self._waiting[found] = block
                self._waiting_bytes += len(block)
                if self._waiting_bytes > self._max_waiting_bytes:
                    raise InvalidRepo("blocks are not in streamable order")
        raise MissingBlock(cid)


def check_commit_block(
    cid: Cid,
    block: bytes,
    *,
    did: Did | None = None,
    key: PublicKey | None = None,
    max_rev: Tid | None = None,
) -> Commit:
    """Decode a foreign commit block and check what can be checked by itself.

    Raises: InvalidRepo, InvalidCommit. Spec: REPO-5, REPO-6
    """
    if Cid.of_data(block) != cid:
        raise InvalidRepo("commit bytes do not match their CID")
    commit = decode_commit(block)
    if did is not None and commit.did != did:
        raise InvalidRepo("commit belongs to another account")
    if max_rev is not None and commit.rev > max_rev:
        raise InvalidRepo("commit rev lies in the future")
    if key is not None and not verify_commit(commit, key):
        raise InvalidRepo("commit signature does not verify")
    return commit


def verify_repo(
    root: Cid,
    blocks: BlockSource,
    *,
    did: Did | None = None,
    key: PublicKey | None = None,
    max_rev: Tid | None = None,
    limits: RepoLimits = DEFAULT_LIMITS,
) -> Iterator[VerifiedBlock]:
    """Walk the repo whose commit is `root` and yield its blocks in streamable order, each checked.

    The caller may store blocks as they come, but must use nothing before the walk has ended. With
    `did`, `key` or `max_rev` the commit is held against them.

    Raises: InvalidRepo, InvalidCommit, InvalidNode, InvalidTree, TreeLimit, MissingBlock.
    Spec: repository#mst-structure, REPO-28, REPO-29, REPO-90, REPO-92
    """
    block = blocks.get(root)
    commit = check_commit_block(root, block, did=did, key=key, max_rev=max_rev)
    yield VerifiedBlock("commit", root, block)
    count, size = 1, len(block)
    for item in walk_verified(commit.data, blocks, max_depth=limits.max_depth):
        if isinstance(item, Node):
            verified = VerifiedBlock("node", item.cid, item.block)
        else:
            verified = verify_record(item[0], item[1], blocks)
        count += 1
        size += len(verified.block)
        if count > limits.max_blocks or size > limits.max_bytes:
            raise InvalidRepo("repo is larger than the limit")
        yield verified


def verify_record(key: bytes, cid: Cid, blocks: BlockSource) -> VerifiedBlock:
    """Check the record that a tree has under `key`: its path, and its block.

    Raises: InvalidRepo, InvalidSyntax, MissingBlock. Spec: REPO-11, REPO-92, DM-31
    """
    path = key.decode("ascii")
    parse_record_path(path)
    block = blocks.get(cid)
    check_record_block(cid, block)
    return VerifiedBlock("record", cid, block, path)


def check_record_block(cid: Cid, block: bytes) -> dict[str, Data]:
    """Check that `block` is a record with this CID and return it decoded.

    A link with another hash than sha-256 cannot be checked and is refused: nothing unverified is
    stored. Raises: InvalidRepo. Spec: REPO-92, DM-31
    """
    if len(block) > MAX_RECORD_BLOCK_BYTES:
        raise InvalidRepo("record is too large")
    if cid.is_blessed_raw:
        matches = Cid.of_raw(block) == cid
    else:
        matches = cid.is_blessed_data and Cid.of_data(block) == cid
    if not matches:
        raise InvalidRepo("record bytes do not match their CID")
    try:
        record = decode(block)
    except CborError as error:
        raise InvalidRepo("record is not canonical CBOR") from error
    if not isinstance(record, dict):
        raise InvalidRepo("record is not a map")
    return record


def normalize_ops(ops: Iterable[RepoOp]) -> list[RepoOp]:
    """Return `ops` in the order in which relays undo them: deletions first, then by path."""
    return sorted(ops, key=lambda op: (op.action != "delete", op.path))


def check_ops(ops: Sequence[RepoOp]) -> None:
    """Check the form of every op, and that each path comes once.

    Raises: InvalidRepo. Spec: REPO-66, REPO-67
    """
    if len(ops) > MAX_COMMIT_OPS:
        raise InvalidRepo("too many operations")
    if len({op.path for op in ops}) != len(ops):
        raise InvalidRepo("two operations on one path")
    for op in ops:
        parse_record_path(op.path)
        fits = {
            "create": op.cid is not None and op.prev is None,
            "update": op.cid is not None and op.prev is not None and op.cid != op.prev,
            "delete": op.cid is None and op.prev is not None,
        }
        if not fits.get(op.action, False):
            raise InvalidRepo("operation is not well formed")


def invert_ops(data: Cid, ops: Sequence[RepoOp], blocks: BlockSource) -> Cid:
    """Take `ops` back from the tree at `data`, in relay order, and return the root before.

    `blocks` needs the covering proof only. Raises: InvalidRepo, InvalidTree, MissingBlock,
    InvalidNode, KeyExists, KeyMissing. Spec: sync#message-validation-checklist (REPO-66, REPO-67)
    """
    check_ops(ops)
    changes: list[Change] = [
        (op.path.encode("ascii"), op.prev, op.cid) for op in normalize_ops(ops)
    ]
    return invert_changes(data, changes, ForeignNodes(blocks))


def verify_commit_event(
    payload: Mapping[str, Data],
    key: PublicKey,
    *,
    previous: Head | None = None,
    max_rev: Tid | None = None,
) -> Head:
    """Check a decoded `#commit` payload as a strict relay does and return the new head.

    `previous` is the head after the event before, if known: the event must continue it.

    Raises: ProtocolError of some kind, InvalidRepo where no other fits.
    Spec: sync#message-validation-checklist (SYNC-30, SYNC-31, REPO-60..REPO-70, REPO-80)
    """
    car = payload.get("blocks")
    cid = payload.get("commit")
    if not isinstance(car, bytes) or not isinstance(cid, Cid):
        raise InvalidRepo("event has no blocks or no commit")
    if len(car) > MAX_COMMIT_CAR_BYTES:
        raise InvalidRepo("blocks are over the limit")
    if payload.get("tooBig") is not False or payload.get("rebase") is not False:
        raise InvalidRepo("tooBig and rebase must be false")
    if payload.get("blobs") != []:
        raise InvalidRepo("blobs must be an empty list")
    roots, blocks = read_car(car)
    if roots[:1] != (cid,) or cid not in blocks:
        raise InvalidRepo("the CAR does not start at the commit")
    commit = check_commit_block(cid, blocks[cid], key=key, max_rev=max_rev)
    if commit.did != payload.get("repo") or commit.rev != payload.get("rev"):
        raise InvalidRepo("event and commit name another repo or rev")
    ops = _parse_ops(payload.get("ops"))
    for op in ops:
        if op.cid is not None:
            if op.cid not in blocks:
                raise MissingBlock(op.cid)
            check_record_block(op.cid, blocks[op.cid])
    _check_chain(payload, commit, ops, blocks, previous)
    return Head(commit.did, cid, commit.rev, commit.data)


def _parse_ops(value: Data) -> list[RepoOp]:
    if not isinstance(value, list):
        raise InvalidRepo("event has no ops")
    ops: list[RepoOp] = []
    for item in value:
        if not isinstance(item, dict) or "cid" not in item:
            raise InvalidRepo("operation is not well formed")
        action, path, cid, prev = (item.get(name) for name in ("action", "path", "cid", "prev"))
        if action not in ("create", "update", "delete") or not isinstance(path, str):
            raise InvalidRepo("operation is not well formed")
        if not isinstance(cid, Cid | None) or not isinstance(prev, Cid | None):
            raise InvalidRepo("operation is not well formed")
        if "prev" in item and prev is None:
            raise InvalidRepo("an absent prev is left out, not null")
        ops.append(RepoOp(action, path, cid, prev))  # type: ignore[arg-type]
    check_ops(ops)
    return ops


def _check_chain(
    payload: Mapping[str, Data],
    commit: Commit,
    ops: Sequence[RepoOp],
    blocks: Mapping[Cid, bytes],
    previous: Head | None,
) -> None:
    """Check that the event continues the one before, by its words and by inversion (REPO-70)."""
    since, prev_data = payload.get("since"), payload.get("prevData")
    if "since" not in payload:
        raise InvalidRepo("event has no since")
    if since is None:
        if previous is not None or "prevData" in payload:
            raise InvalidRepo("only the first commit has no since")
        return
    if not isinstance(prev_data, Cid):
        raise InvalidRepo("event has no prevData")
    if not isinstance(since, str) or since >= commit.rev:
        raise InvalidRepo("rev does not grow")
    if previous is not None and (since, prev_data) != (previous.rev, previous.data):
        raise InvalidRepo("event does not continue the one before")
    if invert_ops(commit.data, ops, BlockMap(blocks)) != prev_data:
        raise InvalidRepo("operations do not lead back to prevData")


def verify_record_proof(
    root: Cid,
    blocks: Mapping[Cid, bytes],
    path: str,
    *,
    did: Did | None = None,
    key: PublicKey | None = None,
) -> bytes | None:
    """Return the record that a proof CAR proves under `path`, None for proven absence.

    Raises: InvalidRepo, MissingBlock, InvalidNode. Spec: REPO-50, REPO-51
    """
    source = BlockMap(blocks)
    commit = check_commit_block(root, source.get(root), did=did, key=key)
    cid = check_path(commit.data, path.encode("ascii"), ForeignNodes(source))
    if cid is None:
        return None
    block = source.get(cid)
    check_record_block(cid, block)
    return block
