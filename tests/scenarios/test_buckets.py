"""Blobs in a bucket, and in a folder and a bucket at once, behind a whole server."""

import io
from dataclasses import replace

import pytest

from pds.config import Config, load_config
from pds.services.blobs import CHECKED_BYTES
from tests.scenarios.conftest import host_in
from tests.support_client import sign_up
from tests.support_process import free_port

pytestmark = pytest.mark.xdist_group("s3")

SMALL = b"a small text"
LARGE = bytes(range(256)) * (CHECKED_BYTES // 256 + 100)


def with_environment(environment: dict[str, str]):
    def change(config: Config) -> Config:
        given = load_config(environment)
        places = ("blobstore", "blobstore_2", "replication")
        return replace(config, **{name: getattr(given, name) for name in places})

    return change


async def keep(person, content: bytes) -> str:
    """Upload a blob and let a record refer to it; returns its CID."""
    blob = await person.client.upload(io.BytesIO(content), "text/plain")
    await person.create("com.example.strange", {"blob": blob})
    return blob["ref"]["$link"]


async def fetch(host, did: str, cid: str, **options):
    url = f"{host.url}/xrpc/com.atproto.sync.getBlob"
    async with host.client.http.get(url, params={"did": did, "cid": cid}, **options) as answer:
        return answer.status, await answer.read(), answer.headers


async def test_upload_record_download_and_range(s3_server, tmp_path):
    change = with_environment(s3_server.environment())
    async with host_in(tmp_path, change=change) as host:
        person = await sign_up(host.client, "alice.test")
        for content in (SMALL, LARGE):
            cid = await keep(person, content)
            status, body, headers = await fetch(host, person.did, cid)
            assert (status, body, headers["Content-Type"]) == (200, content, "text/plain")
            ranged = {"Range": "bytes=5-9"}
            status, body, _ = await fetch(host, person.did, cid, headers=ranged)
            assert (status, body) == (206, content[5:10])
        async with host.client.http.get(f"{host.url}/xrpc/_health") as answer:
            assert answer.status == 200
    assert not (tmp_path / "blobs").exists()


async def test_readers_of_large_blobs_may_be_sent_to_the_bucket(s3_server, tmp_path):
    change = with_environment(
        s3_server.environment() | {"PDS_BLOBSTORE_S3_PRESIGNED_READS": "true"}
    )
    async with host_in(tmp_path, change=change) as host:
        person = await sign_up(host.client, "alice.test")
        small, large = await keep(person, SMALL), await keep(person, LARGE)
        status, body, _ = await fetch(host, person.did, small, allow_redirects=False)
        assert (status, body) == (200, SMALL)
        status, _, headers = await fetch(host, person.did, large, allow_redirects=False)
        assert status == 307
        assert headers["Location"].startswith(s3_server.endpoint)
        assert headers["Cache-Control"] == "no-store"
        status, body, _ = await fetch(host, person.did, large)
        assert (status, body) == (200, LARGE)


async def test_folder_and_bucket_at_once(s3_server, tmp_path):
    change = with_environment(
        {"PDS_BLOBSTORE_DISK_LOCATION": str(tmp_path / "blobs")} | s3_server.environment(2)
    )
    async with host_in(tmp_path, change=change) as host:
        person = await sign_up(host.client, "alice.test")
        cid = await keep(person, SMALL)
        [file] = [path for path in (tmp_path / "blobs").rglob(cid) if path.is_file()]
        file.unlink()
        status, body, _ = await fetch(host, person.did, cid)
        assert (status, body) == (200, SMALL)


async def test_server_starts_although_a_bucket_is_away(tmp_path):
    environment = {
        "PDS_BLOBSTORE_DISK_LOCATION": str(tmp_path / "blobs"),
        "PDS_BLOBSTORE_2_S3_BUCKET": "away",
        "PDS_BLOBSTORE_2_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "PDS_BLOBSTORE_2_S3_FORCE_PATH_STYLE": "true",
        "PDS_BLOBSTORE_2_S3_ACCESS_KEY_ID": "key",
        "PDS_BLOBSTORE_2_S3_SECRET_ACCESS_KEY": "secret",
        "PDS_BLOBSTORE_2_S3_REQUEST_TIMEOUT_MS": "500",
        "PDS_BLOBSTORE_WRITE_QUORUM": "1",
    }
    async with host_in(tmp_path, change=with_environment(environment)) as host:
        person = await sign_up(host.client, "alice.test")
        cid = await keep(person, SMALL)
        status, body, _ = await fetch(host, person.did, cid)
        assert (status, body) == (200, SMALL)
