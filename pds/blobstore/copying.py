"""Compares and copies blobs between stores, never taking a copy at its word."""

from enum import StrEnum
from hashlib import sha256

from pds.blobstore.base import BlobKey, BlobMissing, BlobStore
from pds.errors import Corrupt, StoreError
from pds.protocol.cid import Cid


class CopyState(StrEnum):
    """What is known of one store's copy of a blob."""

    GOOD = "good"
    MISSING = "missing"
    DAMAGED = "damaged"
    UNREACHABLE = "unreachable"


async def check_copy(store: BlobStore, key: BlobKey) -> CopyState:
    """Read a whole blob and hold it against its CID."""
    digest = sha256()
    try:
        async for chunk in store.open(key):
            digest.update(chunk)
    except BlobMissing:
        return CopyState.MISSING
    except Corrupt:
        return CopyState.DAMAGED
    except StoreError:
        return CopyState.UNREACHABLE
    is_good = Cid.of_raw_digest(digest.digest()) == key.cid
    return CopyState.GOOD if is_good else CopyState.DAMAGED


async def copy_blob(source: BlobStore, target: BlobStore, key: BlobKey) -> int:
    """Copy a blob and return its size; the target then has the bytes of the CID.

    Raises: Corrupt when the source's bytes are others, and then nothing is stored; BlobMissing,
    Unavailable.
    """
    async with target.stage(source.open(key)) as staged:
        if staged.cid != key.cid:
            raise Corrupt(f"blob {key.cid} of account {key.aid} is damaged")
        await staged.store(key.aid)
        return staged.size
