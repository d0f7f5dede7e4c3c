"""The blob service over several stores: what one of them has wrong, nobody notices."""

import pytest

from pds.blobstore.memory import MemoryBlobStore
from pds.blobstore.replicated import ReplicatedBlobStore
from pds.blobstore.spool import Spool
from pds.errors import Corrupt
from pds.services.blobs import Blobs, BlobSettings
from tests.services.repo_host import repo_host
from tests.services.test_blobs import LARGE, fetch, hold, key_of, upload

CONTENTS = pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])


@pytest.fixture
async def host(tmp_path):
    spool = Spool(tmp_path / "spool")
    await spool.start()
    async with repo_host(tmp_path) as host:
        host.first, host.second = MemoryBlobStore(), MemoryBlobStore()
        host.store = ReplicatedBlobStore([host.first, host.second], spool, quorum=2)
        host.blobs = Blobs(
            engine=host.engine, clock=host.clock, store=host.store, settings=BlobSettings()
        )
        await host.add_account()
        yield host
    await spool.close()


@CONTENTS
@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
async def test_bad_copy_is_served_from_the_other_store_and_healed(host, content, damage):
    await hold(host, "a", await upload(host, content))
    key = key_of(host, content)
    if damage == "gone":
        del host.first.blobs[key]
    else:
        bad = content[:-1] if damage == "cut" else content + b"!"
        host.first.blobs[key] = (bad, 0)
    assert await fetch(host, content) == content
    await host.store.repair()
    assert host.first.blobs[key][0] == content


@CONTENTS
async def test_scrub_heals_and_marks_only_what_is_lost(host, content):
    await hold(host, "a", await upload(host, content))
    key = key_of(host, content)
    host.first.blobs[key] = (b"?" * len(content), 0)
    assert [found async for found in host.blobs.scrub()] == [(key, True)]
    assert await fetch(host, content) == content
    host.first.blobs[key] = host.second.blobs[key] = (b"?" * len(content), 0)
    assert [found async for found in host.blobs.scrub()] == [(key, False)]
    with pytest.raises(Corrupt):
        await fetch(host, content)


async def test_deletion_goes_on_when_a_store_is_back(host):
    await upload(host, b"x")
    host.clock.advance(2 * 86_400)
    host.second.is_down = True
    assert await host.blobs.collect() == 0
    host.second.is_down = False
    assert await host.blobs.collect() == 1
    assert host.first.blobs == host.second.blobs == {}
