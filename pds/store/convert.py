"""Copy the rows of a table from one database to another, and compare them row by row.

`copy_rows` appends what lies behind the highest key that the target has. Rows come in the order of
their keys and each batch is a transaction, so that key is also where a copy that was cut off goes
on. While the source is written to, that leaves out what changed behind the copy's back.

`compare_rows` reads both sides in the order of their keys, all columns of all rows, and makes the
target the same: what is missing is added, what differs is replaced, what is too much is deleted. It
needs to know nothing of how rows change. Run while nobody writes to the source, it proves
that both hold the same; rows that it had to write are then read back.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from pds.errors import Corrupt, ProtocolError
from pds.protocol.cid import Cid
from pds.protocol.commit import decode_commit
from pds.store.convert_schema import Table
from pds.store.convert_side import BATCH_BYTES, ROW_BYTES, Key, Side, key_of
from pds.store.engine import Row

HEADS_AT_ONCE: Final = 200
_HEADS: Final = (
    "SELECT a.aid, a.did, r.commit_cid, r.rev, r.data_cid, r.commit_block,"
    " (SELECT n.bytes FROM node n WHERE n.repo_id = r.repo_id AND n.cid = r.data_cid)"
    " FROM account a LEFT JOIN repo r ON r.repo_id = a.repo_id"
    " WHERE a.aid > ? AND a.repo_id IS NOT NULL ORDER BY a.aid LIMIT ?"
)

Tell = Callable[[int], None]
"""Gets the number of rows that were just dealt with."""


@dataclass(slots=True)
class Comparison:
    """What `compare_rows` found in a table, and did.

    `digest` is the SHA-256 over all rows in the order of their keys, each in MessagePack.
    """

    rows: int = 0
    content_bytes: int = 0
    written: int = 0
    deleted: int = 0
    digest: str = ""

    @property
    def changes(self) -> int:
        """How many rows were not the same."""
        return self.written + self.deleted


@dataclass(slots=True)
class _Stretch:
    """Rows of the source that follow each other, and what is wrong with the target there."""

    rows: list[Row]
    wrong: list[Key] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)


def copy_rows(source: Side, target: Side, table: Table, tell: Tell) -> int:
    """Append the rows that come after the target's last key; return how many."""
    copied = 0
    for batch in source.scan(table, target.last_key(table)):
        target.append(table, batch)
        copied += len(batch)
        tell(len(batch))
    return copied


def compare_rows(
    source: Side, target: Side, table: Table, tell: Tell, *, is_final: bool
) -> Comparison:
    """Make the target's table the same as the source's.

    `is_final` says that nobody writes to the source: then the digest is taken, and rows that had to
    be written are read back. Raises: Corrupt when the target does not hold what was written to it.
    """
    found = Comparison()
    digest = hashlib.sha256()
    encode = msgspec.msgpack.Encoder().encode
    repair = _Repair(source, target, table, is_final=is_final)
    for stretch in _align(table, source.scan(table), target.scan(table)):
        found.rows += len(stretch.rows)
        if is_final:
            content = b"".join(map(encode, stretch.rows))
            found.content_bytes += len(content)
            digest.update(content)
        if stretch.wrong or stretch.missing:
            repair.add(stretch.wrong, stretch.missing)
        tell(len(stretch.rows))
    repair.flush()
    found.written, found.deleted = repair.written, repair.deleted
    found.digest = digest.hexdigest() if is_final else ""
    return found


class _Repair:
    """Writes to the target what was found wrong, many rows to a transaction."""

    def __init__(self, source: Side, target: Side, table: Table, *, is_final: bool) -> None:
        self._source = source
        self._target = target
        self._table = table
        self._is_final = is_final
        self._wrong: list[Key] = []
        self._missing: list[Row] = []
        self._size = 0
        self.written = 0
        self.deleted = 0

    def add(self, wrong: list[Key], missing: list[Row]) -> None:
        self._wrong += wrong
        self._missing += missing
        at = self._table.content_at
        self._size += ROW_BYTES * (len(wrong) + len(missing))
        if at is not None:
            self._size += sum(len(row[at]) for row in missing if row[at] is not None)
        if self._size >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._size:
            return
        self._target.replace(self._table, self._wrong, self._missing)
        key = key_of(self._table)
        rows = {key(row): row for row in self._missing}
        self.written += len(rows)
        self.deleted += len(set(self._wrong) - set(rows))
        if self._is_final:
            for wanted in {*self._wrong, *rows}:
                if self._target.find(self._table, wanted) != rows.get(wanted):
                    raise Corrupt(
                        f"{self._target.place}: table {self._table.name}, row {wanted} is not"
                        " what was written"
                    )
        self._wrong, self._missing, self._size = [], [], 0


def _align(
    table: Table, source: Iterator[list[Row]], target: Iterator[list[Row]]
) -> Iterator[_Stretch]:
    """Yield the source's rows in stretches, each held against the target's of the same keys.

    Where both sides are the same, whole lists are compared at once.
    """
    key = key_of(table)
    ours: list[Row] = []
    theirs: list[Row] = []
    while True:
        ours = ours or next(source, [])
        theirs = theirs or next(target, [])
        if not ours and not theirs:
            return
        count = min(len(ours), len(theirs))
        if count and ours[:count] == theirs[:count]:
            yield _Stretch(ours[:count])
            ours, theirs = ours[count:], theirs[count:]
            continue
        ends = [key(rows[-1]) for rows in (ours, theirs) if rows]
        end = min(ends)
        cut = bisect_right(ours, end, key=key)
        other = bisect_right(theirs, end, key=key)
        yield _difference(key, ours[:cut], theirs[:other])
        ours, theirs = ours[cut:], theirs[other:]


def _difference(key: Callable[[Row], Key], ours: list[Row], theirs: list[Row]) -> _Stretch:
    """Hold two lists with the same range of keys against each other."""
    there = {key(row): row for row in theirs}
    missing: list[Row] = []
    wrong: list[Key] = []
    for row in ours:
        other = there.pop(key(row), None)
        if other != row:
            missing.append(row)
            if other is not None:
                wrong.append(key(row))
    wrong += there
    return _Stretch(ours, wrong, missing)


@dataclass(frozen=True, slots=True)
class Heads:
    """How many repos there are, and what is wrong with the heads of some."""

    count: int
    faults: tuple[str, ...]


def check_heads(side: Side, tell: Tell) -> Heads:
    """Look at the head of every repo: commit, rev and root of the tree.

    Spec: REPO-1
    """
    count, after = 0, 0
    faults: list[str] = []
    while rows := side.connection.execute(_HEADS, (after, HEADS_AT_ONCE)):
        for _, did, *head in rows:
            fault = _find_fault(did, tuple(head))
            if fault is not None:
                faults.append(f"the repo of {did}: {fault}")
        count += len(rows)
        after = rows[-1][0]
        tell(len(rows))
    return Heads(count, tuple(faults))


def _find_fault(did: str, head: Row) -> str | None:
    """Return what is wrong with a head, or None."""
    commit_cid, rev, data_cid, block, root = head
    if commit_cid is None:
        return "there is no head"
    try:
        commit = decode_commit(block)
    except ProtocolError as error:
        return str(error)
    if Cid.of_data(block) != commit_cid:
        return "the commit does not have its CID"
    if (commit.did, commit.rev, commit.data) != (did, rev, data_cid):
        return "the commit is another one's"
    if root is None or Cid.of_data(root) != commit.data:
        return "the root of the tree is missing or damaged"
    return None
