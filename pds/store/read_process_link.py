"""What a process for reading and its owner say to each other: frames on a socket pair.

A frame is one byte for its kind, four for its length, and content. Both ends are this program on
one machine and nobody else holds the socket, so pickle is safe here: functions travel by name.
"""

import pickle
import struct
from enum import IntEnum
from socket import MSG_WAITALL, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket
from typing import Any, Final

from pds.errors import StoreError

PIECE_BYTES: Final = 256 * 1024
"""Content is sent in pieces of about this size: each wakes a thread of the server."""
BUFFER_BYTES: Final = 1 << 20

_HEADER: Final = struct.Struct(">BI")


class Kind(IntEnum):
    """What a frame is. The first three go to the process, the others come from it."""

    OPEN = 1
    JOB = 2
    CANCEL = 3
    READY = 4
    PIECE = 5
    END = 6


class Lost(Exception):
    """The other end has gone."""


def set_buffers(end: socket) -> None:
    """Have the kernel hold a few pieces, as far as it allows."""
    for option in (SO_SNDBUF, SO_RCVBUF):
        end.setsockopt(SOL_SOCKET, option, BUFFER_BYTES)


def send(end: socket, kind: Kind, *parts: bytes) -> None:
    """Send a frame; waits while the other end does not read. Raises: Lost."""
    size = sum(map(len, parts))
    try:
        end.sendall(b"".join((_HEADER.pack(kind, size), *parts)))
    except OSError as error:
        raise Lost from error


def receive(end: socket) -> tuple[Kind, bytes]:
    """Return the next frame. Raises: Lost."""
    kind, size = _HEADER.unpack(_receive(end, _HEADER.size))
    return Kind(kind), _receive(end, size) if size else b""


def _receive(end: socket, size: int) -> bytes:
    content = b""
    while len(content) < size:  # Once, but for the sake of signals.
        try:
            more = end.recv(size - len(content), MSG_WAITALL)
        except OSError as error:
            raise Lost from error
        if not more:
            raise Lost
        content = content + more if content else more
    return content


def pack(value: object) -> bytes:
    """Return a value as bytes. Raises: StoreError when it cannot travel."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise StoreError(f"a job for another process cannot be sent: {error}") from error


def unpack(content: bytes) -> Any:
    """Return what `pack` was given."""
    return pickle.loads(content)  # noqa: S301 - from our own program, see above


def pack_error(error: BaseException) -> bytes:
    """Return an exception as bytes, whatever its constructor wants; its text if need be."""
    try:
        content = pack((type(error), error.args, error.__dict__))
        unpack_error(content)
    except Exception:  # one that cannot travel must not hide that there was one
        return pack((StoreError, (f"{type(error).__name__}: {error}",), {}))
    return content


def unpack_error(content: bytes) -> BaseException:
    """Return what `pack_error` was given."""
    kind, args, state = unpack(content)
    error: BaseException = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
