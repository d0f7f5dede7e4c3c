"""Judges a repo that somebody wants to import, and takes it apart into rows: the long way.

The short way, for a CAR that holds only what is new, is `import_difference`, which judges, and
`import_apply`, which stores. `repo_import` chooses between the two; only this one refuses.

Runs in a process of its own (`import_process.py`): a large repo takes minutes of a core. What is
judged lies in files that both processes have open; what is found out is written to another, in
pieces that are small enough to be stored one by one, and only if nothing at all was wrong may any
of it be used.

Checked are: one root; a commit of this account, not from the future, signed with one of the given
keys; the tree in its one valid form, every key in its place; every record there, hashed, canonical,
in the data model and not too large. Blocks that the commit does not reach are left out.

Spec: (REPO-28, REPO-29, REPO-90, REPO-92, ACC-53)
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final

from pds.errors import ProtocolError, RequestError
from pds.protocol import cbor
from pds.protocol.car_index import CarIndex
from pds.protocol.cid import Cid
from pds.protocol.commit import Commit, verify_commit
from pds.protocol.keys import InvalidKey, parse_did_key
from pds.protocol.mst.node import MAX_DEPTH
from pds.protocol.mst.tree import BlockSource, MissingBlock
from pds.protocol.repo_verify import (
    InvalidRepo,
    RepoLimits,
    VerifiedBlock,
    check_commit_block,
    verify_repo,
)
from pds.protocol.syntax import Did, Tid
from pds.services.records_prepare import index_entries

BATCH_ROWS: Final = 400
BATCH_BYTES: Final = 400_000
"""Rows and bytes of one piece: as much as one job of the writer should store."""

_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """What to judge. `sources` are open files: the CAR, and others with blocks that it lacks."""

    did: str
    keys: tuple[str, ...]
    max_rev: str
    sources: tuple[int, ...]
    output: int
    max_blocks: int
    max_bytes: int
    max_depth: int = MAX_DEPTH


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRepo:
    """A repo in which nothing is wrong. `key` is the one that had signed it."""

    rev: str
    data: Cid
    records: int
    nodes: int
    size_bytes: int
    key: str


@dataclass(slots=True)
class RowBatch:
    """Rows to be stored together: nodes, records, references to blobs, and backlinks."""

    nodes: list[tuple[Cid, bytes]] = field(default_factory=list)
    records: list[tuple[str, Cid, bytes]] = field(default_factory=list)
    blob_refs: list[tuple[Cid, str]] = field(default_factory=list)
    backlinks: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ForeignCommit:
    """A commit that was checked by itself, and the key that had signed it."""

    cid: Cid
    commit: Commit
    key: str


class InvalidImport(ProtocolError):
    """A repo that is refused; `is_incomplete` when nothing was found but a block missing."""

    def __init__(self, message: str, *, is_incomplete: bool = False) -> None:
        super().__init__(message)
        self.is_incomplete = is_incomplete


class ImportOutdated(RequestError):
    """The repo is good, but older than one that its host has told of."""

    def __init__(self, rev: str, min_rev: str) -> None:
        super().__init__(
            "InvalidRequest", f"The repo is as of rev {rev}, and there is one of rev {min_rev}"
        )


def check_import(job: CheckJob) -> CheckedRepo:
    """Judge a repo and write its rows to `job.output`.

    Raises: InvalidImport; OSError when the disk is full.
    """
    with os.fdopen(os.dup(job.output), "wb") as output:
        try:
            return _check(job, BatchWriter(output, max_ref_bytes=job.max_bytes))
        except MissingBlock as error:
            raise InvalidImport(f"block {error.cid} is missing", is_incomplete=True) from error
        except ProtocolError as error:
            raise InvalidImport(str(error)) from error


def read_batches(stream: IO[bytes]) -> Iterator[RowBatch]:
    """Yield what `check_import` has written."""
    while head := stream.read(_LENGTH.size):
        content: Any = cbor.decode_trusted(stream.read(_LENGTH.unpack(head)[0]))
        yield RowBatch(
            nodes=[(Cid(cid), block) for cid, block in content["nodes"]],
            records=[(path, Cid(cid), block) for path, cid, block in content["records"]],
            blob_refs=[(Cid(cid), path) for cid, path in content["blob_refs"]],
            backlinks=[tuple(row) for row in content["backlinks"]],
        )


def _check(job: CheckJob, rows: "BatchWriter") -> CheckedRepo:
    sources = [
        CarIndex(partial(_read_at, source), max_blocks=job.max_blocks) for source in job.sources
    ]
    blocks = _Blocks(sources)
    limits = RepoLimits(job.max_blocks, job.max_bytes, job.max_depth)
    did, max_rev = Did(job.did), Tid(job.max_rev)
    signed = find_commit(sources[0].roots, blocks, did=did, max_rev=max_rev, keys=job.keys)
    commit = signed.commit
    nodes = records = size = 0
    for block in verify_repo(signed.cid, blocks, did=did, max_rev=max_rev, limits=limits):
        size += len(block.block)
        if block.kind == "node":
            nodes += 1
            rows.add_node(block.cid, block.block)
        elif block.kind == "record":
            records += 1
            add_record(block, rows)
    rows.flush()
    return CheckedRepo(
        rev=commit.rev,
        data=commit.data,
        records=records,
        nodes=nodes,
        size_bytes=size,
        key=signed.key,
    )


def _read_at(descriptor: int, size: int, place: int) -> bytes:
    return os.pread(descriptor, size, place)


def find_commit(
    roots: Sequence[Cid], blocks: BlockSource, *, did: Did, max_rev: Tid, keys: Sequence[str]
) -> ForeignCommit:
    """Return the commit at the one root: of this account, not from the future, signed by a key.

    Raises: InvalidRepo, InvalidCommit, MissingBlock. Spec: (REPO-5, REPO-6, ACC-53)
    """
    if len(roots) != 1:
        raise InvalidRepo("expected one root")
    commit = check_commit_block(roots[0], blocks.get(roots[0]), did=did, max_rev=max_rev)
    return ForeignCommit(roots[0], commit, _find_key(commit, keys))


def _find_key(commit: Commit, keys: Sequence[str]) -> str:
    """Return the key that signed a commit. Raises: InvalidRepo when it is none of these."""
    for did_key in keys:
        try:
            if verify_commit(commit, parse_did_key(did_key)):
                return did_key
        except InvalidKey:  # Of a kind that signs no repos: identities may list any.
            continue
    raise InvalidRepo("the commit is not signed with a key of this account")


def check_age(rev: str, min_rev: str | None) -> None:
    """Hold the rev of a repo against one that there is. Raises: ImportOutdated."""
    if min_rev is not None and rev < min_rev:
        raise ImportOutdated(rev, min_rev)


def add_record(found: VerifiedBlock, rows: "BatchWriter") -> None:
    """Add a record that was checked, with what the indexes keep of it."""
    path, block = found.path or "", found.block
    rows.add_record(path, found.cid, block)
    blobs, subject = index_entries(path, block)
    for cid in blobs:
        rows.add_blob_ref(cid, path)
    if subject is not None:
        rows.add_backlink(path.partition("/")[0], subject, path)


class _Blocks:
    """Several sources as one: what the first does not have is looked for in the next."""

    def __init__(self, sources: Sequence[BlockSource]) -> None:
        self._sources = sources

    def get(self, cid: Cid) -> bytes:
        for source in self._sources:
            try:
                return source.get(cid)
            except MissingBlock:  # Perhaps the next one has it.
                continue
        raise MissingBlock(cid)


class BatchWriter:
    """Collects rows into pieces of a bounded size.

    Records may refer to many things from under many long keys, and each time is a row: these take
    at most `max_ref_bytes`, or a small CAR would fill the disk.
    """

    def __init__(self, output: IO[bytes], *, max_ref_bytes: int) -> None:
        self._output = output
        self._ref_bytes_left = max_ref_bytes
        self._rows: dict[str, list[list[Any]]] = {}
        self._count = self._size = 0
        self._start()

    def _start(self) -> None:
        self._rows = {"nodes": [], "records": [], "blob_refs": [], "backlinks": []}
        self._count = self._size = 0

    def add_node(self, cid: Cid, block: bytes) -> None:
        """Add a node of the tree."""
        self._add("nodes", [bytes(cid), block], len(block))

    def add_record(self, path: str, cid: Cid, block: bytes) -> None:
        """Add a record."""
        self._add("records", [path, bytes(cid), block], len(block))

    def add_blob_ref(self, cid: Cid, path: str) -> None:
        """Add a blob that a record refers to. Raises: InvalidRepo beyond the limit."""
        self._add_ref("blob_refs", [bytes(cid), path])

    def add_backlink(self, collection: str, subject: str, path: str) -> None:
        """Add what a record points at. Raises: InvalidRepo beyond the limit."""
        self._add_ref("backlinks", [collection, subject, path])

    def _add_ref(self, kind: str, row: list[Any]) -> None:
        size = sum(len(part) for part in row)
        self._ref_bytes_left -= size
        if self._ref_bytes_left < 0:
            raise InvalidRepo("repo refers to more than the limit")
        self._add(kind, row, size)

    def _add(self, kind: str, row: list[Any], size: int) -> None:
        self._rows[kind].append(row)
        self._count += 1
        self._size += size
        if self._count >= BATCH_ROWS or self._size >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self._count:
            content = cbor.encode_trusted(self._rows)  # type: ignore[arg-type]
            self._output.write(_LENGTH.pack(len(content)) + content)
        self._start()
