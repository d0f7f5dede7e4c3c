"""A pipe from a reader thread to a client, which never makes the reader wait.

An export reads the database in one snapshot, and a snapshot must not live as long as a slow client
(it keeps the write-ahead log from being reused). So the reader writes at full speed into a `Spool`:
up to `memory_bytes` wait in memory, what goes beyond is put into a file that has no name any more,
within a budget that all exports share. The client is sent from there, while the reader goes on and
after it has ended.

A client that keeps up costs no file; one that stalls costs disk for a limited time.
"""

import asyncio
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from pds.errors import RequestError

CHUNK_BYTES: Final = 256 * 1024
"""What is handed to the client at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """How exports are read, and how much they may hold while clients are slow."""

    memory_bytes: int = 4_000_000
    memory_budget_bytes: int = 64_000_000
    """Memory of all exports together; beyond it everything goes to files."""
    file_budget_bytes: int = field(
        default=4_000_000_000,
        metadata={
            "env": "PDS_EXPORT_SPOOL_BYTES",
            "help": "Disk that all exports together may use while clients are slow.",
        },
    )
    stall_limit_s: float = 60.0
    """How long a client may take for one piece: until then its export keeps disk from others."""
    send_limit_s: float = field(
        default=3600.0,
        metadata={
            "env": "PDS_EXPORT_TIME_LIMIT",
            "help": "Seconds after which a client that still reads an export is cut off.",
        },
    )
    folder: Path | None = field(
        default=None,
        metadata={
            "env": "PDS_EXPORT_SPOOL_FOLDER",
            "help": "Where exports to slow clients wait; the system's temporary folder by default.",
        },
    )
    large_records: int = field(
        default=2000,
        metadata={
            "env": "PDS_EXPORT_PROCESS_RECORDS",
            "help": "Repos with so many records or more are exported by a process of their own.",
        },
    )
    with_hidden_records: bool = field(
        default=False,
        metadata={
            "env": "PDS_EXPORT_HIDDEN_RECORDS",
            "help": (
                "`true` lets getRepo hand records that were taken down to everybody, for readers"
                " that refuse a repo from which one is left out."
            ),
        },
    )


DEFAULT_SPOOL: Final = SpoolSettings()


class SpoolFull(RequestError):
    """The disk budget of all exports is used up."""

    def __init__(self) -> None:
        super().__init__(
            "NotEnoughResources",
            "Too many exports are under way",
            503,
            headers={"Retry-After": "30"},
        )


class ReaderGone(Exception):
    """The client went away; the reader may stop."""


class SpoolBudget:
    """Counts what all spools hold in memory and in files. Used from many threads."""

    def __init__(self, limit_bytes: int, memory_limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._memory_limit = memory_limit_bytes
        self._used = 0
        self._memory_used = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """File bytes in use now."""
        return self._used

    @property
    def memory_bytes(self) -> int:
        """Memory in use now."""
        return self._memory_used

    def take_memory(self, size: int) -> bool:
        """Count `size` bytes of memory if they are free."""
        with self._lock:
            if self._memory_used + size > self._memory_limit:
                return False
            self._memory_used += size
            return True

    def give_back_memory(self, size: int) -> None:
        """Count `size` bytes of memory less."""
        with self._lock:
            self._memory_used -= size

    def take(self, size: int) -> None:
        """Count `size` bytes more. Raises: SpoolFull."""
        with self._lock:
            if self._used + size > self._limit:
                raise SpoolFull
            self._used += size

    def give_back(self, size: int) -> None:
        """Count `size` bytes less."""
        with self._lock:
            self._used -= size


class Spool:
    """One export: `write` and `finish` on a thread, `chunks` on the event loop."""

    def __init__(self, settings: SpoolSettings, budget: SpoolBudget) -> None:
        self._settings = settings
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self._file_lock = threading.Lock()
        """Held while the disk works, by threads only: the event loop never waits for it."""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._file: IO[bytes] | None = None
        self._file_taken = 0
        self._file_written = 0
        self._file_read = 0
        self._done = False
        self._error: BaseException | None = None
        self._closed = False

    @property
    def file_bytes(self) -> int:
        """How much went through a file."""
        return self._file_written

    def write(self, content: bytes) -> None:
        """Take content from the reader thread; never waits.

        Raises: ReaderGone when the client has left; SpoolFull; OSError when the disk is full.
        """
        with self._lock:
            if self._closed:
                raise ReaderGone
            in_memory = (
                self._file is None
                and self._waiting_bytes < self._settings.memory_bytes
                and self._budget.take_memory(len(content))
            )
            if in_memory:
                self._waiting.append(content)
                self._waiting_bytes += len(content)
        if not in_memory:
            self._write_file(content)
        self._wake()

    def _write_file(self, content: bytes) -> None:
        with self._file_lock:
            if self._closed:
                raise ReaderGone
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed with the spool
                    dir=self._settings.folder, buffering=0
                )
            self._budget.take(len(content))
            self._file_taken += len(content)
            self._file.seek(self._file_written)
            view = memoryview(content)
            while view:
                view = view[self._file.write(view) :]
            self._file_written += len(content)

    def finish(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, or why not."""
        with self._lock:
            self._done = True
            self._error = error
        self._wake()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    async def wait_for_first(self) -> None:
        """Wait until there is content or the reader has failed.

        Raises: what the reader failed with. Nothing was sent yet, so a plain refusal can be.
        """
        while not (self._waiting or self._file_written or self._done):
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the content as it comes. Raises: what the reader failed with."""
        while True:
            self._changed.clear()
            chunk = self._take_memory()
            if not chunk and self._file is not None:
                chunk = await asyncio.to_thread(self._take_file)
            if chunk:
                yield chunk
            elif self._done and self._is_drained():
                break
            else:
                await self._changed.wait()
        if self._error is not None:
            raise self._error

    def _is_drained(self) -> bool:
        with self._lock:
            return not self._waiting and self._file_read == self._file_written

    def _take_memory(self) -> bytes:
        with self._lock:
            parts: list[bytes] = []
            size = 0
            while self._waiting and size < CHUNK_BYTES:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            self._waiting_bytes -= size
            self._budget.give_back_memory(size)
        return b"".join(parts)

    def _take_file(self) -> bytes:
        with self._file_lock:
            # What came into memory since the caller looked there is older than the file.
            if self._waiting or self._file is None or self._file_read == self._file_written:
                return b""
            self._file.seek(self._file_read)
            chunk = self._file.read(CHUNK_BYTES)
            self._file_read += len(chunk)
            return chunk

    async def close(self) -> None:
        """Let go of everything; the reader stops at its next write.

        The file is closed on a thread: the disk may be at work on it, and giving back gigabytes
        takes time.
        """
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._budget.give_back_memory(self._waiting_bytes)
            self._waiting_bytes = 0
        if self._file is not None or not self._done:
            await asyncio.shield(self._loop.run_in_executor(None, self._close_file))

    def _close_file(self) -> None:
        with self._file_lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._budget.give_back(self._file_taken)
            self._file_taken = 0
