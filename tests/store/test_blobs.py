"""Rows of blobs while other nodes change them."""

from collections.abc import Iterable
from typing import Any

from pds.protocol.cid import Cid
from pds.store.base import ThreadedEngine
from pds.store.blobs import collect_temporary, get_blob, insert_upload
from pds.store.engine import Txn

KEPT, OVERDUE = Cid.of_raw(b"kept"), Cid.of_raw(b"overdue")


class Claimed:
    """A transaction that finds, once it has the lock, that another node has claimed a blob."""

    def __init__(self, txn: Txn) -> None:
        self._txn = txn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def lock_accounts(self, aids: Iterable[int]) -> None:
        assert set(aids) == {1}
        self._txn.write("UPDATE blob SET stored_at = 5 WHERE aid = ? AND cid = ?", (1, KEPT))


async def test_a_blob_claimed_until_it_was_locked_is_not_collected(
    recording_engine: ThreadedEngine,
) -> None:
    """XRPC-82: only what is still temporary is discarded."""

    def job(txn: Txn) -> tuple[bool, bool]:
        for cid in (KEPT, OVERDUE):
            insert_upload(txn, 1, cid=cid, mime_type="image/x-test", size=4, now_us=1)
        collect_temporary(Claimed(txn), before_us=10, now_us=20, limit=10)
        return get_blob(txn, 1, KEPT) is not None, get_blob(txn, 1, OVERDUE) is not None

    assert await recording_engine.transact("job", job) == (True, False)
