"""A reader of the firehose without a network: a sink that a test fills and empties by hand."""

from collections.abc import Iterable

from pds.protocol.frames import Frame, decode_frame
from pds.services.firehose import Subscription


def split_messages(data: bytes) -> list[bytes]:
    """The payloads of a run of unmasked binary WebSocket messages."""
    found, at = [], 0
    while at < len(data):
        assert data[at] == 0x82, "not one whole binary message"
        size = data[at + 1]
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        assert at + size <= len(data), "a message is cut"
        found.append(data[at : at + size])
        at += size
    return found


class FakeSink:
    """Collects what is written. With `is_stuck` nothing leaves the buffer."""

    def __init__(self, *, is_stuck: bool = False) -> None:
        self.is_stuck = is_stuck
        self.buffered_bytes = 0
        self.most_buffered = 0
        self.written = b""
        self.pings = 0
        self.closed: tuple[int, str] | None = None
        self.is_aborted = False
        self.reader: Subscription | None = None

    def write(self, messages: bytes) -> None:
        assert self.closed is None
        self.written += messages
        if self.is_stuck:
            self.buffered_bytes += len(messages)
            self.most_buffered = max(self.most_buffered, self.buffered_bytes)

    def take(self, count: int | None = None) -> None:
        """Let the peer take some of the buffer, or all of it."""
        self.buffered_bytes -= self.buffered_bytes if count is None else count
        assert self.reader is not None
        self.reader.drained()

    def ping(self) -> None:
        self.pings += 1

    def finish(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def abort(self) -> None:
        self.is_aborted = True

    @property
    def frames(self) -> list[Frame]:
        return [decode_frame(message) for message in split_messages(self.written)]

    @property
    def seqs(self) -> list[int]:
        return seqs_of(self.frames)


def seqs_of(frames: Iterable[Frame]) -> list[int]:
    """The numbers of all frames that have one."""
    found = []
    for frame in frames:
        seq = frame.payload.get("seq")
        if isinstance(seq, int):
            found.append(seq)
    return found
