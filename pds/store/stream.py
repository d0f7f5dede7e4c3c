"""The way of what a read job writes: to the caller's function, on whatever thread it arrives."""

from collections.abc import Callable
from typing import Any

from pds.errors import StoreError, Unavailable
from pds.store.engine import Interrupted, Txn, Write


class StreamOutput:
    """What a job writes to; it knows whether anything was written, and when nobody listens."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._stopped = False
        self.began = False

    def write(self, content: bytes) -> None:
        """Pass content on. Raises: what the caller's function raises; StoreError after `stop`."""
        if self._stopped:
            raise StoreError("nobody waits for this job any more")
        self.began = True
        self._write(content)

    def stop(self) -> None:
        """Pass on nothing more."""
        self._stopped = True


def run_here(
    txn: Txn, output: StreamOutput, fn: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Run a job that writes, on this thread. What was written cannot be run again."""
    try:
        fn(txn, output.write, *args)
    except Interrupted as error:
        if output.began:
            raise Unavailable(f"ended in the middle: {error}") from error
        raise
