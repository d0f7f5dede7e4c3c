"""One of the two databases of a conversion: its rows table by table, and its mark.

What differs between the engines is a few methods (`convert_sqlite.py`, `convert_postgres.py`); the
rest is the same SQL for both. Everything here is plain and synchronous: a conversion is a process
of its own, which a server may run beside.

Rows are tuples of None, int, str and bytes, the same from both engines, and come in the order of
their keys, which is the same too: numbers by value, text and bytes by their bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from pds.errors import StoreError, Unavailable
from pds.store.convert_mark import DELETE_MARK, WRITE_MARK, Mark, encode_mark, read_mark
from pds.store.convert_schema import Index, Schema, Table
from pds.store.engine import Params, Row
from pds.store.migrate import read_state

BATCH_BYTES: Final = 4 << 20
BATCH_ROWS: Final = 4096
ROW_BYTES: Final = 150
"""What a row is counted with besides its largest column."""

Key = tuple[int | str | bytes, ...]
Decide = Callable[[Mark | None], Mark | None]
"""Gets the mark that is there and returns the one to be; may raise to leave it."""


class SideConnection(Protocol):
    """A connection of either engine."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows."""

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters."""


class NotEmpty(Unavailable):
    """The target holds something that this conversion did not put there."""


class Side(ABC):
    """A database that rows are read from, or brought to."""

    place: str
    """Where it is, for people; without password."""

    connection: SideConnection

    @abstractmethod
    def scan(self, table: Table, after: Key | None = None) -> Iterator[list[Row]]:
        """Yield all rows in the order of their keys, in batches of limited size."""

    @abstractmethod
    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows inside the open transaction. Raises: Conflict."""

    @abstractmethod
    def begin(self, *, exclusive: bool = False) -> None:
        """Open a transaction; an exclusive one when no group of a server is open, nor will be."""

    @abstractmethod
    def create(self, now_us: int) -> None:
        """Make the tables that are missing. Nobody else may do so meanwhile."""

    @abstractmethod
    def settle(self) -> None:
        """Make durable what was written, and refresh what the database knows of its tables."""

    @abstractmethod
    def recover(self) -> None:
        """Become usable again after an act that was cut off."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    @contextmanager
    def transaction(self, *, exclusive: bool = False) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        self.begin(exclusive=exclusive)
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @property
    def version(self) -> int:
        """The number of the newest migration that was applied; 0 for an empty database."""
        return read_state(self.connection).version

    def migrations(self) -> list[Row]:
        """What was applied: number, name and checksum of each."""
        return self.connection.execute(
            "SELECT version, name, checksum FROM migration ORDER BY version"
        )

    def read_mark(self) -> Mark | None:
        """Return where the database stands in a conversion."""
        return read_mark(self.connection)

    def change_mark(self, decide: Decide) -> Mark | None:
        """Replace the mark while nobody writes; return it.

        After this no group of writes is committed that does not see the new one.
        """
        with self.transaction(exclusive=True):
            mark = decide(self.read_mark())
            if mark is None:
                self.connection.execute(DELETE_MARK)
            else:
                self.connection.execute(WRITE_MARK, (encode_mark(mark),))
        return mark

    def count(self, table: Table) -> int:
        """Return how many rows there are."""
        return int(self.connection.execute(f"SELECT count(*) FROM {table.name}")[0][0])

    def last_key(self, table: Table) -> Key | None:
        """Return the highest key, or None."""
        keys = ", ".join(table.key)
        order = ", ".join(f"{name} DESC" for name in table.key)
        rows = self.connection.execute(f"SELECT {keys} FROM {table.name} ORDER BY {order} LIMIT 1")
        return rows[0] if rows else None

    def find(self, table: Table, key: Key) -> Row | None:
        """Return one row."""
        rows = self.connection.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {_is_key(table)}", key
        )
        return rows[0] if rows else None

    def check_empty(self, schema: Schema) -> None:
        """Raise NotEmpty if any durable table has rows, but for the one that numbers events."""
        for table in schema.tables:
            where = "WHERE last_seq > 0" if table.name == "seq" else ""
            if self.connection.execute(f"SELECT 1 FROM {table.name} {where} LIMIT 1"):
                raise NotEmpty(f"{self.place} is not empty (table {table.name})")

    def append(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows in a transaction of their own."""
        with self.transaction():
            self.insert(table, rows)

    def replace(self, table: Table, keys: Sequence[Key], rows: Sequence[Row]) -> None:
        """Delete what has these keys and add these rows, in one transaction."""
        with self.transaction():
            if keys:
                self.connection.execute_many(
                    f"DELETE FROM {table.name} WHERE {_is_key(table)}", keys
                )
            if rows:
                self.insert(table, rows)

    def drop_indexes(self, indexes: Iterable[Index]) -> None:
        """Remove those of the indexes that are there."""
        with self.transaction():
            for index in indexes:
                self.connection.execute(f"DROP INDEX IF EXISTS {index.name}")

    def make_index(self, index: Index) -> None:
        """Make an index that is missing."""
        with self.transaction():
            self.connection.execute(index.sql.replace("INDEX ", "INDEX IF NOT EXISTS ", 1))


def key_of(table: Table) -> Callable[[Row], Key]:
    """Return the function that takes the key out of a row."""
    at = table.key_at
    if len(at) == 1:
        only = at[0]
        return lambda row: (row[only],)
    return lambda row: tuple([row[number] for number in at])


def select_rows(table: Table, condition: str) -> str:
    """The statement that reads all columns in the order of the keys."""
    order = ", ".join(table.key)
    return f"SELECT {', '.join(table.columns)} FROM {table.name}{condition} ORDER BY {order}"


def take_batch(rows: Iterator[Row], table: Table) -> list[Row]:
    """Take rows off an iterator until the batch is full; an empty one means the end."""
    batch: list[Row] = []
    size, at = 0, table.content_at
    for row in rows:
        batch.append(row)
        content = row[at] if at is not None else None
        size += ROW_BYTES + (len(content) if content is not None else 0)
        if size >= BATCH_BYTES or len(batch) >= BATCH_ROWS:
            break
    return batch


def find_unfit(table: Table, rows: Sequence[Row]) -> StoreError | None:
    """Name a row with a text that only SQLite can hold."""
    for row in rows:
        for name, value in zip(table.columns, row, strict=True):
            if isinstance(value, str) and "\0" in value:
                return StoreError(
                    f"table {table.name}, row {key_of(table)(row)}: {name} has a NUL character,"
                    " which PostgreSQL cannot hold"
                )
    return None


def _is_key(table: Table) -> str:
    return " AND ".join(f"{name} = ?" for name in table.key)
