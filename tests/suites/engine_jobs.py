"""Jobs that the tests of the engine hand it, and ways to hold it while others gather."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pds.errors import Unavailable
from pds.store.base import ThreadedEngine
from pds.store.engine import Txn

PUT = "INSERT INTO fact (name, value) VALUES (?, ?)"
UPSERT = PUT + " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
GET = "SELECT value FROM fact WHERE name = ?"
COUNT = "SELECT COUNT(*) FROM fact"


def put(txn: Txn, name: str, value: bytes = b"v") -> str:
    """Insert a fact; Conflict when it is there."""
    txn.write(PUT, (name, value))
    return name


def put_with_event(txn: Txn, name: str) -> None:
    """Insert a fact and tell the world."""
    put(txn, name)
    txn.emit("commit", 1, lambda seq, at_us: f"{name} {seq} {at_us}".encode())


def get(txn: Txn, name: str) -> bytes | None:
    """The value of a fact."""
    row = txn.read_one(GET, (name,))
    return None if row is None else row[0]


def count(txn: Txn) -> int:
    """How many facts there are."""
    row = txn.read_one(COUNT)
    assert row is not None
    return int(row[0])


class Refused(Exception):
    """What a job raises of its own."""


class Gate:
    """A job that holds the writer until it is opened, so that a group can gather behind it.

    It is a bulk job, which runs alone, so what waits behind it is not part of its group.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def job(self, _txn: Txn) -> None:
        """Wait on the writer thread."""
        self.entered.set()
        assert self.opened.wait(60)

    async def hold(self, engine: ThreadedEngine) -> "asyncio.Task[None]":
        """Occupy the writer and return the task that ends when the gate is opened."""
        task = asyncio.create_task(engine.transact("gate", self.job, bulk=True))
        assert await asyncio.to_thread(self.entered.wait, 60)
        return task


async def settle(*tasks: "asyncio.Task[Any]") -> list[Any]:
    """Results or exceptions of tasks."""
    return await asyncio.gather(*tasks, return_exceptions=True)


async def queue_jobs(
    engine: ThreadedEngine, *jobs: Callable[[Txn], Any], bulk: bool = False
) -> list["asyncio.Task[Any]"]:
    """Submit jobs in this order without waiting for them.

    They name an account: those that name none run alone where there are other writers.
    """
    tasks = [
        asyncio.create_task(engine.transact("queued", job, accounts=(1,), bulk=bulk))
        for job in jobs
    ]
    await asyncio.sleep(0)
    return tasks


async def wait_until_writable(engine: ThreadedEngine) -> None:
    """Try a harmless write until it is taken."""
    for _ in range(2000):
        try:
            await engine.transact("try", count)
        except Unavailable:
            await asyncio.sleep(0.01)
        else:
            return
    pytest.fail("writes did not come back")
