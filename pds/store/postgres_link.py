"""One connection to PostgreSQL: statements in the shared text, errors in the store's own words.

Three modules import psycopg: this one, `postgres_listen.py`, and `convert_postgres.py`, which
copies whole tables. Of psycopg we use how it connects, its libpq and its loaders of rows:
`Link.run` sends any number of statements at once (libpq's pipeline mode) and reads all answers,
which takes one round trip and a third of the CPU of psycopg's cursors. After a statement that
failed, the server skips the rest of its batch, and `Link.failed_at` says which it was.

Parameters go in binary with fixed types (64-bit integer, text, bytes), so that each text is
prepared once whatever its values, and a text is refused where bytes belong, as SQLite's STRICT
tables refuse it.

A connection that is lost is opened again when it is next needed. What failed because of that, or of
another writer (deadlock, serialization), raises `Interrupted`: nothing of it is in the database,
and it may simply be run again.
"""

import contextlib
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import psycopg
from psycopg import adapt, errors, pq
from psycopg.abc import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pds.errors import ConfigError, Conflict, Corrupt, StoreError, Unavailable
from pds.store.base import QueueLimits
from pds.store.engine import MAX_READ_S, Interrupted, Params, Row
from pds.store.reader import ReadConnection

PREPARED_TEXTS: Final = 400
"""With more of them prepared, all are forgotten: each takes memory of the server."""
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
_TRY_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_UNAVAILABLE_CLASSES: Final = ("08", "53", "55", "57", "58", "25")
_INT8, _TEXT, _BYTEA, _UNKNOWN = 20, 25, 17, 0
_UTILITIES: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SET", "SHOW")
"""Texts that start so have no plan that would be worth keeping."""


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Where the database is and how it is used."""

    url: str = field(repr=False)
    readers: int = 4
    read_processes: int = 2
    """Processes for long reads, each started when it is needed; 0 leaves them to the readers."""
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


class Message(NamedTuple):
    """A statement with its parameters, as they go over the wire."""

    text: str
    types: tuple[int, ...] = ()
    values: tuple[bytes | None, ...] = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return 100 + sum(len(value) for value in self.values if value is not None)


_BEGIN_READ: Final = Message("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
_ROLLBACK: Final = Message("ROLLBACK")
_pack_int: Final = struct.Struct(">q").pack


def encode_value(value: object, *, searches: bool) -> tuple[int, bytes | None]:
    """Return the type and the binary form of a parameter.

    PostgreSQL neither stores nor compares NUL in a text: who searches for one finds nothing.
    Raises: StoreError.
    """
    if isinstance(value, str):
        if "\0" in value:
            if not searches:
                raise StoreError("a text with NUL cannot be stored")
            value = value.replace("\0", NOWHERE)
        return _TEXT, value.encode()
    if isinstance(value, int):
        try:
            return _INT8, _pack_int(value)
        except struct.error as error:
            raise StoreError("a number has more than 64 bits") from error
    if value is None:
        return _UNKNOWN, None
    if isinstance(value, bytes | bytearray | memoryview):
        return _BYTEA, bytes(value)
    raise StoreError(f"a {type(value).__name__} cannot be a parameter")


def encode_message(sql: str, params: Params = ()) -> Message:
    """Return a statement as it goes over the wire; raises StoreError."""
    if not params:
        return Message(sql)
    searches = sql.startswith("SELECT")
    encoded = [encode_value(value, searches=searches) for value in params]
    return Message(
        sql, tuple(kind for kind, _ in encoded), tuple(content for _, content in encoded)
    )


_Expected: TypeAlias = tuple[int, tuple[str, tuple[int, ...]] | None]
"""The number of a statement in its batch and, when the answer is to its preparation, its key."""


class Link:
    """A connection that is opened when it is needed, and again when it was lost. One thread."""

    def __init__(self, conninfo: str, session: dict[str, str]) -> None:
        self._conninfo = conninfo
        self._session = session
        self._raw: psycopg.Connection[Row] | None = None
        self._loader: Transformer | None = None
        self._poll = select.poll()
        self._texts: dict[str, bytes] = {}
        self._seen: set[tuple[str, tuple[int, ...]]] = set()
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._names = 0
        self._unread = False
        self._fed: list[_Expected] = []
        self._answers: Sequence[pq.abc.PGresult] = ()
        self.failed_at: int | None = None
        """Which statement of the last batch failed; None when it was not one of them."""
        self.tag = b""
        """What the server called the last statement of the last batch."""
        self.damage: str | None = None
        self.trouble: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._raw is not None and not self._raw.closed

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, as far as this side knows."""
        return self.is_open and not self._unread and self._status() != pq.TransactionStatus.IDLE

    def open(self) -> None:
        """Open a fresh connection; raises Unavailable."""
        self.close()
        try:
            raw = psycopg.Connection.connect(self._conninfo, autocommit=True)
            for name, value in self._session.items():
                raw.execute(f"SET {name} = '{value}'", prepare=False)
            raw.pgconn.nonblocking = 1
            raw.pgconn.enter_pipeline_mode()
        except psycopg.Error as error:
            self.trouble = f"the database cannot be reached: {error}".strip()
            raise Unavailable(self.trouble) from error
        self._raw = raw
        self._loader = adapt.Transformer(raw)
        self._poll = select.poll()
        self._poll.register(raw.pgconn.socket, select.POLLIN)
        self._seen.clear()
        self._prepared.clear()
        self._unread = False
        self._fed = []

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
        return self.run((encode_message(sql, params),))

    def feed(self, messages: Sequence[Message]) -> None:
        """Have the server begin with the batch that the next `run` ends. Raises: StoreError."""
        raw = self._raw
        if raw is None:
            raise Interrupted("the connection to the database was lost")
        try:
            if self._unread:
                self._read_unread(raw.pgconn)
            self._fed += self._send(raw.pgconn, messages, self._fed)
            self._flush(raw.pgconn)
        except psycopg.Error as error:
            raise self.failed(error) from error

    def run(self, messages: Sequence[Message]) -> list[Row]:
        """Run statements in one round trip and return the rows of the last.

        All of them are the server's before the first answer is read; what follows one that failed
        is not run. Those that were fed come before. Raises: the failure, with `failed_at` set.
        """
        self.failed_at = None
        raw = self._raw
        if raw is None:
            raise Interrupted("the connection to the database was lost")
        try:
            if self._unread:
                self._read_unread(raw.pgconn)
            if len(self._prepared) >= PREPARED_TEXTS:
                self._forget_prepared(raw.pgconn)
            self._answers = self._exchange(raw.pgconn, messages)
        except psycopg.Error as error:
            raise self.failed(error) from error
        if not self._answers:
            return []
        self.tag = self._answers[-1].command_status or b""
        return self.rows_of(len(self._answers) - 1)

    def rows_of(self, number: int) -> list[Row]:
        """Return the rows of one statement of the last batch."""
        answer = self._answers[number]
        if answer.status != pq.ExecStatus.TUPLES_OK or not answer.ntuples:
            return []
        assert self._loader is not None  # noqa: S101  there is one with each connection
        self._loader.set_pgresult(answer)
        return self._loader.load_rows(0, answer.ntuples, tuple)

    def send(self, message: Message) -> None:
        """Send a statement; its answer is read before the next one, and a failure ignored."""
        raw = self._raw
        if raw is None or self._unread:
            return
        try:
            self._send(raw.pgconn, (message,))
            raw.pgconn.pipeline_sync()
            self._flush(raw.pgconn)
            self._unread = True
        except psycopg.Error as error:
            self.failed(error)

    def rollback(self) -> None:
        """Undo the transaction, if one is open. Never raises: a lost connection has none."""
        if self.in_transaction:
            try:
                if self._fed:
                    with contextlib.suppress(StoreError):
                        self.run(())
                self.execute("ROLLBACK")
            except StoreError:
                self.close()

    def take_notices(self, wait_s: float) -> list[str]:
        """Return what was notified on the channels that were asked for; waits for the first.

        Raises: Interrupted when the connection is lost.
        """
        raw = self._raw
        if raw is None:
            raise Interrupted("the connection to the database was lost")
        heard: list[str] = []
        try:
            for turn in range(2):
                while (note := raw.pgconn.notifies()) is not None:
                    heard.append(note.extra.decode())
                if heard or turn or not self._poll.poll(wait_s * 1000):
                    break
                raw.pgconn.consume_input()
        except psycopg.Error as error:
            raise self.failed(error) from error
        return heard

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
        raw, self._raw = self._raw, None
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

    def _exchange(
        self, pgconn: pq.abc.PGconn, messages: Sequence[Message]
    ) -> list[pq.abc.PGresult]:
        """Send what ends a batch and read all its answers."""
        fed, self._fed = self._fed, []
        expected = fed + self._send(pgconn, messages, fed)
        pgconn.pipeline_sync()
        self._flush(pgconn)
        return self._read(pgconn, expected)

    def _send(
        self, pgconn: pq.abc.PGconn, messages: Sequence[Message], fed: Sequence[_Expected] = ()
    ) -> list[_Expected]:
        """Hand statements to libpq, after `fed`; return what will be answered, in order."""
        expected: list[_Expected] = []
        for number, message in enumerate(messages, start=fed[-1][0] + 1 if fed else 0):
            key = (message.text, message.types)
            formats = [pq.Format.BINARY] * len(message.values)
            name = self._prepared.get(key)
            if name is None and key in self._seen and len(self._prepared) < PREPARED_TEXTS:
                self._names += 1
                name = self._prepared[key] = b"s%d" % self._names
                pgconn.send_prepare(name, self._convert(message.text), message.types)
                expected.append((number, key))
            if name is not None:
                pgconn.send_query_prepared(name, message.values, formats, pq.Format.BINARY)
            else:
                self._note_seen(key)
                pgconn.send_query_params(
                    self._convert(message.text),
                    message.values,
                    message.types,
                    formats,
                    pq.Format.BINARY,
                )
            expected.append((number, None))
        return expected

    def _flush(self, pgconn: pq.abc.PGconn) -> None:
        """Have everything sent; takes in answers meanwhile, or both sides could wait for ever."""
        if not pgconn.flush():
            return
        self._poll.modify(pgconn.socket, select.POLLIN | select.POLLOUT)
        try:
            while pgconn.flush():
                if self._poll.poll()[0][1] & ~select.POLLOUT:
                    pgconn.consume_input()
        finally:
            self._poll.modify(pgconn.socket, select.POLLIN)

    def _read(
        self,
        pgconn: pq.abc.PGconn,
        expected: Sequence[_Expected],
    ) -> list[pq.abc.PGresult]:
        """Read the answers of a batch to its end; return those to its statements.

        Raises: the first failure.
        """
        failure: psycopg.Error | None = None
        answers: list[pq.abc.PGresult] = []
        for number, key in expected:
            while (result := self._next(pgconn, failure)) is not None:
                if key is None:
                    answers.append(result)
                if result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED):
                    if key is not None:
                        self._prepared.pop(key, None)
                    if failure is None:
                        failure = errors.error_from_result(result)
                        self.failed_at = number
        self._next(pgconn, failure)  # the end of the batch
        if failure is not None:
            raise failure
        return answers

    def _next(
        self, pgconn: pq.abc.PGconn, failure: psycopg.Error | None = None
    ) -> pq.abc.PGresult | None:
        """Wait for the next answer. A lost connection raises what the server said before."""
        try:
            while pgconn.is_busy():
                self._poll.poll()
                pgconn.consume_input()
            result = pgconn.get_result()
        except psycopg.Error as error:
            raise failure or error from error
        if pgconn.status == pq.ConnStatus.BAD:
            if failure is None and result is not None:
                failure = errors.error_from_result(result)
            raise failure or psycopg.OperationalError("the connection was lost")
        return result

    def _read_unread(self, pgconn: pq.abc.PGconn) -> None:
        """Read the answer to what `send` sent."""
        self._unread = False
        while self._next(pgconn) is not None:
            pass
        self._next(pgconn)

    def _forget_prepared(self, pgconn: pq.abc.PGconn) -> None:
        """Drop all prepared statements, unless a transaction is open that could have failed."""
        if self._status() == pq.TransactionStatus.IDLE:
            self._prepared.clear()
            self._seen.clear()
            self._exchange(pgconn, (Message("DEALLOCATE ALL"),))

    def _note_seen(self, key: tuple[str, tuple[int, ...]]) -> None:
        """Remember a text, which is prepared when it comes again."""
        if key[0].startswith(_UTILITIES):
            return
        if len(self._seen) >= MAX_CONVERTED:
            self._seen.clear()
        self._seen.add(key)

    def _convert(self, sql: str) -> bytes:
        """Number the parameters. No literal of ours holds a `?` (`statements.py`)."""
        text = self._texts.get(sql)
        if text is None:
            first, *rest = sql.split("?")
            numbered = first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
            if len(self._texts) >= MAX_CONVERTED:
                self._texts.clear()
            text = self._texts[sql] = numbered.encode()
        return text


class PostgresReader(ReadConnection):
    """A connection that only reads, each job in one snapshot of limited age.

    BEGIN goes with the first statement of a job, and nobody waits for the answer to its ROLLBACK:
    a job with one statement takes one round trip.
    """

    def __init__(self, conninfo: str, *, max_read_s: float = MAX_READ_S) -> None:
        limit = f"{max_read_s * 1000:.0f}ms"
        session = {"statement_timeout": limit, "idle_in_transaction_session_timeout": limit}
        self.link = Link(conninfo, session)
        self._is_begun = False

    @property
    def damage(self) -> str | None:
        """What was found damaged."""
        return self.link.damage

    def begin(self) -> None:
        """Start a snapshot, with the first statement: a job without any costs nothing."""
        self._is_begun = False

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one SELECT and return all rows."""
        message = encode_message(sql, params)
        rows = self.link.run((message,)) if self._is_begun else self._start(message)
        self.link.trouble = None
        return rows

    def _start(self, message: Message) -> list[Row]:
        """Begin, on a new connection if the old one was lost while it was idle."""
        is_fresh = not self.link.is_open
        self.link.ensure_open()
        self._is_begun = True
        try:
            return self.link.run((_BEGIN_READ, message))
        except Interrupted:
            if is_fresh or self.link.is_open:
                raise
            self.link.ensure_open()
            return self.link.run((_BEGIN_READ, message))

    def end(self) -> None:
        """End the snapshot."""
        if self._is_begun and self.link.in_transaction:
            self.link.send(_ROLLBACK)
        self._is_begun = False

    def interrupt(self) -> None:
        """Make the running statement fail."""
        self.link.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self.link.close()
