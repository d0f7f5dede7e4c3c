"""The SQLite engine: one file in WAL mode, one writer, a few readers, one maintenance thread.

The only module that imports apsw. apsw brings its own, current SQLite: versions up to 3.51.2 can
lose committed data when two connections write and checkpoint at the same instant (fixed in 3.51.3,
3.50.7 and 3.44.6), and this engine always has several connections, so it refuses to start on one.

Durability: WAL with `synchronous=FULL`, one sync of the log for each group. After a failed COMMIT
the connection is thrown away. `reopen` accepts the database only if its last number is the one that
was last answered, and makes one small commit: that proves that writing works again, and it
overwrites frames of the failed group that may lie in the log, so that they can never come to
life after a crash.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw

from pds.errors import Conflict, Corrupt, StoreError, Unavailable
from pds.store.base import (
    DatabaseReport,
    EngineConnection,
    Opened,
    QueueLimits,
    ThreadedEngine,
)
from pds.store.clock import Clock, SystemClock
from pds.store.convert_mark import READ_MARK, check_may_start, check_may_write
from pds.store.engine import MakeDurable, Params, Recorder, Row, Statement
from pds.store.events import insert_statements
from pds.store.lock import FolderLock
from pds.store.maintenance import Maintenance, MaintenanceSettings
from pds.store.migrate import (
    SCHEMA_COMPAT,
    SCHEMA_VERSION,
    apply_missing,
    check_state,
    load_migrations,
)
from pds.store.reader import ReadConnection, ReaderPool
from pds.store.writer import nothing_more

SQL_TYPES: Final = {
    "blob": "BLOB",
    "int": "INTEGER",
    "key": "TEXT",
    "rowless": "WITHOUT ROWID",
    "strict": "STRICT",
}
PAGE_BYTES: Final = 4096
BUSY_TIMEOUT_MS: Final = 10_000
JOURNAL_SIZE_LIMIT: Final = 32 << 20
STATEMENT_CACHE: Final = 400
_UNIQUE_CODES: Final = frozenset(
    {apsw.SQLITE_CONSTRAINT_UNIQUE, apsw.SQLITE_CONSTRAINT_PRIMARYKEY, apsw.SQLITE_CONSTRAINT_ROWID}
)
_UNAVAILABLE: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    apsw.InterruptError,
    apsw.AbortError,
    apsw.ProtocolError,
)

_log: Final = logging.getLogger(__name__)


class UnsafeSqlite(Unavailable):
    """The SQLite library is a version that can lose data."""


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """How the database file is opened."""

    path: Path
    readers: int = 3
    read_processes: int = 2
    """Processes for long reads, each started when it is needed; 0 leaves them to the readers."""
    cache_bytes: int = 64 << 20
    reader_cache_bytes: int = 16 << 20
    maintenance: MaintenanceSettings = field(default_factory=MaintenanceSettings)
    limits: QueueLimits = field(default_factory=QueueLimits)


def is_safe_version(version: str) -> bool:
    """Whether a SQLite version has the fix for the WAL reset race."""
    numbers = tuple(int(part) for part in version.split("."))
    return (
        numbers >= (3, 51, 3) or (3, 50, 7) <= numbers < (3, 51) or (3, 44, 6) <= numbers < (3, 45)
    )


def check_library(version: str | None = None) -> None:
    """Refuse a SQLite library that can lose data; raises UnsafeSqlite."""
    found = version or apsw.sqlite_lib_version()
    if not is_safe_version(found):
        raise UnsafeSqlite(f"SQLite {found} can lose data in WAL mode; 3.51.3 or later is needed")


def translate(error: Exception) -> StoreError:
    """Return the store's own error for one of SQLite's."""
    if isinstance(error, apsw.ConstraintError):
        if getattr(error, "extendedresult", 0) in _UNIQUE_CODES:
            return Conflict(str(error))
        return StoreError(str(error))
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Corrupt(str(error))
    if isinstance(error, _UNAVAILABLE):
        return Unavailable(f"{type(error).__name__}: {error}")
    return StoreError(f"{type(error).__name__}: {error}")


def _create_private(path: Path) -> None:
    """Make a missing database file that only its owner reads: it holds hashes and addresses.

    The log and its index get the mode of the database. Raises Unavailable.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


class SqliteConnection(ReadConnection):
    """A connection for reading, and what the writing one shares with it."""

    damage: str | None = None

    def __init__(
        self, path: Path, *, cache_bytes: int, writable: bool = False, untouched: bool = False
    ) -> None:
        """Open a file; `untouched` promises that nobody writes to it, and makes no lock or log."""
        flags, name = apsw.SQLITE_OPEN_READONLY, str(path)
        if writable:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            _create_private(path)
        elif untouched:
            flags, name = flags | apsw.SQLITE_OPEN_URI, f"file:{quote(name)}?immutable=1"
        try:
            self._raw = apsw.Connection(name, flags=flags, statementcachesize=STATEMENT_CACHE)
            self._raw.set_busy_timeout(BUSY_TIMEOUT_MS)
            # Without it a statement that joins or seeks a range is compiled again for new values.
            self._raw.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            self._cursor = self._raw.cursor()
            if writable:
                self._prepare_file()
            for pragma in (
                f"cache_size = -{cache_bytes >> 10}",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
                "cell_size_check = ON",
            ):
                self._cursor.execute(f"PRAGMA {pragma}").fetchall()
        except apsw.Error as error:
            raise translate(error) from error

    def _prepare_file(self) -> None:
        """Set what is kept in the file, and how it is written."""
        execute = self._cursor.execute
        execute(f"PRAGMA page_size = {PAGE_BYTES}").fetchall()
        if execute("PRAGMA page_count").fetchall() == [(0,)]:
            execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
        if execute("PRAGMA journal_mode = WAL").fetchall() != [("wal",)]:
            raise Unavailable("the file system does not allow the write-ahead log")
        for pragma in (
            "synchronous = FULL",
            "fullfsync = ON",
            "checkpoint_fullfsync = ON",
            "secure_delete = FAST",
            f"journal_size_limit = {JOURNAL_SIZE_LIMIT}",
        ):
            execute(f"PRAGMA {pragma}").fetchall()
        self._raw.wal_autocheckpoint(0)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, as SQLite sees it."""
        return bool(self._raw.in_transaction)

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        try:
            rows: list[Row] = self._cursor.execute(sql, params).fetchall()
        except apsw.Error as error:
            raise self._failed(error) from error
        return rows

    def iterate(self, sql: str, params: Params = ()) -> Generator[Row, None, None]:
        """Run one SELECT and yield its rows; its snapshot ends with the iterator."""
        cursor = self._raw.cursor()
        try:
            yield from cursor.execute(sql, params)
        except apsw.Error as error:
            raise self._failed(error) from error
        finally:
            cursor.close(True)

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters."""
        try:
            self._cursor.executemany(sql, rows).fetchall()
        except apsw.Error as error:
            raise self._failed(error) from error

    def begin(self, accounts: Sequence[int] = ()) -> None:
        """Start a snapshot."""
        self.execute("BEGIN")

    def end(self) -> None:
        """End the snapshot."""
        if self._raw.in_transaction:
            self.execute("ROLLBACK")

    def interrupt(self) -> None:
        """Make the running statement fail."""
        self._raw.interrupt()

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""
        return bool(self._raw.table_exists("main", name))

    def checkpoint(self, *, truncate: bool = False) -> bool:
        """Copy the log into the database, `truncate` to empty it; whether all was copied.

        Another connection that copies or reads may be in the way; that is no failure.
        """
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            frames, copied = self._raw.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return False
        except apsw.Error as error:
            raise translate(error) from error
        return bool(frames == copied)

    def pragma(self, name: str, value: int | None = None) -> int:
        """Return a number that a PRAGMA answers, or set it."""
        rows = self.execute(f"PRAGMA {name}" if value is None else f"PRAGMA {name} = {value}")
        return int(rows[0][0]) if rows and rows[0] else 0

    def set_busy_timeout(self, milliseconds: int) -> None:
        """Set how long a lock is waited for."""
        self._raw.set_busy_timeout(milliseconds)

    def close(self) -> None:
        """Close the connection."""
        self._raw.close()

    def _failed(self, error: apsw.Error) -> StoreError:
        """Translate an error and note what the health report must show."""
        failure = translate(error)
        if isinstance(failure, Corrupt):
            self.damage = str(failure)
        return failure


class SqliteWriteConnection(SqliteConnection, EngineConnection):
    """The connection of the writer thread."""

    def __init__(self, path: Path, *, cache_bytes: int, on_log: Callable[[int], None]) -> None:
        self._path = path
        self._cache_bytes = cache_bytes
        self._on_log = on_log
        self._last_seq = 0
        self._pending_seq = 0
        self._finish_wanted = False
        self._changes = 0
        self.trouble: str | None = None
        self._connect()

    def _connect(self) -> None:
        super().__init__(self._path, cache_bytes=self._cache_bytes, writable=True)
        self._raw.set_wal_hook(self._note_log)

    def _note_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._on_log(pages)
        return apsw.SQLITE_OK

    @property
    def locks_accounts(self) -> bool:
        """No: there is one writer."""
        return False

    @property
    def last_seq(self) -> int:
        """The highest number committed."""
        return self._last_seq

    def load_seq(self) -> None:
        """Read the highest number, once the schema is there."""
        self._last_seq = self._pending_seq = self._read_seq()

    def expect_seq(self, seq: int) -> None:
        """Take note that the open transaction sets `last_seq` to this."""
        self._pending_seq = seq

    def begin(self, accounts: Sequence[int] = ()) -> None:
        """Open the transaction; with one writer there is nothing to lock. Raises: Paused."""
        self._pending_seq = self._last_seq
        self._changes = self._raw.total_changes()
        self.execute("BEGIN IMMEDIATE")
        try:
            check_may_write(self.execute(READ_MARK))
        except StoreError:
            self.rollback()
            raise

    def commit(self) -> None:
        """Sync the log with this transaction in it."""
        self.execute("COMMIT")
        self._last_seq = self._pending_seq
        if self._raw.total_changes() != self._changes:  # only a real write proves that it works
            self.trouble = None

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        if self._raw.in_transaction:
            self.execute("ROLLBACK")

    def savepoint(self) -> None:
        """Mark the state before a job."""
        self.execute("SAVEPOINT job")

    def release_savepoint(self) -> None:
        """Keep what the job did."""
        self.execute("RELEASE job")

    def undo_savepoint(self) -> None:
        """Undo what the job did."""
        self.execute("ROLLBACK TO job")
        self.execute("RELEASE job")

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Do nothing: there is one writer."""

    def announce(self, aids: Sequence[int]) -> None:
        """Do nothing: there is no other node."""

    def allocate_seq(self, count: int, now_us: int) -> tuple[int, int, Statement]:
        """Take `count` numbers."""
        previous = self._read_seq()
        first = max(previous + 1, now_us)
        sql = "UPDATE seq SET last_seq = ? WHERE id = 1 RETURNING last_seq"
        params = (first + count - 1,)
        if self.execute(sql, params) != [params]:
            raise Corrupt("the row that numbers events is missing")
        self._pending_seq = first + count - 1
        return previous, first, Statement(sql, (params,))

    def insert_events(self, rows: Sequence[tuple[int, int, str, int, bytes]]) -> list[Statement]:
        """Insert the rows, many to a statement."""
        statements = insert_statements(rows)
        for statement in statements:
            self.execute(statement.sql, statement.rows[0])
        return statements

    def reopen(self) -> list[Statement]:
        """Start over with a new connection, after a COMMIT whose outcome is unknown."""
        self._raw.close(True)
        self._connect()
        found = self._read_seq()
        if found != self._last_seq:
            raise Unavailable("the group whose commit failed is there after all; restart")
        newest = self.execute("SELECT seq FROM event ORDER BY seq DESC LIMIT 1")
        if newest and newest[0][0] > found:
            raise Corrupt("an event has a higher number than was given out")
        self.begin()
        _, _, probe = self.allocate_seq(1, 0)
        self.commit()
        return [probe]

    def want_finish(self) -> None:
        """Have the rest of the log copied after the next group; called on another thread."""
        self._finish_wanted = True

    def after_group(self) -> None:
        """Copy what was written while the maintenance thread copied the log."""
        if self._finish_wanted:
            self._finish_wanted = False
            try:
                self.checkpoint()
            except StoreError:
                _log.exception("store.checkpoint_failed")

    def _read_seq(self) -> int:
        rows = self.execute("SELECT last_seq FROM seq WHERE id = 1")
        if not rows:
            raise Corrupt("the row that numbers events is missing")
        return int(rows[0][0])

    def _failed(self, error: apsw.Error) -> StoreError:
        failure = super()._failed(error)
        if isinstance(failure, Unavailable):
            self.trouble = str(failure)
        return failure


class SqliteEngine(ThreadedEngine):
    """The engine over one SQLite file."""

    def __init__(
        self,
        settings: SqliteSettings,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
    ) -> None:
        super().__init__(
            clock, recorder=recorder, make_durable=make_durable, limits=settings.limits
        )
        self._settings = settings
        self._sqlite: SqliteWriteConnection | None = None
        self._sqlite_readers: list[SqliteConnection] = []
        self._lock: FolderLock | None = None
        self._maintenance: Maintenance | None = None

    def _open(self) -> Opened:
        settings = self._settings
        check_library()
        settings.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(settings.path.parent)
        try:
            self._maintenance = Maintenance(settings.path, settings.maintenance)
            writer = SqliteWriteConnection(
                settings.path,
                cache_bytes=settings.cache_bytes,
                on_log=self._maintenance.note_commit,
            )
            check_may_start(writer)
            # Only a note of when it was: the database opens also while the clock is in doubt.
            migrate_connection(writer, now_us=SystemClock().now_us())
            writer.load_seq()
            self._sqlite = writer
            sync_folder(settings.path.parent)
            self._maintenance.connection = SqliteConnection(
                settings.path, cache_bytes=1 << 20, writable=True
            )
            self._sqlite_readers = [
                SqliteConnection(settings.path, cache_bytes=settings.reader_cache_bytes)
                for _ in range(settings.readers)
            ]
        except BaseException:
            self._lock.release()
            raise
        apart = partial(SqliteConnection, settings.path, cache_bytes=settings.reader_cache_bytes)
        return Opened(writer, self._sqlite_readers, apart, settings.read_processes)

    def _opened(self, readers: ReaderPool) -> None:
        if self._maintenance is not None and self._sqlite is not None:
            self._maintenance.start(
                lambda limit_s: readers.end_old_reads(limit_s) + self._end_old_streams(limit_s),
                self._sqlite.want_finish,
            )

    def _ending(self) -> None:
        if self._maintenance is not None:
            self._maintenance.join()

    def _closed(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _report(self) -> DatabaseReport:
        sqlite, maintenance = self._sqlite, self._maintenance
        if sqlite is None or maintenance is None:
            return DatabaseReport()
        seen = [sqlite.trouble, sqlite.damage, *(reader.damage for reader in self._sqlite_readers)]
        failures = tuple(dict.fromkeys(text for text in seen if text is not None))
        return DatabaseReport(
            maintenance.warnings, failures, maintenance.log_bytes, maintenance.database_bytes
        )


def migrate_connection(connection: SqliteConnection, *, now_us: int) -> list[str]:
    """Check the version and apply what is missing, all in one transaction; return the names."""
    migrations = load_migrations()
    check_state(connection, migrations, version=SCHEMA_VERSION)
    connection.execute("BEGIN IMMEDIATE")
    try:
        names = apply_missing(
            connection, migrations, types=SQL_TYPES, compat=SCHEMA_COMPAT, now_us=now_us
        )
        connection.execute("COMMIT")
    except BaseException:
        connection.end()
        raise
    return names


def copy_database(source: Path, target: Path) -> None:
    """Copy a database, also one that is in use, into a new file."""
    try:
        old = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
        new = apsw.Connection(str(target))
        old.set_busy_timeout(BUSY_TIMEOUT_MS)
        with new.backup("main", old, "main") as backup:
            backup.step(-1)
        new.close()
        old.close()
    except apsw.Error as error:
        raise translate(error) from error


def try_migrations(path: Path, scratch: Path, *, now_us: int) -> list[str]:
    """Apply what is missing to a copy in the folder `scratch`; return the names.

    The database itself is only read, so this may run beside a server that has it open.
    """
    copy = scratch / "dry-run.sqlite"
    copy_database(path, copy)
    connection = SqliteConnection(copy, cache_bytes=16 << 20, writable=True)
    try:
        names = migrate_connection(connection, now_us=now_us)
        problems = connection.execute("PRAGMA quick_check(1)")
        if problems != [("ok",)]:
            raise Corrupt(f"the migrated copy is damaged: {problems[0][0]}")
    finally:
        connection.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
    return names


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
