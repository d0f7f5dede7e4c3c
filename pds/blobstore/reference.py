"""Reads the blobs of a reference PDS (`@atproto/pds`) where it keeps them: a folder or a bucket.

Only reads. A blob lies under its account's DID: by its CID where it is kept or in quarantine, by a
random name while no record has referred to it. What is read is not checked here.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from pds.blobstore.base import CHUNK_BYTES
from pds.errors import StoreError, Unavailable


class SourceBlobMissing(StoreError):
    """There are no such bytes."""


class SourceBlobs(Protocol):
    """Where the bytes come from. Places are `Place`s of one account each."""

    def open(self, did: str, place: "Place") -> AsyncIterator[bytes]:
        """Yield the bytes. Raises: SourceBlobMissing before the first piece; Unavailable."""

    async def has(self, did: str, place: "Place") -> bool:
        """Whether the bytes are there. Raises: Unavailable."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its account a blob lies: `area` is `kept`, `temporary` or `quarantine`."""

    area: str
    name: str


class FolderBlobs:
    """Blobs in folders, as `PDS_BLOBSTORE_DISK_LOCATION` names them."""

    def __init__(self, location: Path, temporary: Path | None = None) -> None:
        self._areas = {
            "kept": location,
            "temporary": temporary or location / "tempt",
            "quarantine": location / "quarantine",
        }

    async def open(self, did: str, place: Place) -> AsyncIterator[bytes]:
        """Yield the bytes of a file."""
        try:
            file: IO[bytes] = await asyncio.to_thread(self._path(did, place).open, "rb")
        except FileNotFoundError as error:
            raise SourceBlobMissing(f"{place.name} is not there") from error
        except OSError as error:
            raise Unavailable(f"cannot read blob {place.name}: {error.strerror}") from error
        with file:
            while chunk := await asyncio.to_thread(_read, file, place.name):
                yield chunk

    async def has(self, did: str, place: Place) -> bool:
        """Whether the file is there."""
        return self._path(did, place).is_file()

    def _path(self, did: str, place: Place) -> Path:
        for part in (did, place.name):
            if "/" in part or part in ("", ".", ".."):
                raise SourceBlobMissing(f"{part!r} is no name of a file")
        return self._areas[place.area] / did / place.name


def _read(file: IO[bytes], name: str) -> bytes:
    try:
        return file.read(CHUNK_BYTES)
    except OSError as error:
        raise Unavailable(f"cannot read blob {name}: {error.strerror}") from error
