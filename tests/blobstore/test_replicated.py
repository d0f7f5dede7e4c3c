"""Several stores as one: the contract, and one store that is away, empty or wrong."""

import asyncio

import pytest

from pds.blobstore.base import CHUNK_BYTES, BlobKey, BlobMissing
from pds.blobstore.copying import CopyState
from pds.blobstore.disk import DiskBlobStore
from pds.blobstore.memory import MemoryBlobStore
from pds.blobstore.replicated import FIRST_REST_S, HELD_BYTES, LONGEST_REST_S, ReplicatedBlobStore
from pds.blobstore.s3 import S3BlobStore
from pds.blobstore.spool import Spool
from pds.errors import Corrupt, Unavailable
from pds.protocol.cid import Cid
from tests.blobstore.s3_quorum import tell
from tests.suites.blobstore_suite import BlobStoreSuite, content_of, keys, put, read

LARGE = content_of(HELD_BYTES + 3 * CHUNK_BYTES)


@pytest.fixture
async def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    await spool.start()
    yield spool
    await spool.close()
    assert spool.used_bytes == 0


class TestTwoInMemory(BlobStoreSuite):
    @pytest.fixture
    def make_store(self, spool):
        members = MemoryBlobStore(), MemoryBlobStore()

        async def make():
            return ReplicatedBlobStore(members, spool, quorum=2)

        return make


@pytest.mark.xdist_group("s3")
class TestDiskAndS3(BlobStoreSuite):
    @pytest.fixture
    def make_store(self, s3_server, spool, tmp_path):
        settings = s3_server.settings()

        async def make():
            disk = DiskBlobStore(tmp_path / "blobs", min_free_bytes=0)
            await disk.start()
            return ReplicatedBlobStore([disk, S3BlobStore(settings, spool)], spool, quorum=2)

        return make


class Held(MemoryBlobStore):
    """A store whose uploads wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    def stage(self, chunks):
        async def waiting():
            await self.go_on.wait()
            async for chunk in chunks:
                yield chunk

        return super().stage(waiting())


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def first():
    return MemoryBlobStore()


@pytest.fixture
def second():
    return MemoryBlobStore()


@pytest.fixture
async def store(first, second, spool, clock):
    store = ReplicatedBlobStore([first, second], spool, quorum=1, monotonic_s=clock)
    yield store
    first.is_down = second.is_down = False
    await store.close()


def spoil(member: MemoryBlobStore, key: BlobKey) -> None:
    content, at = member.blobs[key]
    member.blobs[key] = (content[:-1] + bytes([content[-1] ^ 1]), at)


async def settle(store) -> None:
    """Let uploads behind an answer finish."""
    while store._under_way:
        await asyncio.sleep(0)


async def test_a_write_goes_to_all(store, first, second):
    key = await put(store, 1, LARGE)
    await settle(store)
    assert first.blobs[key][0] == second.blobs[key][0] == LARGE


@pytest.mark.parametrize("down", ["first", "second"])
async def test_one_store_away_fails_nothing_and_is_caught_up(store, first, second, down):
    old = await put(store, 1, b"before")
    await settle(store)
    member = first if down == "first" else second
    member.is_down = True
    new = await put(store, 1, LARGE)
    assert await read(store, old) == b"before"
    assert await read(store, new) == LARGE
    assert (await store.stat(new)).size == len(LARGE)
    await settle(store)
    assert await store.repair() == 0
    assert store.behind_count == 1
    member.is_down = False
    assert await store.repair() == 1
    assert member.blobs[new][0] == LARGE
    assert store.behind_count == 0


async def test_fewer_than_the_quorum_is_no_success(first, second, spool):
    store = ReplicatedBlobStore([first, second], spool, quorum=2)
    second.is_down = True
    with pytest.raises(Unavailable, match="1 of 2"):
        await put(store, 1, b"x")
    with pytest.raises(Unavailable, match="1 of 2"):
        await store.ping()
    with pytest.raises(Unavailable, match="1 of 2"):
        await put(store, 1, b"x")  # also while the second is at rest
    second.is_down = False
    await put(store, 1, b"x")
    await store.ping()


async def test_a_store_at_rest_is_asked_when_the_others_fail(store, first, second):
    first.is_down = True
    await put(store, 1, b"x")
    first.is_down, second.is_down = False, True
    key = await put(store, 1, b"y")
    assert key in first.blobs


async def test_rest_grows_and_ends_with_success(store, first, clock):
    member = store._members[0]
    first.is_down = True
    rests = []
    for number in range(7):
        await put(store, 1, b"%d" % number)
        await settle(store)
        rests.append(member.rest_s)
        clock.now_s = member.rests_until_s
    assert rests[0] == FIRST_REST_S
    assert rests[-1] == LONGEST_REST_S
    first.is_down = False
    await put(store, 1, b"back")
    await settle(store)
    assert member.rest_s == 0


async def test_answer_comes_with_the_quorum_and_the_rest_follows(second, spool):
    slow = Held()
    store = ReplicatedBlobStore([slow, second], spool, quorum=1)
    key = await put(store, 1, LARGE)
    assert key not in slow.blobs
    assert await read(store, key) == LARGE
    slow.go_on.set()
    await store.close()
    assert slow.blobs[key][0] == LARGE


async def test_deletion_waits_for_uploads_of_the_blob(second, spool):
    slow = Held()
    store = ReplicatedBlobStore([slow, second], spool, quorum=1)
    key = await put(store, 1, b"x")
    deletion = asyncio.create_task(store.delete(key))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not deletion.done()
    slow.go_on.set()
    assert await deletion
    assert slow.blobs == second.blobs == {}


async def test_deletion_takes_all_stores(store, first, second):
    key = await put(store, 1, b"x")
    await settle(store)
    second.is_down = True
    with pytest.raises(Unavailable):
        await store.delete(key)
    second.is_down = False
    assert await store.delete(key) is True
    assert first.blobs == second.blobs == {}


@pytest.mark.parametrize("content", [b"small", LARGE])
async def test_missing_copy_is_found_elsewhere_and_brought_back(store, first, content):
    key = await put(store, 1, content)
    await settle(store)
    del first.blobs[key]
    assert await read(store, key) == content
    assert await store.repair() == 1
    assert first.blobs[key][0] == content


async def test_damaged_small_copy_is_never_handed_out(store, first):
    key = await put(store, 1, b"small")
    await settle(store)
    spoil(first, key)
    assert await read(store, key) == b"small"
    assert await store.repair() == 1
    assert first.blobs[key][0] == b"small"


async def test_damaged_large_copy_breaks_off_and_the_next_read_is_good(store, first):
    key = await put(store, 1, LARGE)
    await settle(store)
    spoil(first, key)
    got = bytearray()
    with pytest.raises(Unavailable):
        async for chunk in store.open(key):
            got += chunk
    assert len(got) < len(LARGE)
    assert await read(store, key) == LARGE
    assert await store.repair() == 1
    assert first.blobs[key][0] == LARGE


async def test_blob_damaged_everywhere_is_corrupt(store, first, second):
    key = await put(store, 1, b"small")
    await settle(store)
    spoil(first, key)
    spoil(second, key)
    with pytest.raises(Corrupt):
        await read(store, key)
    [found] = [found async for found in store.scrub()]
    assert found.is_lost
    assert not found.is_sound


async def test_store_that_breaks_off_is_continued_by_the_next(second, spool):
    class Breaking(MemoryBlobStore):
        async def open(self, key, *, start=0, length=None):
            chunks = super().open(key, start=start, length=length)
            yield await anext(chunks)
            raise Unavailable("the line went dead")

    store = ReplicatedBlobStore([Breaking(), second], spool, quorum=2)
    key = await put(store, 1, LARGE)
    assert await read(store, key) == LARGE
    assert await read(store, key, 5, 2 * CHUNK_BYTES) == LARGE[5 : 5 + 2 * CHUNK_BYTES]


async def test_store_that_hangs_holds_nobody_for_long(second, spool, clock, monkeypatch):
    monkeypatch.setattr("pds.blobstore.replicated.PATIENCE_S", 0.05)

    class Hanging(MemoryBlobStore):
        async def open(self, key, *, start=0, length=None):
            await asyncio.sleep(3600)
            yield b""

        async def stat(self, key):
            await asyncio.sleep(3600)

    store = ReplicatedBlobStore([Hanging(), second], spool, quorum=2, monotonic_s=clock)
    key = await put(store, 1, LARGE)
    async with asyncio.timeout(60):
        assert await read(store, key) == LARGE
        assert (await store.stat(key)).size == len(LARGE)
        assert await read(store, key, 5, 10) == LARGE[5:15]
    assert store._members[0].rest_s == FIRST_REST_S
    clock.now_s = FIRST_REST_S
    async with asyncio.timeout(60):
        assert (await store.stat(key)).size == len(LARGE)
    assert store._members[0].rest_s == 2 * FIRST_REST_S


async def test_missing_here_and_silent_there_is_not_missing(store, first, second):
    key = await put(store, 1, b"x")
    await settle(store)
    del first.blobs[key]
    second.is_down = True
    with pytest.raises(Unavailable):
        await read(store, key)
    with pytest.raises(Unavailable):
        await store.stat(key)
    with pytest.raises(Unavailable):
        await keys(store)
    with pytest.raises(BlobMissing):
        second.is_down = False
        await read(store, BlobKey(9, Cid.of_raw(b"never")))
    assert BlobKey(9, Cid.of_raw(b"never")) not in store._behind


async def test_list_is_the_union_without_repeats(store, first, second):
    stored = [await put(store, aid, b"%d" % aid) for aid in (1, 2, 10, 256, 513)]
    await settle(store)
    del first.blobs[stored[0]], first.blobs[stored[3]], second.blobs[stored[2]]
    assert await keys(store) == set(stored)


@pytest.mark.parametrize("verify", [True, False])
async def test_scrub_finds_and_heals(store, first, second, verify):
    stored = [await put(store, number % 3, content_of(1000 + number)) for number in range(20)]
    await settle(store)
    first.blobs.clear()
    spoil(second, stored[0])
    del second.blobs[stored[1]]
    found = {result.key: result async for result in store.scrub(verify=verify)}
    assert set(found) == set(stored) - {stored[1]}
    assert found[stored[0]].states == (CopyState.MISSING, CopyState.DAMAGED)
    assert found[stored[0]].is_lost
    assert all(found[key].is_sound and found[key].healed == (0,) for key in stored[2:])
    assert set(first.blobs) == set(stored[2:])
    spoil(first, stored[5])
    again = {result.key: result async for result in store.scrub(verify=verify)}
    assert again[stored[5]].healed == ((0,) if verify else ())


async def test_scrub_names_stores_that_do_not_answer(store, second):
    await put(store, 1, b"x")
    await settle(store)
    second.is_down = True
    silent = set()
    [found] = [found async for found in store.scrub(unreachable=silent)]
    assert silent == {"memory"}
    assert found.states == (CopyState.GOOD, CopyState.UNREACHABLE)
    assert not found.is_sound
    assert not found.is_lost


def test_quorum_must_be_possible(first, spool):
    for quorum in (0, 2):
        with pytest.raises(ValueError, match="quorum"):
            ReplicatedBlobStore([first], spool, quorum=quorum)


@pytest.mark.xdist_group("s3")
async def test_server_stopped_wiped_and_replaced_under_load_fails_nothing(tmp_path):
    """The longer series is in tests/soak."""
    load = await tell(tmp_path, phase_s=0.4, largest=100_000, rounds=1, pause_s=0.15)
    assert load.failures == []
    assert load.writes > 50
    assert load.reads > 100
    assert load.slowest_s < 10
