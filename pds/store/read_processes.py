"""Read jobs in processes of their own: one reader that needs long must not slow everybody down.

All threads of a Python process share one interpreter, so a reader thread that puts together tens
of megabytes takes its turns from the event loop and from the writer. `ReadProcesses` runs such jobs
in up to `processes` long-lived processes (`read_process_main.py`), each with a connection of its
own, and hands what they write to the caller's `write` on a thread that does nothing else.

They are not the workers of `pds/app/workers.py`, which are nodes that serve clients.

* A process is started by the first job that needs it, and ended when it had nothing to do for
  `IDLE_S`, when the pool is joined, or by the end of its socket: also when this process is killed,
  none is left behind.
* A process that dies in the middle of a job fails that job; one that dies before it wrote anything
  is replaced, and the job is run again, once.
* `end_old` (called by whoever ends old reads) asks for the end of a job that is over the limit, and
  kills a process that does not obey.
* The caller's cancellation, and what its `write` raises, end the job soon.
"""

import contextlib
import logging
import queue
import subprocess
import sys
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket, socketpair
from typing import Any, Final

from pds.errors import StoreError, Unavailable
from pds.store.engine import MAX_WAITING_READS
from pds.store.read_process_link import (
    Kind,
    Lost,
    pack,
    receive,
    send,
    set_buffers,
    unpack,
    unpack_error,
)
from pds.store.reader import ReadConnection, answer, deliver_from_thread
from pds.store.stream import StreamOutput

IDLE_S: Final = 600.0
"""An idle process is ended after this: it holds about 35 MB."""
GRACE_S: Final = 5.0
"""How long a process may take to end a job when asked to; then it is killed."""
START_LIMIT_S: Final = 30.0
MAX_STARTS: Final = 2

Connect = Callable[[], ReadConnection]
"""Opens a connection inside the process; must be importable there (a class, a `partial`)."""

_MAIN: Final = (
    "import sys; sys.path[:] = sys.argv[2:];"
    " from pds.store.read_process_main import main; main(int(sys.argv[1]))"
)

_log: Final = logging.getLogger(__name__)


class CannotStart(Unavailable):
    """No process could be started; the job was not begun and may be run elsewhere."""


@dataclass(slots=True, eq=False)
class _Job:
    label: str
    fn: Callable[..., None]
    args: tuple[Any, ...]
    output: StreamOutput
    future: "Future[None]"
    error: BaseException | None = None
    began: float = 0.0
    ended_because: StoreError | None = None
    kill_at: float | None = None
    """When the process is killed, once it was asked to end the job."""


class _Link:
    """One process and the socket to it. `run` belongs to one thread; `end` and `kill` to all."""

    def __init__(self, connect: Connect) -> None:
        opening = pack(connect)
        ours, theirs = socketpair()
        try:
            set_buffers(ours)
            set_buffers(theirs)
            self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except (OSError, ValueError) as error:
            ours.close()
            raise CannotStart(f"no process for reading could be started: {error}") from error
        finally:
            theirs.close()
        self._socket: socket = ours
        try:
            ours.settimeout(START_LIMIT_S)
            send(ours, Kind.OPEN, opening)
            kind, body = receive(ours)
            ours.settimeout(None)
        except (Lost, OSError) as error:
            self.close(wait_s=0.0)
            raise CannotStart("the process for reading ended at once") from error
        if kind is not Kind.READY:
            self.close(wait_s=0.0)
            raise CannotStart(f"the process for reading could not begin: {unpack_error(body)}")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def begin(self, job: _Job) -> None:
        """Send a job. Raises: Lost; StoreError when it cannot travel."""
        send(self._socket, Kind.JOB, pack((job.fn, job.args)))

    def run(self, job: _Job, refuse: Callable[[], object]) -> str | None:
        """Run a job to its end, and return what damage to the database was met.

        `refuse` is called when nothing more is wanted. Raises: Lost; `job.error` is its own.
        """
        error: BaseException | None = None
        while True:
            kind, body = receive(self._socket)
            if kind is Kind.END:
                failure, damage = unpack(body)
                if error is None and failure is not None:
                    error = unpack_error(failure)
                job.error = job.ended_because or error
                return damage if isinstance(damage, str) else None
            if error is None:
                try:
                    job.output.write(body)
                except BaseException as caught:  # what the caller's own function raised
                    error = caught
                    refuse()

    def end(self) -> None:
        """Ask for the end of the running job."""
        with contextlib.suppress(Lost):
            send(self._socket, Kind.CANCEL, b"")

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self, *, wait_s: float) -> None:
        """End the process by the end of its socket, at the latest after `wait_s`."""
        self._socket.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Runner:
    """One thread that looks after one process."""

    def __init__(self, pool: "ReadProcesses", connect: Connect) -> None:
        self._pool = pool
        self._connect = connect
        self._link: _Link | None = None
        self._lock = threading.Lock()
        self._current: _Job | None = None
        self.damage: str | None = None
        self.thread = threading.Thread(target=self._run, name="store-read-process", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        link = self._link
        return link.pid if link is not None else None

    def _run(self) -> None:
        while True:
            try:
                job = self._pool.jobs.get(timeout=self._pool.idle_s)
            except queue.Empty:
                self._close_link()
                continue
            if job is None:
                break
            try:
                self._run_job(job)
            except BaseException as error:  # whatever it is, it is the job's answer
                job.error = error
            with self._lock:
                self._current = None
            self._pool.finished(job)
        self._close_link()

    def _run_job(self, job: _Job) -> None:
        for _ in range(MAX_STARTS):
            if job.future.cancelled():
                return
            if self._link is None:
                self._link = _Link(self._connect)
            try:
                self._link.begin(job)
                with self._lock:
                    job.began = time.monotonic()
                    self._current = job
                if job.future.cancelled():  # Perhaps too early for `end_job` to know of it.
                    self.end_job(job=job)
                self.damage = self._link.run(job, self.end_job) or self.damage
            except Lost:
                with self._lock:
                    self._current = None
                _log.warning("store.read_process_lost", extra={"label": job.label})
                self._close_link(wait_s=0.0)
                if job.ended_because is not None:
                    raise job.ended_because from None
                if job.output.began:
                    raise Unavailable("the reading process ended in the middle") from None
            else:
                return
        raise Unavailable("the reading process ended before it wrote anything")

    def end_job(self, reason: StoreError | None = None, job: _Job | None = None) -> bool:
        """Ask for the end of the running job (only if it is `job`, when given)."""
        with self._lock:
            current, link = self._current, self._link
            if current is None or link is None or (job is not None and current is not job):
                return False
            if current.kill_at is not None:
                return False
            current.ended_because = reason
            current.kill_at = time.monotonic() + GRACE_S
            link.end()
        return True

    def end_old(self, limit_s: float) -> bool:
        """End the running job if it is over the limit; kill the process if it was asked before."""
        with self._lock:
            current, link = self._current, self._link
            if current is None or link is None:
                return False
            now = time.monotonic()
            if current.kill_at is not None:
                if now >= current.kill_at:
                    link.kill()
                return False
            age = now - current.began
        if age < limit_s:
            return False
        _log.warning("store.read_ended", extra={"label": current.label, "duration_s": age})
        return self.end_job(Unavailable(f"a read was ended after {age:.0f} s"), current)

    def _close_link(self, *, wait_s: float = GRACE_S) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close(wait_s=wait_s)


class ReadProcesses:
    """The processes of one engine. `submit` belongs to the event loop."""

    def __init__(
        self,
        connect: Connect,
        loop: AbstractEventLoop,
        *,
        processes: int,
        limit: int = MAX_WAITING_READS,
        idle_s: float = IDLE_S,
    ) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.idle_s = idle_s
        self._connect = connect
        self._loop = loop
        self._max_processes = processes
        self._limit = limit
        self._closing = False
        self._unfinished = 0
        self._runners: list[_Runner] = []

    @property
    def waiting(self) -> int:
        """How many jobs wait for a process."""
        return self.jobs.qsize()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [pid for runner in self._runners if (pid := runner.pid) is not None]

    @property
    def damage(self) -> list[str]:
        """What was found damaged in the database."""
        return [runner.damage for runner in self._runners if runner.damage is not None]

    def submit(
        self, label: str, output: StreamOutput, fn: Callable[..., None], args: tuple[Any, ...]
    ) -> "Future[None]":
        """Queue a job; raises Unavailable when the queue is full or closing."""
        if self._closing:
            raise Unavailable("the store is closing")
        if self.jobs.qsize() >= self._limit:
            raise Unavailable("too many reads are waiting")
        job = _Job(label, fn, args, output, self._loop.create_future())
        job.future.add_done_callback(lambda _future: self._end_cancelled(job))
        self._unfinished += 1
        if len(self._runners) < min(self._max_processes, self._unfinished):
            runner = _Runner(self, self._connect)
            self._runners.append(runner)
            runner.thread.start()
        self.jobs.put(job)
        return job.future

    def finished(self, job: _Job) -> None:
        """Answer the caller of a job; called on the threads."""
        deliver_from_thread(self._loop, self._answer, job)

    def _answer(self, job: _Job) -> None:
        self._unfinished -= 1
        answer(job.future, None, job.error)

    def _end_cancelled(self, job: _Job) -> None:
        if job.future.cancelled():
            job.output.stop()
            for runner in self._runners:
                runner.end_job(job=job)

    def end_old(self, limit_s: float) -> int:
        """End the jobs that are over the limit; return how many."""
        return sum(runner.end_old(limit_s) for runner in self._runners)

    def refuse(self) -> None:
        """Take no more jobs."""
        self._closing = True

    def join(self) -> None:
        """Finish the jobs that wait, then end the processes. `end_old` must go on meanwhile."""
        self._closing = True
        for _ in self._runners:
            self.jobs.put(None)
        for runner in self._runners:
            runner.thread.join()
