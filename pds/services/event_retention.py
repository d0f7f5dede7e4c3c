"""Deletes firehose events that are older than the window, a little at a time.

Each job deletes at most 500 rows, alone and behind user writes, so that even a long backlog costs
nobody more than milliseconds.

Spec: event-stream#sequence-numbers (SYNC-19)
"""

from pds.store.clock import Clock
from pds.store.engine import MAX_BULK_ROWS, Engine
from pds.store.events import delete_events_before


class EventRetention:
    """Keeps the events of the last `window_s` seconds."""

    def __init__(self, *, engine: Engine, clock: Clock, window_s: float) -> None:
        self._engine = engine
        self._clock = clock
        self._window_us = round(window_s * 1_000_000)

    async def sweep(self) -> int:
        """Delete everything that is too old by now; return how many events that were.

        Raises: StoreError; Unavailable while the clock is in doubt, for a clock that is ahead
        would delete what readers still need.
        """
        window_start = self._clock.now_us() - self._window_us
        deleted = 0
        while True:
            count = await self._engine.transact(
                "events.retention", delete_events_before, window_start, MAX_BULK_ROWS, bulk=True
            )
            deleted += count
            if count < MAX_BULK_ROWS:
                return deleted
