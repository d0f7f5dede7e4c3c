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
import secrets
import time
from functools import partial
from typing import Final

from pds.errors import ConfigError, Conflict, Corrupt, StoreError, Unavailable
from pds.store.base import DatabaseReport, Opened, ThreadedEngine
from pds.store.clock import Clock, SystemClock
from pds.store.convert_mark import check_may_start
from pds.store.engine import Interrupted, MakeDurable, Recorder
from pds.store.migrate import (
    SCHEMA_COMPAT,
    SCHEMA_VERSION,
    apply_missing,
    check_state,
    load_migrations,
)
from pds.store.postgres_link import (
    LOCK_TIMEOUT,
    WRITE_TIMEOUT,
    Link,
    PostgresReader,
    PostgresSettings,
    check_url,
)
from pds.store.postgres_listen import Listener
from pds.store.postgres_writer import PostgresWriter
from pds.store.reader import ReaderPool, deliver_from_thread
from pds.store.writer import nothing_more

SQL_TYPES: Final = {
    "blob": "BYTEA",
    "int": "BIGINT",
    "key": 'TEXT COLLATE "C"',
    "rowless": "",
    "strict": "",
}
MIGRATE_TRIES: Final = 20
RETRY_S: Final = 0.2

_READ_CLOCK: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"


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
            if writer.link.execute("SHOW server_encoding") != [("UTF8",)]:
                raise ConfigError("the database must have the encoding UTF8")
            check_may_start(writer.link)
            migrate_link(writer.link, now_us=SystemClock().now_us())
            writer.load_seq()
            before_ns = time.monotonic_ns()
            database_us = int(writer.link.execute(_READ_CLOCK)[0][0])
            self._compare_clocks(writer, database_us, (time.monotonic_ns() - before_ns) // 1000)
        except BaseException:
            writer.close()
            raise
        self._writer_link = writer
        self._reader_links = [
            PostgresReader(self._conninfo, max_read_s=self._settings.max_read_s)
            for _ in range(self._settings.readers)
        ]
        apart = partial(PostgresReader, self._conninfo, max_read_s=self._settings.max_read_s)
        return Opened(writer, self._reader_links, apart, self._settings.read_processes)

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
        """Compare the clocks and end old reads, wherever they are. On the listener's thread."""
        readers.end_old_reads(self._settings.max_read_s)
        self._end_old_streams(self._settings.max_read_s)
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


def _migrate(link: Link, now_us: int, *, keeps: bool = True) -> list[str]:
    migrations = load_migrations()
    link.execute("BEGIN")
    try:
        check_state(link, migrations, version=SCHEMA_VERSION)
        names = apply_missing(
            link, migrations, types=SQL_TYPES, compat=SCHEMA_COMPAT, now_us=now_us
        )
        link.execute("COMMIT" if keeps else "ROLLBACK")
    except BaseException:
        link.rollback()
        raise
    return names


def try_migrations(url: str, *, now_us: int) -> list[str]:
    """Apply what is missing in a transaction that is rolled back; return the names.

    May run beside servers that use the database: it gives up (Unavailable) when it must wait for
    one of their locks, and their writes wait for as long as the migrations take.
    """
    link = Link(check_url(url), {"lock_timeout": LOCK_TIMEOUT})
    try:
        link.ensure_open()
        return _migrate(link, now_us, keeps=False)
    finally:
        link.close()
