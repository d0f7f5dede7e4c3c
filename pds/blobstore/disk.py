"""Blobs as files in a folder.

Layout: `<aid % 256 in hex>/<aid>/<2 letters of the CID>/<CID>`, unfinished uploads in `tmp`. Names
are built from numbers and CID bytes only, never from text that a client sent. A file appears under
its final name by a rename, after its bytes were synced, and the folders are synced before `store`
returns: what was promised survives a power cut, and no half file is ever found.

All file work is done on a few threads of the store's own; small blobs take one hop in and one out.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, TypeVarTuple

from pds.blobstore.base import (
    CHUNK_BYTES,
    HEAD_BYTES,
    BlobKey,
    BlobMissing,
    BlobStat,
    StagedBlob,
    StoreProperties,
)
from pds.errors import StoreError, Unavailable
from pds.protocol.cid import Cid, InvalidCid, parse_cid

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS: Final = 4
"""Enough to keep a disk busy; more would only fight over it."""
TEMPORARY: Final = "tmp"
LIST_BATCH: Final = 500


class DiskBlobStore:
    """A folder of blobs. Spec: XRPC-80, XRPC-84"""

    def __init__(self, root: Path, *, temporary: Path | None = None) -> None:
        self._root = root
        self._temporary = temporary or root / TEMPORARY
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._known_folders: set[Path] = set()

    @property
    def properties(self) -> StoreProperties:
        """A folder syncs what it stores."""
        return StoreProperties("disk", is_durable=True)

    async def start(self) -> None:
        """Make the folders and remove unfinished uploads that a crash left behind.

        Raises: Unavailable when the folders cannot be used, or lie on two file systems.
        """
        await self._run(self._prepare)

    def _prepare(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(parents=True, exist_ok=True)
        if self._root.stat().st_dev != self._temporary.stat().st_dev:
            raise Unavailable(
                f"{self._temporary} and {self._root} are on different file systems: "
                "put unfinished uploads beside the blobs"
            )
        for leftover in self._temporary.iterdir():
            if leftover.name.startswith("upload-"):
                leftover.unlink(missing_ok=True)

    @asynccontextmanager
    async def stage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StagedBlob]:
        """Take a stream in; a short one stays in memory until it is stored."""
        staged = _StagedFile(self, self._temporary / f"upload-{secrets.token_hex(12)}")
        try:
            async for chunk in chunks:
                await staged.add(chunk)
            yield staged
        finally:
            await asyncio.shield(self._run(staged.discard))

    async def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of a blob or a part of it."""
        file, left = await self._run(self._open, key, start, length)
        try:
            while left > 0:
                chunk = await self._run(file.read, min(left, CHUNK_BYTES))
                if not chunk:
                    raise Unavailable(f"blob {key.cid} is shorter than it was")
                left -= len(chunk)
                yield chunk
        finally:
            file.close()

    def _open(self, key: BlobKey, start: int, length: int | None) -> tuple[BinaryIO, int]:
        try:
            file = self._path(key).open("rb", buffering=0)
        except FileNotFoundError:
            raise BlobMissing(key) from None
        try:
            size = os.fstat(file.fileno()).st_size
            if not 0 <= start <= size or (length is not None and not 0 <= length <= size - start):
                raise ValueError(f"range outside the {size} bytes of the blob")
            file.seek(start)
        except BaseException:
            file.close()
            raise
        return file, size - start if length is None else length

    async def stat(self, key: BlobKey) -> BlobStat | None:
        """Return size and time of a blob, or None."""
        return await self._run(self._stat, self._path(key))

    @staticmethod
    def _stat(path: Path) -> BlobStat | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return BlobStat(found.st_size, found.st_mtime_ns // 1000)

    async def delete(self, key: BlobKey) -> bool:
        """Remove a blob; gone for good when this returns."""
        return await self._run(self._delete, self._path(key))

    @staticmethod
    def _delete(path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        _sync_folder(path.parent)
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
            if not folder.name.isdecimal():
                continue
            for part in _folders(folder):
                for path in sorted(part.iterdir()):
                    try:
                        cid = parse_cid(path.name)
                    except InvalidCid:
                        continue
                    found = self._stat(path)
                    if found is not None:
                        yield BlobKey(int(folder.name), cid), found

    async def ping(self) -> None:
        """Write, sync and remove a small file."""
        await self._run(self._ping)

    def _ping(self) -> None:
        path = self._temporary / f"upload-{secrets.token_hex(12)}"
        try:
            with path.open("xb", buffering=0) as file:
                file.write(b"ping")
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Wait for the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, fn: "Callable[[*Ts], T]", *args: *Ts) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, fn, *args)
        except OSError as error:
            raise Unavailable(f"blob store: {error.strerror or error}") from error

    def _account_folder(self, aid: int) -> Path:
        return self._root / f"{aid % 256:02x}" / str(aid)

    def _path(self, key: BlobKey) -> Path:
        name = str(key.cid)
        return self._account_folder(key.aid) / name[-2:] / name

    def place(self, temporary: Path, key: BlobKey) -> None:
        """Move a synced file to its key and sync the folders on the way. Runs on a thread."""
        target = self._path(key)
        self._make_folders(target.parent)
        try:
            temporary.replace(target)
        except FileNotFoundError:
            if not target.exists():
                # The folder was removed under us: make it again, for once.
                self._known_folders.discard(target.parent)
                self._make_folders(target.parent)
                temporary.replace(target)
        _sync_folder(target.parent)

    def _make_folders(self, folder: Path) -> None:
        if folder in self._known_folders:
            return
        missing = []
        step = folder
        while step != self._root and not step.exists():
            missing.append(step)
            step = step.parent
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
            _sync_folder(path.parent)
        if len(self._known_folders) > 10_000:
            self._known_folders.clear()
        self._known_folders.add(folder)

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
        self._file: BinaryIO | None = None
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
            await self._store.run(self._write, bytes(self._pending))
            self._pending.clear()

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self._file = self._path.open("xb", buffering=0)
        self._hash.update(content)
        view = memoryview(content)
        while view:
            written = self._file.write(view)
            if not written:
                raise OSError(errno.EIO, "the file system took no bytes")
            view = view[written:]

    async def store(self, aid: int) -> None:
        """Write the rest, sync, rename, sync the folder: one hop."""
        await self._store.run(self._finish, aid)

    def _finish(self, aid: int) -> None:
        cid = self.cid
        self._write(bytes(self._pending))
        self._pending.clear()
        if self._file is None:
            raise StoreError("nothing was staged")
        os.fsync(self._file.fileno())
        self._store.place(self._path, BlobKey(aid, cid))

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)


def _take(walk: Iterator[T], count: int) -> "list[T]":
    found: list[T] = []
    for item in walk:
        found.append(item)
        if len(found) == count:
            break
    return found


def _folders(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir() and entry.name != TEMPORARY:
            yield entry


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
