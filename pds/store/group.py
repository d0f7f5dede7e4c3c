"""Group commit: several jobs, one COMMIT, numbers last.

A group runs in two phases. First the bodies of the jobs that wait, each in a savepoint where there
are several, so that a failing job takes nothing with it; their accounts are locked before, all at
once and in order, where other writers exist. Then, for all jobs that survived: one allocation of
sequence numbers, the frames built with them, one insert of the events, COMMIT. Nothing else happens
while the sequence is held, and a failed job's events are dropped before any number is taken.

Failure is judged by the transaction, not by the exception: a full disk or an I/O error may have
rolled all of it back. If it ended, nobody is answered and each job is run again alone, so that the
one at fault is the only one to fail. A job that failed by itself is answered after the commit too:
its failure may have come from what an earlier job of the group wrote. A failed COMMIT leaves
the outcome unknown; it fails the group, and `stop` tells the writer to reopen the database.

A database may put off statements whose answer nobody reads, so that a failure shows when the job
has ended. `take_failed` names such jobs, before numbers are taken and after the commit; they are
undone and answered as any that failed.

Jobs may say what they read first (`FirstRead`). Those reads go to the database together, with what
opens the transaction: of the jobs of a group in their order, up to the first one that does not say
it, or that shares an account with a job before it (which may change what it reads). What
that saves is round trips, so it matters on PostgreSQL only.

`Interrupted`, from wherever it comes, says that nothing of the transaction is in the database and
that no job is at fault: its jobs are run again, alone, a few times.

This module does not know which database it is: a `WriteConnection` runs the statements, one in
`sqlite.py` and one in `postgres_writer.py`. Nor does it know threads or the event loop; that is
`writer.py`.
"""

import logging
import time
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from pds.errors import StoreError, Unavailable
from pds.store.clock import Clock
from pds.store.engine import (
    MAX_GROUP_JOBS,
    MAX_GROUP_S,
    SLOW_JOB_S,
    BuildFrame,
    CommittedEvent,
    CommittedGroup,
    FirstRead,
    Interrupted,
    Params,
    Row,
    SqlValue,
    Statement,
    Txn,
)
from pds.store.statements import StatementCheck

RETRY_DELAYS_S: Final = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Pauses before a job that was interrupted is run again."""

_log: Final = logging.getLogger(__name__)

NEXT_ID: Final = (
    "INSERT INTO counter (name, value) VALUES (?, 1)"
    " ON CONFLICT (name) DO UPDATE SET value = counter.value + 1 RETURNING value"
)


class WriteConnection(Protocol):
    """The one connection that writes, in the database's own SQL.

    Every method raises only `StoreError`s. `execute*` fetch all rows.
    """

    @property
    def locks_accounts(self) -> bool:
        """Whether other writers exist, so that accounts must be locked before the first body."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, as the database sees it."""

    @property
    def opening_error(self) -> StoreError | None:
        """Why the transaction could not be opened, where that shows with its first statement."""
        return None

    def begin(self, accounts: Sequence[int]) -> None:
        """Open a transaction and lock `accounts`, given in ascending order."""

    def foresee(self, reads: Sequence[FirstRead]) -> None:
        """Take note of what the first jobs will read first, one entry for each, in order.

        None of them changes what another one of them reads.
        """
        return

    def commit(self) -> None:
        """Make the transaction durable."""

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""

    def savepoint(self) -> None:
        """Mark the state to which `undo_savepoint` returns."""

    def release_savepoint(self) -> None:
        """Forget the mark."""

    def undo_savepoint(self) -> None:
        """Return to the mark and forget it."""

    def execute(self, sql: str, params: Params) -> list[Row]:
        """Run one statement; a write without RETURNING may be put off, up to `settle`."""

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for each row of parameters; may be put off too."""

    def settle(self, *, takes_numbers: bool) -> None:
        """Run what was put off, as far as that must be before the commit; after the last job."""
        return

    def take_failed(self) -> Mapping[int, StoreError]:
        """Return the jobs of which a statement that was put off has failed, and why.

        They are undone. Their numbers are the order in which they ran, from 0. Asked after
        `settle` and after `commit`.
        """
        return {}

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Lock further accounts inside the transaction."""

    def announce(self, aids: Sequence[int]) -> None:
        """Have other nodes told, with the commit, that these accounts changed."""

    def allocate_seq(self, count: int, now_us: int) -> tuple[int, int, Statement]:
        """Take `count` numbers; return the number before, the first, and the write made.

        first = max(last + 1, now_us); the others follow without gaps.
        """

    def insert_events(self, rows: Sequence[tuple[int, int, str, int, bytes]]) -> list[Statement]:
        """Insert rows of (seq, aid, kind, at, frame) with as few statements as possible."""


@dataclass(slots=True, eq=False)
class Job:
    """One call of `transact` on its way through the writer."""

    label: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    accounts: tuple[int, ...] = ()
    bulk: bool = False
    first_read: FirstRead | None = None
    future: "Future[Any] | None" = None
    result: Any = None
    error: BaseException | None = None
    events: list[tuple[str, int, BuildFrame]] = field(default_factory=list)
    hooks: list[Callable[[], None]] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what a rolled-back run left behind."""
        self.result = None
        self.error = None
        self.drop_effects()

    def drop_effects(self) -> None:
        """Forget what was to follow from the commit."""
        self.events.clear()
        self.hooks.clear()
        self.announced.clear()
        self.statements.clear()


class JobSource(Protocol):
    """Where a group gets its jobs."""

    def take(self) -> Job | None:
        """Return the next job that waits, or None."""

    def give_back(self, job: Job) -> None:
        """Put a job that was taken last, and not started, in front again."""


class _Alone:
    """A source of one job."""

    def __init__(self, job: Job) -> None:
        self._jobs = [job]

    def take(self) -> Job | None:
        return self._jobs.pop() if self._jobs else None

    def give_back(self, job: Job) -> None:
        self._jobs.append(job)


class Outcome(NamedTuple):
    """What a commit made durable, or may have, and the jobs' hooks that follow from it."""

    group: CommittedGroup
    hooks: tuple[Callable[[], None], ...] = ()


class GroupResult(NamedTuple):
    """Jobs that may be answered now, in order, and what became durable with them.

    `doubted` is what became durable if the commit, whose outcome is unknown, took place.
    """

    jobs: tuple[Job, ...]
    group: CommittedGroup | None = None
    stop: StoreError | None = None
    doubted: Outcome | None = None


class WriterTxn(Txn):
    """The writer's `Txn` for one run of one job."""

    def __init__(
        self, connection: WriteConnection, job: Job, check: StatementCheck, *, keep_log: bool
    ) -> None:
        self._connection = connection
        self._job = job
        self._check = check
        self._keep_log = keep_log
        self._doom: BaseException | None = None

    @property
    def is_writable(self) -> bool:
        """Always true here."""
        return True

    @property
    def doom(self) -> BaseException | None:
        """The failure of a statement, after which this transaction does nothing more."""
        return self._doom

    def read(self, sql: str, params: Params = ()) -> list[Row]:
        """Return all rows of a SELECT."""
        if sql not in self._check.reads:
            self._check.admit(sql, writes=False)
        if self._doom is not None:
            self._refuse()
        try:
            return self._connection.execute(sql, params)
        except Exception as error:
            self._doom = error
            raise

    def read_one(self, sql: str, params: Params = ()) -> Row | None:
        """Return the first row of a SELECT, or None."""
        rows = self.read(sql, params)
        return rows[0] if rows else None

    def write(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one write and return the rows of its RETURNING clause."""
        if sql not in self._check.writes:
            self._check.admit(sql, writes=True)
        if self._doom is not None:
            self._refuse()
        try:
            rows = self._connection.execute(sql, params)
        except Exception as error:
            self._doom = error
            raise
        if self._keep_log:
            self._job.statements.append(Statement(sql, (tuple(params),)))
        return rows

    def write_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Run one write for each row of parameters."""
        if sql not in self._check.writes:
            self._check.admit(sql, writes=True)
        if self._doom is not None:
            self._refuse()
        batch = rows if isinstance(rows, list) else list(rows)
        if not batch:
            return
        try:
            self._connection.execute_many(sql, batch)
        except Exception as error:
            self._doom = error
            raise
        if self._keep_log:
            copies: tuple[tuple[SqlValue, ...], ...] = tuple(tuple(row) for row in batch)
            self._job.statements.append(Statement(sql, copies))

    def next_id(self, name: str) -> int:
        """Return the next number of the counter `name`."""
        return int(self.write(NEXT_ID, (name,))[0][0])

    def lock_accounts(self, aids: Iterable[int]) -> None:
        """Lock further accounts."""
        if self._doom is not None:
            self._refuse()
        self._connection.lock_accounts(aids)

    def emit(self, kind: str, aid: int, build_frame: BuildFrame) -> None:
        """Add an event, numbered after all bodies of the group have run."""
        if self._doom is not None:
            self._refuse()
        self._job.events.append((kind, aid, build_frame))

    def announce(self, aid: int) -> None:
        """Have other nodes told, with the commit, that this account changed."""
        if self._doom is not None:
            self._refuse()
        self._job.announced.append(aid)

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Run `hook` on the event loop after the commit."""
        if self._doom is not None:
            self._refuse()
        self._job.hooks.append(hook)

    def finish(self) -> None:
        """End the use of this object: a job that kept it finds it closed."""
        if self._doom is None:
            self._doom = StoreError("the transaction has ended")

    def _refuse(self) -> NoReturn:
        raise StoreError("this transaction has failed or ended") from self._doom


class GroupRunner:
    """Runs groups of jobs on one connection. Used by one thread."""

    def __init__(
        self,
        connection: WriteConnection,
        clock: Clock,
        check: StatementCheck,
        *,
        keep_log: bool = False,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._check = check
        self._keep_log = keep_log

    def run(self, source: JobSource) -> Iterator[GroupResult]:
        """Run one group of the jobs that wait.

        Yields one result, or several when jobs had to be run again alone. After a result with
        `stop` nothing more is run: the jobs that are left come back with that failure.
        """
        started: list[Job] = []
        result = self._run_together(source, started)
        if result is not None:
            yield result
            return
        stop: StoreError | None = None
        for job in started:
            if stop is not None:
                job.reset()
                job.error = stop
                yield GroupResult((job,))
                continue
            alone = self._run_alone(job)
            stop = alone.stop
            yield alone

    def _run_alone(self, job: Job) -> GroupResult:
        """Run a job once more by itself, and again while it is interrupted."""
        for delay_s in RETRY_DELAYS_S:
            time.sleep(delay_s)
            job.reset()
            result = self._run_together(_Alone(job), [])
            if result is not None:
                return result
        return GroupResult((job,))

    def _collect(self, source: JobSource) -> list[Job]:
        """Take the jobs that wait now, as far as they may share a transaction."""
        jobs: list[Job] = []
        while len(jobs) < MAX_GROUP_JOBS and (job := source.take()) is not None:
            needs_own = job.bulk or (self._connection.locks_accounts and not job.accounts)
            if needs_own and jobs:
                source.give_back(job)
                break
            jobs.append(job)
            if needs_own:
                break
        return jobs

    def _run_together(self, source: JobSource, started: list[Job]) -> GroupResult | None:
        """Run one transaction; None when it ended early and its jobs must be run alone."""
        jobs = self._collect(source)
        if not jobs:
            return GroupResult(())
        try:
            now_us = self._clock.now_us()
            self._connection.begin(sorted({aid for job in jobs for aid in job.accounts}))
            self._connection.foresee(_first_reads(jobs))
        except Exception as error:  # the clock or the database refuses
            return self._answer_all(jobs, error)
        deadline = time.monotonic() + MAX_GROUP_S
        for number, job in enumerate(jobs, start=1):
            started.append(job)
            is_alive = self._run_body(job, shares=len(jobs) > 1)
            if not is_alive and (opening_error := self._connection.opening_error) is not None:
                return self._answer_all(jobs, opening_error)
            if number == 1 and self._connection.locks_accounts:
                # Its first statement waited for the locks of all.
                deadline = time.monotonic() + MAX_GROUP_S
            if not is_alive or time.monotonic() >= deadline:
                for later in reversed(jobs[number:]):
                    source.give_back(later)
                if not is_alive:
                    return self._give_up(started)
                break
        return self._finish(started, now_us)

    def _answer_all(self, jobs: list[Job], error: Exception) -> GroupResult:
        """Answer jobs whose transaction could not be opened."""
        self._connection.rollback()
        for job in jobs:
            job.reset()
            job.error = error
        return GroupResult(tuple(jobs))

    def _run_body(self, job: Job, *, shares: bool) -> bool:
        """Run one job; False when the transaction is gone, or must go with a failed job.

        A job that shares its transaction runs in a savepoint.
        """
        connection = self._connection
        txn = WriterTxn(connection, job, self._check, keep_log=self._keep_log)
        began = time.perf_counter()
        try:
            if shares:
                connection.savepoint()
            job.result = job.fn(txn, *job.args)
            if txn.doom is not None:
                raise txn.doom
            if shares:
                connection.release_savepoint()
        except BaseException as error:  # whatever it is, it is the job's answer
            job.error = error
            job.result = None
        txn.finish()
        if job.error is not None:
            job.drop_effects()
            if not shares or not connection.in_transaction or isinstance(job.error, Interrupted):
                return False
            try:
                connection.undo_savepoint()
            except StoreError:
                return False
        elapsed = time.perf_counter() - began
        if elapsed > SLOW_JOB_S:
            _log.warning("store.slow_job", extra={"label": job.label, "duration_s": elapsed})
        return True

    def _give_up(self, started: list[Job]) -> GroupResult | None:
        """Undo what is left; a job that was alone is answered, others must be run again."""
        try:
            self._connection.rollback()
        except StoreError as error:
            return self._stop(started, error)
        if len(started) > 1 or isinstance(started[0].error, Interrupted):
            return None
        return GroupResult(tuple(started))

    def _finish(self, started: list[Job], now_us: int) -> GroupResult | None:
        """Number the events of the surviving jobs and commit."""
        survivors = [job for job in started if job.error is None]
        try:
            if survivors:
                self._connection.settle(takes_numbers=any(job.events for job in survivors))
                survivors = self._drop_failed(started)
            if not survivors:
                return self._undo_all(started)
            self._connection.announce([aid for job in survivors for aid in job.announced])
            events, numbering = self._number(survivors, now_us)
        except BaseException as error:  # a frame that cannot be built, a full disk
            if (opening_error := self._connection.opening_error) is not None:
                return self._answer_all(started, opening_error)
            if len(started) == 1:
                started[0].error = error
                started[0].result = None
            return self._give_up(started)
        try:
            self._connection.commit()
        except Interrupted as error:
            started[0].error = error
            return self._give_up(started)
        except StoreError as error:
            return self._stop(started, error, self._outcome(survivors, events, numbering))
        survivors = self._drop_failed(started)
        return GroupResult(tuple(started), self._outcome(survivors, events, numbering).group)

    def _drop_failed(self, started: list[Job]) -> list[Job]:
        """Take note of the jobs that failed after they had ended; return the others."""
        for number, error in self._connection.take_failed().items():
            job = started[number]
            job.error = error
            job.result = None
            job.drop_effects()
        return [job for job in started if job.error is None]

    def _outcome(
        self,
        survivors: list[Job],
        events: Sequence[CommittedEvent],
        numbering: Sequence[Statement],
    ) -> "Outcome":
        """Return what the commit makes durable, and what is to follow."""
        statements: list[Statement] = []
        if self._keep_log:
            for job in survivors:
                statements += job.statements
            statements += numbering
        hooks = tuple(hook for job in survivors for hook in job.hooks)
        return Outcome(CommittedGroup(tuple(events), tuple(statements)), hooks)

    def _undo_all(self, started: list[Job]) -> GroupResult | None:
        """Answer a group of which no job survived."""
        try:
            self._connection.rollback()
        except StoreError as error:
            return self._stop(started, error)
        return GroupResult(tuple(started))

    def _number(
        self, survivors: list[Job], now_us: int
    ) -> tuple[list[CommittedEvent], list[Statement]]:
        """Give each event its number, build its frame and insert all rows."""
        count = sum(len(job.events) for job in survivors)
        if count == 0:
            return [], []
        prev, seq, update = self._connection.allocate_seq(count, now_us)
        events: list[CommittedEvent] = []
        for job in survivors:
            for kind, aid, build_frame in job.events:
                frame = build_frame(seq, now_us)
                events.append(CommittedEvent(prev, seq, aid, kind, now_us, frame))
                prev, seq = seq, seq + 1
        inserts = self._connection.insert_events(
            [(event.seq, event.aid, event.kind, event.at_us, event.frame) for event in events]
        )
        return events, [update, *inserts]

    def _stop(
        self, started: list[Job], error: StoreError, doubted: "Outcome | None" = None
    ) -> GroupResult:
        """Fail the group: whether it became durable is unknown, so nobody may go on."""
        failure = Unavailable(f"the commit failed: {error}")
        for job in started:
            job.reset()
            job.error = failure
        return GroupResult(tuple(started), stop=failure, doubted=doubted)


def _first_reads(jobs: Sequence[Job]) -> list[FirstRead]:
    """Return what the first jobs read first, as far as no job before may have changed it."""
    reads: list[FirstRead] = []
    changed: set[int] = set()
    for job in jobs:
        if job.first_read is None or not changed.isdisjoint(job.accounts):
            break
        changed.update(job.accounts)
        reads.append(job.first_read)
    return reads
