"""Work on many rows, such as deleting expired ones, a little at a time, so that nobody waits.

Which rows have expired is known by the service to which they belong: its `sweep` (of `MailTokens`,
`Sessions`, `RateLimits` and others) calls the functions here. How often each is run stands in
`app/background` (`build_schedule`).

Each step is a job that runs alone and behind the writes of users, on at most `MAX_BULK_ROWS` rows:
even a long backlog delays nobody by more than milliseconds.
"""

from collections.abc import Callable
from typing import TypeVarTuple

from pds.store.engine import MAX_BULK_ROWS, Engine, Txn

Ts = TypeVarTuple("Ts")


async def sweep_rows(
    engine: Engine, label: str, delete: "Callable[[Txn, *Ts], int]", *args: *Ts
) -> int:
    """Run `delete(txn, *args)`, job after job, until no rows are left; return how many there were.

    `delete` takes up to `MAX_BULK_ROWS` rows and returns their number. Raises: StoreError.
    """
    total = 0
    while True:
        deleted = await engine.transact(label, delete, *args, bulk=True)
        total += deleted
        if deleted < MAX_BULK_ROWS:
            return total


async def finish_in_steps(
    engine: Engine, label: str, step: "Callable[[Txn, *Ts], bool]", *args: *Ts
) -> None:
    """Run `step(txn, *args)`, job after job, until it says that it is done. Raises: StoreError."""
    while not await engine.transact(label, step, *args, bulk=True):
        pass
