"""Several server processes on one port: started, watched and replaced by a parent.

Each worker is a whole node of the host, so nothing is shared between them but the database, the
blobs and the listening socket. The parent binds the socket and hands it down: a connection waits in
its queue until some worker takes it, also while one of them is being replaced, so none is refused.

A worker says over a socket pair that it is *ready*: it listens, and its health check is good. When
the other end of the pair is gone, so is the parent, and the worker stops as by SIGTERM.

* A worker that dies is started again, after a pause that doubles with each death in a row. When
  none is left and they keep dying, the parent gives up.
* A *roll* replaces the workers one after another: the new one is ready before the old one is asked
  to stop, and if it does not get ready, the old ones stay and the roll is over. New workers run the
  program that is installed then, with the settings file as it is then.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pds.app.server import RunningServer
from pds.config import Config
from pds.errors import ConfigError
from pds.log import get_logger

BACKLOG: Final = 1024
READY: Final = b"R"
HEALTH_POLL_S: Final = 0.1
GAVE_UP: Final = 1

MakeCommand = Callable[[int, int, int], Sequence[str]]
"""The command of worker `number`, which inherits the descriptors of socket and link."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """How patient the parent is."""

    start_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0
    """A worker finishes its requests within `shutdown_timeout_s`; then it closes the database."""
    first_pause_s: float = 0.2
    max_pause_s: float = 30.0
    settled_s: float = 60.0
    """The death of a worker that ran this long is the first of a new row."""
    max_deaths: int = 5


def bind_socket(config: Config) -> socket.socket:
    """Bind the configured address, so that every worker can listen on it. Raises: ConfigError."""
    host, port = config.listener.host, config.listener.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; set PDS_BIND and PDS_PORT"
        ) from error
    sock.setblocking(False)
    return sock


def check_can_share(config: Config) -> None:
    """Refuse several workers on a database that one process has for itself. Raises: ConfigError."""
    if not config.data.is_shared:
        raise ConfigError(
            "--workers needs PostgreSQL (PDS_DATABASE_URL). A SQLite database belongs to one"
            " process, which writes it faster than several could; exports of large repos run in"
            " processes of their own already. Leave --workers out"
        )


# In the parent


class Worker:
    """One worker process, as its parent sees it."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, link: socket.socket
    ) -> None:
        self.number = number
        self.process = process
        self.started_s = time.monotonic()
        self.is_ready = False
        self._link = link

    async def get_ready(self, timeout_s: float) -> bool:
        """Wait until the worker is ready; False when it ends, or takes too long."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                self.is_ready = await loop.sock_recv(self._link, 1) == READY
                if not self.is_ready:
                    await self.process.wait()  # It is leaving, with a code of its own.
        return self.is_ready

    async def end(self, timeout_s: float) -> int:
        """Ask the worker to stop, insist after `timeout_s`, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                return await self.wait()
        except TimeoutError:
            _log.error("worker.killed", number=self.number, pid=self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            return await self.wait()

    async def wait(self) -> int:
        """Wait for the end of the process and return its exit code."""
        code = await self.process.wait()
        self._link.close()
        return code


@dataclass(slots=True)
class _Slot:
    """A place for one worker; the lock is held while it is being filled."""

    number: int
    worker: Worker | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Supervisor:
    """Keeps a number of workers running until told to stop."""

    def __init__(
        self,
        make_command: MakeCommand,
        sock: socket.socket,
        *,
        workers: int,
        settings: SupervisorSettings | None = None,
    ) -> None:
        self._make_command = make_command
        self._sock = sock
        self._settings = settings or SupervisorSettings()
        self._slots = [_Slot(number) for number in range(1, workers + 1)]
        self._stop = asyncio.Event()
        self._roll = asyncio.Event()
        self._code = 0
        self._alive: list[Worker] = []
        """Also workers that were replaced and are finishing."""

    def stop(self) -> None:
        """Stop all workers, and `run`."""
        self._stop.set()

    def roll(self) -> None:
        """Replace the workers, one after another."""
        self._roll.set()

    async def run(self) -> int:
        """Start the workers and look after them; return the exit code of the whole."""
        stopped = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start_all())
        tending: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set() and starting.result():
                tending += [asyncio.create_task(self._tend(slot)) for slot in self._slots]
                tending.append(asyncio.create_task(self._roll_on_demand()))
                await asyncio.wait({*tending, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (starting, stopped, *tending):
                task.cancel()
            outcomes = await asyncio.gather(starting, stopped, *tending, return_exceptions=True)
            await self._end_all()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return self._code

    async def _start_all(self) -> bool:
        """Start the workers, all at once; note the exit code when one of them cannot."""
        started = await asyncio.gather(*(self._fill(slot) for slot in self._slots))
        if all(started):
            _log.info("workers.started", workers=len(self._slots))
            return True
        codes = [worker.process.returncode for worker in self._workers() if not worker.is_ready]
        self._code = next((code for code in codes if code is not None and code > 0), GAVE_UP)
        _log.error("workers.not_started", code=self._code)
        return False

    async def _fill(self, slot: _Slot) -> bool:
        """Start a worker in a slot and wait until it is ready, or has ended."""
        slot.worker = worker = await self._spawn(slot.number)
        if await worker.get_ready(self._settings.start_timeout_s):
            return True
        await worker.end(self._settings.stop_timeout_s)
        return False

    async def _spawn(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._make_command(number, self._sock.fileno(), theirs.fileno()),
                pass_fds=(self._sock.fileno(), theirs.fileno()),
            )
        _log.info("worker.started", number=number, pid=process.pid)
        worker = Worker(number, process, ours)
        self._alive = [other for other in self._alive if other.process.returncode is None]
        self._alive.append(worker)
        return worker

    async def _tend(self, slot: _Slot) -> None:
        """Fill the slot again whenever its worker dies."""
        deaths = 0
        while worker := slot.worker:
            code = await worker.wait()
            if slot.worker is not worker:
                continue  # it was replaced
            was_settled = (
                worker.is_ready and time.monotonic() - worker.started_s > self._settings.settled_s
            )
            worker.is_ready = False
            _log.error("worker.died", number=slot.number, pid=worker.process.pid, code=code)
            deaths = 1 if was_settled else deaths + 1
            if deaths >= self._settings.max_deaths and not any(w.is_ready for w in self._workers()):
                _log.error("workers.gave_up")
                self._code = GAVE_UP
                return
            pause_s = self._settings.first_pause_s * (1 << min(deaths - 1, 16))
            await asyncio.sleep(min(pause_s, self._settings.max_pause_s))
            async with slot.lock:
                if slot.worker is worker:
                    await self._fill(slot)

    async def _roll_on_demand(self) -> None:
        while True:
            await self._roll.wait()
            self._roll.clear()
            is_done = await self._replace_all()
            _log.info("workers.rolled" if is_done else "workers.roll_given_up")

    async def _replace_all(self) -> bool:
        """Replace the workers one by one; stop at the first that does not get ready."""
        for slot in self._slots:
            async with slot.lock:
                old, new = slot.worker, await self._spawn(slot.number)
                if not await new.get_ready(self._settings.start_timeout_s):
                    await new.end(self._settings.stop_timeout_s)
                    _log.error("worker.not_replaced", number=slot.number)
                    return False
                slot.worker = new
            if old is not None:
                await old.end(self._settings.stop_timeout_s)
        return True

    async def _end_all(self) -> None:
        timeout_s = self._settings.stop_timeout_s
        await asyncio.gather(*(worker.end(timeout_s) for worker in self._alive))

    def _workers(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]


async def supervise(make_command: MakeCommand, config: Config, *, workers: int) -> int:
    """Run workers until SIGTERM or SIGINT; SIGHUP replaces them. Return the exit code.

    Raises: ConfigError when the port is taken.
    """
    with bind_socket(config) as sock:
        supervisor = Supervisor(make_command, sock, workers=workers)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        loop.add_signal_handler(signal.SIGHUP, supervisor.roll)
        return await supervisor.run()


def serve_command(number: int, sock_fd: int, link_fd: int, *, file: str | None) -> list[str]:
    """The command line of a worker of `pds serve`."""
    command = [sys.executable, "-m", "pds", "serve", "--worker", f"{number},{sock_fd},{link_fd}"]
    return command if file is None else [*command, "--config", file]


# In the worker


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker was told by its parent."""

    number: int
    sock: socket.socket
    link: socket.socket

    @classmethod
    def parse(cls, text: str) -> "WorkerPlace":
        """Take the inherited descriptors over. Raises: ConfigError."""
        try:
            number, sock_fd, link_fd = (int(part) for part in text.split(","))
            place = cls(number, socket.socket(fileno=sock_fd), socket.socket(fileno=link_fd))
        except (ValueError, OSError) as error:
            raise ConfigError(
                "--worker is for workers that `pds serve --workers` starts"
            ) from error
        place.sock.setblocking(False)
        place.link.setblocking(False)
        return place

    async def report(self, server: RunningServer) -> None:
        """Tell the parent once the server is healthy; stop this process when the parent ends."""
        loop = asyncio.get_running_loop()
        # Nothing is ever sent to us: this returns when the parent is gone.
        left = asyncio.ensure_future(loop.sock_recv(self.link, 1))
        while not left.done() and not (await server.services.health.check()).is_well:
            await asyncio.wait({left}, timeout=HEALTH_POLL_S)
        with contextlib.suppress(OSError):
            await loop.sock_sendall(self.link, READY)
            await left
        _log.warning("worker.left_alone", number=self.number)
        os.kill(os.getpid(), signal.SIGTERM)
