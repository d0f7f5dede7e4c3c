"""A disk that fails on demand, under SQLite: system calls of its `unix` VFS are replaced.

Real SQLite, real files; only what the operating system answers is changed. The sync itself cannot
be replaced there, so `lose_syncs` puts /dev/null under the log's descriptor: writes vanish and
fsync fails, which is what a broken disk does.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

_PWRITE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int64,
    use_errno=True,
)


class FaultyDisk:
    """Counts the writes to files below `folder` and fails those it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._vfs = apsw.VFS(f"faulty-{id(self)}", "")
        self._name = "pwrite64" if self._vfs.xGetSystemCall("pwrite64") else "pwrite"
        self._real = _PWRITE(self._vfs.xGetSystemCall(self._name))
        self._replacement = _PWRITE(self._pwrite)
        self._fail_from: int | None = None
        self._fail_count = 0
        self._error = errno.EIO
        self._lost_log: tuple[int, int] | None = None
        self._lose_syncs = False
        self._keep_writes = False
        self.writes = 0
        self.failed = 0

    def fail(self, *, after: int = 0, count: int = 1, error: int = errno.EIO) -> None:
        """Let `after` more writes pass and fail the `count` that follow."""
        self._fail_from = self.writes + after
        self._fail_count = count
        self._error = error

    def fill(self) -> None:
        """Have no space left."""
        self.fail(count=1 << 60, error=errno.ENOSPC)

    def lose_syncs(self, *, keep_writes: bool = False) -> None:
        """From the next write to a log on, fail the sync; `keep_writes` if what was written
        reaches the disk all the same."""
        self._lose_syncs = True
        self._keep_writes = keep_writes

    def heal(self) -> None:
        """Work again."""
        self._fail_from = None
        self._lose_syncs = False
        if self._lost_log is not None:
            fd, saved = self._lost_log
            os.dup2(saved, fd)
            os.close(saved)
            self._lost_log = None

    @contextmanager
    def installed(self) -> Iterator["FaultyDisk"]:
        """Be the disk while the context lasts."""
        pointer = ctypes.cast(self._replacement, ctypes.c_void_p).value
        assert pointer is not None
        self._vfs.xSetSystemCall(self._name, pointer)
        try:
            yield self
        finally:
            self.heal()
            self._vfs.xSetSystemCall(self._name, 0)
            self._vfs.unregister()

    def _pwrite(self, fd: int, buffer: int, size: int, offset: int) -> int:
        if self._keep_writes and self._lost_log is not None and fd == self._lost_log[0]:
            return int(self._real(self._lost_log[1], buffer, size, offset))
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith(self._folder):
            return int(self._real(fd, buffer, size, offset))
        number = self.writes
        self.writes += 1
        start = self._fail_from
        if start is not None and start <= number < start + self._fail_count:
            self.failed += 1
            ctypes.set_errno(self._error)
            return -1
        if self._lose_syncs and path.endswith("-wal"):
            self._lose_syncs = False
            null = os.open("/dev/null", os.O_RDWR)
            self._lost_log = (fd, os.dup(fd))
            os.dup2(null, fd)
            os.close(null)
            if self._keep_writes:
                fd = self._lost_log[1]
        return int(self._real(fd, buffer, size, offset))
