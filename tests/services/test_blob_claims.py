"""Several nodes on one database and one store: an upload is never lost to a deletion elsewhere."""

import asyncio

import pytest

from pds.blobstore.base import BlobKey
from pds.errors import Unavailable
from pds.services.blobs import Blobs, BlobSettings
from pds.store.blobs import CLAIM_US, claim_garbage, collect_temporary
from tests.services.repo_host import ALICE, repo_host
from tests.services.test_blobs import DAY_S, Store, fetch, hold, key_of, pieces, upload


@pytest.fixture
async def host(tmp_path):
    async with repo_host(tmp_path) as host:
        host.store = Store()
        host.blobs = other_node(host)
        await host.add_account()
        yield host


def other_node(host) -> Blobs:
    """A second process on the same database and the same store: it shares no lock."""
    return Blobs(engine=host.engine, clock=host.clock, store=host.store, settings=BlobSettings())


async def queue_garbage(host, content: bytes) -> None:
    """Upload something that no record ever refers to, and let its time run out."""
    await upload(host, content)
    host.clock.advance(2 * DAY_S)


async def test_upload_on_one_node_outlives_the_deletion_on_another(host):
    await queue_garbage(host, b"x")
    host.store.hold_delete = asyncio.Event()
    collecting = asyncio.create_task(other_node(host).collect())
    await host.store.in_delete.wait()
    uploading = asyncio.create_task(upload(host, b"x"))
    done, _ = await asyncio.wait([uploading], timeout=0.2)
    assert not done  # no answer while the bytes may still go
    host.store.hold_delete.set()
    assert await collecting == 1
    reference = await uploading
    await hold(host, "a", reference)
    assert await fetch(host, b"x") == b"x"
    assert await host.rows("SELECT * FROM blob_garbage") == []


async def test_sweep_of_orphans_on_one_node_spares_the_upload_on_another(host):
    async with host.store.stage(pieces(b"x")) as staged:
        await staged.store(host.aids[ALICE])
    host.store.blobs[key_of(host, b"x")] = (b"x", 0)
    host.store.hold_delete = asyncio.Event()
    sweeping = asyncio.create_task(other_node(host).sweep_orphans())
    await host.store.in_delete.wait()
    uploading = asyncio.create_task(upload(host, b"x"))
    await asyncio.wait([uploading], timeout=0.2)
    host.store.hold_delete.set()
    assert await sweeping == 1
    await hold(host, "a", await uploading)
    assert await fetch(host, b"x") == b"x"


async def test_what_has_a_row_again_is_not_claimed(host):
    await queue_garbage(host, b"x")
    nodes = [host.blobs, other_node(host)]
    await asyncio.gather(
        *(node.collect() for node in nodes), upload(host, b"x"), upload(host, b"x")
    )
    await hold(host, "a", await upload(host, b"x"))
    await asyncio.gather(*(node.collect() for node in nodes))
    assert await fetch(host, b"x") == b"x"


async def test_two_nodes_do_not_delete_the_same_bytes(host):
    await queue_garbage(host, b"x")
    host.store.hold_delete = asyncio.Event()
    first = asyncio.create_task(host.blobs.collect())
    await host.store.in_delete.wait()
    assert await other_node(host).collect() == 0
    host.store.hold_delete.set()
    assert await first == 1


async def test_claim_of_a_node_that_died_holds_up_nothing_for_long(host, monkeypatch):
    monkeypatch.setattr("pds.services.blobs.CLAIM_PATIENCE_S", 0.1)
    await queue_garbage(host, b"x")
    key = key_of(host, b"x")
    await host.engine.transact("test.discard", collect_now, host.clock.now_us())
    assert await host.engine.transact("test.claim", claim, key, host.clock.now_us())
    with pytest.raises(Unavailable, match="upload it again"):
        await upload(host, b"x")
    assert await host.blobs.collect() == 0
    host.clock.advance(CLAIM_US / 1_000_000)
    await hold(host, "a", await upload(host, b"x"))
    assert await fetch(host, b"x") == b"x"
    assert await host.blobs.collect() == 0
    assert await fetch(host, b"x") == b"x"


async def test_failed_deletion_gives_its_claim_back(host):
    await queue_garbage(host, b"x")
    host.store.undeletable.add(key_of(host, b"x"))
    assert await host.blobs.collect() == 0
    await hold(host, "a", await upload(host, b"x"))
    assert await fetch(host, b"x") == b"x"


async def test_deletion_that_takes_too_long_keeps_its_claim(host, monkeypatch):
    monkeypatch.setattr("pds.services.blobs.DELETE_TIMEOUT_S", 0.05)
    monkeypatch.setattr("pds.services.blobs.CLAIM_PATIENCE_S", 0.05)
    await queue_garbage(host, b"x")
    host.store.hold_delete = asyncio.Event()
    assert await host.blobs.collect() == 0
    with pytest.raises(Unavailable, match="upload it again"):
        await upload(host, b"x")
    host.store.hold_delete.set()
    host.clock.advance(CLAIM_US / 1_000_000)
    await hold(host, "a", await upload(host, b"x"))
    assert await fetch(host, b"x") == b"x"


def collect_now(txn, now_us: int) -> int:
    return collect_temporary(txn, before_us=now_us, now_us=now_us, limit=10)


def claim(txn, key: BlobKey, now_us: int) -> bool:
    return claim_garbage(txn, key.aid, key.cid, now_us=now_us)
