"""Reader threads: each call in one snapshot, answers in few loop wake-ups.

Each thread owns one connection. It takes one job at a time and hands finished ones to the event
loop when nothing waits or when the oldest finished one is half a millisecond old: a wake-up of the
loop costs more than a point read. (Own threads with a queue: 17-25 us for a point read; the
default executor 24-55 us.)

A read transaction that lives long keeps the write-ahead log from being reused, so `end_old_reads`
interrupts those over the limit. Only reader connections are ever interrupted.
"""

import logging
import queue
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from pds.errors import StoreError, Unavailable
from pds.store.engine import MAX_WAITING_READS, BuildFrame, Params, Row, Txn
from pds.store.statements import StatementCheck

FLUSH_S: Final = 0.0005

_log: Final = logging.getLogger(__name__)


class ReadConnection(Protocol):
    """A connection that only reads. `interrupt` may be called from any thread."""

    def begin(self) -> None:
        """Start a snapshot."""

    def end(self) -> None:
        """End the snapshot."""

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one SELECT and return all rows."""

    def interrupt(self) -> None:
        """Make the running statement fail with Unavailable."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(slots=True, eq=False)
class ReadJob:
    """One call of `read` on its way through a reader thread."""

    label: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    future: "Future[Any]"
    result: Any = None
    error: BaseException | None = None


class ReaderTxn(Txn):
    """The `Txn` of one snapshot."""

    def __init__(self, connection: ReadConnection, check: StatementCheck) -> None:
        self._connection = connection
        self._check = check
        self._ended: StoreError | None = None
        self._began = False

    @property
    def is_writable(self) -> bool:
        """Always false here."""
        return False

    def read(self, sql: str, params: Params = ()) -> list[Row]:
        """Return all rows of a SELECT."""
        if sql not in self._check.reads:
            self._check.admit(sql, writes=False)
        if self._ended is not None:
            raise self._ended
        return self._connection.execute(sql, params)

    def read_one(self, sql: str, params: Params = ()) -> Row | None:
        """Return the first row of a SELECT, or None."""
        rows = self.read(sql, params)
        return rows[0] if rows else None

    def write(self, sql: str, params: Params = ()) -> list[Row]:
        """Refuse."""
        self._refuse()

    def write_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Refuse."""
        self._refuse()

    def next_id(self, name: str) -> int:
        """Refuse."""
        self._refuse()

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Refuse."""
        self._refuse()

    def emit(self, kind: str, aid: int, build_frame: BuildFrame) -> None:
        """Refuse."""
        self._refuse()

    def announce(self, aid: int) -> None:
        """Refuse."""
        self._refuse()

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Refuse."""
        self._refuse()

    def end(self, reason: StoreError) -> None:
        """Make every further read raise `reason`; may be called from another thread."""
        self._ended = reason

    def _refuse(self) -> NoReturn:
        raise StoreError("this transaction only reads")


class _Reader:
    """One thread, one connection."""

    def __init__(
        self,
        connection: ReadConnection,
        jobs: "queue.SimpleQueue[ReadJob | None]",
        check: StatementCheck,
        loop: AbstractEventLoop,
    ) -> None:
        self._connection = connection
        self._jobs = jobs
        self._check = check
        self._loop = loop
        self._lock = threading.Lock()
        self._current: tuple[ReaderTxn, str, float] | None = None
        self.thread = threading.Thread(target=self._run, name="store-reader", daemon=True)

    def _run(self) -> None:
        done: list[ReadJob] = []
        flush_at = 0.0
        while True:
            job = self._jobs.get()
            if job is None:
                break
            if not job.future.cancelled():
                self._run_job(job)
            if not done:
                flush_at = time.monotonic() + FLUSH_S
            done.append(job)
            if self._jobs.empty() or time.monotonic() >= flush_at:
                deliver_from_thread(self._loop, _answer_all, done)
                done = []
        if done:
            deliver_from_thread(self._loop, _answer_all, done)
        self._connection.close()

    def _run_job(self, job: ReadJob) -> None:
        txn = ReaderTxn(self._connection, self._check)
        with self._lock:
            self._current = (txn, job.label, time.monotonic())
        try:
            self._connection.begin()
            job.result = job.fn(txn, *job.args)
        except BaseException as error:  # whatever it is, it is the job's answer
            job.error = error
        with self._lock:
            self._current = None
        txn.end(StoreError("this transaction has ended"))
        try:
            self._connection.end()
        except StoreError:
            _log.exception("store.read_end_failed", extra={"label": job.label})

    def end_old_read(self, limit_s: float) -> bool:
        """Interrupt the running read when it is over the limit."""
        with self._lock:
            if self._current is None:
                return False
            txn, label, began = self._current
            age = time.monotonic() - began
            if age < limit_s:
                return False
            txn.end(Unavailable(f"a read was ended after {age:.0f} s"))
            self._connection.interrupt()
        _log.warning("store.read_ended", extra={"label": label, "duration_s": age})
        return True


class ReaderPool:
    """The reader threads of one engine."""

    def __init__(
        self,
        connections: Sequence[ReadConnection],
        check: StatementCheck,
        loop: AbstractEventLoop,
        *,
        limit: int = MAX_WAITING_READS,
    ) -> None:
        self._jobs: queue.SimpleQueue[ReadJob | None] = queue.SimpleQueue()
        self._loop = loop
        self._limit = limit
        self._closing = False
        self._readers = [_Reader(connection, self._jobs, check, loop) for connection in connections]
        for reader in self._readers:
            reader.thread.start()

    @property
    def waiting(self) -> int:
        """How many reads wait for a thread."""
        return self._jobs.qsize()

    def submit(self, label: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> "Future[Any]":
        """Queue a read; raises Unavailable when the queue is full or closing."""
        if self._closing:
            raise Unavailable("the store is closing")
        if self._jobs.qsize() >= self._limit:
            raise Unavailable("too many reads are waiting")
        future: Future[Any] = self._loop.create_future()
        self._jobs.put(ReadJob(label, fn, args, future))
        return future

    def end_old_reads(self, limit_s: float) -> int:
        """Interrupt the reads that are over the limit; return how many."""
        return sum(reader.end_old_read(limit_s) for reader in self._readers)

    def refuse(self) -> None:
        """Take no more reads."""
        self._closing = True

    def join(self) -> None:
        """Finish the reads that wait, then close the connections."""
        self._closing = True
        for _ in self._readers:
            self._jobs.put(None)
        for reader in self._readers:
            reader.thread.join()


def _answer_all(jobs: list[ReadJob]) -> None:
    for job in jobs:
        answer(job.future, job.result, job.error)


def answer(future: "Future[Any]", result: Any, error: BaseException | None) -> None:
    """Resolve a caller's future, unless the caller has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future refuses to carry it
        future.set_exception(RuntimeError("a job raised StopIteration"))
    else:
        future.set_exception(error)


def deliver_from_thread(
    loop: AbstractEventLoop, deliver: Callable[[Any], None], argument: object
) -> None:
    """Wake the loop once to run `deliver(argument)`."""
    try:
        loop.call_soon_threadsafe(deliver, argument)
    except RuntimeError:  # the loop was closed before the engine: nobody is left to be answered
        _log.warning("store.loop_closed")
