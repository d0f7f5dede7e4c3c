"""Judges a CAR that holds what is new of a repo, and costs what is new: the short way.

The long way, for a whole repo, is `import_check`. What is found good here is stored by
`import_apply`.

Who catches up with another host asks for what was written since some rev, and the repo that is
here has the rest. Then only the difference of the two trees is looked at: blocks come from the CAR
first, and from the tree that is here second. Nothing that this finds is believed:

* the commit is held against the same rules as that of a whole repo (`import_check.find_commit`);
* the two trees are compared, which gives some list of changes, whatever the CAR says;
* the changes are made in the tree that is here, by our own code. Only if its root is then the one
  that was signed, they were the difference: the root names the whole tree, its keys, their order
  and its form, and what was here was checked before;
* every record among the changes is checked as in a whole repo (`verify_record`, `add_record`).

Whatever does not work out, or is more than `DifferenceLimits`, is left to the check of the whole
repo, which finds out what is wrong. So nothing is refused here.

Spec: (REPO-28, REPO-29, REPO-45, REPO-90, REPO-92, ACC-53, ACC-54)
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, final

from pds.errors import ProtocolError
from pds.protocol import cbor
from pds.protocol.car_index import CarIndex
from pds.protocol.cid import Cid
from pds.protocol.mst.diff import diff_trees
from pds.protocol.mst.node import Node, decode_node, decode_own_node
from pds.protocol.mst.proof import Change
from pds.protocol.mst.tree import BlockSource, InvalidTree, MissingBlock, TreeEditor
from pds.protocol.repo_verify import verify_record
from pds.protocol.syntax import Did, Tid
from pds.services.import_check import BatchWriter, RowBatch, add_record, find_commit, read_batches
from pds.store.blobs import has_blob_refs
from pds.store.engine import Engine, Txn, Write
from pds.store.records import find_record_block
from pds.store.repos import StoredNodes


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceLimits:
    """How much a difference may be; what is more is imported whole."""

    car_bytes: int
    blocks: int
    ops: int
    """Records created, changed and deleted: one transaction stores them all."""
    nodes: int
    """Nodes read of both trees, each counted once; those of the CAR are checked, which costs."""
    node_bytes: int
    visits: int
    """Entries of nodes looked at while the trees are compared. Each node is met once in an honest
    tree; a tree that has one at many places is found out by this."""
    record_bytes: int
    """Records, under each path that one stands under."""
    ref_bytes: int
    """What records refer to, as rows."""


DIFFERENCE: Final = DifferenceLimits(
    car_bytes=4 << 20,
    blocks=20_000,
    ops=1_000,
    nodes=20_000,
    node_bytes=16 << 20,
    visits=200_000,
    record_bytes=4 << 20,
    ref_bytes=1 << 20,
)
SMALL_DIFFERENCE: Final = DifferenceLimits(
    car_bytes=128 << 10,
    blocks=20_000,
    ops=200,
    nodes=2_000,
    node_bytes=2 << 20,
    visits=20_000,
    record_bytes=128 << 10,
    ref_bytes=1 << 20,
)
"""So little that a reader thread may do it: some ten milliseconds, in turns with everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceJob:
    """What to judge: a difference to the tree at `held`, which is that of generation `repo_id`."""

    did: str
    keys: tuple[str, ...]
    max_rev: str
    repo_id: int
    held: Cid


@dataclass(frozen=True, slots=True)
class DifferenceOp:
    """A record that is another than before; None where there is none."""

    path: str
    before: Cid | None
    after: Cid | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What turns the repo that is here into the one that was signed: nothing in it is wrong."""

    rev: Tid
    data: Cid
    key: str
    ops: tuple[DifferenceOp, ...]
    new_nodes: int
    removed_nodes: tuple[Cid, ...]
    with_blobs: frozenset[str]
    """Paths of changed and deleted records that have referred to blobs until now."""
    rows: bytes

    def batches(self) -> list[RowBatch]:
        """Return the new rows."""
        return list(read_batches(BytesIO(self.rows)))


class NoDifference(Exception):
    """The CAR cannot be taken as a difference; `is_limit` when it only is more than a limit."""

    def __init__(self, reason: str, *, is_limit: bool) -> None:
        super().__init__(reason)
        self.is_limit = is_limit


class OverLimit(ProtocolError):
    """A difference is more than `DifferenceLimits` allow."""


async def find_difference(engine: Engine, job: DifferenceJob, car: bytes) -> Difference:
    """Judge a CAR where it slows nobody down: a small one on a reader, others apart.

    One that turns out to be more than it looked is judged a second time, apart.
    Raises: NoDifference; Unavailable.
    """
    if len(car) <= SMALL_DIFFERENCE.car_bytes:
        try:
            return await _find(engine, job, SMALL_DIFFERENCE, car, apart=False)
        except NoDifference as error:
            if not error.is_limit:
                raise
    return await _find(engine, job, DIFFERENCE, car, apart=True)


async def _find(
    engine: Engine, job: DifferenceJob, limits: DifferenceLimits, car: bytes, *, apart: bool
) -> Difference:
    content = bytearray()
    await engine.stream(
        "repo.import_difference",
        content.extend,
        judge_difference,
        job,
        limits,
        car,
        apart=apart,
    )
    return await asyncio.to_thread(read_difference, bytes(content))


def judge_difference(
    txn: Txn, write: Write, job: DifferenceJob, limits: DifferenceLimits, car: bytes
) -> None:
    """Judge a CAR and write what `read_difference` reads. For `Engine.stream`."""
    try:
        found = _judge(txn, job, limits, car)
    except ProtocolError as error:
        content: dict[str, Any] = {
            "reason": str(error),
            "is_limit": isinstance(error, OverLimit),
        }
    else:
        content = {
            "rev": found.rev,
            "data": bytes(found.data),
            "key": found.key,
            "ops": [[op.path, _raw(op.before), _raw(op.after)] for op in found.ops],
            "new_nodes": found.new_nodes,
            "removed_nodes": [bytes(cid) for cid in found.removed_nodes],
            "with_blobs": sorted(found.with_blobs),
            "rows": found.rows,
        }
    write(cbor.encode_trusted(content))


def read_difference(content: bytes) -> Difference:
    """Return what `judge_difference` found. Raises: NoDifference."""
    found: Any = cbor.decode_trusted(content)
    if "reason" in found:
        raise NoDifference(found["reason"], is_limit=found["is_limit"])
    return Difference(
        rev=Tid(found["rev"]),
        data=Cid(found["data"]),
        key=found["key"],
        ops=tuple(
            DifferenceOp(path, _cid(before), _cid(after)) for path, before, after in found["ops"]
        ),
        new_nodes=found["new_nodes"],
        removed_nodes=tuple(Cid(cid) for cid in found["removed_nodes"]),
        with_blobs=frozenset(found["with_blobs"]),
        rows=found["rows"],
    )


def _raw(cid: Cid | None) -> bytes | None:
    return None if cid is None else bytes(cid)


def _cid(raw: bytes | None) -> Cid | None:
    return None if raw is None else Cid(raw)


def _judge(txn: Txn, job: DifferenceJob, limits: DifferenceLimits, car: bytes) -> Difference:
    if len(car) > limits.car_bytes:
        raise OverLimit("the CAR is no small one")
    blocks = CarIndex(lambda size, place: car[place : place + size], max_blocks=limits.blocks)
    signed = find_commit(
        blocks.roots, blocks, did=Did(job.did), max_rev=Tid(job.max_rev), keys=job.keys
    )
    commit = signed.commit
    budget = _Budget(limits)
    held = _Nodes(StoredNodes(txn, job.repo_id), decode_own_node, budget)
    theirs = _Nodes(blocks, decode_node, budget, rest=held)
    changes = diff_trees(
        job.held, commit.data, _Visited(held, budget), _Visited(theirs, budget)
    ).changes
    if len(changes) > limits.ops:
        raise OverLimit("more records differ than one transaction stores")
    editor = _make(job.held, held, changes)
    if editor.flush() != commit.data:
        raise InvalidTree("the changes do not lead to the tree that was signed")
    output = BytesIO()
    rows = BatchWriter(output, max_ref_bytes=limits.ref_bytes)
    for node in editor.created.values():
        rows.add_node(node.cid, node.block)
    _add_records(rows, changes, _Blocks(blocks, txn, job.repo_id), limits.record_bytes)
    rows.flush()
    ops = tuple(DifferenceOp(key.decode("ascii"), *cids) for key, *cids in changes)
    return Difference(
        rev=commit.rev,
        data=commit.data,
        key=signed.key,
        ops=ops,
        new_nodes=len(editor.created),
        removed_nodes=tuple(editor.replaced),
        with_blobs=frozenset(
            op.path
            for op in ops
            if op.before is not None and has_blob_refs(txn, job.repo_id, op.path)
        ),
        rows=output.getvalue(),
    )


def _make(root: Cid, nodes: "_Nodes", changes: tuple[Change, ...]) -> TreeEditor:
    """Make the changes in the tree that is here.

    Raises: KeyExists, KeyMissing, TreeLimit, InvalidTree when they do not fit it.
    """
    editor = TreeEditor(root, nodes)
    for key, before, after in changes:
        if after is None:
            editor.delete(key)
        elif before is None:
            editor.insert(key, after)
        else:
            editor.update(key, after)
    return editor


def _add_records(
    rows: BatchWriter, changes: tuple[Change, ...], blocks: BlockSource, max_bytes: int
) -> None:
    """Check and add the records that are new. Raises: InvalidRepo, MissingBlock, OverLimit."""
    size = 0
    for key, _, after in changes:
        if after is not None:
            record = verify_record(key, after, blocks)
            size += len(record.block)
            if size > max_bytes:
                raise OverLimit("larger records differ than the limit")
            add_record(record, rows)


@final
class _Budget:
    """Counts what is read and looked at."""

    def __init__(self, limits: DifferenceLimits) -> None:
        self._nodes = limits.nodes
        self._bytes = limits.node_bytes
        self._visits = limits.visits

    def read(self, block: bytes) -> None:
        self._nodes -= 1
        self._bytes -= len(block)
        if self._nodes < 0 or self._bytes < 0:
            raise OverLimit("more nodes differ than the limit")

    def visit(self, node: Node) -> None:
        self._visits -= 1 + len(node.keys)
        if self._visits < 0:
            raise OverLimit("the comparison of the trees takes too long")


@final
class _Nodes:
    """Nodes of one source, each read and decoded once; what it lacks, `rest` has."""

    def __init__(
        self,
        blocks: BlockSource,
        decode: Callable[[Cid, bytes], Node],
        budget: _Budget,
        *,
        rest: "_Nodes | None" = None,
    ) -> None:
        self._blocks = blocks
        self._decode = decode
        self._budget = budget
        self._rest = rest
        self._nodes: dict[Cid, Node] = {}

    def node(self, cid: Cid) -> Node:
        """Return a node. Raises: MissingBlock, InvalidNode, OverLimit."""
        node = self._nodes.get(cid)
        if node is not None:
            return node
        try:
            block = self._blocks.get(cid)
        except MissingBlock:
            if self._rest is None:
                raise
            return self._rest.node(cid)
        self._budget.read(block)
        node = self._nodes[cid] = self._decode(cid, block)
        return node


@final
class _Visited:
    """Nodes while trees are compared: each time that one is looked at counts."""

    def __init__(self, nodes: _Nodes, budget: _Budget) -> None:
        self._nodes = nodes
        self._budget = budget

    def node(self, cid: Cid) -> Node:
        """Return a node. Raises: MissingBlock, InvalidNode, OverLimit."""
        node = self._nodes.node(cid)
        self._budget.visit(node)
        return node


@final
class _Blocks:
    """Blocks of records: one of the same content may be here, and then need not be sent."""

    def __init__(self, sent: BlockSource, txn: Txn, repo_id: int) -> None:
        self._sent = sent
        self._txn = txn
        self._repo_id = repo_id

    def get(self, cid: Cid) -> bytes:
        """Return the bytes of a block. Raises: MissingBlock."""
        try:
            return self._sent.get(cid)
        except MissingBlock:
            block = find_record_block(self._txn, self._repo_id, cid)
            if block is None:
                raise
            return block
