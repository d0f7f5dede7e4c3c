"""Scheduled work: each job when it is due, done by one node of the host, and noted.

A `Schedule` holds named jobs. Two kinds:

* *host-wide* (the usual one): there is a row in the table `job`. A node that finds it due takes it
  by a lease, which it renews while it works; if the node dies, the lease lapses and another one
  does the work again. So jobs must bear to be done twice, and for a while by two nodes at once.
* *per node*: for what is about this process only, such as its clock. No row, no lease, and no need
  of a clock that is believed.

Times come from the clock and the `sleep` that `Schedule.run` is given, so a test can let a day pass
in a second: every job has one loop, which is either at work or in `sleep`.

After a success a job is due one period after it was due, so it does not drift; a failure is tried
again after a minute, then two, four and so on, but not later than after its period.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import RemoteError, StoreError
from pds.log import get_logger
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.jobs import (
    FinishedRun,
    finish_job,
    get_job,
    put_job,
    release_job,
    renew_job,
    take_job,
)

LEASE_S: Final = 60.0
"""Far longer than the 2 s by which the clocks of two nodes may differ."""
LOOK_S: Final = 600.0
"""A job's row is read at least this often, whatever it said before."""
RETRY_S: Final = 5.0
"""After the database could not be asked, or while the clock is in doubt."""
FAILURE_S: Final = 60.0
RELEASE_TIMEOUT_S: Final = 2.0
MAX_RESULT_CHARS: Final = 300

Run = Callable[[], Awaitable[object]]
"""Does the work; what it returns is noted as text. Raises when it failed."""

Sleep = Callable[[float], Awaitable[object]]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """One job; see `Schedule.add`."""

    name: str
    run: Run
    period_us: int
    first_after_us: int
    per_node: bool
    at_start: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one run came to."""

    text: str
    is_success: bool


class Schedule:
    """Named jobs, each run when it is due."""

    def __init__(
        self, *, engine: Engine, node: str, is_shared: bool, lease_s: float = LEASE_S
    ) -> None:
        """`node` names this process among all; `is_shared` says whether there may be others."""
        self._engine = engine
        self._node = node
        self._is_shared = is_shared
        self._lease_s = lease_s
        self._jobs: dict[str, ScheduledJob] = {}
        self._registering = asyncio.Lock()
        self._is_registered = False

    @property
    def jobs(self) -> tuple[ScheduledJob, ...]:
        """All jobs, in the order they were added."""
        return tuple(self._jobs.values())

    def add(
        self,
        name: str,
        run: Run,
        *,
        every_s: float,
        first_after_s: float = 0.0,
        per_node: bool = False,
        at_start: bool = False,
    ) -> None:
        """Have `run` called every `every_s` seconds.

        The first time is `first_after_s` after the job was first known to the database (per node:
        after the start). A restart changes nothing about when a host-wide job is due, unless
        `at_start` makes it due whenever a node starts.
        """
        if name in self._jobs or every_s <= 0:
            raise ValueError(f"job {name!r} is there already, or has no period")
        period_us, first_us = round(every_s * US_PER_S), round(first_after_s * US_PER_S)
        self._jobs[name] = ScheduledJob(name, run, period_us, first_us, per_node, at_start)

    async def run(self, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        """Run all jobs, each in a loop of its own, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for job in self.jobs:
                loop = (
                    self._per_node(job, sleep) if job.per_node else self._leased(job, clock, sleep)
                )
                group.create_task(loop, name=job.name)

    async def _per_node(self, job: ScheduledJob, sleep: Sleep) -> None:
        await sleep(job.first_after_us / US_PER_S)
        while True:
            await _attempt(job)
            await sleep(job.period_us / US_PER_S)

    async def _leased(self, job: ScheduledJob, clock: Clock, sleep: Sleep) -> None:
        while True:
            try:
                await self._register(clock)
                wait_s = await self._turn(job, clock)
            except StoreError as error:
                # The engine and the clock say loudly what is the matter with them.
                _log.debug("job.not_looked_at", job=job.name, reason=str(error))
                wait_s = RETRY_S
            await sleep(wait_s)

    async def _register(self, clock: Clock) -> None:
        """Bring the rows of all jobs up to date, once, in one transaction."""
        async with self._registering:
            if not self._is_registered:
                jobs = [job for job in self.jobs if not job.per_node]
                await self._engine.transact(
                    "job.put", _put, jobs, clock.now_us(), not self._is_shared, bulk=True
                )
                self._is_registered = True

    async def _turn(self, job: ScheduledJob, clock: Clock) -> float:
        """Do the job if it is due and nobody's; return for how long to leave it alone."""
        row = await self._engine.read("job.get", get_job, job.name)
        now_us = clock.now_us()
        if row is None:  # dropped as an old one
            await self._engine.transact("job.put", _put, [job], now_us, False, bulk=True)
            return 0.0
        if row.is_leased(now_us):
            return _until(row.lease_until or 0, now_us)
        if row.next_at > now_us:
            return _until(row.next_at, now_us)
        taken = await self._engine.transact(
            "job.take", _take, job.name, self._node, now_us, self._lease_us, bulk=True
        )
        if taken is not None:
            due_at, failures = taken
            await self._run_leased(job, clock, due_at=due_at, failures=failures)
        return 0.0

    async def _run_leased(
        self, job: ScheduledJob, clock: Clock, *, due_at: int, failures: int
    ) -> None:
        """Do a job that this node holds, and hold it meanwhile."""
        work = asyncio.ensure_future(_attempt(job))
        keeper = asyncio.ensure_future(self._keep(job.name, clock))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                outcome = _Outcome("cancelled", False) if work.cancelled() else work.result()
                await self._finish(job, clock, outcome, due_at=due_at, failures=failures)
            else:
                _log.warning("job.lease_lost", job=job.name)
        except asyncio.CancelledError:
            await _end(work)
            await self._release(job.name)
            raise
        finally:
            await _end(work)
            await _end(keeper)

    async def _keep(self, name: str, clock: Clock) -> None:
        """Renew the lease; return when it is lost.

        Waits in real time, also when the clock is a test's: a lease is about machines.
        """
        loop = asyncio.get_running_loop()
        lapses_at = loop.time() + self._lease_s
        while loop.time() < lapses_at:
            await asyncio.sleep(self._lease_s / 3)
            with suppress(StoreError):  # tried again until the lease has lapsed
                until = clock.now_us() + self._lease_us
                if not await self._engine.transact(
                    "job.renew", _renew, name, self._node, until, bulk=True
                ):
                    return
                lapses_at = loop.time() + self._lease_s

    async def _finish(
        self, job: ScheduledJob, clock: Clock, outcome: _Outcome, *, due_at: int, failures: int
    ) -> None:
        now_us = clock.now_us()
        failures = 0 if outcome.is_success else failures + 1
        if outcome.is_success:
            next_at = due_at + job.period_us
            if next_at <= now_us:
                next_at = now_us + job.period_us
        else:
            pause_us = round(FAILURE_S * US_PER_S) << min(failures - 1, 16)
            next_at = now_us + min(job.period_us, pause_us)
        run = FinishedRun(
            name=job.name,
            node=self._node,
            finished_at=now_us,
            next_at=next_at,
            result=outcome.text,
            failures=failures,
        )
        is_ours = await self._engine.transact("job.finish", finish_job, run, bulk=True)
        if not is_ours:
            _log.warning("job.lease_lost", job=job.name)

    async def _release(self, name: str) -> None:
        """Let another node go on at once, rather than after the lease."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._engine.transact("job.release", _release, name, self._node, bulk=True)

    @property
    def _lease_us(self) -> int:
        return round(self._lease_s * US_PER_S)


def describe_result(result: object) -> str:
    """What a run returned, as one short line: nothing, a number, counts by name, or a text."""
    if result is None:
        return "done"
    if isinstance(result, Mapping):
        counts = [f"{count} {name}" for name, count in result.items() if count]
        return ", ".join(counts)[:MAX_RESULT_CHARS] or "nothing to do"
    return str(result)[:MAX_RESULT_CHARS]


async def _attempt(job: ScheduledJob) -> _Outcome:
    """Run a job; one failure does not end the schedule."""
    try:
        return _Outcome(describe_result(await job.run()), True)
    except (StoreError, RemoteError) as error:
        _log.warning("job.failed", job=job.name, reason=str(error))
        reason = str(error)
    except Exception as error:
        _log.error("job.failed", exc=error, job=job.name)
        reason = f"{type(error).__name__}: {error}"
    return _Outcome(f"failed: {reason}"[:MAX_RESULT_CHARS], False)


async def _end(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _until(instant: int, now_us: int) -> float:
    return min((instant - now_us) / US_PER_S, LOOK_S)


def _put(txn: Txn, jobs: Sequence[ScheduledJob], now_us: int, alone: bool) -> None:
    for job in jobs:
        put_job(
            txn,
            job.name,
            period_us=job.period_us,
            now_us=now_us,
            first_at=now_us + job.first_after_us,
            at_start=job.at_start,
            alone=alone,
        )


def _take(txn: Txn, name: str, node: str, now_us: int, lease_us: int) -> tuple[int, int] | None:
    return take_job(txn, name, node=node, now_us=now_us, lease_until=now_us + lease_us)


def _renew(txn: Txn, name: str, node: str, lease_until: int) -> bool:
    return renew_job(txn, name, node=node, lease_until=lease_until)


def _release(txn: Txn, name: str, node: str) -> None:
    release_job(txn, name, node=node)
