"""The memory store keeps the contract, and fails on demand."""

import pytest

from pds.blobstore.memory import MemoryBlobStore
from pds.errors import Unavailable
from tests.suites.blobstore_suite import BlobStoreSuite, keys, pieces, put


class TestMemoryBlobStore(BlobStoreSuite):
    @pytest.fixture
    def make_store(self):
        store = MemoryBlobStore()

        async def make():
            return store

        return make


async def test_a_store_that_is_down_refuses_everything_and_loses_nothing():
    store = MemoryBlobStore()
    key = await put(store, 1, b"x")
    async with store.stage(pieces(b"y")) as staged:
        store.is_down = True
        with pytest.raises(Unavailable):
            await staged.store(1)
    for call in (store.ping, lambda: store.stat(key), lambda: store.delete(key)):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(Unavailable):
        await put(store, 1, b"z")
    store.is_down = False
    assert await keys(store) == {key}
