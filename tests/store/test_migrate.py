"""Migrations: whole or not at all, and a database that is too new is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from pds.errors import Corrupt, StoreError
from pds.store import migrate
from pds.store.migrate import (
    SCHEMA_COMPAT,
    SCHEMA_VERSION,
    Migration,
    SchemaState,
    SchemaTooNew,
    apply_missing,
    check_state,
    list_tables,
    load_migrations,
    read_state,
    render,
)
from pds.store.sqlite import (
    SQL_TYPES,
    SqliteConnection,
    SqliteSettings,
    migrate_connection,
    try_migrations,
)
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import count, put
from tests.suites.engines import SqliteBackend

SECOND = Migration(
    SCHEMA_VERSION + 1,
    "next_more",
    "-- durable: more.\nCREATE TABLE more (id {int} PRIMARY KEY, x {blob});",
)
BROKEN = Migration(
    SCHEMA_VERSION + 2, "next_broken", "CREATE TABLE last (id {int});\nDROP TABLE nowhere;"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sqlite"


def connect(path: Path) -> SqliteConnection:
    return SqliteConnection(path, cache_bytes=1 << 20, writable=True)


def apply(connection: SqliteConnection, *more: Migration, compat: int = 1) -> list[str]:
    """Apply our migrations and `more` in one transaction, as the engine does."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        names = apply_missing(
            connection, [*load_migrations(), *more], types=SQL_TYPES, compat=compat, now_us=5
        )
        connection.execute("COMMIT")
    finally:
        connection.end()
    return names


def test_our_migrations_are_numbered_without_gaps() -> None:
    versions = [migration.version for migration in load_migrations()]
    assert versions == list(range(1, SCHEMA_VERSION + 1))
    assert 1 <= SCHEMA_COMPAT <= SCHEMA_VERSION


def test_every_table_is_declared_durable_or_scratch_and_has_a_primary_key() -> None:
    migrations = load_migrations()
    declared = list_tables(migrations)
    created = [
        statement
        for migration in migrations
        for statement in render(migration.template, SQL_TYPES)
        if statement.startswith("CREATE TABLE")
    ]
    assert len(created) == len(declared)
    assert all("PRIMARY KEY" in statement for statement in created)
    assert not any("AUTOINCREMENT" in statement for statement in created)
    assert set(declared.values()) <= {"durable", "scratch"}


def test_tables_that_carry_bytes_are_rowid_tables() -> None:
    """WITHOUT ROWID with large rows measured twice the cost of a write."""
    for statement in render(load_migrations()[0].template, SQL_TYPES):
        if statement.split()[2] in ("record", "node", "event", "repo"):
            assert "WITHOUT ROWID" not in statement


def test_rendering_leaves_out_comments_and_keeps_literals() -> None:
    template = "-- a; comment\nCREATE TABLE a (b {int} DEFAULT ';--' -- c\n) {rowless};\nSELECT 1;"
    assert render(template, SQL_TYPES) == [
        "CREATE TABLE a (b INTEGER DEFAULT ';--' \n) WITHOUT ROWID, STRICT",
        "SELECT 1",
    ]
    plain = SQL_TYPES | {"rowless": "", "strict": ""}
    assert render("CREATE TABLE a (b {int}) {rowless};", plain) == ["CREATE TABLE a (b INTEGER)"]
    with pytest.raises(Corrupt, match="semicolon"):
        render("SELECT 1", SQL_TYPES)


def test_a_new_database_gets_all_migrations_and_the_next_start_none(path: Path) -> None:
    connection = connect(path)
    assert read_state(connection) == SchemaState(0, 0)
    assert migrate_connection(connection, now_us=1) == [m.name for m in load_migrations()]
    assert read_state(connection) == SchemaState(SCHEMA_VERSION, SCHEMA_COMPAT)
    assert migrate_connection(connection, now_us=1) == []
    connection.close()


def test_an_upgrade_keeps_the_rows_and_happens_wholly_or_not_at_all(path: Path) -> None:
    connection = connect(path)
    apply(connection)
    connection.execute("INSERT INTO fact (name, value) VALUES ('a', x'01')")
    with pytest.raises(StoreError):
        apply(connection, SECOND, BROKEN)
    assert read_state(connection) == SchemaState(SCHEMA_VERSION, SCHEMA_COMPAT)
    assert not connection.has_table("more")
    assert not connection.has_table("last")
    assert apply(connection, SECOND) == ["next_more"]
    assert connection.has_table("more")
    assert connection.execute("SELECT name FROM fact") == [("a",)]
    connection.close()


def test_a_newer_database_is_used_as_long_as_it_says_that_we_may(path: Path) -> None:
    connection = connect(path)
    apply(connection, SECOND, compat=1)
    assert migrate_connection(connection, now_us=1) == []
    third = Migration(SCHEMA_VERSION + 2, "next_gone", "DROP TABLE more;")
    apply(connection, SECOND, third, compat=SCHEMA_VERSION + 2)
    with pytest.raises(SchemaTooNew, match=f"schema {SCHEMA_VERSION + 2}"):
        check_state(connection, load_migrations(), version=SCHEMA_VERSION)
    with pytest.raises(SchemaTooNew):
        migrate_connection(connection, now_us=1)
    connection.close()


async def test_the_engine_refuses_a_database_that_is_too_new(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    engine = backend.engine(FakeClock())
    await engine.start()
    await engine.transact("put", put, "a")
    await engine.close()
    connection = connect(backend.path)
    connection.execute("UPDATE migration SET compat = 999")
    connection.close()
    with pytest.raises(SchemaTooNew):
        await backend.engine(FakeClock()).start()
    connection = connect(backend.path)
    connection.execute("UPDATE migration SET compat = 1")
    connection.close()
    engine = backend.engine(FakeClock())
    await engine.start()
    assert await engine.read("count", count) == 1
    await engine.close()


def test_a_migration_that_changed_after_it_was_applied_is_noticed(path: Path) -> None:
    connection = connect(path)
    apply(connection)
    connection.execute("UPDATE migration SET checksum = 'other'")
    with pytest.raises(Corrupt, match="changed after it was applied"):
        migrate_connection(connection, now_us=1)
    connection.close()


async def test_a_dry_run_works_on_a_copy_beside_a_running_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = SqliteBackend(tmp_path)
    engine = backend.engine(FakeClock())
    await engine.start()
    await engine.transact("put", put, "a")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert try_migrations(backend.path, scratch, now_us=1) == []
    ours = load_migrations()
    monkeypatch.setattr("pds.store.sqlite.load_migrations", lambda: (*ours, SECOND))
    assert try_migrations(backend.path, scratch, now_us=1) == ["next_more"]
    monkeypatch.setattr("pds.store.sqlite.load_migrations", lambda: (*ours, SECOND, BROKEN))
    with pytest.raises(StoreError):
        try_migrations(backend.path, scratch, now_us=1)
    assert list(scratch.iterdir()) == []
    await engine.transact("put", put, "b")
    await engine.close()
    connection = connect(backend.path)
    assert read_state(connection).version == SCHEMA_VERSION
    assert not connection.has_table("more")
    connection.close()


def test_migrating_needs_no_driver() -> None:
    code = "import sys, pds.store.migrate; sys.exit('apsw' in sys.modules)"
    root = Path(migrate.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
    assert SqliteSettings(path=Path("x")).readers >= 1
