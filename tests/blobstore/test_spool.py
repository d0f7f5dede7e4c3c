"""Uploads on their way: bounded, re-readable, and gone when everybody is done with them."""

import asyncio
import os

import pytest

from pds.blobstore.base import CHUNK_BYTES
from pds.blobstore.spool import MEMORY_BYTES, Spool
from pds.errors import ConfigError, Unavailable
from pds.protocol.cid import Cid
from tests.suites.blobstore_suite import content_of, pieces

LARGE = content_of(MEMORY_BYTES + 3 * CHUNK_BYTES + 17)


@pytest.fixture
async def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    await spool.start()
    yield spool
    await spool.close()
    assert spool.used_bytes == 0


async def content(spooled) -> bytes:
    return b"".join([chunk async for chunk in spooled.chunks()])


@pytest.mark.parametrize("piece", [1000, CHUNK_BYTES, len(LARGE)])
@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES, MEMORY_BYTES + 1, len(LARGE)])
async def test_what_came_in_can_be_read_any_number_of_times(spool, size, piece):
    async with spool.take(pieces(LARGE[:size], piece)) as spooled:
        assert (spooled.size, spooled.cid) == (size, Cid.of_raw(LARGE[:size]))
        assert spool.used_bytes == size
        for _ in range(2):
            assert await content(spooled) == LARGE[:size]
        assert all([len(chunk) <= CHUNK_BYTES async for chunk in spooled.chunks()])


async def test_holders_keep_it_after_the_context(spool):
    async with spool.take(pieces(LARGE)) as spooled:
        spooled.hold()
    assert await content(spooled) == LARGE
    spooled.release()
    assert spool.used_bytes == 0


async def test_files_have_no_names_and_close(spool, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    async with spool.take(pieces(LARGE)):
        assert list((tmp_path / "spool").iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) > before
    await spool.run(lambda: None)
    await spool.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_cancelled_at_any_moment_gives_everything_back(spool):
    async def take() -> None:
        async with spool.take(pieces(LARGE, CHUNK_BYTES)) as spooled:
            await content(spooled)

    for turns in range(40):
        task = asyncio.create_task(take())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert spool.used_bytes == 0


async def test_memory_is_left_early_when_much_waits(spool, monkeypatch):
    monkeypatch.setattr("pds.blobstore.spool.CALM_BYTES", 1000)
    async with spool.take(pieces(LARGE[: CHUNK_BYTES * 2])) as spooled:
        assert spooled._descriptor is not None
        assert await content(spooled) == LARGE[: CHUNK_BYTES * 2]


async def test_the_disk_is_not_filled_to_the_brim(spool, monkeypatch):
    monkeypatch.setattr("pds.blobstore.spool.MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(Unavailable, match="space"):
        async with spool.take(pieces(LARGE)):
            pass
    async with spool.take(pieces(LARGE[:1000])) as spooled:
        assert spooled.size == 1000


async def test_unusable_folder_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("x")
    spool = Spool(tmp_path / "file" / "spool")
    with pytest.raises(ConfigError):
        await spool.start()
    await spool.close()
