"""Blobs move from one place to another, all of them, verified, under uploads and after a cut."""

import asyncio
import itertools

import pytest

from pds.blobstore.base import BlobKey
from pds.blobstore.disk import DiskBlobStore
from pds.blobstore.memory import MemoryBlobStore
from pds.blobstore.s3 import S3BlobStore
from pds.blobstore.spool import Spool
from pds.errors import Unavailable
from pds.protocol.cid import Cid
from pds.services.blob_conversion import Outcome, convert_blobs, count_blobs
from tests.suites.blobstore_suite import content_of, keys, put, read


@pytest.fixture
def source():
    return MemoryBlobStore()


@pytest.fixture
def target():
    return MemoryBlobStore()


async def fill(store, count: int = 30) -> set[BlobKey]:
    return {await put(store, number % 5, content_of(100 + number * 37)) for number in range(count)}


async def outcomes(source, target, **options) -> dict[BlobKey, Outcome]:
    return {done.key: done.outcome async for done in convert_blobs(source, target, **options)}


def contents(store: MemoryBlobStore) -> dict[BlobKey, bytes]:
    return {key: content for key, (content, _) in store.blobs.items()}


async def test_all_blobs_are_at_the_target_and_still_at_the_source(source, target):
    stored = await fill(source)
    before = contents(source)
    assert await outcomes(source, target) == dict.fromkeys(stored, Outcome.COPIED)
    assert contents(target) == contents(source) == before
    assert await count_blobs(target) == (30, sum(len(content) for content in before.values()))
    assert await outcomes(source, target) == dict.fromkeys(stored, Outcome.PRESENT)


async def test_a_cut_conversion_is_finished_by_the_next(source, target):
    stored = await fill(source)
    seen = 0
    async for _ in convert_blobs(source, target):
        seen += 1
        if seen == 10:
            break
    assert 10 <= len(target.blobs) < len(stored)
    assert set(await outcomes(source, target)) == stored
    assert contents(target) == contents(source)


async def test_uploads_and_deletions_meanwhile_come_along(source, target):
    stored = sorted(await fill(source))
    added, seen = set(), 0
    deleted = stored[-1]
    async for done in convert_blobs(source, target):
        seen += 1
        if seen % 5 == 1 and len(added) < 10:
            added.add(await put(source, 0, b"new %d" % seen))
        if done.key != deleted:
            await source.delete(deleted)
    assert added
    assert added <= set(target.blobs)
    assert set(contents(source)) <= set(contents(target))


async def test_what_is_damaged_at_the_target_is_replaced(source, target):
    stored = sorted(await fill(source))
    await outcomes(source, target)
    content, at = target.blobs[stored[3]]
    target.blobs[stored[3]] = (b"?" + content[1:], at)
    assert (await outcomes(source, target, trust_size=True))[stored[3]] is Outcome.PRESENT
    assert (await outcomes(source, target))[stored[3]] is Outcome.REPAIRED
    assert contents(target) == contents(source)


async def test_what_is_damaged_at_the_source_is_named_and_not_moved(source, target):
    stored = sorted(await fill(source))
    source.blobs[stored[0]] = (b"damaged", 0)
    found = await outcomes(source, target)
    assert [key for key, outcome in found.items() if outcome is Outcome.DAMAGED] == [stored[0]]
    assert set(target.blobs) == set(stored[1:])


async def test_a_target_that_fails_now_and_then_is_tried_again(source, monkeypatch):
    monkeypatch.setattr("pds.services.blob_conversion.FIRST_PAUSE_S", 0.0)

    class Moody(MemoryBlobStore):
        calls = 0

        async def stat(self, key):
            self.calls += 1
            if self.calls % 3 == 0:
                raise Unavailable("not now")
            return await super().stat(key)

    target = Moody()
    stored = await fill(source)
    assert set(await outcomes(source, target)) == stored
    assert contents(target) == contents(source)
    target.is_down = True
    with pytest.raises(Unavailable):
        await outcomes(source, target)


async def test_a_target_that_does_not_give_back_what_it_took_is_an_error(source, monkeypatch):
    monkeypatch.setattr("pds.services.blob_conversion.FIRST_PAUSE_S", 0.0)

    class Liar(MemoryBlobStore):
        async def open(self, key, *, start=0, length=None):
            yield b"something else"

    await fill(source, 1)
    with pytest.raises(Unavailable, match="does not give back"):
        await outcomes(source, Liar())


@pytest.mark.xdist_group("s3")
async def test_from_disk_to_a_bucket_to_another_and_back_under_uploads(s3_server, tmp_path):
    spool = Spool(tmp_path / "spool")
    await spool.start()
    disks = [DiskBlobStore(tmp_path / name, min_free_bytes=0) for name in ("a", "b")]
    for disk in disks:
        await disk.start()
    chain = [disks[0], *(S3BlobStore(s3_server.settings(), spool) for _ in range(2)), disks[1]]
    await fill(chain[0])
    for source, target in itertools.pairwise(chain):
        uploads = asyncio.create_task(upload_more(source))
        await outcomes(source, target)
        await uploads
        await outcomes(source, target)  # what came after the last pass
        assert await keys(target) == await keys(source)
    everything = await keys(chain[-1])
    assert len(everything) == 30 + 3 * 20
    for key in everything:
        assert Cid.of_raw(await read(chain[-1], key)) == key.cid
    for disk in disks:
        await disk.close()
    await spool.close()


async def upload_more(store) -> None:
    for number in range(20):
        await put(store, 7, b"%s %d" % (store.properties.name.encode(), id(store) + number))
