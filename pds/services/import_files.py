"""Where repos on their way in lie: files without a name, within a budget of all imports.

Neither a crash nor a restart leaves anything of them. What arrives is written on threads, a
megabyte at a time, so that a large import takes neither memory nor the event loop's time.
"""

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pds.errors import RequestError, Unavailable

WRITE_BYTES: Final = 1 << 20
MIN_FREE_BYTES: Final = 64 << 20
"""Imports leave this much of the disk to the database."""
BUDGET_BYTES: Final = 8 << 30


class ImportFiles:
    """Makes the files, and counts what lies in all of them."""

    def __init__(self, folder: Path | None, *, budget_bytes: int = BUDGET_BYTES) -> None:
        """Make files in `folder`, or where the system wants temporary ones."""
        self._folder = folder or Path(tempfile.gettempdir())
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self.used_bytes = 0

    @contextmanager
    def open(self) -> Iterator["ImportFile"]:
        """Make a file that is gone with the block. Raises: Unavailable."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(prefix="import-", dir=self._folder)
            os.unlink(name)  # noqa: PTH108 - a file of mkstemp
        except OSError as error:
            raise Unavailable(f"{self._folder}: {error.strerror}") from error
        file = ImportFile(self, descriptor)
        try:
            yield file
        finally:
            # Not waited for: giving back gigabytes takes the disk a while.
            threading.Thread(target=file.close, name="import-file", daemon=True).start()

    def charge(self, count: int) -> None:
        """Count bytes in, or out. Raises: RequestError `NotEnoughResources` 503."""
        with self._lock:
            if count > 0 and self.used_bytes + count > self._budget_bytes:
                raise _too_many()
            self.used_bytes += count

    def check_space(self, descriptor: int) -> None:
        """Raise OSError when the disk is nearly full."""
        disk = os.fstatvfs(descriptor)
        if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, "too little space left")


class ImportFile:
    """One file; `descriptor` is good for other processes too.

    A thread may still write when the block has ended: it is refused then, and never writes into
    whatever file has got the same number since.
    """

    def __init__(self, files: ImportFiles, descriptor: int) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._is_closed = False
        self.descriptor = descriptor
        self.size = 0
        """What is counted of it."""

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Write a stream to its end. Raises: as `write`, and what the stream does."""
        pending = bytearray()
        async for chunk in chunks:
            pending += chunk
            if len(pending) >= WRITE_BYTES:
                await asyncio.to_thread(self.write, bytes(pending))
                pending.clear()
        await asyncio.to_thread(self.write, bytes(pending))

    def write(self, content: bytes) -> None:
        """Write at the end of the file. Raises: RequestError `NotEnoughResources`; Unavailable."""
        with self._lock:
            if self._is_closed:
                raise Unavailable("a repo on its way in was given up")
            self._files.charge(len(content))
            self.size += len(content)
            try:
                self._files.check_space(self.descriptor)
                view = memoryview(content)
                while view:
                    view = view[os.write(self.descriptor, view) :]
            except OSError as error:
                raise Unavailable(f"a repo on its way in: {error.strerror}") from error

    def read(self) -> bytes:
        """Return all of it: for one that is known to be small."""
        return os.pread(self.descriptor, self.size, 0)

    def close(self) -> None:
        """Let go of the file and of what is counted of it."""
        with self._lock:
            self._is_closed = True
            self._files.charge(-self.size)
            self.size = 0
            os.close(self.descriptor)

    def clear(self) -> None:
        """Make the file empty again."""
        self._files.charge(-self.size)
        self.size = 0
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    def count_again(self) -> None:
        """Count what another process has written. Raises: RequestError `NotEnoughResources`."""
        size = os.fstat(self.descriptor).st_size
        self._files.charge(size - self.size)
        self.size = size


def _too_many() -> RequestError:
    return RequestError(
        "NotEnoughResources",
        "Too many imports are under way",
        503,
        headers={"Retry-After": "60"},
    )
