"""The PostgreSQL engine: any number of nodes on one database, each with one writing connection.

Statements are the same as SQLite's. What several writers need besides:

* *Locks.* A group locks the rows of its jobs' accounts before the first body runs, in ascending
  order; a job that names no account locks the one row that all such jobs of all nodes lock, and may
  lock accounts later (`Txn.lock_accounts`). Isolation is READ COMMITTED: what is read after the
  lock is the newest. There are no advisory locks, which poolers and compatible databases lack.
* *Numbers.* The row `seq` is updated after all bodies and held until the COMMIT, so the order of
  commits is the order of numbers, and a snapshot that shows a number shows every lower one.
* *Outcome.* Each group writes a random id into this node's row of `commit_group`. When the
  connection is lost during COMMIT, a new one writes to the same row: that waits until the
  server has ended the old transaction, and then finds either its id or not.
* *Others.* A group with events, or with changes that others remember, notifies inside its
  transaction (`postgres_listen.py`).

Deadlocks, serialization failures and lost connections roll a group back wholly; its jobs are run
again, alone. A failover shows as a lost connection.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Final

from pds.errors import ConfigError, Conflict, Corrupt, StoreError, Unavailable
from pds.store.base import DatabaseReport, EngineConnection, Opened, ThreadedEngine
from pds.store.clock import Clock, ClockInDoubt, SystemClock
from pds.store.convert_mark import READ_MARK, check_may_start, check_may_write
from pds.store.engine import Interrupted, MakeDurable, Params, Recorder, Row, Statement
from pds.store.migrate import (
    SCHEMA_COMPAT,
    SCHEMA_VERSION,
    apply_missing,
    check_state,
    load_migrations,
)
from pds.store.postgres_link import (
    LOCK_TIMEOUT,
    ORPHAN_TIMEOUT,
    WRITE_TIMEOUT,
    Link,
    PostgresReader,
    PostgresSettings,
    check_url,
)
from pds.store.postgres_listen import CHANNEL, Listener, encode_payload
from pds.store.reader import ReaderPool, deliver_from_thread
from pds.store.writer import nothing_more

SQL_TYPES: Final = {
    "blob": "BYTEA",
    "int": "BIGINT",
    "key": 'TEXT COLLATE "C"',
    "rowless": "",
    "strict": "",
}
MAX_EVENT_ROWS: Final = 64
MIGRATE_TRIES: Final = 20
RETRY_S: Final = 0.2

_LOCK_COMMON: Final = "SELECT version FROM migration WHERE version = 1 FOR UPDATE"
_LOCK_ACCOUNTS: Final = (
    "SELECT aid FROM account WHERE aid = ANY (CAST(? AS bigint[])) ORDER BY aid FOR UPDATE"
)
_NOTE_GROUP: Final = (
    "INSERT INTO commit_group (node, group_id, begun_at) VALUES (?, ?, ?)"
    " ON CONFLICT (node) DO UPDATE SET group_id = excluded.group_id, begun_at = excluded.begun_at"
)
_FIND_GROUP: Final = (
    "INSERT INTO commit_group (node, group_id, begun_at) VALUES (?, ?, ?)"
    " ON CONFLICT (node) DO UPDATE SET begun_at = commit_group.begun_at RETURNING group_id"
)
_READ_SEQ: Final = "SELECT last_seq FROM seq WHERE id = 1"
_SET_SEQ: Final = "UPDATE seq SET last_seq = ? WHERE id = 1 RETURNING last_seq"
_READ_CLOCK: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
_NOTIFY: Final = "SELECT pg_notify(?, ?)"

_log: Final = logging.getLogger(__name__)


class PostgresWriter(EngineConnection):
    """The connection of the writer thread."""

    def __init__(self, conninfo: str, settings: PostgresSettings, node: str) -> None:
        session = {
            "statement_timeout": WRITE_TIMEOUT,
            "lock_timeout": LOCK_TIMEOUT,
            "idle_in_transaction_session_timeout": ORPHAN_TIMEOUT,
        }
        self.link = Link(conninfo, session)
        self._settings = settings
        self._node = node
        self._last_seq = 0
        self._pending_seq = 0
        self._group_id = b""
        self._unsettled: bytes | None = None
        self._is_marked = False
        self._closing_statements: list[tuple[str, Params]] = []
        self._changed_accounts: list[int] = []
        self.clock_doubt: str | None = None
        """Set by the listener while the database's clock is too far from ours."""

    @property
    def locks_accounts(self) -> bool:
        """Yes: other nodes write too."""
        return True

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.link.in_transaction

    @property
    def last_seq(self) -> int:
        """The highest number that this node has committed, or found at the start."""
        return self._last_seq

    def load_seq(self) -> None:
        """Read the highest number."""
        self._last_seq = max(self._last_seq, self._read_seq(_READ_SEQ))

    def expect_seq(self, seq: int) -> None:
        """Take note that the open transaction sets `last_seq` to this."""
        self._pending_seq = seq

    def begin(self, accounts: Sequence[int] = ()) -> None:
        """Open the transaction, note its id and lock accounts, or what the others lock.

        The mark of a conversion is read last: who sets it waits for everybody who has noted an id.
        """
        if self.clock_doubt is not None:
            raise ClockInDoubt(self.clock_doubt)
        self._pending_seq = self._last_seq
        self._is_marked = False
        self._closing_statements.clear()
        self._changed_accounts.clear()
        self._group_id = secrets.token_bytes(16)
        lock = _lock_accounts(accounts) if accounts else (_LOCK_COMMON, ())
        noted = (self._node, self._group_id, SystemClock().now_us())
        is_fresh = not self.link.is_open
        self.link.ensure_open(self._settings.reconnect_s)
        opening = (("BEGIN", ()), (_NOTE_GROUP, noted), lock, (READ_MARK, ()))
        try:
            mark = self.link.execute_together(*opening)
        except Interrupted:  # it was lost while nobody looked
            self.link.rollback()
            if is_fresh:
                raise
            self.link.ensure_open(self._settings.reconnect_s)
            mark = self.link.execute_together(*opening)
        try:
            check_may_write(mark)
        except StoreError:
            self.link.rollback()
            raise

    def commit(self) -> None:
        """Insert the events, notify and commit in one round trip.

        Raises: Interrupted when the transaction is certainly not in the database; Unavailable
        when nobody knows.
        """
        if self._changed_accounts or self._closing_statements:
            payload = encode_payload(self._node, self._pending_seq, self._changed_accounts)
            self._closing_statements.append((_NOTIFY, (CHANNEL, payload)))
        try:
            self.link.execute_together(*self._closing_statements, ("COMMIT", ()))
        except StoreError as error:
            if self.link.is_open:  # the server answered, so it is rolled back
                self.link.rollback()
                raise Interrupted(str(error)) from error
            self._settle(error)
        if self.link.in_transaction:
            self.link.rollback()
            raise Interrupted("the transaction had failed before its commit")
        self._last_seq = self._pending_seq
        self.link.trouble = None

    def _settle(self, cause: StoreError) -> None:
        """Find out what became of the COMMIT whose answer was lost; return if it took place."""
        deadline = time.monotonic() + self._settings.settle_s
        while True:
            try:
                self.link.ensure_open()
                is_committed = self._find_group() == self._group_id
            except StoreError as error:
                if time.monotonic() >= deadline:
                    self._unsettled = self._group_id
                    raise Unavailable(f"the outcome is unknown: {error}") from cause
                time.sleep(RETRY_S)
                continue
            _log.warning("store.commit_settled", extra={"committed": is_committed})
            if not is_committed:
                raise Interrupted(str(cause)) from cause
            return

    def _find_group(self) -> bytes:
        """Return the id of the group that this node committed last.

        Waits for a transaction of ours that the server has not ended yet.
        """
        params = (self._node, b"", SystemClock().now_us())
        return bytes(self.link.execute(_FIND_GROUP, params)[0][0])

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        self.link.rollback()

    def savepoint(self) -> None:
        """Mark the state before a job, and release the mark before, in one round trip."""
        self.link.execute("RELEASE job; SAVEPOINT job" if self._is_marked else "SAVEPOINT job")
        self._is_marked = True

    def release_savepoint(self) -> None:
        """Keep what the job did: the mark is released with the next one, or by the commit."""

    def undo_savepoint(self) -> None:
        """Undo what the job did; the mark stays, and is released with the next one."""
        self.link.execute("ROLLBACK TO job")

    def execute(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        return self.link.execute(sql, params)

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters."""
        self.link.execute_many(sql, rows)

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Lock further accounts inside the transaction."""
        self.link.execute(*_lock_accounts(sorted(set(aids))))

    def announce(self, aids: Sequence[int]) -> None:
        """Have other nodes told that these accounts changed."""
        self._changed_accounts = sorted(set(aids))

    def allocate_seq(self, count: int, now_us: int) -> tuple[int, int, Statement]:
        """Take `count` numbers; the row stays locked until the commit."""
        previous = self._read_seq(f"{_READ_SEQ} FOR UPDATE")
        first = max(previous + 1, now_us)
        params = (first + count - 1,)
        self._closing_statements.append((_SET_SEQ, params))
        self._pending_seq = first + count - 1
        return previous, first, Statement(_SET_SEQ, (params,))

    def insert_events(self, rows: Sequence[tuple[int, int, str, int, bytes]]) -> list[Statement]:
        """Have the rows inserted with the commit, many to a statement."""
        statements = []
        for at in range(0, len(rows), MAX_EVENT_ROWS):
            chunk = rows[at : at + MAX_EVENT_ROWS]
            sql = "INSERT INTO event (seq, aid, kind, at, frame) VALUES " + ", ".join(
                ["(?, ?, ?, ?, ?)"] * len(chunk)
            )
            params = tuple(value for row in chunk for value in row)
            self._closing_statements.append((sql, params))
            statements.append(Statement(sql, (params,)))
        return statements

    def reopen(self) -> list[Statement]:
        """Start over with a new connection, after a COMMIT whose outcome is unknown."""
        self.link.open()
        if self._unsettled is not None:
            if self._find_group() == self._unsettled:
                _log.error("store.group_found_committed")
            self._unsettled = None
        self.load_seq()
        self.link.trouble = None
        return []

    def after_group(self) -> None:
        """Do nothing: the database looks after its log."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    def _read_seq(self, sql: str) -> int:
        rows = self.link.execute(sql)
        if not rows:
            raise Corrupt("the row that numbers events is missing")
        return int(rows[0][0])


def _lock_accounts(aids: Sequence[int]) -> tuple[str, Params]:
    """The statement that locks rows of accounts; the numbers go in as one array."""
    return _LOCK_ACCOUNTS, ("{" + ",".join(map(str, aids)) + "}",)


class PostgresEngine(ThreadedEngine):
    """The engine over a PostgreSQL database."""

    def __init__(
        self,
        settings: PostgresSettings,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
    ) -> None:
        super().__init__(
            clock, recorder=recorder, make_durable=make_durable, limits=settings.limits
        )
        self._settings = settings
        self._conninfo = check_url(settings.url)
        self._node = secrets.token_hex(8)
        self._writer_link: PostgresWriter | None = None
        self._reader_links: list[PostgresReader] = []
        self._listener: Listener | None = None

    def _open(self) -> Opened:
        writer = PostgresWriter(self._conninfo, self._settings, self._node)
        try:
            writer.link.ensure_open(self._settings.reconnect_s)
            if writer.execute("SHOW server_encoding") != [("UTF8",)]:
                raise ConfigError("the database must have the encoding UTF8")
            check_may_start(writer.link)
            migrate_link(writer.link, now_us=SystemClock().now_us())
            writer.load_seq()
            before_ns = time.monotonic_ns()
            database_us = int(writer.execute(_READ_CLOCK)[0][0])
            self._compare_clocks(writer, database_us, (time.monotonic_ns() - before_ns) // 1000)
        except BaseException:
            writer.close()
            raise
        self._writer_link = writer
        self._reader_links = [
            PostgresReader(self._conninfo, max_read_s=self._settings.max_read_s)
            for _ in range(self._settings.readers)
        ]
        return Opened(writer, self._reader_links)

    def _opened(self, readers: ReaderPool) -> None:
        writer = self._writer_link
        if writer is None:
            return
        loop = asyncio.get_running_loop()
        self._listener = Listener(
            Link(self._conninfo, {"statement_timeout": WRITE_TIMEOUT}),
            node=self._node,
            poll_s=self._settings.poll_s,
            last_seq=writer.last_seq,
            known_seq=lambda: self.last_seq,
            tell=lambda commits: deliver_from_thread(loop, self._tell_foreign, commits),
            look=lambda database_us, late_us: self._look(writer, readers, database_us, late_us),
        )
        self._listener.start()

    def _look(
        self, writer: PostgresWriter, readers: ReaderPool, database_us: int, late_us: int
    ) -> None:
        """Compare the clocks and end old reads. Runs on the listener's thread."""
        readers.end_old_reads(self._settings.max_read_s)
        self._compare_clocks(writer, database_us, late_us)

    def _compare_clocks(self, writer: PostgresWriter, database_us: int, late_us: int) -> None:
        """Doubt our clock when it is too far from the database's, read up to `late_us` ago."""
        max_skew_s = self._settings.max_skew_s
        if max_skew_s is None:
            return
        try:
            skew_s = max(0, abs(self._clock.now_us() - database_us) - late_us) / 1_000_000
        except Unavailable:  # in doubt anyhow, so nothing is written
            return
        writer.clock_doubt = (
            f"this clock and the database's differ by {skew_s:.1f} s"
            if skew_s > max_skew_s
            else None
        )

    @property
    def last_seq(self) -> int:
        """The highest number that this node knows to be committed, by whatever node."""
        listener = self._listener
        return max(super().last_seq, listener.last_seq if listener is not None else 0)

    def _ending(self) -> None:
        if self._listener is not None:
            self._listener.join()

    def _closed(self) -> None:
        """Nothing is held but the connections."""

    def _report(self) -> DatabaseReport:
        writer, listener = self._writer_link, self._listener
        if writer is None or listener is None:
            return DatabaseReport()
        readers = [reader.link for reader in self._reader_links]
        failures = [writer.link.damage, writer.link.trouble, writer.clock_doubt]
        failures += [link.damage for link in readers]
        warnings = [listener.trouble, *(link.trouble for link in readers)]
        return DatabaseReport(
            tuple(dict.fromkeys(text for text in warnings if text is not None)),
            tuple(dict.fromkeys(text for text in failures if text is not None)),
        )


def migrate_link(link: Link, *, now_us: int) -> list[str]:
    """Check the version and apply what is missing, all in one transaction; return the names.

    When several nodes start at once, one of them makes the tables and the others find them.
    """
    for left in range(MIGRATE_TRIES, 0, -1):
        link.ensure_open()
        try:
            return _migrate(link, now_us)
        except (Corrupt, ConfigError):
            raise
        except StoreError as error:
            link.rollback()
            is_race = isinstance(error, Conflict | Interrupted) or "already exists" in str(error)
            if left == 1 or not is_race:
                raise
            time.sleep(RETRY_S)
    raise Unavailable("the database could not be migrated")


def _migrate(link: Link, now_us: int) -> list[str]:
    migrations = load_migrations()
    link.execute("BEGIN")
    try:
        check_state(link, migrations, version=SCHEMA_VERSION)
        names = apply_missing(
            link, migrations, types=SQL_TYPES, compat=SCHEMA_COMPAT, now_us=now_us
        )
        link.execute("COMMIT")
    except BaseException:
        link.rollback()
        raise
    return names
