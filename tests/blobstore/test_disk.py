"""The disk store: the contract, and what only a disk can do to us (promises A1, A6, C6)."""

import asyncio
import errno
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from pds.blobstore.base import CHUNK_BYTES, BlobKey
from pds.blobstore.disk import DiskBlobStore
from pds.errors import ConfigError, Unavailable
from pds.protocol.cid import Cid
from tests.suites.blobstore_suite import BlobStoreSuite, content_of, keys, pieces, put, read

LARGE = content_of(3 * CHUNK_BYTES)


@pytest.fixture
def make_store(tmp_path):
    async def make():
        store = DiskBlobStore(tmp_path / "blobs", min_free_bytes=0)
        await store.start()
        return store

    return make


@pytest.fixture
async def store(make_store):
    store = await make_store()
    yield store
    await store.close()


class TestDiskBlobStore(BlobStoreSuite):
    pass


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


async def test_path_is_made_of_numbers_and_the_cid(store, tmp_path):
    key = await put(store, 12_345, b"x")
    [path] = files(tmp_path / "blobs")
    cid = str(key.cid)
    assert path.relative_to(tmp_path / "blobs").parts == ("39", "12345", cid[-2:], cid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_file_and_every_new_folder_are_synced_before_the_answer(store, tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "blobs"
    key = await put(store, 1, LARGE)
    part = root / "01" / "1" / str(key.cid)[-2:]
    assert synced[0].name.startswith("upload-")
    assert synced[1] == part
    assert set(synced[2:]) == {root, root / "01", root / "01" / "1"}
    synced.clear()
    await put(store, 1, LARGE)
    assert synced[1:] == [part]


async def test_a_folder_that_somebody_else_made_is_synced_too(store, tmp_path, monkeypatch):
    key = BlobKey(1, Cid.of_raw(b"x"))
    part = tmp_path / "blobs" / "01" / "1" / str(key.cid)[-2:]
    part.mkdir(parents=True)
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await put(store, 1, b"x")
    assert {part.parent, part.parents[1], part.parents[2]} <= set(synced)


async def test_beside_other_servers_only_old_leftovers_go(tmp_path):
    """A node that starts must not take away what another is writing at that moment."""
    temporary = tmp_path / "blobs" / "tmp"
    temporary.mkdir(parents=True)
    young, old = temporary / f"upload-{'a' * 24}", temporary / f"upload-{'b' * 24}"
    for path in (young, old):
        path.write_bytes(b"unfinished")
    os.utime(old, (0, 0))
    store = DiskBlobStore(tmp_path / "blobs", min_free_bytes=0)
    await store.start(is_alone=False)
    await store.close()
    assert young.exists()
    assert not old.exists()


async def test_blobs_survive_a_restart_and_leftovers_of_a_crash_do_not(store, make_store, tmp_path):
    key = await put(store, 1, b"kept")
    await store.close()
    temporary = tmp_path / "blobs" / "tmp"
    left = temporary / f"upload-{'a' * 24}"
    foreign = [temporary / "upload-1.part", temporary / "notes.txt"]
    for path in (left, *foreign):
        path.write_text("x")
    again = await make_store()
    assert await read(again, key) == b"kept"
    assert not left.exists()
    assert all(path.exists() for path in foreign)
    await again.close()


async def test_failed_and_cancelled_uploads_leave_no_temporary_file(store, tmp_path):
    async def broken():
        yield LARGE
        raise LookupError

    with pytest.raises(LookupError):
        async with store.stage(broken()):
            pass
    for turns in range(20):
        task = asyncio.create_task(put(store, 1, LARGE, piece=CHUNK_BYTES))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.close()
    assert files(tmp_path / "blobs" / "tmp") == []


async def test_unusable_folder_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("x")
    store = DiskBlobStore(tmp_path / "file" / "blobs")
    with pytest.raises(ConfigError):
        await store.start()
    await store.close()


async def test_temporary_folder_on_another_file_system_is_a_configuration_error(
    tmp_path, monkeypatch
):
    def rename(self, target):
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(Path, "rename", rename)
    store = DiskBlobStore(tmp_path / "blobs")
    with pytest.raises(ConfigError, match="PDS_BLOBSTORE_DISK_TMP_LOCATION"):
        await store.start()
    await store.close()


async def test_temporary_folder_may_be_elsewhere_on_the_file_system(tmp_path):
    store = DiskBlobStore(tmp_path / "blobs", temporary=tmp_path / "parts", min_free_bytes=0)
    await store.start()
    async with store.stage(pieces(LARGE)) as staged:
        assert len(files(tmp_path / "parts")) == 1
        await staged.store(1)
    await store.close()
    assert files(tmp_path / "parts") == []


async def test_uploads_are_refused_before_the_disk_is_full(tmp_path):
    store = DiskBlobStore(tmp_path / "blobs", min_free_bytes=1 << 62)
    await store.start()
    with pytest.raises(Unavailable, match="space"):
        await put(store, 1, b"x")
    await store.close()


async def test_full_disk_fails_the_upload_only_and_space_back_means_writes_back(
    store, tmp_path, monkeypatch
):
    kept = await put(store, 1, b"kept")
    real = os.write

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unavailable, match="space"):
        await put(store, 1, b"x")
    assert await read(store, kept) == b"kept"
    monkeypatch.setattr(os, "write", real)
    key = await put(store, 1, b"x")
    assert await read(store, key) == b"x"
    assert await keys(store) == {kept, key}


async def test_short_writes_are_continued(store, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: real(fd, bytes(content[:1000])))
    key = await put(store, 1, content_of(5000))
    monkeypatch.setattr(os, "write", real)
    assert await read(store, key) == content_of(5000)


async def test_failed_sync_of_a_file_refuses_that_upload_only(store, monkeypatch):
    real = os.fsync

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable):
        await put(store, 1, b"x")
    monkeypatch.setattr(os, "fsync", real)
    assert await keys(store) == set()
    await put(store, 1, b"x")


async def test_failed_sync_of_a_folder_stops_writes_until_a_restart(store, monkeypatch):
    kept = await put(store, 1, b"kept")
    real = os.fsync

    def fail_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(Unavailable):
        await put(store, 1, b"x")
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(Unavailable, match="stopped"):
        await put(store, 1, b"y")
    with pytest.raises(Unavailable, match="stopped"):
        await store.ping()
    assert await read(store, kept) == b"kept"
    await store.start()
    await put(store, 1, b"y")


async def test_symbolic_link_in_place_of_a_blob_is_not_followed(store, tmp_path):
    key = await put(store, 1, b"x")
    [path] = files(tmp_path / "blobs")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(Unavailable):
        await read(store, key)


async def test_file_cut_while_it_is_read_is_an_error_not_a_short_answer(store, tmp_path):
    key = await put(store, 1, LARGE)
    [path] = files(tmp_path / "blobs")
    chunks = store.open(key)
    await anext(chunks)
    os.truncate(path, CHUNK_BYTES + 10)
    with pytest.raises(Unavailable):
        async for _ in chunks:
            pass


async def test_cancelled_readers_and_writers_leak_no_descriptors(store):
    key = await put(store, 1, LARGE)
    before = len(os.listdir("/proc/self/fd"))

    async def copy():
        async with store.stage(store.open(key)) as staged:
            await staged.store(2)

    for turns in range(40):
        task = asyncio.create_task(copy())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await store.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_write_that_comes_after_its_upload_was_given_up_leaves_nothing(store, tmp_path):
    """As when a cancelled upload's chunk still waits for a thread."""
    async with store.stage(pieces(LARGE)) as staged:
        pass
    await store.ping()
    with pytest.raises(Unavailable):
        staged._write(b"late")
    with pytest.raises(Unavailable):
        await staged.store(1)
    await store.close()
    assert files(tmp_path / "blobs") == []


async def test_foreign_files_in_the_folders_are_not_listed(store, tmp_path):
    key = await put(store, 1, b"x")
    [path] = files(tmp_path / "blobs")
    (path.parent / "README").write_text("x")
    (path.parents[1] / "note").write_text("x")
    (path.parents[2] / "name").mkdir()
    (tmp_path / "blobs" / "lost+found").mkdir()
    assert await keys(store) == {key}


async def test_closed_store_is_unavailable(store):
    key = await put(store, 1, b"x")
    await store.close()
    with pytest.raises(Unavailable):
        await put(store, 1, b"x")
    with pytest.raises(Unavailable):
        await read(store, key)


async def test_memory_stays_bounded_while_streaming(store):
    async def large():
        for _ in range(64):
            yield b"z" * CHUNK_BYTES * 2

    tracemalloc.start()
    async with store.stage(large()) as staged:
        await staged.store(1)
    size = 0
    async for chunk in store.open(BlobKey(1, staged.cid)):
        size += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 64 * CHUNK_BYTES * 2
    assert peak < 20 * CHUNK_BYTES
