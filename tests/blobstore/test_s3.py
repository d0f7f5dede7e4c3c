"""The S3 store against a real server: the contract, and what only a network can do to us."""

import asyncio
import tracemalloc
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from pds.blobstore.base import CHUNK_BYTES, BlobKey, place
from pds.blobstore.s3 import (
    PART_BYTES,
    PARTS_AT_ONCE,
    PIECE_BYTES,
    S3BlobStore,
    S3Settings,
    open_bucket,
)
from pds.blobstore.spool import Spool
from pds.errors import ConfigError, Unavailable
from pds.protocol.cid import Cid
from tests.fakes.streams import stream_server
from tests.suites.blobstore_suite import BlobStoreSuite, content_of, keys, pieces, put, read
from tests.support_process import free_port
from tests.support_s3 import make_authority, tls_in_front

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
async def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    await spool.start()
    yield spool
    await spool.close()
    assert spool.used_bytes == 0


@pytest.fixture
def make_store(s3_server, spool):
    settings = s3_server.settings()

    async def make():
        return S3BlobStore(settings, spool)

    return make


class TestS3BlobStore(BlobStoreSuite):
    pass


@pytest.fixture
async def store(make_store):
    return await make_store()


async def test_a_large_blob_goes_up_in_parts_and_comes_back_in_pieces(store):
    content = content_of(2 * PART_BYTES + 12_345)
    key = await put(store, 1, content, piece=1 << 20)
    assert (await store.stat(key)).size == len(content)
    assert await read(store, key) == content
    middle = PART_BYTES - 5
    assert (
        await read(store, key, middle, PIECE_BYTES + 10)
        == (content[middle : middle + PIECE_BYTES + 10])
    )


async def test_memory_stays_bounded_while_streaming(store):
    async def large():
        for _ in range(320):
            yield b"z" * CHUNK_BYTES

    tracemalloc.start()
    async with store.stage(large()) as staged:
        await staged.store(1)
    size = 0
    async for chunk in store.open(BlobKey(1, staged.cid)):
        size += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 320 * CHUNK_BYTES
    assert peak < (PARTS_AT_ONCE + 1) * PART_BYTES


async def test_blob_deleted_under_a_reader_is_an_error_not_a_short_answer(store):
    key = await put(store, 1, content_of(PIECE_BYTES * 2))
    chunks = store.open(key)
    await anext(chunks)
    await store.delete(key)
    with pytest.raises(Unavailable, match="went away"):
        async for _ in chunks:
            pass


async def test_wrong_secret_is_unavailable_and_says_so(s3_server, spool):
    store = S3BlobStore(s3_server.settings(secret_access_key="wrong"), spool)
    with pytest.raises(Unavailable, match="refuses our key"):
        await put(store, 1, b"x")
    with pytest.raises(Unavailable, match="refuses our key"):
        await read(store, BlobKey(1, Cid.of_raw(b"x")))
    with pytest.raises(Unavailable, match="refuses our key"):
        await store.ping()
    with pytest.raises(Unavailable, match="refuses our key"):
        await keys(store)


async def test_server_that_is_gone_is_unavailable_soon(spool):
    settings = S3Settings(
        bucket="b",
        endpoint=f"http://127.0.0.1:{free_port()}",
        force_path_style=True,
        access_key_id="k",
        secret_access_key="s",
        request_timeout_s=0.5,
    )
    store = S3BlobStore(settings, spool)
    async with asyncio.timeout(20):
        for call in (put(store, 1, b"x"), store.stat(BlobKey(1, Cid.of_raw(b"x"))), store.ping()):
            with pytest.raises(Unavailable):
                await call


async def test_server_that_never_answers_is_unavailable_in_time(spool):
    async def silent(reader, writer):
        await reader.read()

    async with stream_server(silent) as port:
        settings = S3Settings(
            bucket="b",
            endpoint=f"http://127.0.0.1:{port}",
            force_path_style=True,
            access_key_id="k",
            secret_access_key="s",
            upload_timeout_s=0.3,
            request_timeout_s=0.3,
        )
        store = S3BlobStore(settings, spool)
        async with asyncio.timeout(20):  # Its own limits are 30 s and three minutes.
            with pytest.raises(Unavailable):
                await put(store, 1, b"x")
            with pytest.raises(Unavailable):
                await read(store, BlobKey(1, Cid.of_raw(b"x")))


async def test_the_bucket_as_host_name(s3_server, spool):
    """The server answers to `<bucket>.s3.test`; standing in as a proxy it spares a name server."""
    settings = s3_server.settings(endpoint="http://s3.test", force_path_style=False)
    store = S3BlobStore(settings, spool)
    proxied = open_bucket(settings, more_options={"proxy_url": s3_server.endpoint})
    store._store = proxied
    key = await put(store, 1, b"by host name")
    assert await read(store, key) == b"by host name"
    by_path = S3BlobStore(
        replace(settings, endpoint=s3_server.endpoint, force_path_style=True), spool
    )
    assert await read(by_path, key) == b"by host name"


async def test_presigned_urls_open_one_blob_and_no_other(s3_server, spool):
    store = S3BlobStore(s3_server.settings(presigned_read_s=60.0), spool)
    key, other = await put(store, 1, b"open"), await put(store, 1, b"shut")
    url = await store.presign(key)
    assert await asyncio.to_thread(fetch, url) == (200, b"open")
    status, content = await asyncio.to_thread(fetch, url.replace(place(key), place(other)))
    assert status == 403
    assert b"shut" not in content
    assert await S3BlobStore(s3_server.settings(), spool).presign(key) is None


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def test_own_authority_of_certificates(s3_server, spool, tmp_path):
    """A TLS end in front of the server, signed by an authority that only the setting names."""
    authority, context = make_authority(tmp_path)
    port = s3_server.ports["s3"]
    async with tls_in_front(port, context) as endpoint:
        trusting = S3BlobStore(s3_server.settings(endpoint=endpoint, ca_pem=authority), spool)
        key = await put(trusting, 1, b"over TLS")
        assert await read(trusting, key) == b"over TLS"
        strict = S3BlobStore(s3_server.settings(endpoint=endpoint), spool)
        with pytest.raises(Unavailable):
            await put(strict, 1, b"x")


async def test_nothing_but_blobs_is_listed(store, s3_server):
    key = await put(store, 1, b"x")
    await store.ping()
    folder = store._settings.folder
    for name in ("01/1/README", f"02/1/{place(key)[5:]}", "notes", "01/1/zz/nonsense"):
        await store._store.put_async(f"{folder}/{name}", b"x")
    assert await keys(store) == {key}
    assert await keys(store, 1) == {key}


async def test_uploads_have_a_budget(s3_server, tmp_path):
    small = Spool(tmp_path / "small", max_bytes=100_000)
    await small.start()
    store = S3BlobStore(s3_server.settings(), small)
    async with store.stage(pieces(content_of(60_000))):
        with pytest.raises(Unavailable, match="too many uploads"):
            await put(store, 1, content_of(60_000))
    await put(store, 1, content_of(60_000))
    assert small.used_bytes == 0
    await small.close()


async def test_a_bad_address_is_a_configuration_error(spool):
    with pytest.raises(ConfigError):
        S3BlobStore(S3Settings(bucket="b", endpoint="nonsense", force_path_style=True), spool)


async def test_another_servers_blobs_are_not_taken_for_rubbish(s3_server, spool):
    settings = s3_server.settings(owner="did:web:one.example")
    ours = S3BlobStore(settings, spool)
    await ours.start()
    key = await put(ours, 1, b"x")
    again = S3BlobStore(settings, spool)
    await again.start()
    assert await keys(again) == {key}
    other = S3BlobStore(replace(settings, owner="did:web:two.example"), spool)
    with pytest.raises(ConfigError, match="blobs of did:web:one"):
        await other.start()
    with pytest.raises(ConfigError, match="PDS_BLOBSTORE_S3_FOLDER"):
        await keys(other)


async def test_owner_is_asked_for_again_when_the_bucket_was_away(spool):
    settings = S3Settings(
        bucket="b",
        endpoint=f"http://127.0.0.1:{free_port()}",
        force_path_style=True,
        access_key_id="k",
        secret_access_key="s",
        request_timeout_s=0.5,
        owner="did:web:one.example",
    )
    store = S3BlobStore(settings, spool)
    for call in (store.start, lambda: keys(store)):
        with pytest.raises(Unavailable, match="owner"):
            await call()


async def test_a_server_with_another_name_keeps_its_blobs(s3_server, spool):
    settings = s3_server.settings(owner="did:web:old.example")
    old = S3BlobStore(settings, spool)
    await old.start()
    key = await put(old, 1, b"x")
    renamed = replace(settings, owner="did:web:new.example", former_owners=("did:web:old.example",))
    await S3BlobStore(renamed, spool).start()
    for later in (renamed, replace(renamed, former_owners=())):
        again = S3BlobStore(later, spool)
        await again.start()
        assert await keys(again) == {key}
    with pytest.raises(ConfigError, match="blobs of did:web:new"):
        await S3BlobStore(settings, spool).start()


def test_a_bucket_cannot_stand_before_an_address(s3_server):
    with pytest.raises(ConfigError, match="S3_FORCE_PATH_STYLE"):
        open_bucket(s3_server.settings(force_path_style=False))
