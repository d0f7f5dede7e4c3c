"""The contract of `pds.blobstore.base.BlobStore`, run on every store.

A test module subclasses `BlobStoreSuite` and gives a fixture `make_store`: an async function that
returns a ready store, on the same storage each time it is called.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pds.blobstore.base import CHUNK_BYTES, HEAD_BYTES, BlobKey, BlobMissing, BlobStore, place
from pds.protocol.cid import Cid

SIZES = [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]


async def pieces(content: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def content_of(size: int) -> bytes:
    block = bytes(number * 31 % 251 for number in range(4999))
    return (block * (size // len(block) + 1))[:size]


async def put(store: BlobStore, aid: int, content: bytes, *, piece: int = 50_000) -> BlobKey:
    async with store.stage(pieces(content, piece)) as staged:
        await staged.store(aid)
        return BlobKey(aid, staged.cid)


async def read(store: BlobStore, key: BlobKey, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.open(key, start=start, length=length)])


async def keys(store: BlobStore, aid: int | None = None) -> set[BlobKey]:
    found = [key async for key, _ in store.list(aid)]
    assert len(set(found)) == len(found)
    return set(found)


class BlobStoreSuite:
    @pytest.fixture
    async def store(self, make_store):
        store = await make_store()
        yield store
        await store.close()

    @pytest.mark.parametrize("size", SIZES)
    async def test_what_is_stored_is_read_back_under_its_hash(self, store, size):
        content = content_of(size)
        async with store.stage(pieces(content)) as staged:
            assert (staged.cid, staged.size) == (Cid.of_raw(content), size)
            assert staged.head == content[:HEAD_BYTES]
            await staged.store(7)
        key = BlobKey(7, Cid.of_raw(content))
        assert await read(store, key) == content
        assert (await store.stat(key)).size == size

    async def test_tiny_pieces_and_empty_ones_make_no_difference(self, store):
        content = content_of(3000)

        async def odd() -> AsyncIterator[bytes]:
            yield b""
            for byte in content:
                yield bytes([byte])
                yield b""

        async with store.stage(odd()) as staged:
            assert staged.head == content[:HEAD_BYTES]
            await staged.store(1)
        assert await read(store, BlobKey(1, Cid.of_raw(content))) == content

    async def test_one_piece_may_be_large(self, store):
        content = content_of(5 * CHUNK_BYTES)
        key = await put(store, 1, content, piece=len(content))
        assert await read(store, key) == content

    async def test_ranges(self, store):
        content = content_of(2 * CHUNK_BYTES + 5)
        size = len(content)
        key = await put(store, 1, content)
        for start, length in [
            (0, 0),
            (0, 1),
            (size - 1, None),
            (size - 1, 1),
            (size, None),
            (10, CHUNK_BYTES),
            (CHUNK_BYTES - 1, 2),
            (5, size - 5),
        ]:
            expected = content[start:] if length is None else content[start : start + length]
            assert await read(store, key, start, length) == expected
        for start, length in [(size + 1, None), (size, 1), (-1, 1), (0, size + 1), (2, -1)]:
            with pytest.raises(ValueError, match="range"):
                await read(store, key, start, length)

    async def test_pieces_handed_out_are_bounded(self, store):
        key = await put(store, 1, content_of(3 * CHUNK_BYTES + 1))
        sizes = [len(chunk) async for chunk in store.open(key)]
        assert max(sizes) <= CHUNK_BYTES
        assert min(sizes) > 0

    async def test_accounts_do_not_share_blobs(self, store):
        first = await put(store, 1, b"same")
        second = await put(store, 2001, b"same")
        assert first.cid == second.cid
        assert await store.delete(first) is True
        assert await store.stat(first) is None
        assert await read(store, second) == b"same"
        assert await keys(store) == {second}

    async def test_missing_blobs(self, store):
        key = BlobKey(1, Cid.of_raw(b"absent"))
        with pytest.raises(BlobMissing):
            await read(store, key)
        assert await store.stat(key) is None
        assert await store.delete(key) is False

    async def test_foreign_cids_never_leave_the_store(self, store):
        for cid in (Cid.of_data(b"\xa0"), Cid(b"../../etc/passwd"), Cid(b"/etc/passwd"), Cid(b"")):
            with pytest.raises(BlobMissing):
                await read(store, BlobKey(1, cid))
            assert await store.stat(BlobKey(1, cid)) is None

    async def test_delete_is_for_good_and_can_be_repeated(self, store):
        key = await put(store, 1, b"x")
        assert await store.delete(key) is True
        assert await store.delete(key) is False
        with pytest.raises(BlobMissing):
            await read(store, key)

    async def test_storing_again_changes_nothing(self, store):
        first = await put(store, 1, b"again")
        assert await put(store, 1, b"again") == first
        assert await read(store, first) == b"again"
        assert await keys(store) == {first}

    async def test_one_staged_upload_is_stored_once_per_account(self, store):
        async with store.stage(pieces(b"x")) as staged:
            assert await keys(store) == set()
            await staged.store(1)
        assert await keys(store) == {BlobKey(1, Cid.of_raw(b"x"))}

    async def test_a_staged_upload_can_be_stored_again_after_it_was_deleted(self, store):
        content = content_of(CHUNK_BYTES + 5)
        for body in (b"short", content):
            async with store.stage(pieces(body)) as staged:
                await staged.store(1)
                key = BlobKey(1, staged.cid)
                await store.delete(key)
                await staged.store(1)
                await staged.store(1)
                assert staged.cid == key.cid
            assert await read(store, key) == body
        assert len(await keys(store)) == 2

    async def test_list_is_in_the_order_of_places(self, store):
        for aid in (1, 10, 2, 257, 266, 513):
            for number in range(4):
                await put(store, aid, b"%d" % number)
        found = [place(key) async for key, _ in store.list()]
        assert found == sorted(found)
        assert len(found) == 24

    async def test_list_finds_every_blob_once(self, store):
        expected = set()
        for aid in (1, 2, 255, 256, 257, 123_456_789):
            for number in range(5):
                expected.add(await put(store, aid, b"%d" % number))
        assert await keys(store) == expected
        assert await keys(store, 257) == {key for key in expected if key.aid == 257}
        assert await keys(store, 999) == set()
        async for key, stat in store.list():
            assert stat == await store.stat(key)
            assert stat.size == 1
            assert stat.modified_at > 1_600_000_000_000_000

    async def test_what_is_not_stored_leaves_nothing(self, store):
        async with store.stage(pieces(content_of(2 * CHUNK_BYTES))):
            pass
        with pytest.raises(LookupError):
            async with store.stage(pieces(content_of(2 * CHUNK_BYTES))):
                raise LookupError
        assert await keys(store) == set()

    async def test_failing_source_leaves_nothing(self, store):
        class Broken(Exception):
            pass

        async def source() -> AsyncIterator[bytes]:
            yield b"x" * CHUNK_BYTES * 2
            raise Broken

        with pytest.raises(Broken):
            async with store.stage(source()) as staged:
                await staged.store(1)
        assert await keys(store) == set()

    async def test_cancelling_at_any_moment_leaves_all_or_nothing(self, store):
        content = content_of(CHUNK_BYTES * 2 + 5)
        key = BlobKey(1, Cid.of_raw(content))
        for turns in range(40):
            task = asyncio.create_task(put(store, 1, content, piece=CHUNK_BYTES))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if await store.stat(key) is not None:
                assert await read(store, key) == content
        # What was given up stands in nobody's way.
        assert await put(store, 1, content) == key
        assert await read(store, key) == content

    async def test_a_reader_finishes_although_the_blob_is_deleted(self, store):
        content = content_of(3 * CHUNK_BYTES)
        key = await put(store, 1, content)
        chunks = store.open(key)
        first = await anext(chunks)
        await store.delete(key)
        assert first + b"".join([chunk async for chunk in chunks]) == content

    async def test_many_at_once(self, store):
        contents = [content_of(70_000 + number) for number in range(20)]
        stored = await asyncio.gather(
            *(put(store, number % 3, content) for number, content in enumerate(contents))
        )
        assert await asyncio.gather(*(read(store, key) for key in stored)) == contents

    async def test_the_same_bytes_at_once(self, store):
        content = content_of(CHUNK_BYTES + 1)
        stored = await asyncio.gather(*(put(store, 1, content) for _ in range(10)))
        assert len(set(stored)) == 1
        assert await read(store, stored[0]) == content

    async def test_ping_and_properties(self, store):
        await store.ping()
        assert store.properties.name
        assert await keys(store) == set()
