"""`pds blobs` and `pds convert blobs`, as an operator runs them beside a server."""

import asyncio
import json

import pytest

from pds.blobstore.base import place
from pds.blobstore.disk import DiskBlobStore
from pds.cli import run
from tests.suites.blobstore_suite import content_of, put

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten blobs in a folder that the environment names."""

    async def fill() -> list[str]:
        store = DiskBlobStore(tmp_path / "blobs", min_free_bytes=0)
        await store.start()
        stored = [place(await put(store, 1, content_of(1000 + n))) for n in range(10)]
        await store.close()
        return stored

    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("PDS_BLOBSTORE_DISK_LOCATION", str(tmp_path / "blobs"))
    return asyncio.run(fill())


def set_all(monkeypatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_probe_as_table_and_as_json(s3_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(tmp_path))
    set_all(monkeypatch, s3_server.environment())
    assert run(["blobs", "probe"]) == 0
    assert "Good for blobs." in capsys.readouterr().out
    assert run(["blobs", "probe", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["is_good"] is True
    assert {"name", "is_there", "is_needed", "detail"} == set(answer["features"][0])


def test_probe_of_a_folder_is_refused(folder, capsys):
    assert run(["blobs", "probe"]) == 2
    assert "no bucket" in capsys.readouterr().err


def test_convert_to_a_bucket_and_on_to_a_folder(s3_server, folder, tmp_path, monkeypatch, capsys):
    bucket = s3_server.environment(2)
    set_all(monkeypatch, bucket)
    left = tmp_path / "blobs" / "tmp" / f"upload-{'a' * 24}"
    left.write_text("an upload of the running server")
    assert run(["convert", "blobs", "--to", "2"]) == 0
    assert "10 copied, 0 present" in capsys.readouterr().out
    assert left.exists()
    assert run(["convert", "blobs", "--to", "2"]) == 0
    assert "0 copied, 10 present" in capsys.readouterr().out
    monkeypatch.delenv("PDS_BLOBSTORE_DISK_LOCATION")
    for name, value in bucket.items():
        monkeypatch.delenv(name)
        monkeypatch.setenv(name.replace("_2_", "_"), value)
    monkeypatch.setenv("PDS_BLOBSTORE_2_DISK_LOCATION", str(tmp_path / "again"))
    assert run(["convert", "blobs", "--to", "2"]) == 0
    assert all((tmp_path / "again" / path).is_file() for path in folder)


def test_convert_needs_two_places(folder, capsys):
    assert run(["convert", "blobs", "--to", "1"]) == 2
    assert "only one blob store" in capsys.readouterr().err
    assert run(["convert", "blobs", "--to", "3"]) == 2
    assert "PDS_BLOBSTORE_3_S3_BUCKET" in capsys.readouterr().err


def test_scrub_of_one_place_finds_damage(folder, tmp_path, capsys):
    assert run(["blobs", "scrub"]) == 0
    (tmp_path / "blobs" / folder[0]).write_bytes(b"damaged")
    assert run(["blobs", "scrub", "--json"]) == 1
    printed = capsys.readouterr()
    line = json.loads(printed.out.splitlines()[-1])
    assert line["states"] == ["damaged"]
    assert folder[0].endswith(line["cid"])


def test_scrub_of_two_places_heals(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PDS_BLOBSTORE_2_DISK_LOCATION", str(tmp_path / "second"))
    assert run(["blobs", "scrub", "--quick"]) == 0
    assert "10 blobs, 10 healed, 0 not sound" in capsys.readouterr().out
    sound = (tmp_path / "blobs" / folder[3]).read_bytes()
    (tmp_path / "blobs" / folder[3]).write_bytes(b"damaged")
    assert run(["blobs", "scrub"]) == 0
    assert "10 blobs, 1 healed, 0 not sound" in capsys.readouterr().out
    assert (tmp_path / "blobs" / folder[3]).read_bytes() == sound
