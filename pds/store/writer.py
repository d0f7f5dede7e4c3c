"""The writer thread: two queues in, groups through one connection, answers out.

User jobs come first and run in groups. Bulk jobs (import, deletion, retention) run alone and, while
user jobs wait, at most after every other group, so neither starves the other. After a failed COMMIT
the writer refuses everything, and about once a second has the connection reopened and checked; when
that works it takes writes again. Before that it makes up for what is owed: a group that turns out
to be in the database although its callers were told that nobody knows, or that could not be made
durable as was asked. Its writes go into the log, its hooks run and the world hears of its events,
all of it before anything later of this node.

One wake-up of the event loop delivers a whole group: the event hooks in order, the jobs' own hooks,
then the answers. A hook that raises is logged and stops no other.
"""

import logging
import queue
import threading
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from pds.errors import StoreError, Unavailable
from pds.store.engine import (
    MAX_WAITING_BULK_JOBS,
    MAX_WAITING_JOBS,
    CommittedGroup,
    EventHook,
    MakeDurable,
    Recorder,
    Statement,
)
from pds.store.group import GroupResult, GroupRunner, Job, Outcome
from pds.store.reader import answer, deliver_from_thread

REOPEN_INTERVAL_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


class Reopenable(Protocol):
    """What the writer needs of its connection besides running groups."""

    def reopen(self) -> list[Statement]:
        """Open a fresh connection, check the database and that it takes a write again.

        Returns that write, for the log; raises StoreError.
        """

    def take_found_committed(self) -> bool:
        """Whether `reopen` found that the group whose outcome was unknown is there; asked once."""
        return False

    def after_group(self) -> None:
        """Look after the log of the database between two groups; must not raise."""

    def close(self) -> None:
        """Close the connection."""


def nothing_more(group: CommittedGroup) -> None:
    """Be durable without further steps: COMMIT has synced the log."""


class _Source:
    """Hands out the jobs of one queue whose callers still wait, and keeps count of them."""

    def __init__(self, waiting: deque[Job], taken: list[int], running: set[Job]) -> None:
        self._waiting = waiting
        self._taken = taken
        self._running = running

    def take(self) -> Job | None:
        while self._waiting:
            job = self._waiting.popleft()
            self._taken[job.bulk] += 1
            if job.future is None or not job.future.cancelled():
                self._running.add(job)
                return job
        return None

    def give_back(self, job: Job) -> None:
        self._waiting.appendleft(job)
        self._taken[job.bulk] -= 1
        self._running.discard(job)


class Writer:
    """The one thread that writes."""

    def __init__(
        self,
        runner: GroupRunner,
        connection: Reopenable,
        loop: AbstractEventLoop,
        *,
        hooks: Sequence[EventHook] = (),
        recorder: Recorder | None = None,
        make_durable: MakeDurable = nothing_more,
        limit: int = MAX_WAITING_JOBS,
        bulk_limit: int = MAX_WAITING_BULK_JOBS,
        reopen_interval_s: float = REOPEN_INTERVAL_S,
    ) -> None:
        self._runner = runner
        self._connection = connection
        self._loop = loop
        self._recorder = recorder
        self._make_durable = make_durable
        self._limit = limit
        self._bulk_limit = bulk_limit
        self._reopen_interval_s = reopen_interval_s
        self._incoming: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._user: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._submitted = [0, 0]  # user, bulk: changed on the loop only
        self._taken = [0, 0]  # user, bulk: changed on the writer thread only
        self._running: set[Job] = set()
        self._doubted: Outcome | None = None
        """What is in the database if the last commit, whose outcome is unknown, took place."""
        self._owed: Outcome | None = None
        """What is in the database, but not made durable as was asked, recorded and told."""
        self._closing = False
        self._ended = False
        self._event_hooks = hooks
        self.stopped: StoreError | None = None
        self.groups = 0
        self.jobs = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many user jobs wait."""
        return self._submitted[0] - self._taken[0]

    @property
    def waiting_bulk(self) -> int:
        """How many bulk jobs wait."""
        return self._submitted[1] - self._taken[1]

    def submit(self, job: Job) -> "Future[Any]":
        """Queue a job; raises Unavailable when it cannot be taken. Called on the loop."""
        if self._closing:
            raise Unavailable("the store is closing")
        if self.stopped is not None:
            raise Unavailable(f"writes are stopped: {self.stopped}")
        if job.bulk and self.waiting_bulk >= self._bulk_limit:
            raise Unavailable("too many bulk jobs are waiting")
        if not job.bulk and self.waiting >= self._limit:
            raise Unavailable("too many writes are waiting")
        self._submitted[job.bulk] += 1
        future: Future[Any] = self._loop.create_future()
        job.future = future
        self._incoming.put(job)
        return future

    def refuse(self) -> None:
        """Take no more jobs."""
        self._closing = True

    def join(self) -> None:
        """Finish the jobs that wait, then end the thread and close the connection."""
        self._closing = True
        self._incoming.put(None)
        self._thread.join()

    def _run(self) -> None:
        bulk_turn = False
        while True:
            self._receive(wait=not self._user and not self._bulk)
            if self.stopped is not None:
                self._refuse_waiting()
                if self._ended:
                    if self._doubted is not None or self._owed is not None:
                        self._try_reopen()  # the last chance
                    break
                self._try_reopen()
                continue
            if self._bulk and (bulk_turn or not self._user):
                bulk_turn = False
                self._run_group(self._bulk)
            elif self._user:
                bulk_turn = True
                self._run_group(self._user)
            elif self._ended:
                break
        self._connection.close()

    def _receive(self, *, wait: bool) -> None:
        """Sort what has come in into the two queues."""
        try:
            if wait and not self._ended:
                timeout = self._reopen_interval_s if self.stopped is not None else None
                self._sort(self._incoming.get(timeout=timeout))
            while True:
                self._sort(self._incoming.get_nowait())
        except queue.Empty:
            return

    def _sort(self, job: Job | None) -> None:
        if job is None:
            self._ended = True
        elif job.bulk:
            self._bulk.append(job)
        else:
            self._user.append(job)

    def _run_group(self, waiting: deque[Job]) -> None:
        """Run one group; whatever goes wrong, every job that was taken is answered."""
        source = _Source(waiting, self._taken, self._running)
        try:
            for result in self._runner.run(source):
                self._settle(result)
        except Exception as error:  # a mistake of ours must not end the only writer
            _log.exception("store.writer_failed")
            self._stop(Unavailable(f"the writer failed: {error!r}"))
        if self._running:
            self._fail(list(self._running))
            self._running.clear()
        self._connection.after_group()

    def _settle(self, result: GroupResult) -> None:
        """Do what lies between COMMIT and the answers, then hand the group to the loop."""
        if not result.jobs:
            return
        self.groups += 1
        self.jobs += len(result.jobs)
        if result.stop is not None:
            self._doubted = result.doubted
            self._stop(result.stop)
        if result.group is not None:
            try:
                self._keep(result.group)
            except Exception as error:  # committed here, but not as durable as was asked
                _log.exception("store.make_durable_failed")
                self._stop(Unavailable(f"the group could not be made durable: {error!r}"))
                self._owed = Outcome(result.group)
                for job in result.jobs:
                    job.error = self.stopped
                result = GroupResult(result.jobs, CommittedGroup((), ()))
        for job in result.jobs:
            self._running.discard(job)
        deliver_from_thread(self._loop, self._deliver, result)

    def _keep(self, group: CommittedGroup) -> None:
        """Make a committed group as durable as was asked, and log its writes."""
        self._make_durable(group)
        if self._recorder is not None and group.statements:
            self._recorder(group.statements)

    def _stop(self, reason: StoreError) -> None:
        _log.error("store.writes_stopped", extra={"reason": str(reason)})
        self.stopped = reason

    def _deliver(self, result: GroupResult) -> None:
        """Run the hooks and answer the callers of one group. Runs on the loop."""
        if result.group is not None and result.group.events:
            for hook in self._event_hooks:
                try:
                    hook(result.group.events)
                except Exception:  # the commit stands; the other hooks and answers must follow
                    _log.exception("store.event_hook_failed")
        if result.group is not None:
            for job in result.jobs:
                for on_commit in job.hooks:
                    try:
                        on_commit()
                    except Exception:  # as above
                        _log.exception("store.commit_hook_failed", extra={"label": job.label})
        for job in result.jobs:
            if job.future is not None:
                answer(job.future, job.result, job.error)

    def _refuse_waiting(self) -> None:
        """Answer everyone who waits that writes are stopped."""
        waiting = [*self._user, *self._bulk]
        self._taken[0] += len(self._user)
        self._taken[1] += len(self._bulk)
        self._user.clear()
        self._bulk.clear()
        self._fail(waiting)

    def _fail(self, jobs: list[Job]) -> None:
        failure = Unavailable(f"writes are stopped: {self.stopped}")
        for job in jobs:
            job.reset()
            job.error = failure
        if jobs:
            deliver_from_thread(self._loop, self._deliver, GroupResult(tuple(jobs)))

    def _try_reopen(self) -> None:
        try:
            probe = self._connection.reopen()
            doubted, self._doubted = self._doubted, None
            if doubted is not None and self._connection.take_found_committed():
                self._owed = doubted
            self._pay()
        except Exception as error:  # whatever is wrong, the next round tries again
            self.stopped = Unavailable(str(error))
            return
        if self._recorder is not None and probe:
            self._recorder(probe)
        self.stopped = None
        _log.warning("store.writes_resumed")

    def _pay(self) -> None:
        """Make up for a group that is in the database although its callers were told otherwise."""
        owed = self._owed
        if owed is None:
            return
        self._keep(owed.group)
        self._owed = None
        _log.warning("store.group_made_up_for", extra={"events": len(owed.group.events)})
        late = Job("store.late", nothing_more, (), hooks=list(owed.hooks))  # ran long ago
        deliver_from_thread(self._loop, self._deliver, GroupResult((late,), owed.group))
