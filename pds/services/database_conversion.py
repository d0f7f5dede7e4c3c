"""Move a host from one database to another, with a pause that is announced.

1. *Copy*, while the server goes on: all rows, without the target's secondary indexes.
2. *Catch up*, while it goes on: all rows are compared, and what changed meanwhile is put right,
   until little changes between two rounds.
3. *Pause*: the source takes no more writes (503 with `Retry-After`; reads and the firehose go on).
   All rows are compared once more, which finds what is left and proves that both sides hold the
   same; every repo's head is looked at.
4. *Hand over*: the source is marked as left, then the target as complete. In this order, so
   that never both can be written to.

Any of it may be killed and run again: the marks say how far it was (`pds/store/convert_mark.py`),
and what is in the target already is not copied again. What fails or is interrupted during
the pause ends the pause; what is killed leaves it on, until it is run again or given up.

Tables declared `scratch` stay behind. Events are rows like others, so cursors of the firehose, and
the numbers after them, go on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from pds.errors import ConfigError, Corrupt, Unavailable
from pds.store.clock import US_PER_S
from pds.store.convert import Comparison, Heads, check_heads, compare_rows, copy_rows
from pds.store.convert_mark import Mark, Stage
from pds.store.convert_schema import Schema
from pds.store.convert_side import NotEmpty, Side
from pds.store.migrate import SCHEMA_VERSION

MAX_ROUNDS: Final = 4
FEW_CHANGES: Final = 2000
"""So few rows are written in well under a second: another round would not shorten the pause."""


class Step(StrEnum):
    """What a conversion is doing."""

    COPY = "copying"
    INDEX = "indexing"
    CATCH_UP = "catching up"
    COMPARE = "comparing (no writes now)"
    CHECK = "checking repos (no writes now)"
    HAND_OVER = "handing over (no writes now)"


@dataclass(frozen=True, slots=True)
class Progress:
    """`rows` more rows of `table` were dealt with, of `total` in it."""

    step: Step
    table: str
    rows: int
    total: int


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion would do. `present` are rows that the target has already."""

    rows: dict[str, int]
    present: dict[str, int]
    is_resumed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion has done."""

    tables: dict[str, Comparison]
    heads: Heads
    copied: int
    rounds: int
    copy_s: float
    pause_s: float

    @property
    def rows(self) -> int:
        """All rows, compared one by one."""
        return sum(found.rows for found in self.tables.values())

    @property
    def content_bytes(self) -> int:
        """The size of their content."""
        return sum(found.content_bytes for found in self.tables.values())


class Finished(Unavailable):
    """There is nothing to do: the host was moved there before."""


class DatabaseConversion:
    """One run from `source` to `target`."""

    def __init__(
        self,
        source: Side,
        target: Side,
        schema: Schema,
        *,
        new_id: str,
        now_us: Callable[[], int],
    ) -> None:
        self._source = source
        self._target = target
        self._schema = schema
        self._new_id = new_id
        self._now_us = now_us

    def run(self, tell: Tell) -> Report:
        """Move the host.

        Raises: NotEmpty when the target holds something else; Finished when this was done
        before; Unavailable, Corrupt; ConfigError.
        """
        began = time.monotonic()
        is_left = self._begin()
        copied = self._copy(tell)
        rounds = 0 if is_left else self._catch_up(tell)
        copy_s = time.monotonic() - began
        with self._pause() as mark:
            found = self._compare(tell)
            heads = check_heads(
                self._target, lambda rows: tell(Progress(Step.CHECK, "repo", rows, 0))
            )
            tell(Progress(Step.HAND_OVER, "", 0, 0))
            self._finish(mark)
        pause_s = (self._now_us() - mark.at_us) / US_PER_S
        self._target.settle()
        return Report(
            found,
            heads,
            copied,
            rounds,
            copy_s,
            pause_s,
        )

    def _begin(self) -> bool:
        """Mark both sides; return whether the source takes no more writes already."""
        is_resumed = _check(self._source, self._target)
        mark = self._target.read_mark()
        if not is_resumed and self._target.version:
            self._target.check_empty(self._schema)
        self._target.create(self._now_us())
        if self._target.migrations() != self._source.migrations():
            raise ConfigError("the databases were made by different versions of the program")
        if not is_resumed:
            self._target.check_empty(self._schema)
            self._source.change_mark(lambda old: self._first_mark(old, self._target.place))
            if self._target.read_mark() != mark:
                raise ConfigError("source and target are the same database")
            self._target.change_mark(self._claim)
            self._target.drop_indexes(self._schema.indexes)
        else:
            self._target.drop_indexes(index for index in self._schema.indexes if index.is_unique)
        mark = self._source.read_mark()
        return mark is not None and mark.stage in {Stage.PAUSED, Stage.MOVED}

    def _first_mark(self, old: Mark | None, other: str) -> Mark:
        if old is not None and old.stage in {Stage.PAUSED, Stage.MOVED, Stage.FILLING}:
            raise Unavailable(f"{self._source.place} is part of another conversion")
        return Mark(Stage.COPYING, self._new_id, other, self._now_us())

    def _claim(self, old: Mark | None) -> Mark:
        """Mark the target as incomplete, if it is still empty. Called while nobody writes."""
        self._target.check_empty(self._schema)
        return Mark(Stage.FILLING, self._new_id, self._source.place, self._now_us())

    def _copy(self, tell: Tell) -> int:
        copied = 0
        for table in self._schema.tables:
            total = self._source.count(table) - self._target.count(table)

            def note(rows: int, name: str = table.name, total: int = total) -> None:
                tell(Progress(Step.COPY, name, rows, total))

            copied += copy_rows(self._source, self._target, table, note)
        for index in self._schema.indexes:
            if not index.is_unique:
                tell(Progress(Step.INDEX, index.table, 0, 0))
                self._target.make_index(index)
        self._target.settle()
        return copied

    def _catch_up(self, tell: Tell) -> int:
        """Compare until little changes between two rounds; return how many there were."""
        for number in range(1, MAX_ROUNDS + 1):
            found = self._compare(tell, Step.CATCH_UP)
            if sum(table.changes for table in found.values()) <= FEW_CHANGES:
                return number
        return MAX_ROUNDS

    def _compare(self, tell: Tell, step: Step = Step.COMPARE) -> dict[str, Comparison]:
        found = {}
        for table in self._schema.tables:
            total = self._target.count(table) if step is Step.CATCH_UP else 0

            def note(rows: int, name: str = table.name, total: int = total) -> None:
                tell(Progress(step, name, rows, total))

            found[table.name] = compare_rows(
                self._source, self._target, table, note, is_final=step is Step.COMPARE
            )
        return found

    @contextmanager
    def _pause(self) -> Iterator[Mark]:
        """Refuse writes to the source for the block; if it fails, take them again."""
        mark = self._source.change_mark(self._paused)
        if mark is None:
            raise Corrupt(f"{self._source.place}: the mark of this conversion is gone")
        try:
            yield mark
        except BaseException:
            self._source.recover()
            self._source.change_mark(self._resumed)
            raise

    def _paused(self, old: Mark | None) -> Mark:
        if old is None or old.stage in {Stage.FILLING, Stage.ARRIVED}:
            raise Unavailable("the conversion was given up meanwhile")
        if old.stage is Stage.COPYING:
            return replace(old, stage=Stage.PAUSED, at_us=self._now_us())
        return old

    def _resumed(self, old: Mark | None) -> Mark | None:
        """Let writes pass again, unless the source had been left already."""
        if old is not None and old.stage is Stage.PAUSED:
            return replace(old, stage=Stage.COPYING, at_us=self._now_us())
        return old

    def _finish(self, mark: Mark) -> None:
        """Make the target complete and the source the one that was left."""
        if self._target.migrations() != self._source.migrations():
            raise Corrupt("the schema of a database changed during the conversion")
        for index in self._schema.indexes:
            if index.is_unique:
                self._target.make_index(index)
        self._source.change_mark(lambda old: self._moved(old, mark))
        self._target.change_mark(
            lambda _: Mark(Stage.ARRIVED, mark.conversion_id, self._source.place, self._now_us())
        )

    def _moved(self, old: Mark | None, paused: Mark) -> Mark:
        """Leave the source, if the pause that the rows were compared in still holds."""
        if old != paused:
            raise Unavailable("the pause was ended meanwhile: run the conversion again")
        return replace(paused, stage=Stage.MOVED)


def plan_conversion(source: Side, target: Side | None, schema: Schema) -> Plan:
    """Say what would be moved, and change nothing; `target` is None when it is not there yet.

    Raises: as `DatabaseConversion.run`.
    """
    is_resumed = _check(source, target)
    rows = {table.name: source.count(table) for table in schema.tables}
    present = dict.fromkeys(rows, 0)
    if target is not None and is_resumed:
        present = {table.name: target.count(table) for table in schema.tables}
    elif target is not None and target.version:
        target.check_empty(schema)
    return Plan(rows, present, is_resumed)


def _check(source: Side, target: Side | None) -> bool:
    """Return whether the target was begun to be filled from this source.

    Raises: NotEmpty, Finished, ConfigError, or Unavailable for a source that is itself incomplete.
    """
    if source.version != SCHEMA_VERSION:
        raise ConfigError(
            f"{source.place} has schema {source.version}, and this program {SCHEMA_VERSION}: start"
            " the server of this version on it once"
        )
    if target is not None and target.version not in {0, SCHEMA_VERSION}:
        raise NotEmpty(f"{target.place} has tables of another version: make it empty")
    ours = source.read_mark()
    theirs = target.read_mark() if target is not None else None
    if ours is not None and ours.stage is Stage.FILLING:
        raise Unavailable(f"{source.place} is itself not complete")
    if target is not None and ours is not None and theirs is not None:
        if ours == theirs:
            raise ConfigError("source and target are the same database")
        if ours.conversion_id == theirs.conversion_id:
            if theirs.stage is Stage.FILLING:
                return True
            if (ours.stage, theirs.stage) == (Stage.MOVED, Stage.ARRIVED):
                raise Finished(f"{source.place} was moved to {target.place} already")
    if target is not None and theirs is not None and theirs.stage is Stage.FILLING:
        raise NotEmpty(f"{target.place} is being filled from another database")
    if ours is not None and ours.stage in {Stage.PAUSED, Stage.MOVED}:
        raise NotEmpty(
            f"{source.place} is being moved to {ours.other}, or was; to give that up:"
            " `pds convert cancel`"
        )
    return False


def cancel_conversion(side: Side, *, is_sure: bool) -> str:
    """Make a database that is being left, or was, the one to use again; say what was done.

    A pause ends, and the conversion may be run again later. A database that was left takes
    writes again, and what was written to the other one is not in it: only when `is_sure`.

    Raises: ConfigError when there is nothing to cancel, or the operator is not sure.
    """
    mark = side.read_mark() if side.version else None
    match mark:
        case Mark(Stage.PAUSED):
            side.change_mark(lambda old: replace(old, stage=Stage.COPYING) if old == mark else old)
            return f"{side.place} takes writes again."
        case Mark(Stage.MOVED):
            if not is_sure:
                raise ConfigError(
                    f"this host was moved to {mark.other}. What was written there would be lost,"
                    " and relays refuse what comes after a step back in time. Stop every server"
                    " there, and if you are sure: `pds convert cancel --yes`"
                )
            side.change_mark(lambda old: None if old == mark else old)
            return f"{side.place} may be used again. Never start a server on {mark.other}."
        case Mark(Stage.FILLING):
            raise ConfigError(
                f"{side.place} is not complete: make it empty, or run the conversion again"
            )
        case _:
            raise ConfigError(f"{side.place} is not being moved")
