"""Event rows: pages in order within limits, what may not be sent, and removal.

Spec: SYNC-10, SYNC-17, SYNC-22.
"""

import pytest

from pds.store.engine import Params, Row, Txn
from pds.store.events import (
    EventPage,
    delete_account_events,
    delete_events_before,
    get_event_page,
    get_missed_through,
)
from pds.store.sqlite import SqliteEngine
from tests.fakes.clock import NOON_US


def insert_account(txn: Txn, aid: int, **columns: int | str) -> None:
    values = {"aid": aid, "did": f"did:plc:{aid}", "created_at": 0, **columns}
    names = ", ".join(values)
    marks = ", ".join("?" * len(values))
    txn.write(f"INSERT INTO account ({names}) VALUES ({marks})", tuple(values.values()))


def emit_all(txn: Txn, events: list[tuple[str, int, bytes]]) -> None:
    for kind, aid, frame in events:
        txn.emit(kind, aid, lambda _seq, _at_us, frame=frame: frame)


async def fill(engine: SqliteEngine, events: list[tuple[str, int, bytes]]) -> None:
    await engine.transact("test.emit", emit_all, events)


async def page(
    engine: SqliteEngine, after: int = 0, events: int = 100, size: int = 10**6
) -> EventPage:
    return await engine.read("test.page", get_event_page, after, events, size)


@pytest.fixture
async def engine(recording_engine: SqliteEngine) -> SqliteEngine:
    await recording_engine.transact("test.account", insert_account, 1)
    return recording_engine


async def test_a_page_holds_all_events_after_the_cursor_in_order(engine: SqliteEngine) -> None:
    await fill(engine, [("commit", 1, b"a"), ("identity", 1, b"b"), ("sync", 1, b"c")])
    found = await page(engine)
    assert [event.frame for event in found.events] == [b"a", b"b", b"c"]
    assert [event.seq for event in found.events] == [NOON_US, NOON_US + 1, NOON_US + 2]
    assert (found.through, found.is_last) == (NOON_US + 2, True)
    rest = await page(engine, after=NOON_US)
    assert [event.frame for event in rest.events] == [b"b", b"c"]
    nothing = await page(engine, after=NOON_US + 2)
    assert nothing == EventPage((), NOON_US + 2, True)


async def test_a_page_stops_at_either_limit_but_holds_at_least_one_event(
    engine: SqliteEngine,
) -> None:
    await fill(engine, [("identity", 1, bytes([n]) * 100) for n in range(5)])
    by_count = await page(engine, events=2)
    assert (len(by_count.events), by_count.is_last) == (2, False)
    by_size = await page(engine, size=250)
    assert (len(by_size.events), by_size.is_last) == (2, False)
    one = await page(engine, size=10)
    assert (len(one.events), one.is_last) == (1, False)
    after, frames = 0, []
    while True:
        found = await page(engine, after=after, events=3, size=150)
        frames += [event.frame[0] for event in found.events]
        after = found.through
        if found.is_last:
            break
    assert frames == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "columns",
    [{"takedown_ref": "x"}, {"suspended_at": 1}, {"deactivated_at": 1}, None],
    ids=["takendown", "suspended", "deactivated", "deleted"],
)
async def test_content_of_accounts_that_are_not_active_is_left_out(
    engine: SqliteEngine, columns: dict[str, int | str] | None
) -> None:
    if columns is not None:
        await engine.transact("test.account", lambda txn: insert_account(txn, 2, **columns))
    await fill(
        engine,
        [
            ("commit", 2, b"no"),
            ("commit", 1, b"yes"),
            ("sync", 2, b"no"),
            ("account", 2, b"yes"),
            ("identity", 2, b"yes"),
            ("commit", 2, b"no"),
        ],
    )
    found = await page(engine)
    assert [event.frame for event in found.events] == [b"yes"] * 3
    assert (found.through, found.is_last) == (engine.last_seq, True)


async def test_a_page_of_nothing_that_may_be_sent_still_moves_on(engine: SqliteEngine) -> None:
    await fill(engine, [("commit", 9, b"no")] * 3 + [("commit", 1, b"yes")])
    first = await page(engine, events=3)
    assert (first.events, first.through, first.is_last) == ((), NOON_US + 2, False)
    assert [event.frame for event in (await page(engine, after=first.through)).events] == [b"yes"]


async def test_frames_that_may_not_be_sent_are_not_read(engine: SqliteEngine) -> None:
    """A hidden account's commits between two others must not fill a page's memory (B2)."""
    hidden = [("commit", 9, bytes(100_000))] * 20
    await fill(engine, [("identity", 1, b"first"), *hidden, ("identity", 1, b"last")])
    bytes_read = 0

    def get_page(txn: Txn) -> EventPage:
        class Counted:
            def read(self, sql: str, params: Params = ()) -> list[Row]:
                nonlocal bytes_read
                rows = txn.read(sql, params)
                bytes_read += sum(len(v) for row in rows for v in row if isinstance(v, bytes))
                return rows

        return get_event_page(Counted(), 0, 500, 1_000)

    found = await engine.read("test.page", get_page)
    assert [event.frame for event in found.events] == [b"first", b"last"]
    assert bytes_read == len(b"firstlast")


async def test_deletion_by_age_is_remembered_and_done_in_parts(engine: SqliteEngine) -> None:
    await fill(engine, [("identity", 1, bytes([n])) for n in range(5)])
    window = NOON_US + 4
    assert await engine.read("test.missed", get_missed_through, 0) == 0
    assert await engine.read("test.missed", get_missed_through, window) == NOON_US + 3
    assert await engine.transact("test.delete", delete_events_before, window, 3) == 3
    assert await engine.read("test.missed", get_missed_through, 0) == NOON_US + 2
    assert await engine.transact("test.delete", delete_events_before, window, 3) == 1
    assert await engine.transact("test.delete", delete_events_before, window, 3) == 0
    assert [event.frame for event in (await page(engine)).events] == [b"\x04"]
    assert await engine.read("test.missed", get_missed_through, 0) == NOON_US + 3


async def test_a_deleted_account_keeps_only_what_is_emitted_at_its_end(
    engine: SqliteEngine,
) -> None:
    await fill(engine, [("commit", 2, b"a"), ("identity", 1, b"other"), ("commit", 2, b"b")])

    def delete(txn: Txn) -> int:
        count = delete_account_events(txn, 2)
        emit_all(txn, [("account", 2, b"deleted")])
        return count

    assert await engine.transact("test.delete", delete) == 2
    assert [event.frame for event in (await page(engine)).events] == [b"other", b"deleted"]
    assert await engine.read("test.missed", get_missed_through, 0) == 0
