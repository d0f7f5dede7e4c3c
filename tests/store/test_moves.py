"""Rows of moves: one open move for a DID, held by one node, written by nobody else."""

import pytest

from pds.errors import Conflict
from pds.store.base import ThreadedEngine
from pds.store.engine import Txn
from pds.store.moves import (
    MoveChange,
    MoveRow,
    count_switched_moves,
    delete_old_moves,
    get_last_move,
    get_move,
    get_open_move,
    insert_move,
    list_moves,
    list_running_moves,
    release_move,
    renew_move,
    take_move,
    update_move,
)

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def begin(txn: Txn, did: str, now_us: int) -> int:
    return insert_move(
        txn,
        did=did,
        direction="in",
        step="open",
        status="running",
        state=b"{}",
        node="a",
        lease_until=now_us + 10,
        now_us=now_us,
    )


def take(txn: Txn, move_id: int, node: str, now_us: int, is_alone: bool = False) -> MoveRow | None:
    until = now_us + 10
    return take_move(txn, move_id, node=node, now_us=now_us, lease_until=until, is_alone=is_alone)


def change(move_id: int, node: str, now_us: int, *, is_over: bool = False) -> MoveChange:
    return MoveChange(
        move_id=move_id,
        node=node,
        step="repo",
        status="done" if is_over else "running",
        state=b'{"a":1}',
        secrets=b"sealed",
        switched_at=now_us if is_over else None,
        now_us=now_us,
        is_over=is_over,
    )


async def test_a_did_has_one_open_move_and_keeps_the_old_ones(
    recording_engine: ThreadedEngine,
) -> None:
    engine = recording_engine
    first = await engine.transact("t", begin, DID, 100)
    with pytest.raises(Conflict):
        await engine.transact("t", begin, DID, 101)
    assert await engine.transact("t", update_move, change(first, "a", 105, is_over=True))
    assert await engine.read("t", get_open_move, DID) is None
    second = await engine.transact("t", begin, DID, 110)
    last = await engine.read("t", get_last_move, DID)
    assert last is not None
    assert last.move_id == second > first
    rows = await engine.read("t", lambda txn: list_moves(txn, before=None, limit=9))
    assert [row.move_id for row in rows] == [second, first]
    rows = await engine.read("t", lambda txn: list_moves(txn, before=second, limit=9))
    assert [row.move_id for row in rows] == [first]
    running = await engine.read("t", list_running_moves)
    assert [row.move_id for row in running] == [second]
    assert await engine.read("t", count_switched_moves, 100) == (1, 105)
    assert await engine.read("t", count_switched_moves, 106) == (0, None)
    assert await engine.transact("t", delete_old_moves, 105) == 0
    assert await engine.transact("t", delete_old_moves, 106) == 1
    assert await engine.read("t", get_move, first) is None


async def test_only_who_holds_a_move_writes_it(recording_engine: ThreadedEngine) -> None:
    engine = recording_engine
    move_id = await engine.transact("t", begin, DID, 100)
    assert await engine.transact("t", take, move_id, "b", 105) is None
    assert not await engine.transact("t", update_move, change(move_id, "b", 105))
    assert await engine.transact("t", update_move, change(move_id, "a", 106))
    taken = await engine.transact("t", take, move_id, "b", 110)
    assert taken is not None
    assert (taken.lease_node, taken.state, taken.secrets) == ("b", b'{"a":1}', b"sealed")
    assert not await engine.transact("t", update_move, change(move_id, "a", 111))

    def renew(txn: Txn, node: str) -> bool:
        return renew_move(txn, move_id, node=node, lease_until=500)

    assert not await engine.transact("t", renew, "a")
    assert await engine.transact("t", renew, "b")
    assert await engine.transact("t", take, move_id, "c", 400) is None
    # Alone, there is nobody whose lease would still count.
    assert await engine.transact("t", take, move_id, "c", 400, True) is not None

    def release(txn: Txn) -> None:
        release_move(txn, move_id, node="c")

    await engine.transact("t", release)
    row = await engine.read("t", get_move, move_id)
    assert row is not None
    assert not row.is_leased(0)
    assert await engine.transact("t", take, move_id, "d", 401) is not None
