"""Blobs as files in a folder.

Blobs lie at their `place`, unfinished uploads in `tmp`. Names are built from numbers and CID bytes
only, never from text that a client sent. A file appears under
its final name by a rename, after its bytes were synced, and the folders are synced before `store`
returns: what was promised survives a power cut, and no half file is ever found.

All file work is done on a few threads of the store's own; small blobs take one hop in and one out.
A caller may be cancelled while such a thread works, so every open file has a lock: it is closed
only between two calls, never under one.

A failed write or sync of a file costs only that upload, whose file is thrown away. After a failed
sync of a *folder* nobody knows what is on the disk, and a second sync may lie: the store then takes
no more blobs until it is started anew.
"""

import asyncio
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from pds.blobstore.base import (
    CHUNK_BYTES,
    HEAD_BYTES,
    BlobKey,
    BlobMissing,
    BlobStat,
    StagedBlob,
    StoreProperties,
    account_place,
    parse_place,
    place,
)
from pds.errors import ConfigError, Unavailable
from pds.protocol.cid import Cid

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS: Final = 4
"""Enough to keep a disk busy; more would only fight over it."""
TEMPORARY: Final = "tmp"
LIST_BATCH: Final = 500
MIN_FREE_BYTES: Final = 64 * 1024 * 1024
"""Blobs leave this much of the disk to the database."""
MAX_KNOWN_FOLDERS: Final = 10_000
_UPLOAD: Final = re.compile(r"upload-[0-9a-f]{24}")
"""Only files of this name are ever removed from the temporary folder: it may be someone else's."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
LEFTOVER_AGE_S: Final = 24 * 3600
"""No upload takes longer: beside other servers only older leftovers are removed."""


class DiskBlobStore:
    """A folder of blobs. Spec: XRPC-80, XRPC-84"""

    def __init__(
        self, root: Path, *, temporary: Path | None = None, min_free_bytes: int = MIN_FREE_BYTES
    ) -> None:
        self._root = root
        self._temporary = temporary or root / TEMPORARY
        self._min_free_bytes = min_free_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._synced_folders: set[Path] = set()
        self._is_stopped = False

    @property
    def properties(self) -> StoreProperties:
        """A folder syncs what it stores."""
        return StoreProperties("disk", is_durable=True)

    async def start(self, *, is_alone: bool = True) -> None:
        """Make the folders and remove unfinished uploads that a crash left behind.

        Beside a server on the same folder (not `is_alone`) young ones are left: it may be at them.

        Raises: ConfigError when the folders cannot be used, or lie on two file systems.
        """
        self._is_stopped = False
        self._synced_folders.clear()
        await self._run(self._prepare, is_alone)

    def _prepare(self, is_alone: bool) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
            for leftover in (*self._temporary.iterdir(), *self._root.iterdir()):
                if _UPLOAD.fullmatch(leftover.name) and (is_alone or _is_old(leftover)):
                    leftover.unlink(missing_ok=True)
            self._probe()
            _sync_folder(self._root.parent)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise ConfigError(
                    f"{self._temporary} and {self._root} are on different file systems: put "
                    "unfinished uploads (PDS_BLOBSTORE_DISK_TMP_LOCATION) beside the blobs"
                ) from error
            raise ConfigError(f"cannot use {self._root} for blobs: {error.strerror}") from error

    @asynccontextmanager
    async def stage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StagedBlob]:
        """Take a stream in; a short one stays in memory until it is stored."""
        self._check_writable()
        staged = _StagedFile(self, self._temporary / f"upload-{secrets.token_hex(12)}")
        try:
            async for chunk in chunks:
                await staged.add(chunk)
            yield staged
        finally:
            # Not awaited, so that it happens also while the caller is being cancelled.
            self._later(staged.discard)

    async def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of a blob or a part of it."""
        reader = _Reader()
        try:
            size = await self._run(reader.open, self._path(key), key)
            end = size if length is None else start + length
            if not 0 <= start <= end <= size:
                raise ValueError(f"range outside the {size} bytes of the blob")
            while start < end:
                chunk = await self._run(reader.read, min(end - start, CHUNK_BYTES), start)
                if not chunk:
                    raise Unavailable(f"blob {key.cid} is shorter than it was")
                start += len(chunk)
                yield chunk
        finally:
            self._later(reader.close)

    async def stat(self, key: BlobKey) -> BlobStat | None:
        """Return size and time of a blob, or None."""
        return await self._run(self._stat, self._path(key))

    @staticmethod
    def _stat(path: Path) -> BlobStat | None:
        try:
            found = path.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return BlobStat(found.st_size, found.st_mtime_ns // 1000)

    async def delete(self, key: BlobKey) -> bool:
        """Remove a blob; gone for good when this returns."""
        return await self._run(self._delete, self._path(key))

    def _delete(self, path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        self.sync_folder(path.parent)
        return True

    async def list(self, aid: int | None = None) -> AsyncIterator[tuple[BlobKey, BlobStat]]:
        """Yield blobs; files that are none of ours are passed over."""
        walk = self._walk(aid)
        while batch := await self._run(_take, walk, LIST_BATCH):
            for item in batch:
                yield item

    def _walk(self, aid: int | None) -> Iterator[tuple[BlobKey, BlobStat]]:
        if aid is not None:
            folders = iter([self._account_folder(aid)])
        else:
            folders = (folder for shard in _folders(self._root) for folder in _folders(shard))
        for folder in folders:
            for part in _folders(folder):
                for path in _entries(part):
                    key = parse_place(path.relative_to(self._root).as_posix())
                    found = self._stat(path) if key is not None else None
                    if key is not None and found is not None:
                        yield key, found

    async def presign(self, key: BlobKey) -> str | None:
        """Files have no addresses."""
        return None

    async def ping(self) -> None:
        """Write, sync and move a small file."""
        self._check_writable()
        await self._run(self._probe)

    def _probe(self) -> None:
        name = f"upload-{secrets.token_hex(12)}"
        path, target = self._temporary / name, self._root / name
        try:
            with path.open("xb", buffering=0) as file:
                file.write(b"probe")
                os.fsync(file.fileno())
            path.rename(target)
        finally:
            path.unlink(missing_ok=True)
            target.unlink(missing_ok=True)

    async def close(self) -> None:
        """Wait for the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, fn: "Callable[[*Ts], T]", *args: *Ts) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)
        except RuntimeError as error:
            raise Unavailable("blob store: closed") from error
        try:
            return await future
        except OSError as error:
            if error.errno in _FULL:
                raise Unavailable("blob store: no space left") from error
            raise Unavailable(f"blob store: {error.strerror or error}") from error

    def _later(self, fn: Callable[[], None]) -> None:
        try:
            self._threads.submit(fn)
        except RuntimeError:
            fn()  # the threads have ended

    def _check_writable(self) -> None:
        if self._is_stopped:
            raise Unavailable("blob store: stopped after a failed sync; restart to check the disk")

    def _account_folder(self, aid: int) -> Path:
        return self._root / account_place(aid)

    def _path(self, key: BlobKey) -> Path:
        return self._root / place(key)

    def place(self, temporary: Path, key: BlobKey) -> None:
        """Move a synced file to its key and sync the folders on the way. Runs on a thread."""
        self._check_writable()
        target = self._path(key)
        part, account, shard = target.parent, target.parents[1], target.parents[2]
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.replace(target)
        self.sync_folder(part)
        # Whoever made a folder may not have synced it yet, so "it exists" proves nothing: every
        # folder whose entry this process has not synced itself is synced here.
        for folder in (part, account, shard):
            if folder not in self._synced_folders:
                self.sync_folder(folder.parent)
                if len(self._synced_folders) >= MAX_KNOWN_FOLDERS:
                    self._synced_folders.clear()
                self._synced_folders.add(folder)

    def sync_folder(self, folder: Path) -> None:
        """Make the entries of a folder durable; a failure stops the store. Runs on a thread."""
        try:
            _sync_folder(folder)
        except FileNotFoundError:
            self._synced_folders.clear()
            raise
        except OSError:
            self._is_stopped = True
            raise

    def check_space(self) -> None:
        """Refuse to fill the disk to the brim. Runs on a thread."""
        disk = os.statvfs(self._temporary)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes:
            raise OSError(errno.ENOSPC, "too little space left")

    async def run(self, fn: "Callable[[*Ts], T]", *args: *Ts) -> T:
        """Run file work on the store's threads."""
        return await self._run(fn, *args)


class _StagedFile:
    """An upload: in memory up to one chunk, in a temporary file beyond that."""

    def __init__(self, store: DiskBlobStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._hash = sha256()
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_discarded = False
        self._is_placed = False
        self.size = 0
        self.head = b""

    @property
    def cid(self) -> Cid:
        """The CID of what arrived; all of it is hashed by now."""
        digest = self._hash.copy()
        digest.update(self._pending)
        return Cid.of_raw_digest(digest.digest())

    async def add(self, chunk: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += chunk[: HEAD_BYTES - len(self.head)]
        self.size += len(chunk)
        self._pending += chunk
        if len(self._pending) >= CHUNK_BYTES:
            content, self._pending = bytes(self._pending), bytearray()
            await self._store.run(self._write, content)

    async def store(self, aid: int) -> None:
        """Write the rest, sync, rename, sync the folders: one hop."""
        await self._store.run(self._finish, aid)

    def _write(self, content: bytes) -> None:
        with self._lock:
            self._write_locked(content)

    def _write_locked(self, content: bytes) -> int:
        if self._is_discarded:
            raise Unavailable("blob store: the upload was given up")
        if self._descriptor is None:
            self._store.check_space()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        self._hash.update(content)
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return self._descriptor

    def _finish(self, aid: int) -> None:
        with self._lock:
            if self._is_placed:
                self._copy_locked()
            cid = self.cid
            content, self._pending = bytes(self._pending), bytearray()
            os.fsync(self._write_locked(content))
            self._store.place(self._path, BlobKey(aid, cid))
            self._is_placed = True

    def _copy_locked(self) -> None:
        """Begin a new file with the bytes of the one that was placed, which may be deleted."""
        if self._descriptor is None:
            raise Unavailable("blob store: the upload was given up")
        placed, self._descriptor = self._descriptor, None
        self._hash, self._is_placed, at = sha256(), False, 0
        try:
            while content := os.pread(placed, CHUNK_BYTES, at):
                self._write_locked(content)
                at += len(content)
        finally:
            os.close(placed)

    def discard(self) -> None:
        with self._lock:
            self._is_discarded = True
            if self._descriptor is None:
                return
            os.close(self._descriptor)
            self._descriptor = None
            # A file that will not go is tried again at the next start.
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


class _Reader:
    """A file being read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_closed = False

    def open(self, path: Path, key: BlobKey) -> int:
        with self._lock:
            if self._is_closed:
                return 0  # the caller was cancelled
            try:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise BlobMissing(key) from None
            return os.fstat(self._descriptor).st_size

    def read(self, count: int, offset: int) -> bytes:
        with self._lock:
            return b"" if self._descriptor is None else os.pread(self._descriptor, count, offset)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _take(walk: Iterator[T], count: int) -> "list[T]":
    found: list[T] = []
    for item in walk:
        found.append(item)
        if len(found) == count:
            break
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> list[Path]:
    return [
        entry
        for entry in _entries(folder)
        if entry.name != TEMPORARY and not entry.is_symlink() and entry.is_dir()
    ]


def _is_old(path: Path) -> bool:
    """Whether nobody can be at this unfinished upload any more."""
    try:
        return time.time() - path.stat().st_mtime > LEFTOVER_AGE_S
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
