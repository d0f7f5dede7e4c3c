"""Moves blobs from one place to another while the server runs, blob by blob.

Every blob of the source is brought to the target and read back there. Passes over the source's list
go on until one finds nothing to do, so what was uploaded meanwhile comes along. Nothing is deleted
from the source. Where it stopped is not written down: what is at the target already is found there,
so a conversion that was cut off is simply started again.

A server that keeps blobs in both places meanwhile (`pds.blobstore.replicated`) misses nothing at
the moment the source is taken out of its settings.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pds.blobstore.base import BlobKey, BlobMissing, BlobStat, BlobStore
from pds.blobstore.copying import CopyState, check_copy, copy_blob
from pds.errors import Corrupt, Unavailable

AT_ONCE: Final = 8
TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.5
MAX_PASSES: Final = 100


class Outcome(StrEnum):
    """What became of one blob."""

    COPIED = "copied"
    PRESENT = "present"
    REPAIRED = "repaired"
    GONE = "gone"
    """It was deleted meanwhile."""
    DAMAGED = "damaged"
    """The source has no good copy, and neither has the target."""


@dataclass(frozen=True, slots=True)
class Converted:
    """One blob, in the pass of that number (from 1)."""

    key: BlobKey
    size: int
    outcome: Outcome
    number: int


async def convert_blobs(
    source: BlobStore, target: BlobStore, *, trust_size: bool = False
) -> AsyncIterator[Converted]:
    """Bring every blob to the target, and yield each as it is done.

    What is there before is read and hashed in the first pass too, unless `trust_size`. Raises:
    Unavailable when a store fails for longer; start again then.
    """
    for number in range(1, MAX_PASSES + 1):
        is_quiet = True
        trusted = trust_size or number > 1
        async for batch in _batches(source):
            work = (_convert(source, target, key, stat, trust_size=trusted) for key, stat in batch)
            for (key, stat), outcome in zip(batch, await asyncio.gather(*work), strict=True):
                is_quiet &= outcome not in (Outcome.COPIED, Outcome.REPAIRED)
                if number == 1 or outcome is not Outcome.PRESENT:
                    yield Converted(key, stat.size, outcome, number)
        if is_quiet:
            return
    raise Unavailable("blobs come in faster than they are converted; start again")


async def count_blobs(store: BlobStore) -> tuple[int, int]:
    """Return how many blobs a store lists, and their bytes."""
    count = size = 0
    async for _, stat in store.list():
        count += 1
        size += stat.size
    return count, size


async def _batches(store: BlobStore) -> AsyncIterator[list[tuple[BlobKey, BlobStat]]]:
    batch: list[tuple[BlobKey, BlobStat]] = []
    async for item in store.list():
        batch.append(item)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


async def _convert(
    source: BlobStore, target: BlobStore, key: BlobKey, stat: BlobStat, *, trust_size: bool
) -> Outcome:
    pause_s = FIRST_PAUSE_S
    for attempt in range(TRIES):
        try:
            return await _convert_once(source, target, key, stat, trust_size=trust_size)
        except Unavailable:
            if attempt == TRIES - 1:
                raise
        await asyncio.sleep(pause_s)
        pause_s *= 2
    raise AssertionError("unreachable")


async def _convert_once(
    source: BlobStore, target: BlobStore, key: BlobKey, stat: BlobStat, *, trust_size: bool
) -> Outcome:
    there = await target.stat(key)
    if there is not None:
        if trust_size and there.size == stat.size:
            return Outcome.PRESENT
        state = await _checked(target, key)
        if state is CopyState.GOOD:
            return Outcome.PRESENT
    try:
        await copy_blob(source, target, key)
    except BlobMissing:
        return Outcome.GONE
    except Corrupt:
        return Outcome.DAMAGED
    state = await _checked(target, key)
    if state is not CopyState.GOOD:
        if await source.stat(key) is None:
            return Outcome.GONE
        raise Unavailable(f"the target does not give back blob {key.cid}: {state}")
    return Outcome.COPIED if there is None else Outcome.REPAIRED


async def _checked(store: BlobStore, key: BlobKey) -> CopyState:
    state = await check_copy(store, key)
    if state is CopyState.UNREACHABLE:
        raise Unavailable(f"blob {key.cid} cannot be read back")
    return state
