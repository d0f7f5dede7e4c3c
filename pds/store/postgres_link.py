"""One connection to PostgreSQL: statements in the shared text, errors in the store's own words.

With `postgres.py` and `postgres_listen.py` the only modules that import psycopg. Parameters go in
binary with fixed types (64-bit integer, text, bytes), so that each text is prepared once whatever
its values, and a text is refused where bytes belong, as SQLite's STRICT tables refuse it.

A connection that is lost is opened again when it is next needed. What failed because of that, or of
another writer (deadlock, serialization), raises `Interrupted`: nothing of it is in the database,
and it may simply be run again.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from pds.errors import ConfigError, Conflict, Corrupt, StoreError, Unavailable
from pds.store.base import QueueLimits
from pds.store.engine import MAX_READ_S, Interrupted, Params, Row
from pds.store.reader import ReadConnection

PREPARED_TEXTS: Final = 400
MAX_CONVERTED: Final = 4096
RECONNECT_STEP_S: Final = 0.1
WRITE_TIMEOUT: Final = "60s"
LOCK_TIMEOUT: Final = "10s"
ORPHAN_TIMEOUT: Final = "30s"
"""When the server ends a transaction whose client is silent. A COMMIT with unknown outcome is
settled after at most this."""

NOWHERE: Final = "\ufdd0"
"""A noncharacter: no text that came in over the network and was accepted as a key holds it."""

_DEFAULTS: Final = {
    "application_name": "freehold",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "target_session_attrs": "read-write",
}
_BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_TRY_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_UNAVAILABLE_CLASSES: Final = ("08", "53", "55", "57", "58", "25")


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Where the database is and how it is used."""

    url: str = field(repr=False)
    readers: int = 4
    poll_s: float = 0.5
    """How often other nodes' commits are looked for, should a notification not come."""
    reconnect_s: float = 10.0
    """How long a write waits for a database that is failing over."""
    settle_s: float = 40.0
    """How long the outcome of a COMMIT whose answer was lost is looked for before writes stop."""
    max_skew_s: float | None = 2.0
    """Difference to the database's clock from which on this node refuses writes; None: any."""
    max_read_s: float = MAX_READ_S
    """A snapshot that lives longer keeps dead rows from being removed."""
    limits: QueueLimits = field(default_factory=QueueLimits)


def check_url(url: str) -> str:
    """Return `url` with our defaults filled in; raises ConfigError, which never quotes it."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigError("PDS_DATABASE_URL is not a PostgreSQL URL") from error
    return make_conninfo("", **(_DEFAULTS | given))


def translate(error: Exception, *, is_lost: bool = False) -> StoreError:
    """Return the store's own error for one of PostgreSQL's."""
    # The details quote rows, which may hold what no log may show.
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = f"{type(error).__name__}: {said or error}".strip()
    if isinstance(error, errors.UniqueViolation):
        return Conflict(text)
    if isinstance(error, errors.DataCorrupted | errors.IndexCorrupted):
        return Corrupt(text)
    if isinstance(error, _TRY_AGAIN):
        return Interrupted(text)
    if isinstance(error, errors.IdleInTransactionSessionTimeout):
        return Unavailable(text)
    if is_lost or isinstance(error, errors.ReadOnlySqlTransaction):
        return Interrupted(text)
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.OperationalError) or state[:2] in _UNAVAILABLE_CLASSES:
        return Unavailable(text)
    return StoreError(text)


def _without_nul(sql: str, params: Params) -> Params:
    """Let a search for a text with NUL find nothing: PostgreSQL neither stores nor compares it."""
    if not sql.startswith("SELECT"):
        raise StoreError("a text with NUL cannot be stored")
    return [value.replace("\0", NOWHERE) if isinstance(value, str) else value for value in params]


class Link:
    """A connection that is opened when it is needed, and again when it was lost. One thread."""

    def __init__(self, conninfo: str, session: dict[str, str]) -> None:
        self._conninfo = conninfo
        self._session = session
        self._raw: psycopg.Connection[Row] | None = None
        self._cursor: psycopg.RawCursor[Row] | None = None
        self._texts: dict[str, str] = {}
        self.damage: str | None = None
        self.trouble: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._raw is not None and not self._raw.closed

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, as far as this side knows."""
        return self.is_open and self._status() != pq.TransactionStatus.IDLE

    def open(self) -> psycopg.Connection[Row]:
        """Open a fresh connection; raises Unavailable."""
        self.close()
        try:
            raw = psycopg.Connection.connect(self._conninfo, autocommit=True)
            raw.prepare_threshold = 2
            raw.prepared_max = PREPARED_TEXTS
            for kind in (int, bool):
                raw.adapters.register_dumper(kind, Int8BinaryDumper)
            raw.adapters.register_dumper(str, StrBinaryDumper)
            for name, value in self._session.items():
                raw.execute(f"SET {name} = '{value}'")
        except psycopg.Error as error:
            self.trouble = f"the database cannot be reached: {error}".strip()
            raise Unavailable(self.trouble) from error
        self._raw = raw
        self._cursor = psycopg.RawCursor(raw)
        return raw

    def ensure_open(self, patience_s: float = 0.0) -> None:
        """Open the connection unless it is, trying for a while; raises Unavailable."""
        deadline = time.monotonic() + patience_s
        while not self.is_open:
            try:
                self.open()
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RECONNECT_STEP_S)

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        cursor = self._cursor
        if cursor is None:
            raise Interrupted("the connection to the database was lost")
        if any(type(value) is str and "\0" in value for value in params):
            params = _without_nul(sql, params)
        try:
            if not params:
                cursor.execute(self._convert(sql), binary=";" not in sql)
            else:
                cursor.execute(self._convert(sql), params, binary=True)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self.failed(error) from error

    def execute_together(self, *statements: tuple[str, Params]) -> list[Row]:
        """Run several statements in one round trip; return the rows of the last.

        All of them are the server's before the first answer is read.
        """
        raw = self._raw
        if raw is None:
            raise Interrupted("the connection to the database was lost")
        try:
            with raw.pipeline():
                for sql, params in statements:
                    cursor = psycopg.RawCursor(raw)
                    cursor.execute(self._convert(sql), params, binary=True)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self.failed(error) from error

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters."""
        if self._cursor is None:
            raise Interrupted("the connection to the database was lost")
        try:
            self._cursor.executemany(self._convert(sql), rows)
        except psycopg.Error as error:
            raise self.failed(error) from error

    def rollback(self) -> None:
        """Undo the transaction, if one is open. Never raises: a lost connection has none."""
        if self.in_transaction:
            try:
                self.execute("ROLLBACK")
            except StoreError:
                self.close()

    def has_table(self, name: str) -> bool:
        """Whether the table exists."""
        return bool(self.execute("SELECT to_regclass(?) IS NOT NULL", (name,))[0][0])

    def interrupt(self) -> None:
        """Make the running statement fail; may be called from any thread."""
        raw = self._raw
        if raw is not None:
            with contextlib.suppress(psycopg.Error):
                raw.cancel_safe(timeout=2.0)

    def close(self) -> None:
        """Close the connection."""
        raw, self._raw, self._cursor = self._raw, None, None
        if raw is not None:
            with contextlib.suppress(psycopg.Error):
                raw.close()

    def failed(self, error: psycopg.Error) -> StoreError:
        """Translate an error and note what the health report must show."""
        is_lost = self._raw is None or bool(self._raw.closed)
        failure = translate(error, is_lost=is_lost)
        if is_lost or isinstance(error, errors.ReadOnlySqlTransaction):
            self.close()
        if isinstance(failure, Corrupt):
            self.damage = str(failure)
        elif isinstance(failure, Unavailable):
            self.trouble = str(failure)
        return failure

    def _status(self) -> pq.TransactionStatus:
        assert self._raw is not None  # noqa: S101  asked only while open
        return self._raw.info.transaction_status

    def _convert(self, sql: str) -> str:
        """Number the parameters. No literal of ours holds a `?` (`statements.py`)."""
        text = self._texts.get(sql)
        if text is None:
            first, *rest = sql.split("?")
            text = first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
            if len(self._texts) >= MAX_CONVERTED:
                self._texts.clear()
            self._texts[sql] = text
        return text


class PostgresReader(ReadConnection):
    """A connection that only reads, each job in one snapshot of limited age."""

    def __init__(self, conninfo: str, *, max_read_s: float = MAX_READ_S) -> None:
        limit = f"{max_read_s * 1000:.0f}ms"
        session = {"statement_timeout": limit, "idle_in_transaction_session_timeout": limit}
        self.link = Link(conninfo, session)
        self._is_begun = False

    def begin(self) -> None:
        """Start a snapshot, with the first statement: a job without any costs nothing."""
        self._is_begun = False

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one SELECT and return all rows."""
        link = self.link
        if not self._is_begun:
            self._start()
            self._is_begun = True
        rows = link.execute(sql, params)
        link.trouble = None
        return rows

    def _start(self) -> None:
        """Begin, on a new connection if the old one was lost while it was idle."""
        is_fresh = not self.link.is_open
        self.link.ensure_open()
        try:
            self.link.execute(_BEGIN_READ)
        except Interrupted:
            if is_fresh:
                raise
            self.link.ensure_open()
            self.link.execute(_BEGIN_READ)

    def end(self) -> None:
        """End the snapshot."""
        if self._is_begun:
            self.link.rollback()

    def interrupt(self) -> None:
        """Make the running statement fail."""
        self.link.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self.link.close()
