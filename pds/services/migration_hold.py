"""A move held by this node: taken by a lease, which is renewed as long as the block lasts."""

import asyncio
from contextlib import suppress

from pds.errors import StoreError
from pds.protocol.syntax import Did
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_state import US_PER_S
from pds.services.migration_work import MigrationParts, Work
from pds.store.engine import Txn
from pds.store.moves import MoveRow, get_move, release_move, renew_move, take_move


class Hold:
    """Holds a move by its lease as long as a block, and renews it meanwhile."""

    def __init__(self, parts: MigrationParts, move_id: int, busy: set[Did], lease_s: float) -> None:
        self._parts = parts
        self._move_id = move_id
        self._busy = busy
        self._lease_s = lease_s
        self._work: Work | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Work:
        parts = self._parts

        def take(txn: Txn, now_us: int) -> MoveRow | None:
            return take_move(
                txn,
                self._move_id,
                node=parts.node,
                now_us=now_us,
                lease_until=now_us + round(self._lease_s * US_PER_S),
                is_alone=parts.is_alone,
            )

        row = await parts.engine.read("move.get", get_move, self._move_id)
        if row is None or Did(row.did) in self._busy:
            raise busy_problem()
        if row.lease_node == parts.node:
            await parts.engine.transact("move.release", _release, self._move_id, parts.node)
        self._busy.add(Did(row.did))
        try:
            taken = await parts.engine.transact("move.take", take, parts.clock.now_us())
            if taken is None:
                raise busy_problem()
            self._work = Work(parts, taken)
        except BaseException:
            self._busy.discard(Did(row.did))
            raise
        self._keeper = asyncio.create_task(self._keep())
        return self._work

    async def __aexit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._work is not None:
            self._busy.discard(self._work.did)
        with suppress(StoreError):
            await self._parts.engine.transact(
                "move.release", _release, self._move_id, self._parts.node
            )

    async def _keep(self) -> None:
        """Renew the lease; once it is lost, `Work.save` finds out."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            with suppress(StoreError):  # Tried again until the lease has lapsed.
                until = self._parts.clock.now_us() + round(self._lease_s * US_PER_S)
                await self._parts.engine.transact(
                    "move.renew", _renew, self._move_id, self._parts.node, until, bulk=True
                )


def _release(txn: Txn, move_id: int, node: str) -> None:
    release_move(txn, move_id, node=node)


def _renew(txn: Txn, move_id: int, node: str, until: int) -> bool:
    return renew_move(txn, move_id, node=node, lease_until=until)


def busy_problem() -> MoveProblem:
    """Return what is said when somebody else works on a move."""
    return MoveProblem(
        Code.BUSY,
        "Another request, or another node, works on this move",
        "Look at the move, and try again in a minute",
    )
