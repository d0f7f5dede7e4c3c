"""A TCP proxy before a PostgreSQL server that cuts a connection around its next COMMIT."""

import contextlib
import socket
import threading
import time
from enum import Enum

LATE_S = 0.4


class Cut(Enum):
    """When the client loses its connection."""

    BEFORE = "before the COMMIT reaches the server"
    AFTER = "after the server has committed, before its answer arrives"
    LATE = "while the COMMIT is still on its way: the server gets it later"


class TcpProxy:
    """Passes connections on to `port`; `arm` cuts the next that commits.

    With `refuses_after` nobody gets through after that, until `allow`.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._armed: Cut | None = None
        self._refuses_after = False
        self._refuses = False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def arm(self, cut: Cut, *, refuses_after: bool = False) -> None:
        self._refuses_after = refuses_after
        self._armed = cut

    def allow(self) -> None:
        self._refuses = False

    def _cut(self) -> None:
        self._armed = None
        self._refuses = self._refuses_after
        self.cuts += 1

    def close(self) -> None:
        for sock in self._sockets:
            _shut(sock)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                _shut(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _shut(client)
                continue
            self._sockets += [client, server]
            for run in (self._requests, self._answers):
                thread = threading.Thread(target=run, args=(client, server), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        while content := _receive(client):
            if b"COMMIT" in content and self._armed in (Cut.BEFORE, Cut.LATE):
                how = self._armed
                self._cut()
                _shut(client)
                if how is Cut.LATE:
                    time.sleep(LATE_S)
                    _send(server, content)
                    time.sleep(LATE_S)
                break
            if not _send(server, content):
                break
        _shut(client)
        _shut(server)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        while content := _receive(server):
            if b"COMMIT\0" in content and self._armed is Cut.AFTER:
                self._cut()
                break
            _send(client, content)
        _shut(client)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def _send(sock: socket.socket, content: bytes) -> bool:
    """Send, unless the other thread or the other side has closed the connection."""
    try:
        sock.sendall(content)
    except OSError:
        return False
    return True


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
