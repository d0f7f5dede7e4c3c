"""Rows of every table from one engine to the other and back, compared one by one."""

import random
from pathlib import Path

import pytest

from pds.errors import Corrupt, Paused, StoreError, Unavailable
from pds.store.convert import compare_rows, copy_rows
from pds.store.convert_mark import (
    Mark,
    Stage,
    Superseded,
    check_may_start,
    check_may_write,
    encode_mark,
)
from pds.store.convert_postgres import PostgresSide, describe_url
from pds.store.convert_schema import Schema, Table, read_schema
from pds.store.convert_side import BATCH_BYTES, Side, key_of
from pds.store.convert_sqlite import SqliteSide
from pds.store.engine import Row, Txn
from pds.store.migrate import Migration, list_tables, load_migrations
from pds.store.postgres import PostgresEngine
from pds.store.postgres_link import PostgresSettings
from pds.store.sqlite import SqliteConnection, SqliteEngine, SqliteSettings
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import put
from tests.support_postgres import database_url

__all__ = ["database_url"]

TEXTS = ("", "a", "B", "'", "\\", "\t\n", "é", "\uffff", "\U0001f600", "app.bsky.feed.post/3k")
NUMBERS = (0, -1, 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63))


@pytest.fixture
def schema() -> Schema:
    return read_schema(load_migrations())


@pytest.fixture
def sqlite(tmp_path: Path):
    side = SqliteSide(tmp_path / "old" / "a.sqlite", is_target=True)
    side.create(1)
    yield side
    side.close()


@pytest.fixture
def postgres(database_url: str):
    side = PostgresSide(database_url, is_target=True)
    side.create(2)
    yield side
    side.close()


def tell(_rows: int) -> None:
    """Progress is not looked at here."""


def value_of(rng: random.Random, kind: str, number: int) -> int | str | bytes:
    match kind:
        case "int":
            return rng.choice(NUMBERS) if rng.random() < 0.3 else rng.randrange(10_000)
        case "key":
            return f"{rng.choice(TEXTS)}{rng.choice(TEXTS)}{number}"
    return rng.randbytes(rng.choice((0, 1, 36, 300))) + number.to_bytes(3)


def fill(side: SqliteSide, schema: Schema, rng: random.Random, rows: int) -> None:
    """Put rows into every durable table, with NULL wherever it may be."""
    for table in schema.tables:
        needed = {
            name
            for _, name, _, notnull, _, key in side.connection.execute(
                f"PRAGMA table_info({table.name})"
            )
            if notnull or key
        }
        made: dict[tuple[object, ...], Row] = {}
        for number in range(1 if table.name == "seq" else rows):
            row = tuple(
                value_of(rng, kind, number) if name in needed or rng.random() < 0.7 else None
                for name, kind in zip(table.columns, table.kinds, strict=True)
            )
            made[key_of(table)(row)] = (1, 7) if table.name == "seq" else row
        with side.transaction():
            side.connection.execute(f"DELETE FROM {table.name}")
            side.insert(table, list(made.values()))


def contents(side: Side, schema: Schema) -> dict[str, list[Row]]:
    return {
        table.name: [row for batch in side.scan(table) for row in batch] for table in schema.tables
    }


def convert(source: Side, target: Side, schema: Schema) -> dict[str, int]:
    changes = {}
    target.drop_indexes(schema.indexes)
    for table in schema.tables:
        copy_rows(source, target, table, tell)
        found = compare_rows(source, target, table, tell, is_final=True)
        changes[table.name] = found.changes
    for index in schema.indexes:
        target.make_index(index)
    return changes


def test_the_schema_is_the_one_that_sqlite_has(sqlite: SqliteSide, schema: Schema) -> None:
    for table in schema.tables:
        columns = sqlite.connection.execute(f"PRAGMA table_info({table.name})")
        kinds = {"INTEGER": "int", "TEXT": "key", "BLOB": "blob"}
        assert table.columns == tuple(row[1] for row in columns)
        assert table.kinds == tuple(kinds[row[2]] for row in columns)
        keyed = sorted((row[5], row[1]) for row in columns if row[5])
        assert table.key == tuple(name for _, name in keyed)
    names = {name for name, kind in list_tables(load_migrations()).items() if kind == "durable"}
    assert names == {table.name for table in schema.tables}
    listed = sqlite.connection.execute(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    )
    expected = {(name, "UNIQUE" in sql) for name, table, sql in listed if table in names}
    assert {(index.name, index.is_unique) for index in schema.indexes} == expected


@pytest.mark.parametrize("text", ["DROP TABLE fact;", "CREATE TABLE x (\n  a real\n);"])
def test_a_migration_that_is_not_understood_is_not_passed_over(text: str) -> None:
    with pytest.raises(Corrupt):
        read_schema([*load_migrations(), Migration(99, "odd", f"-- durable: odd.\n{text}")])


def test_every_value_survives_the_way_there_and_back(
    sqlite: SqliteSide, postgres: PostgresSide, schema: Schema, tmp_path: Path
) -> None:
    """Rows of all tables, in one order on both engines, with edge values of all types."""
    fill(sqlite, schema, random.Random(4), 150)
    before = contents(sqlite, schema)
    assert sum(map(len, before.values())) > 2000
    changes = convert(sqlite, postgres, schema)
    assert {name for name, count in changes.items() if count} == {"seq"}  # its row is there before
    assert contents(postgres, schema) == before
    back = SqliteSide(tmp_path / "new" / "b.sqlite", is_target=True)
    back.create(3)
    convert(postgres, back, schema)
    assert contents(back, schema) == before
    back.close()


@pytest.mark.parametrize("seed", range(2))
def test_compare_finds_every_kind_of_change(
    sqlite: SqliteSide, postgres: PostgresSide, schema: Schema, seed: int
) -> None:
    rng = random.Random(seed)
    fill(sqlite, schema, rng, 70)
    convert(sqlite, postgres, schema)
    for side in (sqlite, postgres):  # the values that are put in here may be there twice
        side.drop_indexes(schema.indexes)
    expected = {}
    for table in schema.tables:
        rows = [row for batch in sqlite.scan(table) for row in batch]
        changed = rng.sample(rows, min(len(rows) // 3, 30))
        key = key_of(table)
        gone, other = changed[:10], changed[10:20]
        sqlite.replace(table, [key(row) for row in gone], [])
        postgres.replace(table, [key(row) for row in changed[20:]], [])
        for row in other:
            values = list(row)
            at = rng.choice([at for at in range(len(row)) if at not in table.key_at] or [0])
            values[at] = value_of(rng, table.kinds[at], 1)
            if tuple(values) != row and at not in table.key_at:
                sqlite.replace(table, [key(row)], [tuple(values)])
        ours = {key(row): row for batch in sqlite.scan(table) for row in batch}
        theirs = {key(row): row for batch in postgres.scan(table) for row in batch}
        expected[table.name] = (
            sum(theirs.get(at) != row for at, row in ours.items()),
            len(theirs.keys() - ours.keys()),
        )
    assert sum(written for written, _ in expected.values()) > 50
    for table in schema.tables:
        found = compare_rows(sqlite, postgres, table, tell, is_final=True)
        assert (found.written, found.deleted) == expected[table.name], table.name
        again = compare_rows(sqlite, postgres, table, tell, is_final=True)
        assert (again.changes, again.digest) == (0, found.digest)
    assert contents(postgres, schema) == contents(sqlite, schema)


def test_a_copy_that_was_cut_off_goes_on_behind_its_last_row(
    sqlite: SqliteSide, postgres: PostgresSide, schema: Schema
) -> None:
    fill(sqlite, schema, random.Random(9), 200)
    for table in schema.tables:
        rows = [row for batch in sqlite.scan(table) for row in batch]
        postgres.drop_indexes(schema.indexes)
        postgres.replace(table, [key_of(table)(row) for row in rows], rows[: len(rows) // 2])
        assert copy_rows(sqlite, postgres, table, tell) == len(rows) - len(rows) // 2
    assert contents(postgres, schema) == contents(sqlite, schema)


@pytest.mark.parametrize("direction", ["read", "write"])
def test_batches_are_limited_by_their_size(
    sqlite: SqliteSide, postgres: PostgresSide, schema: Schema, direction: str
) -> None:
    table = next(table for table in schema.tables if table.name == "event")
    rows = [(n, 1, "commit", n, bytes(2_000_000)) for n in range(7)]
    sqlite.append(table, rows)
    if direction == "write":
        copy_rows(sqlite, postgres, table, tell)
    side = sqlite if direction == "read" else postgres
    batches = list(side.scan(table))
    assert [row for batch in batches for row in batch] == rows
    assert max(sum(len(row[4]) for row in batch) for batch in batches) <= BATCH_BYTES + 2_000_000


def test_a_text_that_postgres_cannot_hold_is_named(
    sqlite: SqliteSide, postgres: PostgresSide, schema: Schema
) -> None:
    table = next(table for table in schema.tables if table.name == "account_choice")
    sqlite.append(table, [(1, "good", b"x"), (2, "bad\0name", b"x")])
    with pytest.raises(StoreError, match=r"account_choice, row \(2, 'bad.*NUL"):
        copy_rows(sqlite, postgres, table, tell)


def test_two_conversions_do_not_fill_one_target(
    sqlite: SqliteSide, postgres: PostgresSide, database_url: str
) -> None:
    other = PostgresSide(database_url, is_target=True)
    with pytest.raises(Unavailable, match="another process is filling"):
        other.create(3)
    other.close()
    with pytest.raises(Unavailable, match="is in use"):
        SqliteSide(Path(sqlite.place), is_target=True)


def test_a_url_is_shown_without_its_password() -> None:
    shown = describe_url("postgresql://me:secret@db.example.org/pds")
    assert shown == "postgresql://db.example.org:5432/pds"


def put_blindly(txn: Txn, name: str) -> None:
    """Write without looking at any answer, so that everything may go out with the COMMIT."""
    txn.write_many("INSERT INTO fact (name, value) VALUES (?, ?)", [(name, b"1")])


def mark_of(stage: Stage) -> Mark:
    return Mark(stage, "ab", "the other one", 1_700_000_000_000_000)


@pytest.mark.parametrize("stage", list(Stage))
async def test_a_running_engine_obeys_the_mark(
    stage: Stage, tmp_path: Path, database_url: str
) -> None:
    """Whichever engine: the group after the mark is refused, and the one after its end is not."""
    path = tmp_path / "data" / "a.sqlite"
    sqlite = SqliteEngine(SqliteSettings(path), FakeClock())
    await sqlite.start()
    postgres = PostgresEngine(PostgresSettings(database_url, max_skew_s=None), FakeClock())
    await postgres.start()
    for engine, side in (
        (sqlite, SqliteSide(path)),
        (postgres, PostgresSide(database_url)),
    ):
        await engine.transact("put", put, "before")
        side.change_mark(lambda _: mark_of(stage))
        if stage in {Stage.COPYING, Stage.ARRIVED}:
            await engine.transact("put", put, "during")
            check_may_start(side.connection)
        else:
            for job in (put, put_blindly):
                with pytest.raises(Paused):
                    await engine.transact("put", job, "during")
            assert side.connection.execute("SELECT name FROM fact") == [("before",)]
            with pytest.raises(Superseded, match="the other one"):
                check_may_start(side.connection)
            refused = (
                SqliteEngine(SqliteSettings(tmp_path / "data" / "a.sqlite"), FakeClock())
                if engine is sqlite
                else PostgresEngine(PostgresSettings(database_url), FakeClock())
            )
            if engine is sqlite:
                await sqlite.close()
            with pytest.raises(Superseded):
                await refused.start()
            if engine is sqlite:
                side.close()
                continue
        side.change_mark(lambda _: None)
        await engine.transact("put", put, "after")
        side.close()
    await sqlite.close()
    await postgres.close()


def test_no_row_lets_every_write_pass() -> None:
    check_may_write([])
    check_may_write([(encode_mark(mark_of(Stage.COPYING)),)])
    with pytest.raises(Corrupt):
        check_may_write([(b"{}",)])


def test_an_empty_file_may_be_started_on(tmp_path: Path) -> None:
    connection = SqliteConnection(tmp_path / "x.sqlite", cache_bytes=1 << 20, writable=True)
    check_may_start(connection)
    connection.close()


def test_a_key_of_one_column_is_a_tuple_too() -> None:
    table = Table("t", ("a", "b"), ("int", "blob"), ("b",))
    assert key_of(table)((1, b"k")) == (b"k",)
