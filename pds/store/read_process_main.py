"""The process that `read_processes.py` starts: runs read jobs in turn, and writes to a socket.

A second thread reads the socket, so that a job can be ended while it runs, and so that the process
ends when its owner does, however that ended: the socket is at its end then.

The process is nicer than the server, which answers people while this reads for machines. Signals
that are meant for the server are ignored: it ends this process when it has finished.
"""

import gc
import os
import queue
import signal
import threading
from socket import socket
from typing import Any, Final

from pds.errors import StoreError
from pds.store.read_process_link import (
    PIECE_BYTES,
    Kind,
    Lost,
    pack,
    pack_error,
    receive,
    send,
    unpack,
)
from pds.store.reader import ReadConnection, ReaderTxn
from pds.store.statements import StatementCheck

NICENESS: Final = 5


class _Pieces:
    """The `write` of a job: the first piece goes out at once, the others when they are large."""

    def __init__(self, end: socket) -> None:
        self._end = end
        self._parts: list[bytes] = []
        self._size = 0
        self._began = False
        self.ended: StoreError | None = None

    def write(self, content: bytes) -> None:
        if self.ended is not None:
            raise self.ended
        self._parts.append(content)
        self._size += len(content)
        if self._size >= PIECE_BYTES or not self._began:
            self.flush()

    def flush(self) -> None:
        if self._size:
            self._began = True
            send(self._end, Kind.PIECE, *self._parts)
            self._parts.clear()
            self._size = 0


class _Serving:
    def __init__(self, end: socket, connection: ReadConnection) -> None:
        self._end = end
        self._connection = connection
        self._check = StatementCheck()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._newest: _Job | None = None

    def listen(self) -> None:
        """Take jobs and their ends from the socket; with it ends the process."""
        try:
            while True:
                kind, body = receive(self._end)
                if kind is Kind.JOB:
                    self._newest = _Job(self._end, body)
                    self._jobs.put(self._newest)
                elif kind is Kind.CANCEL and self._newest is not None:
                    self._cancel(self._newest)
        finally:
            os._exit(0)

    def _cancel(self, job: "_Job") -> None:
        reason = StoreError("the job was ended")
        with self._lock:
            job.pieces.ended = reason
            if job.txn is not None:
                job.txn.end(reason)
                self._connection.interrupt()

    def run(self) -> None:
        """Run the jobs that come."""
        while True:
            self._run_job(self._jobs.get())
            gc.collect()

    def _run_job(self, job: "_Job") -> None:
        failure: bytes | None = None
        try:
            fn, args = unpack(job.body)
            self._connection.begin()
            with self._lock:
                job.txn = ReaderTxn(self._connection, self._check)
            fn(job.txn, job.pieces.write, *args)
            self._connection.end()
            job.pieces.flush()
        except Lost:
            os._exit(0)
        except BaseException as error:  # whatever it is, it is the job's answer
            failure = pack_error(error)
        with self._lock:
            job.txn = None
        try:
            self._connection.end()
        except StoreError as error:
            failure = failure or pack_error(error)
        damage: Any = getattr(self._connection, "damage", None)
        send(self._end, Kind.END, pack((failure, damage)))


class _Job:
    """One job on its way through this process."""

    def __init__(self, end: socket, body: bytes) -> None:
        self.body = body
        self.pieces = _Pieces(end)
        self.txn: ReaderTxn | None = None


def main(descriptor: int) -> None:
    """Serve the socket with this number until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    end = socket(fileno=descriptor)
    try:
        _kind, body = receive(end)
        connection = unpack(body)()
    except Lost:
        return
    except BaseException as error:  # told to the owner, who can say so
        send(end, Kind.END, pack_error(error))
        return
    serving = _Serving(end, connection)
    threading.Thread(target=serving.listen, name="listen", daemon=True).start()
    # Rows make no cycles; the collector would only walk through megabytes of them again and again.
    gc.freeze()
    gc.disable()
    try:
        send(end, Kind.READY)
        serving.run()
    except Lost:
        return
