"""The probe tells what a provider can do from what it cannot."""

import pytest
from aiohttp import web

from pds.blobstore.probe import Probe
from pds.blobstore.s3 import S3BlobStore, S3Settings
from pds.blobstore.spool import Spool
from pds.errors import Unavailable
from tests.suites.blobstore_suite import keys, put
from tests.support_process import free_port

pytestmark = pytest.mark.xdist_group("s3")


async def test_a_good_provider_has_everything_and_nothing_is_left_there(s3_server, tmp_path):
    settings = s3_server.settings()
    spool = Spool(tmp_path)
    store = S3BlobStore(settings, spool)
    key = await put(store, 1, b"x")
    probe = Probe(settings)
    told = []
    found = await probe.run(told.append)
    assert [feature.name for feature in found] == told
    assert {feature.name: feature.detail for feature in found if not feature.is_there} == {}
    assert len(found) == 10
    assert await probe._names() == []
    assert await keys(store) == {key}
    await spool.close()


async def test_nobody_there_and_a_wrong_key_end_the_probe(s3_server):
    nowhere = S3Settings(
        bucket="b",
        endpoint=f"http://127.0.0.1:{free_port()}",
        force_path_style=True,
        access_key_id="k",
        secret_access_key="s",
        request_timeout_s=1.0,
    )
    for settings in (nowhere, s3_server.settings(secret_access_key="wrong")):
        with pytest.raises(Unavailable, match="cannot be used at all"):
            await Probe(settings).run()


async def test_a_careless_provider_is_seen_through():
    """It keeps objects and believes everybody, and has no idea of ranges or conditions."""
    objects: dict[str, bytes] = {}

    async def answer(request: web.Request) -> web.Response:
        name = request.path.removeprefix("/bucket/")
        if request.method == "PUT":
            objects[name] = await request.read()
            return web.Response(headers={"ETag": '"x"'})
        if request.method == "DELETE":
            objects.pop(name, None)
            return web.Response(status=204)
        if request.method == "POST":
            return web.Response(status=501)
        if name not in objects:
            return web.Response(status=404)
        times = {"ETag": '"x"', "Last-Modified": "Sat, 21 Nov 2026 13:00:00 GMT"}
        return web.Response(body=objects[name], headers=times)

    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    settings = S3Settings(
        bucket="bucket",
        endpoint=f"http://127.0.0.1:{port}",
        force_path_style=True,
        access_key_id="k",
        secret_access_key="s",
        request_timeout_s=2.0,
    )
    found = {feature.name: feature for feature in await Probe(settings).run()}
    await runner.cleanup()
    assert [name for name, feature in found.items() if feature.is_there] == [
        "write, read, delete",
        "SHA-256 checksums",
    ]
    assert "anybody can write here" in found["wrong secret is refused"].detail
    assert "was accepted" in found["damaged uploads are refused"].detail
