"""What the parts of the engine's contract share: one engine for each test, its log proven."""

from collections.abc import AsyncIterator

import pytest

from pds.store.base import QueueLimits, ThreadedEngine
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engines import Backend


class EngineFixtures:
    """A subclass gives the fixture `backend`."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    async def engine(self, backend: Backend, clock: FakeClock) -> AsyncIterator[ThreadedEngine]:
        """A started engine; at the end its write log must replay to the same rows."""
        log = WriteLog()
        engine = backend.engine(clock, recorder=log, limits=QueueLimits(reopen_interval_s=0.01))
        await engine.start()
        yield engine
        await engine.close()
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []
