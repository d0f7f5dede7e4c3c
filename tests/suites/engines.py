"""Engines for tests: back ends that suites run on, and engines whose write log is proven.

Use `open_engine(folder, clock)` (or the fixture `recording_engine`, importable into a conftest) for
any test that needs a store: when it closes, its log of writes is replayed into an empty database,
which must then hold the same rows. So every test of the program that writes is also a test of the
log.

`PDS_TEST_ENGINE=postgres` gives all of them PostgreSQL instead of SQLite (`make test-postgres`).
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from pds.store.base import QueueLimits, ThreadedEngine
from pds.store.clock import Clock
from pds.store.engine import MakeDurable, Recorder, Row, Statement
from pds.store.maintenance import MaintenanceSettings
from pds.store.postgres import PostgresEngine
from pds.store.postgres_link import Link, PostgresSettings
from pds.store.replay import WriteLog, compare, dump_rows, replay
from pds.store.sqlite import (
    SqliteConnection,
    SqliteEngine,
    SqliteSettings,
    migrate_connection,
)
from pds.store.writer import nothing_more
from tests.fakes.clock import FakeClock
from tests.support_postgres import drop_database, is_chosen, make_migrated


class Backend(Protocol):
    """One kind of database, as a suite needs it: one database that may be opened repeatedly."""

    def engine(
        self,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
        limits: QueueLimits | None = None,
    ) -> ThreadedEngine:
        """An engine, not started, on the same database as before."""

    def dump(self) -> dict[str, list[Row]]:
        """All rows, while no engine is open."""

    def dump_replayed(self, groups: Sequence[Sequence[Statement]]) -> dict[str, list[Row]]:
        """All rows of a new database into which `groups` were replayed."""


class SqliteBackend:
    """The SQLite engine on a file in `folder`, with little caches."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store" / "pds.sqlite"
        self._replays = 0

    def settings(self, **changes: Any) -> SqliteSettings:
        """Settings that suit tests."""
        values: dict[str, Any] = {
            "path": self.path,
            "readers": 2,
            "cache_bytes": 4 << 20,
            "reader_cache_bytes": 1 << 20,
            "maintenance": MaintenanceSettings(free_warning_bytes=0),
        }
        return SqliteSettings(**(values | changes))

    def engine(
        self,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
        limits: QueueLimits | None = None,
    ) -> SqliteEngine:
        """An engine, not started."""
        settings = self.settings(limits=limits or QueueLimits())
        return SqliteEngine(settings, clock, recorder=recorder, make_durable=make_durable)

    def dump(self) -> dict[str, list[Row]]:
        """All rows."""
        return self._dump(SqliteConnection(self.path, cache_bytes=1 << 20, writable=True))

    def dump_replayed(self, groups: Sequence[Sequence[Statement]]) -> dict[str, list[Row]]:
        """All rows of a new database after a replay."""
        self._replays += 1
        path = self.path.with_name(f"replay-{self._replays}.sqlite")
        connection = SqliteConnection(path, cache_bytes=1 << 20, writable=True)
        connection.execute("PRAGMA synchronous = OFF")
        migrate_connection(connection, now_us=0)
        replay(groups, connection)
        return self._dump(connection)

    def _dump(self, connection: SqliteConnection) -> dict[str, list[Row]]:
        try:
            return dump_rows(connection)
        finally:
            connection.close()


class PostgresBackend:
    """The PostgreSQL engine on one database; the clock of tests is not compared with its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def settings(self, **changes: Any) -> PostgresSettings:
        """Settings that suit tests."""
        values: dict[str, Any] = {
            "url": self.url, "readers": 2, "poll_s": 0.05, "reconnect_s": 5.0, "max_skew_s": None,
        }  # fmt: skip
        return PostgresSettings(**(values | changes))

    def engine(
        self,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
        limits: QueueLimits | None = None,
    ) -> PostgresEngine:
        """An engine, not started."""
        settings = self.settings(limits=limits or QueueLimits())
        return PostgresEngine(settings, clock, recorder=recorder, make_durable=make_durable)

    def dump(self) -> dict[str, list[Row]]:
        """All rows."""
        return self._dump(self.url)

    def dump_replayed(self, groups: Sequence[Sequence[Statement]]) -> dict[str, list[Row]]:
        """All rows of a new database after a replay."""
        url = make_migrated(self.url)
        link = Link(url, {})
        link.open()
        try:
            replay(groups, link)
            return self._dump(url)
        finally:
            link.close()
            drop_database(url)

    def _dump(self, url: str) -> dict[str, list[Row]]:
        link = Link(url, {})
        link.open()
        try:
            return dump_rows(link)
        finally:
            link.close()


@asynccontextmanager
async def open_engine(folder: Path, clock: Clock | None = None) -> AsyncIterator[ThreadedEngine]:
    """An engine on a new database; at the end its write log is replayed and compared."""
    if not is_chosen():
        async with _proven(SqliteBackend(folder), clock) as engine:
            yield engine
        return
    backend = PostgresBackend(make_migrated())
    try:
        async with _proven(backend, clock) as engine:
            yield engine
    finally:
        drop_database(backend.url)


@asynccontextmanager
async def _proven(backend: Backend, clock: Clock | None) -> AsyncIterator[ThreadedEngine]:
    log = WriteLog()
    engine = backend.engine(clock or FakeClock(), recorder=log)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
    assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


@pytest.fixture
async def recording_engine(tmp_path: Path) -> AsyncIterator[ThreadedEngine]:
    """`open_engine` in the test's folder, with a clock that stands still."""
    async with open_engine(tmp_path) as engine:
        yield engine
