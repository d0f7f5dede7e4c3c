"""Acts that are not broken off: once begun they go on to their end, also when the caller leaves.

A client that closes its connection cancels the task of its request. An act that has told another
system something must then still bring its own rows into line.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class UnbrokenActs:
    """The acts of one service that are under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, act: Coroutine[Any, Any, T]) -> T:
        """Run `act` to its end and return what it returns, if the caller still waits for it."""
        task = asyncio.ensure_future(act)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for all acts that are under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note_end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Seen, also if the caller has left.
