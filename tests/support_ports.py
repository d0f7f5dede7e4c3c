"""Ports on loopback for servers that a test starts, and starts again, in processes of their own."""

import atexit
import contextlib
import socket
import sys
from collections import deque

MAX_KEPT = 200

_kept: deque[socket.socket] = deque()


def free_port() -> int:
    """A port that nobody has and nobody is given, until a server comes that was told of it."""
    return _keep(0)


def two_free_ports() -> int:
    """The first of two such ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError):
            _keep(first + 1)
            return first


def _keep(port: int) -> int:
    """Take a port, and keep it from whoever asks for any port or connects to somewhere.

    Linux lets a server with SO_REUSEADDR, which all of ours set, have a port to which another
    socket with it is bound without listening; other systems do not, so there the port is let go.
    """
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    found: int = sock.getsockname()[1]
    if sys.platform != "linux":
        sock.close()
        return found
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Not before: it shares with none.
    _kept.append(sock)
    if len(_kept) > MAX_KEPT:
        _kept.popleft().close()
    return found


@atexit.register
def _let_go() -> None:
    while _kept:
        _kept.pop().close()
