"""Places for archives: a folder, and a bucket of a real S3 server."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import obstore
import pytest

from pds.blobstore.archives import (
    ArchiveFolder,
    ArchiveMissing,
    ArchivePlace,
    owner_of,
    read_file,
    write_file,
)
from pds.blobstore.archives_s3 import ArchiveBucket
from pds.blobstore.s3 import PART_BYTES, PARTS_AT_ONCE, PIECE_BYTES
from pds.errors import Unavailable
from tests.fakes.streams import connection, stream_server
from tests.support_process import free_port
from tests.support_s3 import S3Server

pytestmark = pytest.mark.xdist_group("s3")

NAMES = [
    "did-plc-aaa-3kaaaaaaaaaaa.tar",
    "did-plc-aaa-3kbbbbbbbbbbb.tar.age",
    "did-plc-aaab-3kaaaaaaaaaaa.tar",
    "did-web-a-b.example-3kaaaaaaaaaaa.tar",
]


@pytest.fixture
def bucket(s3_server: S3Server) -> ArchiveBucket:
    return ArchiveBucket(s3_server.settings(folder=f"{s3_server.settings().folder}/archives"))


async def content_of(place: ArchivePlace, name: str, limit: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in place.read(name, limit)])


@asynccontextmanager
async def cut_after(limit: int, port: int) -> AsyncIterator[str]:
    """Pass connections on to a port until so many bytes have gone there; then all are cut."""
    sent = 0

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: bool
    ) -> None:
        nonlocal sent
        try:
            while sent < limit and (content := await reader.read(65_536)):
                sent += len(content) if counts else 0
                writer.write(content)
                await writer.drain()
        except ConnectionError:
            pass  # The other side was cut first.
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if sent >= limit:
            return
        async with connection(port) as (inner_reader, inner_writer):
            await asyncio.gather(
                pump(reader, inner_writer, True), pump(inner_reader, writer, False)
            )

    async with stream_server(serve) as front:
        yield f"http://127.0.0.1:{front}"
    assert sent >= limit


async def check_place(place: ArchivePlace) -> None:
    """The contract, for a place that has all NAMES with their own name as content."""
    for owner, names in (
        (None, NAMES),
        ("did-plc-aaa", NAMES[:2]),
        ("did-web-a-b.example", NAMES[3:]),
        ("did-plc-aa", []),
    ):
        found = sorted([stored async for stored in place.list(owner)])
        assert [stored.name for stored in found] == names
        assert [stored.size for stored in found] == [len(name) for name in names]
    assert await content_of(place, NAMES[0]) == NAMES[0].encode()
    assert await content_of(place, NAMES[0], 5) == NAMES[0][:5].encode()
    assert await content_of(place, NAMES[0], 1000) == NAMES[0].encode()
    assert place.address(NAMES[0]).startswith(place.name)
    for _ in range(2):
        await place.delete(NAMES[0])
    assert await place.stat(NAMES[0]) is None
    with pytest.raises(ArchiveMissing, match="there is no"):
        await content_of(place, NAMES[0])


async def test_a_folder_lists_reads_and_deletes(tmp_path: Path) -> None:
    place = ArchiveFolder(tmp_path / "archives")
    assert [stored async for stored in place.list()] == []
    place.folder.mkdir()
    for name in NAMES:
        (place.folder / name).write_text(name)
    (place.folder / f".{NAMES[0]}.12345678.part").write_text("half")
    await check_place(place)


async def test_a_bucket_lists_reads_and_deletes(bucket: ArchiveBucket, tmp_path: Path) -> None:
    for name in NAMES:
        file = tmp_path / "file"
        file.write_text(name)
        await bucket.put(name, file)
        assert bucket.address(name) == f"{bucket.name}/{owner_of(name)}/{name}"
    obstore.put(bucket._store, f"{bucket._prefix}owner", b"something else that lies there")
    await check_place(bucket)


async def test_a_large_archive_goes_up_in_parts_with_little_memory(
    bucket: ArchiveBucket, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    pattern = bytes(range(256)) * 4096
    with file.open("wb") as out:
        for number in range(33):
            out.write(number.to_bytes(4, "big") + pattern)
    tracemalloc.start()
    await bucket.put(NAMES[0], file)
    digest = hashlib.sha256()
    async for chunk in bucket.read(NAMES[0]):
        digest.update(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with file.open("rb") as sent:
        assert digest.digest() == hashlib.file_digest(sent, "sha256").digest()
    assert peak < (PARTS_AT_ONCE + 1) * PART_BYTES
    stored = await bucket.stat(NAMES[0])
    assert stored is not None
    assert stored.size == file.stat().st_size > 4 * PART_BYTES


async def test_what_comes_back_otherwise_does_not_count(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """A provider that answers well and keeps something else: found out, and taken away."""
    settings = s3_server.settings()

    class Forgetful(ArchiveBucket):
        wrong = b""

        async def _check(self, name: str, size: int, digest: str) -> None:
            await obstore.put_async(self._store, self._path(name), self.wrong)
            await super()._check(name, size, digest)

    file = tmp_path / "file"
    file.write_bytes(b"the archive")
    for wrong, why in ((b"the archiv", "10 of 11 bytes"), (b"THE archive", "as it was sent")):
        bucket = Forgetful(settings)
        bucket.wrong = wrong
        with pytest.raises(Unavailable, match=why):
            await bucket.put(NAMES[0], file)
        assert await bucket.stat(NAMES[0]) is None
    trusting = Forgetful(settings, reads_back=False)
    trusting.wrong = b"THE archive"
    await trusting.put(NAMES[0], file)  # Of the right size: that is all that was asked for.


async def test_an_upload_that_is_cut_off_leaves_nothing_that_counts(
    s3_server: S3Server, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (4 * PART_BYTES))
    async with cut_after(2 * PART_BYTES, s3_server.ports["s3"]) as url:
        settings = s3_server.settings(endpoint=url, request_timeout_s=1.0)
        with pytest.raises(Unavailable, match=f"cannot store archive {NAMES[0]}"):
            await ArchiveBucket(settings).put(NAMES[0], file)
    direct = ArchiveBucket(s3_server.settings(folder=settings.folder))
    assert await direct.stat(NAMES[0]) is None
    assert [stored async for stored in direct.list()] == []
    await direct.put(NAMES[0], file)
    stored = await direct.stat(NAMES[0])
    assert stored is not None
    assert stored.size == 4 * PART_BYTES


async def test_a_bucket_that_refuses_or_is_away_says_so(
    s3_server: S3Server, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    stranger = ArchiveBucket(s3_server.settings(secret_access_key="wrong"))
    gone = ArchiveBucket(
        s3_server.settings(endpoint=f"http://127.0.0.1:{free_port()}", request_timeout_s=0.5)
    )
    for bucket, why in ((stranger, "refuses our key"), (gone, "cannot")):
        with pytest.raises(Unavailable, match=why):
            await bucket.put(NAMES[0], file)
        with pytest.raises(Unavailable, match=why):
            [stored async for stored in bucket.list()]
        with pytest.raises(Unavailable, match=why):
            await content_of(bucket, NAMES[0])


async def test_an_archive_is_a_file_when_all_of_it_is_there(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise Unavailable("cut off")

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"y" * (PIECE_BYTES + 1))
    with pytest.raises(Unavailable, match="cut off"):
        await write_file(target, broken())
    assert await write_file(target, read_file(source)) == PIECE_BYTES + 1
    assert (target.stat().st_mode & 0o777, target.read_bytes()) == (0o600, source.read_bytes())
    with pytest.raises(Unavailable, match="exists already"):
        await write_file(target, read_file(source))
    with pytest.raises(Unavailable, match="cannot be written"):
        await write_file(tmp_path / "nowhere" / "target", read_file(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
