"""Where archives of accounts are kept: a folder here, or (`archives_s3`) a bucket elsewhere.

An archive is a file of a name, there whole or not at all, and never changed. Places know nothing of
what is in it, and of its name only that all before the last hyphen says whose it is (`owner_of`).
Names are made by `services/archive_keeping`.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from pds.errors import StoreError, Unavailable

READ_BYTES: Final = 1 << 20


class ArchiveMissing(StoreError):
    """There is no archive of this name."""


@dataclass(frozen=True, slots=True, order=True)
class StoredArchive:
    """One archive of a place; `modified_at` is in unix microseconds."""

    name: str
    size: int
    modified_at: int


class ArchivePlace(Protocol):
    """A place for archives. Errors are `ArchiveMissing` and `Unavailable`."""

    @property
    def name(self) -> str:
        """What people call it: the folder, or `s3://bucket/folder`."""

    def address(self, name: str) -> str:
        """Return what names one archive to people and to commands."""

    async def stat(self, name: str) -> StoredArchive | None:
        """Return what is known of an archive, or None."""

    def list(self, owner: str | None = None) -> AsyncIterator[StoredArchive]:
        """Yield the archives of one owner, or all, in no particular order."""

    def read(self, name: str, limit: int | None = None) -> AsyncIterator[bytes]:
        """Yield an archive in pieces, or the beginning of it."""

    async def delete(self, name: str) -> None:
        """Remove an archive; one that is not there is no error."""


class RemoteArchivePlace(ArchivePlace, Protocol):
    """A place to which archives have to be brought."""

    async def put(self, name: str, file: Path) -> None:
        """Keep the content of a file; when this returns, it is there whole and was checked."""


class ArchiveFolder:
    """Archives as files of one folder, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """Where it is."""
        return str(self.folder)

    def address(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    async def stat(self, name: str) -> StoredArchive | None:
        """Return size and time of a file."""
        return await asyncio.to_thread(_stat, self.folder / name)

    async def list(self, owner: str | None = None) -> AsyncIterator[StoredArchive]:
        """Yield the files, save for those whose names begin with a dot: these are not finished."""
        for name in await asyncio.to_thread(_names, self.folder):
            if not name.startswith(".") and owner in (None, owner_of(name)):
                found = await self.stat(name)
                if found is not None:
                    yield found

    async def read(self, name: str, limit: int | None = None) -> AsyncIterator[bytes]:
        """Yield a file in pieces."""
        async for chunk in read_file(self.folder / name, limit):
            yield chunk

    async def delete(self, name: str) -> None:
        """Remove a file."""
        try:
            await asyncio.to_thread((self.folder / name).unlink, missing_ok=True)
        except OSError as error:
            raise Unavailable(
                f"{self.folder / name} cannot be deleted: {error.strerror}"
            ) from error


async def read_file(path: Path, limit: int | None = None) -> AsyncIterator[bytes]:
    """Yield a file in pieces, read on a thread. Raises: ArchiveMissing, Unavailable."""
    left = limit
    try:
        with await asyncio.to_thread(path.open, "rb") as file:
            while left is None or left > 0:
                size = READ_BYTES if left is None else min(left, READ_BYTES)
                chunk = await asyncio.to_thread(file.read, size)
                if not chunk:
                    return
                yield chunk
                left = None if left is None else left - len(chunk)
    except FileNotFoundError as error:
        raise ArchiveMissing(f"there is no {path}") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error


async def write_file(path: Path, chunks: AsyncIterator[bytes]) -> int:
    """Write a new file that only its owner can read; there whole or not at all. Return its size.

    Raises: Unavailable when it is there already or cannot be written; what `chunks` raises.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    size = 0
    try:
        if await asyncio.to_thread(path.exists):
            raise Unavailable(f"{path} exists already")
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            async for chunk in chunks:
                size += await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(_settle, file)
        unfinished.replace(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return size


def owner_of(name: str) -> str:
    """Return what in the name of an archive says whose it is."""
    return name.rpartition("-")[0]


def _stat(path: Path) -> StoredArchive | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(f"{path} cannot be looked at: {error.strerror}") from error
    return StoredArchive(path.name, found.st_size, found.st_mtime_ns // 1000)


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"{folder} cannot be read: {error.strerror}") from error
