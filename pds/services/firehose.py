"""The firehose: every event to every reader, in order, each once, from wherever the reader stands.

A reader is a cursor. If what it wants next is in the ring, it is written from memory as soon as it
is published; if it is older, a task reads pages from the store until the ring is reached. There is
no hand-over between two phases, so no event is lost or sent twice (SYNC-20).

`publish` is the engine's event hook. An event goes into the ring only if its `prev_seq` is the
ring's newest number; otherwise others wrote in between (or a number was skipped), and the one
tailer reads what is missing from the store, in order. So the order on the wire is the order of
`seq`, with any number of writers (SYNC-11).

A reader costs at most the sink's own buffer of `high_water_bytes`: beyond that nothing more is
written to it, it only falls behind. One that was live and is `max_lag_bytes` behind for
`lag_grace_s`, or takes nothing at all for `stall_s`, gets ConsumerTooSlow (SYNC-21).

Spec: event-stream#sequence-numbers (SYNC-10 to SYNC-21, SYNC-3, SYNC-6)
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pds.errors import RequestError, StoreError
from pds.protocol.frames import decode_frame, encode_error_frame, encode_info_frame
from pds.services.firehose_ring import Ring, binary_message
from pds.store.clock import Clock
from pds.store.engine import CommittedEvent, Engine, ForeignCommits
from pds.store.events import (
    EventPage,
    StoredEvent,
    get_event_page,
    get_last_seq,
    get_missed_through,
)

CLOSE_NORMAL: Final = 1000
CLOSE_POLICY: Final = 1008
CLOSE_INTERNAL: Final = 1011

_JOINED_BYTES: Final = 65_536
"""Small messages are joined up to this before they are written: one system call for many."""
_SLICE: Final = 500
"""Readers served in one turn of the event loop."""
_RETRY_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirehoseSettings:
    """Limits of the firehose."""

    window_s: float = 72 * 3600.0
    ring_events: int = 500
    ring_bytes: int = 16_000_000
    page_events: int = 500
    page_bytes: int = 1_000_000
    concurrent_pages: int = 4
    high_water_bytes: int = 512_000
    max_lag_bytes: int = 4_000_000
    lag_grace_s: float = 4.0
    stall_s: float = 30.0
    ping_interval_s: float = 30.0
    pong_timeout_s: float = 90.0
    max_readers: int = 20_000


class Sink(Protocol):
    """Where the bytes of one reader go. No method blocks."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes written and not yet taken by the peer's connection."""

    def write(self, messages: bytes) -> None:
        """Send whole WebSocket messages."""

    def ping(self) -> None:
        """Send a ping."""

    def finish(self, code: int, reason: str) -> None:
        """Send a close frame and hang up once everything is sent, in any case within seconds."""

    def abort(self) -> None:
        """Hang up at once."""


class Subscription:
    """One reader. The sink's owner calls `heard`, `drained` and `gone`."""

    __slots__ = (
        "_firehose", "cursor", "has_been_live", "heard_at_s", "index", "is_open", "lag_since_s",
        "moved_at_s", "pinged_at_s", "sent_bytes", "sink", "taken_bytes", "task", "waiter",
    )  # fmt: skip

    def __init__(self, firehose: "Firehose", sink: Sink, now_s: float) -> None:
        self._firehose = firehose
        self.sink = sink
        self.is_open = True
        self.cursor = 0
        self.index: int | None = None
        """The next event wanted from the ring; None while pages of the store are read."""
        self.has_been_live = False
        self.sent_bytes = 0
        self.taken_bytes = -1
        self.heard_at_s = self.pinged_at_s = self.moved_at_s = now_s
        self.lag_since_s: float | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def heard(self) -> None:
        """Take note that the peer sent something, a pong for example."""
        self.heard_at_s = self._firehose.now_s()

    def drained(self) -> None:
        """Take note that the sink has room again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        self._firehose.serve(self)

    def gone(self) -> None:
        """Take note that the connection is closed."""
        self._firehose.forget(self)


class Firehose:
    """Sends the events of this host to all readers."""

    def __init__(
        self,
        *,
        engine: Engine,
        wall: Clock,
        settings: FirehoseSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now_s = monotonic
        self._engine = engine
        self._wall = wall
        self._settings = settings or FirehoseSettings()
        self._ring = self._new_ring(0)
        self._readers: dict[Subscription, None] = {}
        self._pages = asyncio.Semaphore(self._settings.concurrent_pages)
        self._tailer: asyncio.Task[None] | None = None
        self._has_gap = False
        self._is_fan_out_due = False
        self._is_closing = False
        self._is_held = False
        self.last_reader_left_at_s = monotonic()

    @property
    def reader_count(self) -> int:
        """How many readers are connected."""
        return len(self._readers)

    @property
    def sink_buffer_bytes(self) -> int:
        """How much a sink is asked to buffer for its reader."""
        return self._settings.high_water_bytes

    @property
    def head_seq(self) -> int:
        """The newest number that readers may have seen."""
        return self._ring.head_seq

    def start(self) -> None:
        """Begin at the newest event of the open engine and follow it from now on."""
        self._ring = self._new_ring(self._engine.last_seq)
        self._engine.add_event_hook(self.publish)
        self._engine.add_foreign_hook(self.note_foreign)

    async def run(self) -> None:
        """Look after readers, once a second, until cancelled."""
        while True:
            self.look_after_readers()
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Tell every reader that this is the end."""
        self._is_closing = True
        for reader in list(self._readers):
            self._end(reader, CLOSE_NORMAL, "")
        if self._tailer is not None:
            self._tailer.cancel()
            await asyncio.gather(self._tailer, return_exceptions=True)

    # Events in

    def publish(self, events: Sequence[CommittedEvent]) -> None:
        """Take the events of one committed group, in order of `seq`. Runs on the event loop."""
        for event in events:
            if event.prev_seq == self._ring.head_seq:
                self._append(event.seq, event.aid, event.kind, event.frame)
            elif event.seq > self._ring.head_seq:
                self._has_gap = True
                self._wake_tailer()
                break
        self._schedule_fan_out()

    def note_foreign(self, commits: ForeignCommits) -> None:
        """Read what other nodes have committed. Runs on the event loop."""
        if commits.last_seq > self._ring.head_seq and not self._is_closing:
            self._has_gap = True
            self._wake_tailer()

    def _append(self, seq: int, aid: int, kind: str, frame: bytes) -> None:
        self._ring.append(seq, aid, kind, frame)
        if kind == "account" and not decode_frame(frame).payload.get("active"):
            self._ring.withhold(aid)

    def _wake_tailer(self) -> None:
        if self._tailer is None or self._tailer.done():
            self._tailer = asyncio.get_running_loop().create_task(self._read_gap())

    async def _read_gap(self) -> None:
        """Append what the store has above the ring's newest number, in order, until level."""
        is_last = False
        while self._has_gap or not is_last:
            self._has_gap = False
            try:
                page = await self._get_page(self._ring.head_seq)
            except StoreError as error:
                _log.warning("firehose.tail_failed", extra={"reason": str(error)})
                is_last = False
                await asyncio.sleep(_RETRY_S)
                continue
            for event in page.events:
                # `publish` may have appended some meanwhile.
                if event.seq > self._ring.head_seq:
                    self._append(event.seq, event.aid, event.kind, event.frame)
            # Events that may not be sent have their numbers too.
            self._ring.head_seq = max(self._ring.head_seq, page.through)
            is_last = page.is_last
            self._schedule_fan_out()

    # Readers

    def hold(self) -> None:
        """Take no readers until `release`.

        At a start the newest number may still have to rise above what relays have seen: a relay
        that came before that would be told that its cursor lies in the future, and stay away.
        """
        self._is_held = True

    def release(self) -> None:
        """Take readers again."""
        self._is_held = False

    def check_room(self) -> None:
        """Refuse one reader too many, before the upgrade (SYNC-4).

        Raises: RequestError RateLimitExceeded, NotEnoughResources.
        """
        if self._is_closing:
            raise RequestError("NotEnoughResources", "The server is shutting down", 503)
        if self._is_held:
            raise RequestError(
                "NotEnoughResources", "The server is starting", 503, headers={"Retry-After": "3"}
            )
        if len(self._readers) >= self._settings.max_readers:
            raise RequestError(
                "RateLimitExceeded", "Too many subscribers", 429, headers={"Retry-After": "60"}
            )

    def subscribe(self, cursor: int | None, sink: Sink) -> Subscription:
        """Add a reader that has seen everything up to `cursor`, or wants only what is new.

        Spec: (SYNC-14, SYNC-15, SYNC-16, SYNC-17, SYNC-18)
        """
        reader = Subscription(self, sink, self.now_s())
        self._readers[reader] = None
        if cursor is None:
            self._follow_ring(reader, self._ring.head_seq)
        elif cursor > max(self._engine.last_seq, self._ring.head_seq):
            reader.task = asyncio.get_running_loop().create_task(self._judge(reader, cursor))
        elif cursor >= self._ring.floor_seq:
            self._follow_ring(reader, cursor)
        else:
            reader.cursor = cursor
            reader.task = asyncio.get_running_loop().create_task(self._replay(reader, is_new=True))
        return reader

    async def _judge(self, reader: Subscription, cursor: int) -> None:
        """Refuse a cursor above every number; another node may have given out this one."""
        try:
            last_seq = await self._engine.read("firehose.last_seq", get_last_seq)
        except StoreError as error:
            _log.warning("firehose.cursor_unknown", extra={"reason": str(error)})
            reader.task = None
            self._end(reader, CLOSE_INTERNAL, "InternalServerError")
            return
        reader.task = None
        if not reader.is_open:
            return
        if cursor > max(last_seq, self._engine.last_seq):
            self._refuse(reader, "FutureCursor", "Cursor in the future.")
        else:
            self._follow_ring(reader, cursor)

    def forget(self, reader: Subscription) -> None:
        """Drop a reader whose connection is closed."""
        reader.is_open = False
        if reader.waiter is not None and not reader.waiter.done():
            reader.waiter.set_result(None)
        if reader.task is not None:
            reader.task.cancel()
            reader.task = None
        if reader in self._readers:
            del self._readers[reader]
            if not self._readers:
                self.last_reader_left_at_s = self.now_s()

    def _follow_ring(self, reader: Subscription, cursor: int) -> None:
        """Serve a reader from the ring from now on; the ring has all that comes after `cursor`."""
        reader.task = None
        reader.cursor = cursor
        reader.index = self._ring.index_after(cursor)
        reader.sent_bytes = self._ring.start_of(reader.index)
        reader.taken_bytes = -1
        reader.has_been_live = True
        self.serve(reader)

    def serve(self, reader: Subscription) -> None:
        """Write to a reader what the ring has for it, as far as its sink has room."""
        index = reader.index
        if index is None or not reader.is_open:
            return
        ring, sink = self._ring, reader.sink
        if not ring.has(index):
            self._fall_back(reader)
            return
        high_water_bytes = self._settings.high_water_bytes
        # A full sink has been asked to tell when it is drained; one with room must get it all.
        while index < ring.next_index and sink.buffered_bytes < high_water_bytes:
            parts: list[bytes] = []
            size = 0
            while index < ring.next_index and size < _JOINED_BYTES:
                entry = ring.get(index)
                index += 1
                reader.sent_bytes = entry.end
                # A cursor may name an event that is committed but was not published here yet.
                if entry.seq > reader.cursor:
                    reader.cursor = entry.seq
                    parts.append(entry.message)
                    size += len(entry.message)
            if size:
                sink.write(parts[0] if len(parts) == 1 else b"".join(parts))
        reader.index = index

    def _fall_back(self, reader: Subscription) -> None:
        """Go on from the store: the ring has moved on while the sink was full."""
        reader.index = None
        reader.task = asyncio.get_running_loop().create_task(self._replay(reader, is_new=False))

    def _schedule_fan_out(self) -> None:
        if not self._is_fan_out_due and self._readers:
            self._is_fan_out_due = True
            asyncio.get_running_loop().call_soon(self._fan_out, None)

    def _fan_out(self, waiting: list[Subscription] | None) -> None:
        """Serve all readers, some hundred at a time, so that the loop stays responsive."""
        if waiting is None:
            self._is_fan_out_due = False
            waiting = list(self._readers)
        for reader in waiting[:_SLICE]:
            self.serve(reader)
        if len(waiting) > _SLICE:
            asyncio.get_running_loop().call_soon(self._fan_out, waiting[_SLICE:])

    # Readers that are behind the ring

    async def _replay(self, reader: Subscription, *, is_new: bool) -> None:
        try:
            if is_new:
                await self._tell_if_outdated(reader)
            while reader.is_open:
                if reader.cursor >= self._ring.floor_seq:
                    self._follow_ring(reader, reader.cursor)
                    return
                floor_seq = self._ring.floor_seq
                page = await self._get_page(reader.cursor)
                for messages in _join(page.events):
                    await self._wait_for_room(reader)
                    if not reader.is_open:
                        return
                    reader.sink.write(messages)
                    reader.sent_bytes += len(messages)
                # At the end of the store everything up to the floor of before was seen.
                reader.cursor = max(page.through, floor_seq) if page.is_last else page.through
        except StoreError as error:
            _log.warning("firehose.replay_failed", extra={"reason": str(error)})
            reader.task = None
            self._end(reader, CLOSE_INTERNAL, "InternalServerError")
        except Exception:
            # Nobody awaits this task, so the error is reported here and the reader let go.
            _log.exception("firehose.replay_failed")
            reader.task = None
            self._end(reader, CLOSE_INTERNAL, "InternalServerError")

    async def _tell_if_outdated(self, reader: Subscription) -> None:
        window_start = self._wall.now_us() - round(self._settings.window_s * 1_000_000)
        async with self._pages:
            missed = await self._engine.read("firehose.window", get_missed_through, window_start)
        if reader.cursor < missed:
            reader.cursor = missed
            message = "Requested cursor exceeded limit. Possibly missing events"
            reader.sink.write(binary_message(encode_info_frame("OutdatedCursor", message)))

    async def _wait_for_room(self, reader: Subscription) -> None:
        while reader.is_open and reader.sink.buffered_bytes >= self._settings.high_water_bytes:
            reader.waiter = asyncio.get_running_loop().create_future()
            await reader.waiter
        reader.waiter = None

    async def _get_page(self, after: int) -> EventPage:
        settings = self._settings
        async with self._pages:
            return await self._engine.read(
                "firehose.page", get_event_page, after, settings.page_events, settings.page_bytes
            )

    # Readers that are slow or dead

    def look_after_readers(self) -> None:
        """Ping, and let go of readers that are too slow or no longer there (SYNC-6, SYNC-21)."""
        now_s = self.now_s()
        settings = self._settings
        for reader in list(self._readers):
            if now_s - reader.heard_at_s > settings.pong_timeout_s:
                reader.sink.abort()
                self.forget(reader)
            elif self._is_too_slow(reader, now_s):
                self._refuse(reader, "ConsumerTooSlow", "Stream consumer too slow")
            elif now_s - reader.pinged_at_s >= settings.ping_interval_s:
                reader.pinged_at_s = now_s
                reader.sink.ping()

    def _is_too_slow(self, reader: Subscription, now_s: float) -> bool:
        settings = self._settings
        buffered = reader.sink.buffered_bytes
        taken = reader.sent_bytes - buffered
        if buffered == 0 or taken > reader.taken_bytes:
            reader.taken_bytes = taken
            reader.moved_at_s = now_s
        if buffered and now_s - reader.moved_at_s >= settings.stall_s:
            return True
        lag = self._ring.total_bytes - reader.sent_bytes + buffered
        if not reader.has_been_live or lag <= settings.max_lag_bytes:
            reader.lag_since_s = None
            return False
        if reader.lag_since_s is None:
            reader.lag_since_s = now_s
        return now_s - reader.lag_since_s >= settings.lag_grace_s

    def _refuse(self, reader: Subscription, name: str, message: str) -> None:
        reader.sink.write(binary_message(encode_error_frame(name, message)))
        self._end(reader, CLOSE_POLICY, name)

    def _end(self, reader: Subscription, code: int, reason: str) -> None:
        reader.sink.finish(code, reason)
        self.forget(reader)

    def _new_ring(self, head_seq: int) -> Ring:
        settings = self._settings
        return Ring(head_seq, max_events=settings.ring_events, max_bytes=settings.ring_bytes)


def _join(events: Iterable[StoredEvent]) -> Iterator[bytes]:
    """Yield the messages of events, small ones joined."""
    parts: list[bytes] = []
    size = 0
    for event in events:
        parts.append(binary_message(event.frame))
        size += len(event.frame)
        if size >= _JOINED_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)
