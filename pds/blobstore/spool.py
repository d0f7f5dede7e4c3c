"""Uploads on their way: hashed while they arrive, and kept until they lie where they belong.

A store elsewhere names a blob by its hash, which is known only when the last byte is here. So an
upload waits on this machine: in memory up to `MEMORY_BYTES`, beyond that in a file without a name,
of which neither a crash nor a restart leaves anything. All uploads together have a budget.

What is spooled can be read any number of times, so one upload can go to several stores, and to one
store again after a failure.
"""

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from pds.blobstore.base import CHUNK_BYTES, HEAD_BYTES
from pds.errors import ConfigError, Unavailable
from pds.protocol.cid import Cid

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MEMORY_BYTES: Final = 1 << 20
"""Uploads up to this size, nearly all pictures, never touch the disk."""
MAX_BYTES: Final = 4 << 30
"""Bytes of all uploads that wait at one time; more are told to come back."""
CALM_BYTES: Final = 256 << 20
"""When more than this waits, as when a store hangs, uploads go to files from `CHUNK_BYTES` on."""
MIN_FREE_BYTES: Final = 64 << 20
"""Uploads leave this much of the disk to the database."""
THREADS: Final = 2


class Spool:
    """The uploads on their way to one store or several."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="spool")
        self.used_bytes = 0

    async def start(self) -> None:
        """Make the folder. Raises: ConfigError."""
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot use {self._folder} for unfinished uploads: {error.strerror}"
            ) from error

    @asynccontextmanager
    async def take(self, chunks: AsyncIterator[bytes]) -> AsyncIterator["Spooled"]:
        """Take a stream in, and keep it until the context ends and all its holders are done."""
        spooled = Spooled(self)
        try:
            async for chunk in chunks:
                await spooled.add(chunk)
            yield spooled
        finally:
            spooled.release()

    async def close(self) -> None:
        """Wait for the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    def charge(self, count: int) -> None:
        """Count bytes in. Raises: Unavailable when too many uploads are under way."""
        if self.used_bytes + count > self._max_bytes:
            raise Unavailable("blob store: too many uploads are under way")
        self.used_bytes += count

    @property
    def memory_bytes(self) -> int:
        """Up to which size an upload may stay in memory just now."""
        return MEMORY_BYTES if self.used_bytes <= CALM_BYTES else CHUNK_BYTES

    def open_file(self) -> int:
        """Return the descriptor of a new file without a name. Runs on a thread."""
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, "too little space left")
        descriptor, name = tempfile.mkstemp(prefix="upload-", dir=self._folder)
        os.unlink(name)  # noqa: PTH108 - a file of mkstemp
        return descriptor

    async def run(self, fn: "Callable[[*Ts], T]", *args: *Ts) -> T:
        """Run file work on the spool's threads. Raises: Unavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)
        except RuntimeError as error:
            raise Unavailable("blob store: closed") from error
        except OSError as error:
            reason = "no space left" if error.errno == errno.ENOSPC else error.strerror
            raise Unavailable(f"unfinished uploads: {reason}") from error

    def later(self, fn: Callable[[], None]) -> None:
        """Run something on the threads without waiting for it."""
        try:
            self._threads.submit(fn)
        except RuntimeError:
            fn()  # the threads have ended


class Spooled:
    """One upload that is here whole."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._hash = sha256()
        self._pending = bytearray()
        self._holders = 1
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_closed = False
        self.size = 0
        self.head = b""

    @property
    def cid(self) -> Cid:
        """The raw CID of what arrived."""
        return Cid.of_raw_digest(self._hash.digest())

    async def add(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._spool.charge(len(chunk))
        self.size += len(chunk)
        if len(self.head) < HEAD_BYTES:
            self.head += chunk[: HEAD_BYTES - len(self.head)]
        self._pending += chunk
        if self._descriptor is None and self.size <= self._spool.memory_bytes:
            self._hash.update(chunk)
            return
        content = bytes(chunk)
        if self._descriptor is None or len(self._pending) >= CHUNK_BYTES:
            file_part, self._pending = bytes(self._pending), bytearray()
            await self._spool.run(self._write, file_part, content)
        else:
            self._hash.update(content)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes from the beginning, in pieces of at most `CHUNK_BYTES`."""
        pending = bytes(self._pending)
        in_file = self.size - len(pending)
        at = 0
        while at < in_file:
            chunk = await self._spool.run(self._read, min(CHUNK_BYTES, in_file - at), at)
            if not chunk:
                raise Unavailable("unfinished uploads: the upload was given up")
            at += len(chunk)
            yield chunk
        for start in range(0, len(pending), CHUNK_BYTES):
            yield pending[start : start + CHUNK_BYTES]

    def hold(self) -> None:
        """Keep the bytes until one more `release`."""
        self._holders += 1

    def release(self) -> None:
        """Let go; the last one to do so throws the bytes away."""
        self._holders -= 1
        if self._holders == 0:
            self._spool.used_bytes -= self.size
            # Not awaited, so that it happens also while the caller is being cancelled.
            self._spool.later(self._close)

    def _write(self, content: bytes, hashed: bytes) -> None:
        with self._lock:
            if self._is_closed:
                return
            if self._descriptor is None:
                self._descriptor = self._spool.open_file()
            self._hash.update(hashed)
            view = memoryview(content)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def _read(self, count: int, at: int) -> bytes:
        with self._lock:
            return b"" if self._descriptor is None else os.pread(self._descriptor, count, at)

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


class StagedSpooled:
    """A spooled upload as the `StagedBlob` of a store, which takes it by `put`."""

    def __init__(self, spooled: Spooled, put: Callable[[int, Spooled], Awaitable[None]]) -> None:
        self._spooled, self._put = spooled, put

    @property
    def cid(self) -> Cid:
        """The raw CID of the bytes."""
        return self._spooled.cid

    @property
    def size(self) -> int:
        """How many bytes."""
        return self._spooled.size

    @property
    def head(self) -> bytes:
        """The first of them."""
        return self._spooled.head

    async def store(self, aid: int) -> None:
        """As `StagedBlob.store`."""
        await self._put(aid, self._spooled)
