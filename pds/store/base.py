"""What every engine shares: the writer thread, the reader threads and the way in.

An engine is this class plus a database: `_open` makes the connections, `_report` adds what the
database knows about its own health.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pds.errors import Unavailable
from pds.store.clock import Clock
from pds.store.engine import (
    MAX_WAITING_BULK_JOBS,
    MAX_WAITING_JOBS,
    MAX_WAITING_READS,
    Engine,
    EngineHealth,
    EventHook,
    FirstRead,
    ForeignCommits,
    ForeignHook,
    HealthStatus,
    MakeDurable,
    Recorder,
    T,
    Ts,
    Txn,
    Write,
)
from pds.store.group import GroupRunner, Job, WriteConnection
from pds.store.read_processes import CannotStart, Connect, ReadProcesses
from pds.store.reader import ReadConnection, ReaderPool
from pds.store.statements import StatementCheck
from pds.store.stream import StreamOutput, run_here
from pds.store.writer import REOPEN_INTERVAL_S, Reopenable, Writer, nothing_more

RAISE_SEQ: Final = (
    "UPDATE seq SET last_seq = CASE WHEN last_seq < ? THEN ? ELSE last_seq END"
    " WHERE id = 1 RETURNING last_seq"
)

_log: Final = logging.getLogger(__name__)


class EngineConnection(WriteConnection, Reopenable, Protocol):
    """The write connection with everything that the engine needs of it."""

    @property
    def last_seq(self) -> int:
        """The highest number committed."""

    def expect_seq(self, seq: int) -> None:
        """Take note that the open transaction sets `last_seq` to this."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait before calls are refused, and how often a stopped writer tries again."""

    jobs: int = MAX_WAITING_JOBS
    bulk_jobs: int = MAX_WAITING_BULK_JOBS
    reads: int = MAX_WAITING_READS
    reopen_interval_s: float = REOPEN_INTERVAL_S


@dataclass(frozen=True, slots=True)
class Opened:
    """The connections of a database that is open and migrated.

    `apart` opens one for reading in another process; without it there are no such processes.
    """

    writer: EngineConnection
    readers: Sequence[ReadConnection]
    apart: Connect | None = None
    read_processes: int = 0


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """What the database adds to the health report."""

    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    log_bytes: int = 0
    database_bytes: int = 0


class ThreadedEngine(Engine, ABC):
    """An engine with one writer thread and a few reader threads. Belongs to one event loop."""

    def __init__(
        self,
        clock: Clock,
        *,
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
        limits: QueueLimits = QueueLimits(),
    ) -> None:
        self._clock = clock
        self._recorder = recorder
        self._make_durable = make_durable
        self._limits = limits
        self._writer: Writer | None = None
        self._readers: ReaderPool | None = None
        self._read_processes: ReadProcesses | None = None
        self._connection: EngineConnection | None = None
        self._event_hooks: list[EventHook] = []
        self._foreign_hooks: list[ForeignHook] = []

    @abstractmethod
    def _open(self) -> Opened:
        """Open, create or migrate the database. Runs on a thread of its own."""

    @abstractmethod
    def _opened(self, readers: ReaderPool) -> None:
        """Start what else the database needs. Runs on the loop once the threads run."""

    @abstractmethod
    def _ending(self) -> None:
        """Stop that again, after the last read and before the last write. Runs on a thread."""

    @abstractmethod
    def _closed(self) -> None:
        """Let go of the database, after the last connection is closed. Runs on a thread."""

    @abstractmethod
    def _report(self) -> DatabaseReport:
        """Return what the database knows of its health, without blocking."""

    @property
    def last_seq(self) -> int:
        """The highest sequence number committed."""
        return self._connection.last_seq if self._connection is not None else 0

    async def start(self) -> None:
        """Open the database and start the threads."""
        opened = await asyncio.to_thread(self._open)
        loop = asyncio.get_running_loop()
        check = StatementCheck()
        runner = GroupRunner(opened.writer, self._clock, check, keep_log=self._recorder is not None)
        self._connection = opened.writer
        self._writer = Writer(
            runner,
            opened.writer,
            loop,
            hooks=self._event_hooks,
            recorder=self._recorder,
            make_durable=self._make_durable,
            limit=self._limits.jobs,
            bulk_limit=self._limits.bulk_jobs,
            reopen_interval_s=self._limits.reopen_interval_s,
        )
        self._readers = ReaderPool(opened.readers, check, loop, limit=self._limits.reads)
        if opened.apart is not None and opened.read_processes:
            self._read_processes = ReadProcesses(
                opened.apart, loop, processes=opened.read_processes, limit=self._limits.reads
            )
        self._writer.start()
        self._opened(self._readers)

    async def close(self) -> None:
        """Refuse new calls, finish those that wait, close the database."""
        writer, readers = self._writer, self._readers
        if writer is None or readers is None:
            return
        self._writer = self._readers = None
        writer.refuse()
        readers.refuse()
        if self._read_processes is not None:
            self._read_processes.refuse()
        await asyncio.to_thread(self._join, writer, readers)

    def _join(self, writer: Writer, readers: ReaderPool) -> None:
        readers.join()
        if self._read_processes is not None:
            self._read_processes.join()
        self._ending()
        writer.join()
        self._closed()

    async def transact(
        self,
        label: str,
        fn: "Callable[[Txn, *Ts], T]",
        *args: *Ts,
        accounts: Sequence[int] = (),
        bulk: bool = False,
        first_read: FirstRead | None = None,
    ) -> T:
        """Run `fn(txn, *args)` on the writer; its result once it is durable."""
        if self._writer is None:
            raise Unavailable("the store is not open")
        job = Job(label, fn, args, tuple(accounts), bulk, first_read)
        result: T = await self._writer.submit(job)
        return result

    async def read(self, label: str, fn: "Callable[[Txn, *Ts], T]", *args: *Ts) -> T:
        """Run `fn(txn, *args)` on a reader, in one snapshot."""
        if self._readers is None:
            raise Unavailable("the store is not open")
        result: T = await self._readers.submit(label, fn, args)
        return result

    async def stream(
        self,
        label: str,
        write: Write,
        fn: "Callable[[Txn, Write, *Ts], None]",
        *args: *Ts,
        apart: bool = False,
    ) -> None:
        """Run `fn(txn, write, *args)` on a reader or in another process, in one snapshot."""
        output = StreamOutput(write)
        try:
            if apart and self._read_processes is not None:
                try:
                    return await self._read_processes.submit(label, output, fn, args)
                except CannotStart as error:
                    _log.warning("store.read_process_failed", extra={"reason": str(error)})
            return await self.read(label, run_here, output, fn, args)
        finally:
            output.stop()

    def _end_old_streams(self, limit_s: float) -> int:
        """End the jobs of other processes that are over the limit; return how many."""
        return self._read_processes.end_old(limit_s) if self._read_processes is not None else 0

    async def raise_seq(self, floor: int) -> int:
        """Make every later number higher than `floor`."""
        return await self.transact("store.raise_seq", self._raise_seq, floor)

    def _raise_seq(self, txn: Txn, floor: int) -> int:
        seq = int(txn.write(RAISE_SEQ, (floor, floor))[0][0])
        if self._connection is not None:
            self._connection.expect_seq(seq)
        return seq

    def add_event_hook(self, hook: EventHook) -> None:
        """Have `hook` called on the loop for each group with events."""
        self._event_hooks.append(hook)

    def add_foreign_hook(self, hook: ForeignHook) -> None:
        """Have `hook` called on the loop when other nodes have committed something."""
        self._foreign_hooks.append(hook)

    def _tell_foreign(self, commits: ForeignCommits) -> None:
        """Run the hooks for what other nodes committed. Runs on the loop."""
        for hook in self._foreign_hooks:
            try:
                hook(commits)
            except Exception:  # the others must still be told
                _log.exception("store.foreign_hook_failed")

    def health(self) -> EngineHealth:
        """Return how the engine is."""
        writer, readers = self._writer, self._readers
        if writer is None or readers is None:
            return EngineHealth(
                HealthStatus.FAILED, ("the store is not open",), self.last_seq, 0, 0, 0, 0, 0, 0, 0
            )
        report = self._report()
        failures, waiting_reads = report.failures, readers.waiting
        if self._read_processes is not None:
            failures = tuple(dict.fromkeys((*failures, *self._read_processes.damage)))
            waiting_reads += self._read_processes.waiting
        if writer.stopped is not None:
            failures = (f"writes are stopped: {writer.stopped}", *failures)
        status = HealthStatus.WARNING if report.warnings else HealthStatus.OK
        return EngineHealth(
            status=HealthStatus.FAILED if failures else status,
            problems=(*failures, *report.warnings),
            last_seq=self.last_seq,
            waiting_jobs=writer.waiting,
            waiting_bulk_jobs=writer.waiting_bulk,
            waiting_reads=waiting_reads,
            groups=writer.groups,
            jobs=writer.jobs,
            log_bytes=report.log_bytes,
            database_bytes=report.database_bytes,
        )
