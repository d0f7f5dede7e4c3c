"""The firehose: every event once and in order, cursors, slow readers, bounded memory.

Spec: SYNC-3, SYNC-6, SYNC-10, SYNC-11, SYNC-14, SYNC-15, SYNC-16, SYNC-17, SYNC-18, SYNC-20,
SYNC-21, SYNC-22.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.errors import RequestError, Unavailable
from pds.protocol.frames import encode_account_frame, encode_identity_frame, encode_sync_frame
from pds.services.event_retention import EventRetention
from pds.services.firehose import Firehose, FirehoseSettings
from pds.services.firehose_ring import Ring, binary_message
from pds.store.engine import CommittedEvent, Txn
from pds.store.events import get_event_page
from pds.store.sqlite import SqliteEngine
from tests.fakes.clock import NOON_US, FakeClock
from tests.services.firehose_reader import FakeSink, split_messages
from tests.store.test_events import insert_account
from tests.suites.engines import open_engine

DID = "did:plc:ab2cd3ef4gh5ij6kl7mn2opq"


class Seconds:
    """A monotonic clock moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A firehose on a real engine."""

    def __init__(self, engine: SqliteEngine, **limits: Any) -> None:
        self.engine = engine
        self.wall = FakeClock()
        self.seconds = Seconds()
        self.firehose = Firehose(
            engine=engine,
            wall=self.wall,
            settings=FirehoseSettings(**limits),
            monotonic=self.seconds,
        )
        self.firehose.start()

    def read(self, cursor: int | None = None, *, is_stuck: bool = False) -> FakeSink:
        sink = FakeSink(is_stuck=is_stuck)
        sink.reader = self.firehose.subscribe(cursor, sink)
        return sink

    async def emit(self, count: int = 1, *, handle: str = "a.test", aid: int = 1) -> list[int]:
        """Commit `count` identity events in one transaction; returns their numbers."""
        before = self.engine.last_seq

        def job(txn: Txn) -> None:
            for _ in range(count):
                txn.emit("identity", aid, lambda seq, at_us: identity(seq, at_us, handle))

        await self.engine.transact("test.emit", job)
        await settle()
        first = max(before + 1, NOON_US)
        return list(range(first, first + count))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps of a second, as `run` does."""
        for _ in range(round(seconds)):
            self.seconds.now += 1
            self.firehose.look_after_readers()


def identity(seq: int, at_us: int, handle: str = "a.test") -> bytes:
    return encode_identity_frame(seq=seq, at_us=at_us, did=DID, handle=handle)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def recording_engine(tmp_path: Path) -> AsyncIterator[SqliteEngine]:
    async with open_engine(tmp_path) as engine:
        yield engine


@pytest.fixture
def host(recording_engine: SqliteEngine) -> Host:
    return Host(recording_engine)


# --- Cursors ----------------------------------------------------------------------------------


async def test_without_a_cursor_only_new_events_come(host: Host) -> None:
    await host.emit(3)
    sink = host.read()
    await settle()
    assert sink.seqs == []
    new = await host.emit(2)
    assert sink.seqs == new
    assert sink.frames[0].type == "#identity"


async def test_a_cursor_in_memory_gets_what_is_greater_then_what_is_new(host: Host) -> None:
    seqs = await host.emit(4)
    sink = host.read(seqs[1])
    seqs += await host.emit(2)
    assert sink.seqs == seqs[2:]


async def test_the_newest_number_is_a_valid_cursor(host: Host) -> None:
    seqs = await host.emit(2)
    sink = host.read(seqs[-1])
    assert sink.seqs == []
    assert sink.closed is None
    assert await host.emit() == sink.seqs


async def test_a_cursor_ahead_is_refused_with_future_cursor(host: Host) -> None:
    seqs = await host.emit()
    sink = host.read(seqs[-1] + 1)
    await sink.reader.task
    assert [frame.payload["error"] for frame in sink.frames] == ["FutureCursor"]
    assert sink.frames[0].op == -1
    assert sink.closed == (1008, "FutureCursor")
    assert host.firehose.reader_count == 0


async def test_a_cursor_below_memory_is_served_from_the_store_without_gap_or_repetition(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, ring_events=5, page_events=7)
    seqs = await host.emit(50)
    sink = host.read(seqs[9])
    seqs += await host.emit(3)
    await host.until(lambda: len(sink.seqs) >= 43)
    seqs += await host.emit(2)
    assert sink.seqs == seqs[10:]


async def test_cursor_zero_gets_everything_that_is_stored(host: Host) -> None:
    old = Host(host.engine)
    seqs = await old.emit(3)
    sink = host.read(0)
    await host.until(lambda: len(sink.seqs) == 3)
    assert sink.seqs == seqs
    assert sink.frames[0].type == "#identity"


async def test_an_outdated_cursor_gets_info_without_number_then_the_whole_window(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine)
    seqs = await host.emit(5)
    clock = FakeClock(seqs[2] + 1_000_000)
    retention = EventRetention(engine=recording_engine, clock=clock, window_s=1)
    assert await retention.sweep() == 2
    restarted = Host(recording_engine)
    restarted.wall = host.wall
    for cursor in (0, seqs[0]):
        sink = restarted.read(cursor)
        await host.until(lambda sink=sink: len(sink.seqs) == 3)
        info, *rest = sink.frames
        assert (info.type, info.payload["name"]) == ("#info", "OutdatedCursor")
        assert "seq" not in info.payload
        assert len(rest) == 3
        assert sink.seqs == seqs[2:]
    # Somebody who has seen all that was deleted misses nothing.
    sink = restarted.read(seqs[1])
    await host.until(lambda: len(sink.seqs) == 3)
    assert [frame.type for frame in sink.frames] == ["#identity"] * 3


async def test_events_outside_the_window_are_not_sent_even_before_they_are_deleted(
    recording_engine: SqliteEngine,
) -> None:
    await Host(recording_engine).emit(5)
    host = Host(recording_engine, window_s=1)
    host.wall.set(NOON_US + 3 + 1_000_000)
    sink = host.read(0)
    await host.until(lambda: len(sink.frames) == 3)
    assert [frame.type for frame in sink.frames] == ["#info", "#identity", "#identity"]
    assert sink.seqs == [NOON_US + 3, NOON_US + 4]


# --- Order and gaps ---------------------------------------------------------------------------


async def test_numbers_that_were_skipped_do_not_stop_anything(host: Host) -> None:
    first = await host.emit()
    sink = host.read()
    await host.engine.raise_seq(first[-1] + 1000)
    seqs = await host.emit(2)
    assert seqs[0] == first[-1] + 1001
    await host.until(lambda: len(sink.seqs) == 2)
    assert sink.seqs == seqs
    assert await host.emit() == [host.firehose.head_seq]
    assert len(sink.seqs) == 3


async def test_events_that_another_writer_stored_come_in_their_place(host: Host) -> None:
    """An event hook that sees only some events is like one node of several."""
    sink = host.read()
    hidden: list[CommittedEvent] = []
    publish = host.firehose.publish
    host.engine._event_hooks.clear()
    host.engine.add_event_hook(hidden.extend)
    seqs = await host.emit(3)
    publish(hidden[2:])
    publish(hidden[1:2])
    await host.until(lambda: len(sink.seqs) == 3)
    assert sink.seqs == seqs
    publish(hidden)
    await settle()
    assert sink.seqs == seqs


async def test_an_event_published_while_the_gap_is_read_is_not_forgotten(host: Host) -> None:
    sink = host.read()
    hidden: list[CommittedEvent] = []
    publish = host.firehose.publish
    host.engine._event_hooks.clear()
    host.engine.add_event_hook(hidden.extend)
    seqs = await host.emit(2)
    publish(hidden[1:])  # The gap: its page may be read before the next commit.
    for _ in range(5):
        seqs += await host.emit()
        publish(hidden[-1:])
    await host.until(lambda: len(sink.seqs) == 7)
    assert sink.seqs == seqs


async def test_a_store_that_fails_for_a_while_only_delays(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pds.services.firehose._RETRY_S", 0.0)
    sink = host.read()
    read, failures = host.engine.read, [1, 2]

    async def failing(label: str, fn: Any, *args: Any) -> Any:
        if fn is get_event_page and failures:
            failures.pop()
            raise Unavailable("busy")
        return await read(label, fn, *args)

    monkeypatch.setattr(host.engine, "read", failing)
    await host.engine.raise_seq(NOON_US + 5000)
    seqs = await host.emit(2)
    await host.until(lambda: sink.seqs == seqs)
    assert failures == []


async def test_a_replay_that_cannot_read_the_store_ends_with_an_internal_error(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.emit()
    late = Host(host.engine)

    async def failing(*_args: Any) -> Any:
        raise Unavailable("busy")

    monkeypatch.setattr(host.engine, "read", failing)
    sink = late.read(0)
    await host.until(lambda: sink.closed is not None)
    assert sink.closed == (1011, "InternalServerError")


async def test_writes_during_replays_reach_every_reader_once(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, ring_events=8, page_events=5)
    seqs = await host.emit(40)
    sinks = [(at, host.read(seqs[at])) for at in range(0, 40, 3)]
    for _ in range(10):
        seqs += await host.emit(4)
    await host.until(lambda: all(sink.seqs[-1:] == seqs[-1:] for _at, sink in sinks))
    for at, sink in sinks:
        assert sink.seqs == seqs[at + 1 :]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12), st.integers(1, 6))
def test_the_ring_serves_exactly_what_comes_after_any_cursor(
    steps: list[tuple[int, bool]], max_events: int
) -> None:
    ring = Ring(100, max_events=max_events, max_bytes=10_000)
    seqs, seq = [], 100
    for gap, is_big in steps:
        seq += 1 + gap
        ring.append(seq, 1, "identity", b"x" * (4000 if is_big else 10))
        seqs.append(seq)
    assert ring.held_bytes <= 10_000 or ring.next_index - 1 == ring.index_after(seq - 1)
    for cursor in range(ring.floor_seq, seq + 2):
        index = ring.index_after(cursor)
        found = [ring.get(at).seq for at in range(index, ring.next_index)]
        assert found == [known for known in seqs if known > cursor]
        left = sum(len(ring.get(at).message) for at in range(index, ring.next_index))
        assert ring.start_of(index) + left == ring.total_bytes


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 100_000])
def test_a_message_is_one_binary_websocket_frame(size: int) -> None:
    assert split_messages(binary_message(b"x" * size)) == [b"x" * size]


# --- Accounts that are no longer active -------------------------------------------------------


async def test_content_of_a_taken_down_account_is_sent_to_nobody_any_more(host: Host) -> None:
    await host.engine.transact("test.account", insert_account, 1)
    live = host.read()

    def content(txn: Txn) -> None:
        for aid in (1, 2):
            txn.emit("sync", aid, sync)

    def takedown(txn: Txn) -> None:
        txn.write("UPDATE account SET takedown_ref = ? WHERE aid = ?", ("x", 1))
        txn.emit("account", 1, inactive)

    await host.engine.transact("test.account", lambda txn: insert_account(txn, 2, did="did:plc:b"))
    await host.engine.transact("test.content", content)
    await host.engine.transact("test.takedown", takedown)
    await settle()
    assert [frame.type for frame in live.frames] == ["#sync", "#sync", "#account"]
    in_memory = host.read(NOON_US - 1)
    stored = Host(host.engine).read(0)
    await host.until(lambda: len(stored.seqs) == 2)
    for sink in (in_memory, stored):
        assert [frame.type for frame in sink.frames] == ["#sync", "#account"]
        assert sink.seqs == [NOON_US + 1, NOON_US + 2]


def sync(seq: int, at_us: int) -> bytes:
    return encode_sync_frame(seq=seq, at_us=at_us, did=DID, rev="3ke6kg42cm227", blocks=b"")


def inactive(seq: int, at_us: int) -> bytes:
    return encode_account_frame(seq=seq, at_us=at_us, did=DID, active=False, status="takendown")


# --- Slow and dead readers --------------------------------------------------------------------


async def test_a_stalled_reader_is_dropped_and_costs_only_its_buffer(host: Host) -> None:
    stalled, good = host.read(is_stuck=True), host.read()
    seqs = []
    for _ in range(60):
        seqs += await host.emit(handle="x" * 100_000)
    assert good.seqs == seqs
    assert stalled.most_buffered < 700_000
    host.pass_time(6)
    assert stalled.closed == (1008, "ConsumerTooSlow")
    assert stalled.frames[-1].payload["error"] == "ConsumerTooSlow"
    assert stalled.seqs == seqs[: len(stalled.seqs)]
    assert host.firehose.reader_count == 1
    assert good.closed is None


async def test_a_reader_with_room_gets_all_of_the_memory_at_once(host: Host) -> None:
    seqs = []
    for _ in range(30):
        seqs += await host.emit(handle="x" * 100_000)
    assert host.read(seqs[0]).seqs == seqs[1:]


async def test_a_reader_that_recovers_in_time_stays_and_misses_nothing(host: Host) -> None:
    slow = host.read(is_stuck=True)
    seqs = []
    for _ in range(60):
        seqs += await host.emit(handle="x" * 100_000)
    host.pass_time(2)
    while len(slow.seqs) < 60:
        slow.take()
        await settle()
    host.pass_time(20)
    assert slow.closed is None
    assert slow.seqs == seqs


async def test_a_reader_that_falls_out_of_memory_goes_on_from_the_store(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, ring_events=4, high_water_bytes=1000, page_bytes=2000)
    slow = host.read(is_stuck=True)
    seqs = []
    for _ in range(40):
        seqs += await host.emit(handle="x" * 300)
    assert 1 <= len(slow.seqs) < 10
    async with asyncio.timeout(60):
        while len(slow.seqs) < 40:
            slow.take()
            await asyncio.sleep(0.001)
    assert slow.seqs == seqs
    slow.take()
    assert await host.emit() == slow.seqs[40:]


async def test_a_slow_but_steady_replay_is_not_dropped(recording_engine: SqliteEngine) -> None:
    host = Host(recording_engine, ring_events=4, high_water_bytes=1000, page_bytes=2000)
    seqs = await host.emit(30, handle="x" * 300)
    slow = host.read(seqs[0] - 1, is_stuck=True)
    async with asyncio.timeout(60):
        while len(slow.seqs) < 30:
            if slow.buffered_bytes:
                slow.take(min(slow.buffered_bytes, 400))
            await asyncio.sleep(0.001)
            host.seconds.now += 1
            slow.reader.heard()  # type: ignore[union-attr]
            host.firehose.look_after_readers()
    assert slow.closed is None
    assert slow.seqs == seqs


async def test_a_stalled_replay_is_dropped_after_half_a_minute(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, ring_events=4, high_water_bytes=1000, page_bytes=2000)
    await host.emit(30, handle="x" * 300)
    stalled = host.read(0, is_stuck=True)
    await host.until(lambda: stalled.buffered_bytes >= 1000)
    host.pass_time(29)
    assert stalled.closed is None
    assert stalled.most_buffered < 2500
    host.pass_time(3)
    assert stalled.closed == (1008, "ConsumerTooSlow")
    assert host.firehose.reader_count == 0


async def test_readers_are_pinged_and_dead_ones_dropped(host: Host) -> None:
    dead, alive = host.read(), host.read()
    for _ in range(9):
        host.pass_time(10)
        alive.reader.heard()  # type: ignore[union-attr]
    assert (dead.pings, alive.pings) == (3, 3)
    assert not dead.is_aborted
    host.pass_time(2)
    assert dead.is_aborted
    assert not alive.is_aborted
    assert host.firehose.reader_count == 1


async def test_memory_of_the_ring_is_bounded_by_bytes(recording_engine: SqliteEngine) -> None:
    host = Host(recording_engine, ring_bytes=1_000_000)
    for _ in range(30):
        await host.emit(handle="x" * 100_000)
    assert host.firehose._ring.held_bytes <= 1_000_000
    sink = host.read(0)
    await host.until(lambda: len(sink.seqs) == 30)


async def test_many_readers_are_all_served(host: Host) -> None:
    sinks = [host.read() for _ in range(1200)]
    seqs = await host.emit(2)
    await settle()
    assert all(sink.seqs == seqs for sink in sinks)


# --- Coming and going -------------------------------------------------------------------------


async def test_one_reader_too_many_is_refused_before_the_upgrade(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, max_readers=2)
    host.read()
    host.firehose.check_room()
    sink = host.read()
    with pytest.raises(RequestError) as refused:
        host.firehose.check_room()
    assert (refused.value.status, refused.value.name) == (429, "RateLimitExceeded")
    assert refused.value.headers["Retry-After"]
    assert sink.reader is not None
    sink.reader.gone()
    host.firehose.check_room()


async def test_a_reader_that_leaves_is_forgotten_also_while_it_waits(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine, ring_events=4, high_water_bytes=1000)
    await host.emit(30, handle="x" * 300)
    waiting, live = host.read(0, is_stuck=True), host.read()
    await host.until(lambda: waiting.buffered_bytes >= 1000)
    for sink in (waiting, live):
        assert sink.reader is not None
        host.seconds.now += 1
        sink.reader.gone()
        sink.reader.gone()
    assert host.firehose.reader_count == 0
    assert host.firehose.last_reader_left_at_s == host.seconds.now
    written = waiting.written
    await host.emit()
    assert waiting.written == written
    assert live.written == b""


async def test_closing_tells_every_reader_and_lets_nobody_in(host: Host) -> None:
    await host.emit(3)
    sinks = [host.read(), host.read(NOON_US)]
    await host.firehose.close()
    assert [sink.closed for sink in sinks] == [(1000, "")] * 2
    with pytest.raises(RequestError) as refused:
        host.firehose.check_room()
    assert refused.value.status == 503


async def test_the_periodic_task_looks_after_readers(host: Host) -> None:
    sink = host.read()
    host.seconds.now += 31
    task = asyncio.create_task(host.firehose.run())
    await host.until(lambda: sink.pings == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_retention_deletes_in_jobs_of_at_most_500_rows(
    recording_engine: SqliteEngine,
) -> None:
    host = Host(recording_engine)
    await host.emit(1200)
    clock = FakeClock(NOON_US + 72 * 3_600_000_000 + 1100)
    retention = EventRetention(engine=recording_engine, clock=clock, window_s=72 * 3600)
    assert await retention.sweep() == 1100
    assert await retention.sweep() == 0
    left = await recording_engine.read("test.page", get_event_page, 0, 500, 10**6)
    assert len(left.events) == 100


async def test_retention_waits_while_the_clock_is_in_doubt(recording_engine: SqliteEngine) -> None:
    await Host(recording_engine).emit(3)
    clock = FakeClock()
    clock.error = Unavailable("clock in doubt")
    retention = EventRetention(engine=recording_engine, clock=clock, window_s=0)
    with pytest.raises(Unavailable):
        await retention.sweep()
    left = await recording_engine.read("test.page", get_event_page, 0, 500, 10**6)
    assert len(left.events) == 3
