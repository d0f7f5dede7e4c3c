"""The newest events in memory, as they go out: the ring that live readers are served from.

Each event is kept once, as the whole WebSocket message, and written to every reader as it is.
Events are numbered by `index` (one, two, three ...) besides `seq`, because `seq` has gaps; a reader
holds the index of the next event it wants. `floor_seq` is the number of the newest event that is
no longer here: a reader at or above it misses nothing by going on from the ring.

Bounded by count and bytes, whichever is reached first; the newest event always stays.
"""

from collections import deque
from typing import Final, NamedTuple

from pds.store.events import CONTENT_KINDS

_BINARY_MESSAGE: Final = 0x82


def binary_message(frame: bytes) -> bytes:
    """Return `frame` as one unmasked binary WebSocket message (RFC 6455, section 5.2)."""
    size = len(frame)
    if size < 126:
        return bytes((_BINARY_MESSAGE, size)) + frame
    if size < 65_536:
        return bytes((_BINARY_MESSAGE, 126)) + size.to_bytes(2, "big") + frame
    return bytes((_BINARY_MESSAGE, 127)) + size.to_bytes(8, "big") + frame


class RingEntry(NamedTuple):
    """One event. `end` is the count of all bytes ever appended, up to and including this.

    `message` is empty when the event may no longer be sent.
    """

    seq: int
    aid: int
    kind: str
    message: bytes
    end: int


class Ring:
    """The newest events, in order."""

    def __init__(self, head_seq: int, *, max_events: int, max_bytes: int) -> None:
        self.head_seq = head_seq
        self.floor_seq = head_seq
        self.total_bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._entries: deque[RingEntry] = deque()
        self._first_index = 0
        self._dropped_bytes = 0

    @property
    def next_index(self) -> int:
        """The index that the next event will have."""
        return self._first_index + len(self._entries)

    @property
    def held_bytes(self) -> int:
        """How many bytes of messages are in memory."""
        return self.total_bytes - self._dropped_bytes

    def append(self, seq: int, aid: int, kind: str, frame: bytes) -> None:
        """Add the newest event and let go of the oldest."""
        message = binary_message(frame)
        self.total_bytes += len(message)
        self._entries.append(RingEntry(seq, aid, kind, message, self.total_bytes))
        self.head_seq = seq
        while len(self._entries) > 1 and (
            len(self._entries) > self._max_events or self.held_bytes > self._max_bytes
        ):
            oldest = self._entries.popleft()
            self._first_index += 1
            self._dropped_bytes = oldest.end
            self.floor_seq = oldest.seq

    def has(self, index: int) -> bool:
        """Whether the event with this index, or the next to come, can be served from here."""
        return index >= self._first_index

    def get(self, index: int) -> RingEntry:
        """Return an event by its index; the newest ones are the cheapest to find."""
        return self._entries[index - self.next_index]

    def start_of(self, index: int) -> int:
        """Return the count of bytes before the event `index`."""
        if index >= self.next_index:
            return self.total_bytes
        return self._dropped_bytes if index == self._first_index else self.get(index - 1).end

    def index_after(self, seq: int) -> int:
        """Return the index of the first event above `seq`, which must not be below the floor."""
        low, high = self._first_index, self.next_index
        while low < high:
            middle = (low + high) // 2
            if self.get(middle).seq > seq:
                high = middle
            else:
                low = middle + 1
        return low

    def withhold(self, aid: int) -> None:
        """Stop sending the content of an account that is no longer active (SYNC-22)."""
        for position, entry in enumerate(self._entries):
            if entry.aid == aid and entry.kind in CONTENT_KINDS and entry.message:
                self._entries[position] = RingEntry(entry.seq, aid, entry.kind, b"", entry.end)
