"""Archives in a bucket of any provider that speaks S3.

An archive goes up from a file, in parts beyond 8 MB, and the object is there whole or not at all:
a multipart upload that was cut off is invisible (and billed, so give the bucket a lifecycle rule).
Every body is signed with its SHA-256, so the provider refuses what was damaged on the way. Then the
object is looked at, and by default read back and hashed, because an archive that nobody can read is
found out when it is needed. What is not what was sent is deleted.

Keys are `<folder>/<owner>/<name>`, so that the archives of one account can be listed by themselves.

Memory: three parts. No time limit covers a whole upload, as archives may be of any size; each
request has one, and is repeated a few times.
"""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore

from pds.blobstore.archives import ArchiveMissing, StoredArchive, owner_of, read_file
from pds.blobstore.s3 import (
    PART_BYTES,
    PARTS_AT_ONCE,
    PIECE_BYTES,
    OutsideRange,
    S3Settings,
    failing,
    open_bucket,
)
from pds.errors import StoreError, Unavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta

MAX_PARTS: Final = 9_000
"""Providers take 10,000."""
US_PER_S: Final = 1_000_000


class ArchiveBucket:
    """The folder of a bucket. Settings of uploads that are about blobs have no effect here."""

    def __init__(self, settings: S3Settings, *, reads_back: bool = True) -> None:
        self._settings = settings
        self._reads_back = reads_back
        self._store = open_bucket(settings)
        self._prefix = f"{settings.folder}/"

    @property
    def name(self) -> str:
        """Where it is, in the form that names objects too."""
        return f"s3://{self._settings.bucket}/{self._settings.folder}"

    def address(self, name: str) -> str:
        """Return the URL of an object."""
        return f"s3://{self._settings.bucket}/{self._path(name)}"

    async def stat(self, name: str) -> StoredArchive | None:
        """Return size and time of an object."""
        try:
            with failing(f"look for archive {name}"):
                found = await obstore.head_async(self._store, self._path(name))
        except FileNotFoundError:
            return None
        return _stored(name, found)

    async def put(self, name: str, file: Path) -> None:
        """Upload a file and check what has arrived."""
        size, digest = await _digest_of(read_file(file))
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        with failing(f"store archive {name}"):
            await obstore.put_async(
                self._store,
                self._path(name),
                file,
                use_multipart=size > PART_BYTES,
                chunk_size=part,
                max_concurrency=PARTS_AT_ONCE,
            )
        try:
            await self._check(name, size, digest)
        except StoreError:
            # It must not count as an archive; when even this fails, the next look finds its size.
            await self.delete(name)
            raise

    async def _check(self, name: str, size: int, digest: str) -> None:
        found = await self.stat(name)
        if found is None or found.size != size:
            there = 0 if found is None else found.size
            raise Unavailable(f"the bucket has {there} of {size} bytes of archive {name}")
        if self._reads_back and await _digest_of(self.read(name)) != (size, digest):
            raise Unavailable(f"archive {name} did not come back from the bucket as it was sent")

    async def list(self, owner: str | None = None) -> AsyncIterator[StoredArchive]:
        """Yield the objects that lie where archives lie."""
        pages = obstore.list(self._store, f"{self._prefix}{owner or ''}")
        while True:
            try:
                with failing("list archives"):
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            for found in page:
                name = found["path"].rpartition("/")[2]
                if found["path"] == self._path(name):
                    yield _stored(name, found)

    async def read(self, name: str, limit: int | None = None) -> AsyncIterator[bytes]:
        """Yield an object piece by piece: no connection waits for a slow reader."""
        at, end = 0, limit
        while end is None or at < end:
            until = at + PIECE_BYTES if end is None else min(at + PIECE_BYTES, end)
            try:
                with failing(f"read archive {name}"):
                    found = await obstore.get_async(
                        self._store, self._path(name), options={"range": (at, until)}
                    )
                    size, piece = found.meta["size"], bytes(await found.bytes_async())
            except FileNotFoundError as error:
                raise ArchiveMissing(f"there is no {name} in {self.name}") from error
            except OutsideRange:
                return  # An empty object.
            end = size if end is None else min(end, size)
            if len(piece) != min(until, size) - at:
                raise Unavailable(f"the bucket sent {len(piece)} bytes of archive {name}")
            yield piece
            at += len(piece)

    async def delete(self, name: str) -> None:
        """Remove an object, unless the bucket keeps versions or the key may not."""
        try:
            with failing(f"delete archive {name}"):
                await obstore.delete_async(self._store, self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._prefix}{owner_of(name)}/{name}"


def _stored(name: str, found: "ObjectMeta") -> StoredArchive:
    return StoredArchive(name, found["size"], int(found["last_modified"].timestamp()) * US_PER_S)


async def _digest_of(chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
