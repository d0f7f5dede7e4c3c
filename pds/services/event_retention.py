"""Deletes firehose events that are older than the window, a little at a time.

Spec: event-stream#sequence-numbers (SYNC-19)
"""

from pds.services.sweeping import sweep_rows
from pds.store.clock import Clock
from pds.store.engine import Engine
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
        return await sweep_rows(
            self._engine, "events.retention", delete_events_before, window_start
        )
