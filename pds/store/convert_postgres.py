"""A PostgreSQL database as one side of a conversion.

Rows are read and written with COPY in binary form, several times as fast as statements. What is
read is one snapshot a table. A target is held by a lock on a row, which goes with the connection.

Uses psycopg as it is, and not `Link`, which is made for many small statements.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import Literal
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from pds.errors import ConfigError, StoreError, Unavailable
from pds.store.convert_schema import Table
from pds.store.convert_side import Key, Side, find_unfit, select_rows, take_batch
from pds.store.engine import Params, Row
from pds.store.postgres import migrate_link
from pds.store.postgres_link import LOCK_TIMEOUT, Link, check_url, translate

TRIES: Final = 6
RETRY_S: Final = 0.5
_COPY_TYPES: Final = {"int": "int8", "key": "text", "blob": "bytea"}
_SESSION: Final = {
    "lock_timeout": LOCK_TIMEOUT,
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
_LOCK_GROUPS: Final = "LOCK TABLE commit_group IN SHARE ROW EXCLUSIVE MODE"
"""Every group writes to this table first: so this waits for those that are open, and those to come
wait for it."""
_HOLD: Final = "SELECT version FROM migration WHERE version = 1 FOR UPDATE NOWAIT"


class CopyConnection:
    """One connection; statements have `?`, and rows come and go by COPY."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._raw: psycopg.Connection[Row] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._raw is not None and not self._raw.closed

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        raw = self._raw
        return (
            raw is not None
            and not raw.closed
            and raw.info.transaction_status != pq.TransactionStatus.IDLE
        )

    def open(self) -> psycopg.Connection[Row]:
        """Return the connection, a new one if it was lost. Raises: Unavailable."""
        if self._raw is not None and not self._raw.closed:
            return self._raw
        try:
            raw = psycopg.Connection.connect(self._conninfo, autocommit=True)
            raw.adapters.register_dumper(int, Int8BinaryDumper)
            raw.adapters.register_dumper(str, StrBinaryDumper)
            for name, value in _SESSION.items():
                raw.execute(f"SET {name} = '{value}'".encode())
        except psycopg.Error as error:
            raise Unavailable(f"the database cannot be reached: {error}") from error
        self._raw = raw
        return raw

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""
        return bool(self.execute("SELECT to_regclass(?) IS NOT NULL", (name,))[0][0])

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        raw = self.open()
        try:
            cursor = psycopg.RawCursor(raw)
            cursor.execute(_number(sql), params, binary=True)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self._failed(error) from error

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters."""
        raw = self.open()
        try:
            psycopg.RawCursor(raw).executemany(_number(sql), rows)
        except psycopg.Error as error:
            raise self._failed(error) from error

    def copy_out(
        self, sql: str, params: Params, types: Sequence[str]
    ) -> Generator[Row, None, None]:
        """Run one SELECT by COPY and yield its rows as they come; `types` are its columns'.

        The connection is closed if the iterator is left before its end.
        """
        raw = self.open()
        first, *rest = sql.split("?")
        literals = [Literal(value).as_string() for value in params]
        text = first + "".join(f"{value}{part}" for value, part in zip(literals, rest, strict=True))
        is_finished = False
        try:
            statement = f"COPY ({text}) TO STDOUT (FORMAT BINARY)".encode()
            with psycopg.Cursor(raw) as cursor, cursor.copy(statement) as copy:
                copy.set_types(types)
                yield from copy.rows()
            is_finished = True
        except psycopg.Error as error:
            raise self._failed(error) from error
        finally:
            if not is_finished:
                self.close()

    def copy_in(self, target: str, rows: Iterable[Row], types: Sequence[str]) -> None:
        """Add rows by COPY; `target` is the table with its columns, `types` are theirs."""
        raw = self.open()
        try:
            statement = f"COPY {target} FROM STDIN (FORMAT BINARY)".encode()
            with psycopg.Cursor(raw) as cursor, cursor.copy(statement) as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connection; what was open on it is undone."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    def _failed(self, error: psycopg.Error) -> StoreError:
        return translate(error, is_lost=not self.is_open)


def _number(sql: str) -> bytes:
    """Number the parameters. No literal of ours holds a `?`."""
    first, *rest = sql.split("?")
    text = first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
    return text.encode()


def describe_url(url: str) -> str:
    """Return where `url` points, for people: without user and password. Raises: ConfigError."""
    given = conninfo_to_dict(check_url(url))
    host = given.get("host") or given.get("hostaddr") or "localhost"
    return f"postgresql://{host}:{given.get('port') or 5432}/{given.get('dbname') or ''}"


class PostgresSide(Side):
    """One database. `is_target` says that no other conversion may fill it meanwhile."""

    def __init__(self, url: str, *, is_target: bool = False) -> None:
        conninfo = check_url(url)
        self.place = describe_url(url)
        self._is_target = is_target
        self._is_held = False
        self._conninfo = conninfo
        self._writer = self.connection = CopyConnection(conninfo)
        self._reader = CopyConnection(conninfo)
        self._holder = CopyConnection(conninfo)
        try:
            self._connect()
            if self._writer.execute("SHOW server_encoding") != [("UTF8",)]:
                raise ConfigError("the database must have the encoding UTF8")
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        self._writer.open()
        self._reader.open()
        if self._is_held:
            self._hold()

    def _hold(self) -> None:
        """Keep other conversions off this target for as long as the connection lives."""
        if self._holder.in_transaction:
            return
        for left in range(TRIES, 0, -1):  # the server may take a moment to see that one was killed
            try:
                self._holder.execute("BEGIN")
                self._holder.execute(_HOLD)
            except StoreError as error:
                self._holder.close()
                if left == 1:
                    raise Unavailable(f"another process is filling {self.place}") from error
                time.sleep(RETRY_S)
            else:
                self._is_held = True
                return

    def scan(self, table: Table, after: Key | None = None) -> Iterator[list[Row]]:
        """Yield all rows of one snapshot."""
        marks = ", ".join("?" * len(table.key))
        condition = f" WHERE ({', '.join(table.key)}) > ({marks})" if after is not None else ""
        kinds = [_COPY_TYPES[kind] for kind in table.kinds]
        rows = self._reader.copy_out(select_rows(table, condition), after or (), kinds)
        try:
            while batch := take_batch(rows, table):
                yield batch
        finally:
            rows.close()

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows."""
        kinds = [_COPY_TYPES[kind] for kind in table.kinds]
        try:
            self._writer.copy_in(f"{table.name} ({', '.join(table.columns)})", rows, kinds)
        except StoreError as error:
            raise find_unfit(table, rows) or error from error

    def begin(self, *, exclusive: bool = False) -> None:
        """Open a transaction; an exclusive one waits until no group of any node is open."""
        for left in range(TRIES, 0, -1):
            try:
                self._writer.execute("BEGIN")
                if exclusive:
                    self._writer.execute(_LOCK_GROUPS)
            except Unavailable:
                self._writer.close()
                if left == 1:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def create(self, now_us: int) -> None:
        """Make the tables."""
        link = Link(self._conninfo, _SESSION)
        try:
            migrate_link(link, now_us=now_us)
        finally:
            link.close()
        if self._is_target:
            self._hold()

    def settle(self) -> None:
        """Have the planner know the tables; what is committed is durable."""
        self._writer.execute("ANALYZE")

    def recover(self) -> None:
        """Start over with new connections."""
        self._writer.close()
        self._reader.close()
        self._connect()

    def close(self) -> None:
        """Close the connections."""
        self._writer.close()
        self._reader.close()
        self._holder.close()
