"""Blobs in memory: for tests, and as unkind as a real store.

It copies what it is given, refuses ranges outside a blob, and can be told to fail.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pds.blobstore.base import (
    CHUNK_BYTES,
    HEAD_BYTES,
    BlobKey,
    BlobMissing,
    BlobStat,
    StagedBlob,
    StoreProperties,
    place,
)
from pds.errors import Unavailable
from pds.protocol.cid import Cid


class MemoryBlobStore:
    """A dictionary of blobs; `is_down` makes every call fail."""

    def __init__(self) -> None:
        self.blobs: dict[BlobKey, tuple[bytes, int]] = {}
        self.is_down = False

    @property
    def properties(self) -> StoreProperties:
        """Nothing survives the process."""
        return StoreProperties("memory", is_durable=False)

    @asynccontextmanager
    async def stage(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[StagedBlob]:
        """Collect a stream."""
        self._check()
        yield _Staged(self, b"".join([chunk async for chunk in chunks]))

    async def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a blob or a part of it."""
        self._check()
        if key not in self.blobs:
            raise BlobMissing(key)
        content = self.blobs[key][0]
        end = len(content) if length is None else start + length
        if not 0 <= start <= end <= len(content):
            raise ValueError(f"range outside the {len(content)} bytes of the blob")
        for at in range(start, end, CHUNK_BYTES):
            yield content[at : min(at + CHUNK_BYTES, end)]

    async def stat(self, key: BlobKey) -> BlobStat | None:
        """Return size and time of a blob, or None."""
        self._check()
        found = self.blobs.get(key)
        return None if found is None else BlobStat(len(found[0]), found[1])

    async def delete(self, key: BlobKey) -> bool:
        """Forget a blob."""
        self._check()
        return self.blobs.pop(key, None) is not None

    async def list(self, aid: int | None = None) -> AsyncIterator[tuple[BlobKey, BlobStat]]:
        """Yield blobs."""
        self._check()
        for key, (content, at) in sorted(self.blobs.items(), key=lambda item: place(item[0])):
            if aid is None or key.aid == aid:
                yield key, BlobStat(len(content), at)

    async def presign(self, key: BlobKey) -> str | None:
        """Memory has no addresses."""
        return None

    async def ping(self) -> None:
        """Raise when told to be down."""
        self._check()

    async def close(self) -> None:
        """Nothing to finish."""

    def _check(self) -> None:
        if self.is_down:
            raise Unavailable("blob store: down")


class _Staged:
    def __init__(self, store: MemoryBlobStore, content: bytes) -> None:
        self._store, self._content = store, content

    @property
    def cid(self) -> Cid:
        return Cid.of_raw(self._content)

    @property
    def size(self) -> int:
        return len(self._content)

    @property
    def head(self) -> bytes:
        return self._content[:HEAD_BYTES]

    async def store(self, aid: int) -> None:
        if self._store.is_down:
            raise Unavailable("blob store: down")
        self._store.blobs[BlobKey(aid, self.cid)] = (self._content, time.time_ns() // 1000)
