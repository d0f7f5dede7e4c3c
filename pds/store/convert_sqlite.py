"""A SQLite file as one side of a conversion.

As a source it may be in use by a server: what is read comes in short snapshots, so that the log can
be used again meanwhile. As a target it is locked like the folder of a running server.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pds.store.convert_schema import Table
from pds.store.convert_side import Key, Side, key_of, select_rows, take_batch
from pds.store.engine import Row
from pds.store.lock import FolderLock
from pds.store.sqlite import SqliteConnection, check_library, migrate_connection, sync_folder

CACHE_BYTES: Final = 16 << 20
PATIENCE_MS: Final = 60_000
"""How long a turn to write is waited for, beside a server that writes all the time."""
CHECKPOINT_BYTES: Final = 64 << 20


class SqliteSide(Side):
    """One file. `is_target` locks its folder, and lets the file be made."""

    def __init__(self, path: Path, *, is_target: bool = False) -> None:
        check_library()
        self.place = str(path)
        self._path = path
        self._log = Path(f"{path}-wal")
        self._lock: FolderLock | None = None
        if is_target:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path.parent)
        try:
            self._connect()
        except BaseException:
            self._release()
            raise

    def _connect(self) -> None:
        writer = SqliteConnection(self._path, cache_bytes=CACHE_BYTES, writable=True)
        writer.set_busy_timeout(PATIENCE_MS)
        self._writer = self.connection = writer
        self._reader = SqliteConnection(self._path, cache_bytes=CACHE_BYTES)

    def scan(self, table: Table, after: Key | None = None) -> Iterator[list[Row]]:
        """Yield all rows, each batch in a snapshot of its own."""
        key = key_of(table)
        first = select_rows(table, "")
        marks = ", ".join("?" * len(table.key))
        later = select_rows(table, f" WHERE ({', '.join(table.key)}) > ({marks})")
        while True:
            rows = self._reader.iterate(first if after is None else later, after or ())
            batch = take_batch(rows, table)
            rows.close()
            if not batch:
                return
            yield batch
            after = key(batch[-1])

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows."""
        marks = ", ".join("?" * len(table.columns))
        self._writer.execute_many(
            f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})", rows
        )

    def append(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows in a transaction of their own, and keep the log short."""
        super().append(table, rows)
        if self._log.stat().st_size > CHECKPOINT_BYTES:
            self._writer.checkpoint(truncate=True)

    def begin(self, *, exclusive: bool = False) -> None:
        """Open a transaction; there is only one at a time."""
        self._writer.execute("BEGIN IMMEDIATE")

    def create(self, now_us: int) -> None:
        """Make the tables."""
        migrate_connection(self._writer, now_us=now_us)
        sync_folder(self._path.parent)

    def settle(self) -> None:
        """Copy the log into the file, which syncs both."""
        self._writer.checkpoint(truncate=True)

    def recover(self) -> None:
        """Start over with new connections."""
        self._writer.close()
        self._reader.close()
        self._connect()

    def close(self) -> None:
        """Close the connections and let others have the folder."""
        self._reader.close()
        self._writer.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
