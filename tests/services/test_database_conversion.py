"""The steps of a conversion: writes behind its back, failures in each step, marks that refuse."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pds.errors import ConfigError, Unavailable
from pds.services.database_conversion import (
    DatabaseConversion,
    Finished,
    Progress,
    Report,
    Step,
    cancel_conversion,
    plan_conversion,
)
from pds.store.convert import compare_rows
from pds.store.convert_mark import Mark, Stage
from pds.store.convert_postgres import PostgresSide
from pds.store.convert_schema import read_schema
from pds.store.convert_side import NotEmpty, Side, key_of, select_rows
from pds.store.convert_sqlite import SqliteSide
from pds.store.migrate import load_migrations
from tests.store.test_convert import contents, fill
from tests.support_postgres import database_url

__all__ = ["database_url"]

SCHEMA = read_schema(load_migrations())
RECORD = next(table for table in SCHEMA.tables if table.name == "record")
ACCOUNT = next(table for table in SCHEMA.tables if table.name == "account")

Sides = tuple[Side, Side]


@pytest.fixture
def sides(tmp_path: Path, database_url: str):
    """A filled SQLite database and an empty one of PostgreSQL."""
    source = SqliteSide(tmp_path / "one" / "a.sqlite", is_target=True)
    source.create(1)
    fill(source, SCHEMA, random.Random(2), 30)
    target = PostgresSide(database_url, is_target=True)
    yield source, target
    source.close()
    target.close()


@pytest.fixture(params=["to postgres", "to sqlite"])
def both_ways(request, sides: Sides, tmp_path: Path):
    """The same, and the other way round."""
    sqlite, postgres = sides
    if request.param == "to postgres":
        yield sides
        return
    postgres.create(2)
    postgres.drop_indexes(SCHEMA.indexes)
    for table in SCHEMA.tables:
        compare_rows(sqlite, postgres, table, lambda _: None, is_final=False)
    target = SqliteSide(tmp_path / "two" / "b.sqlite", is_target=True)
    yield postgres, target
    target.close()


def convert(
    source: Side,
    target: Side,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Report:
    times = iter(range(1_000_000, 9_000_000, 1000))
    conversion = DatabaseConversion(
        source, target, SCHEMA, new_id="first", now_us=lambda: next(times)
    )
    return conversion.run(tell)


def stages(*sides: Side) -> list[Stage | None]:
    marks = [side.read_mark() for side in sides]
    return [mark.stage if mark is not None else None for mark in marks]


def records(side: Side) -> list[tuple[object, ...]]:
    return [row for batch in side.scan(RECORD) for row in batch]


def test_what_is_written_meanwhile_comes_along(both_ways: Sides) -> None:
    """Rows added, changed and deleted while others are copied, and names that change places."""
    source, target = both_ways
    done: set[Step] = set()
    accounts = [row for batch in source.scan(ACCOUNT) for row in batch if row[2] is not None]

    def interfere(progress: Progress) -> None:
        if progress.table != "record" or progress.step in done:
            return
        if progress.step not in {Step.COPY, Step.CATCH_UP}:
            return
        done.add(progress.step)
        rows = source.connection.execute(select_rows(RECORD, " WHERE path NOT LIKE '%ing'"))
        key = key_of(RECORD)
        changed = [(*row[:4], b"changed") for row in rows[5:10]]
        added = [(1, f"{n:02d} {progress.step}", b"c", "r", b"new") for n in range(5)]
        source.replace(RECORD, [key(row) for row in rows[:10]], changed + added)
        one, other = accounts[0], accounts[1]
        handles = (one[2], other[2]) if len(done) % 2 else (other[2], one[2])
        swapped = [
            (*row[:2], handle, *row[3:]) for row, handle in zip((other, one), handles, strict=True)
        ]
        source.replace(ACCOUNT, [(one[0],), (other[0],)], swapped)

    report = convert(source, target, interfere)
    assert done == {Step.COPY, Step.CATCH_UP}
    assert report.rounds >= 1
    assert contents(target, SCHEMA) == contents(source, SCHEMA)
    assert len([row for row in records(target) if row[4] == b"new"]) == 10
    assert stages(source, target) == [Stage.MOVED, Stage.ARRIVED]
    indexes = {index.name for index in SCHEMA.indexes}
    catalog = (
        "SELECT name FROM sqlite_master WHERE type = 'index'"
        if isinstance(target, SqliteSide)
        else "SELECT indexname FROM pg_indexes"
    )
    assert indexes <= {row[0] for row in target.connection.execute(catalog)}


def test_interrupted_in_any_step_the_source_takes_writes_again(both_ways: Sides) -> None:
    source, target = both_ways
    for step in Step:

        def interrupt(progress: Progress, step: Step = step) -> None:
            if progress.step is step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, target, interrupt)
        assert stages(source, target) == [Stage.COPYING, Stage.FILLING]
        target.recover()
    plan = plan_conversion(source, target, SCHEMA)
    assert plan.is_resumed
    assert plan.present == plan.rows
    report = convert(source, target)
    assert report.rows == sum(plan.rows.values())
    assert contents(target, SCHEMA) == contents(source, SCHEMA)
    with pytest.raises(Finished):
        convert(source, target)


def test_a_conversion_that_is_given_up_in_the_pause_is_not_handed_over(sides: Sides) -> None:
    source, target = sides

    def give_up(progress: Progress) -> None:
        if progress.step is Step.HAND_OVER:
            cancel_conversion(source, is_sure=False)

    with pytest.raises(Unavailable, match="ended meanwhile"):
        convert(source, target, give_up)
    assert stages(source, target) == [Stage.COPYING, Stage.FILLING]


def test_a_head_that_is_damaged_is_named_and_moved(sides: Sides) -> None:
    """The rows of this test are random, so no account has a repo that is whole."""
    source, target = sides
    report = convert(source, target)
    assert report.heads.count > 0
    assert len(report.heads.faults) == report.heads.count


def test_only_a_target_of_this_conversion_is_filled(sides: Sides) -> None:
    source, target = sides
    target.create(1)
    target.append(RECORD, [(1, "a", b"c", "r", b"x")])
    with pytest.raises(NotEmpty):
        convert(source, target)
    target.replace(RECORD, [(1, "a")], [])
    target.change_mark(lambda _: Mark(Stage.FILLING, "other", "elsewhere", 1))
    with pytest.raises(NotEmpty, match="from another"):
        convert(source, target)
    with pytest.raises(Unavailable, match="not complete"):
        convert(target, source)
    with pytest.raises(ConfigError, match="not complete"):
        cancel_conversion(target, is_sure=True)
    target.change_mark(lambda _: None)
    source.change_mark(lambda _: Mark(Stage.PAUSED, "other", "elsewhere", 1))
    with pytest.raises(NotEmpty, match="elsewhere"):
        convert(source, target)
    source.change_mark(lambda _: None)
    target.connection.execute("DELETE FROM migration WHERE version = 4")
    with pytest.raises(NotEmpty, match="another version"):
        convert(source, target)
    with pytest.raises(ConfigError, match="start the server of this version"):
        convert(target, source)
