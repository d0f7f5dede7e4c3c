"""What a blob store is: bytes by (account, CID), durable before they are promised.

An upload has two steps, because its CID is known only when all of it has arrived: `stage` takes
the stream into a temporary place while hashing it, and `StagedBlob.store` moves it to its final
key. What is staged and never stored leaves nothing behind.

A store knows nothing of records, references or media types; that is in the database. It refuses to
hand out anything that was not stored whole.
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from pds.errors import StoreError
from pds.protocol.cid import Cid, InvalidCid, parse_cid

CHUNK_BYTES: Final = 256 * 1024
"""Size of a piece on its way in or out: memory of one transfer is a few of them."""
HEAD_BYTES: Final = 1024
"""How much of a blob's beginning `StagedBlob.head` keeps, for telling its media type."""


class BlobMissing(StoreError):
    """The store does not have this blob."""

    def __init__(self, key: "BlobKey") -> None:
        super().__init__(f"blob {key.cid} of account {key.aid} is not in the store")
        self.key = key


class BlobKey(NamedTuple):
    """Where a blob lies. The same bytes in two accounts are two blobs (XRPC-85)."""

    aid: int
    cid: Cid


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What a store knows of a blob; `modified_at` is in unix microseconds."""

    size: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class StoreProperties:
    """What a store can do, for the operator and for code that wants the shorter way."""

    name: str
    is_durable: bool


def place(key: BlobKey) -> str:
    """Return where a blob lies in a store, of numbers and CID bytes only.

    `<aid % 256 in hex>/<aid>/<2 letters of the CID>/<CID>`: folders stay small on a disk, requests
    spread over the partitions of an object store, and the blobs of an account lie together.
    """
    name = str(key.cid)
    return f"{account_place(key.aid)}/{name[-2:]}/{name}"


def account_place(aid: int) -> str:
    """Return the folder of an account's blobs."""
    return f"{aid % 256:02x}/{aid}"


def parse_place(text: str) -> BlobKey | None:
    """Return the blob that lies at a place, or None for what is none of ours."""
    parts = text.split("/")
    if len(parts) != 4 or not (parts[1].isascii() and parts[1].isdecimal()):
        return None
    try:
        key = BlobKey(int(parts[1]), parse_cid(parts[3]))
    except InvalidCid:
        return None
    return key if place(key) == text else None


class StagedBlob(Protocol):
    """An upload that has arrived whole but is not stored yet."""

    @property
    def cid(self) -> Cid:
        """The raw CID of the bytes."""

    @property
    def size(self) -> int:
        """How many bytes."""

    @property
    def head(self) -> bytes:
        """The first `HEAD_BYTES` of them."""

    async def store(self, aid: int) -> None:
        """Make the bytes durable under their key; storing what is there already is no error.

        May be called again while the context lasts, for bytes that were deleted meanwhile.
        """


class BlobStore(Protocol):
    """A place for bytes. Errors are `BlobMissing`, `Unavailable` and `Corrupt`."""

    @property
    def properties(self) -> StoreProperties:
        """What this store can do."""

    def stage(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[StagedBlob]:
        """Take a stream in while hashing it; leaving the context drops what was not stored.

        Errors of the stream pass through and leave nothing behind, and so does being cancelled.
        """

    def open(
        self, key: BlobKey, *, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield `length` bytes from `start` (all that follow when None), in pieces.

        Raises BlobMissing before the first piece, and ValueError for a range outside the blob.
        What is being read stays readable to the end when the blob is deleted meanwhile; a store
        that fetches large blobs in parts raises Unavailable instead, never a short answer.
        """

    def stat(self, key: BlobKey) -> Awaitable[BlobStat | None]:
        """Return size and time of a blob, or None."""

    def delete(self, key: BlobKey) -> Awaitable[bool]:
        """Remove a blob for good; returns whether it was there."""

    def list(self, aid: int | None = None) -> AsyncIterator[tuple[BlobKey, BlobStat]]:
        """Yield the blobs of one account, or all, in the order of their `place`."""

    def presign(self, key: BlobKey) -> Awaitable[str | None]:
        """Return a short-lived URL to read a blob from, or None: read it through this server."""

    def ping(self) -> Awaitable[None]:
        """Raise Unavailable when the store cannot take a blob now."""

    def close(self) -> Awaitable[None]:
        """Finish what is under way."""
