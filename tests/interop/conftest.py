"""Fixtures of the tests against other implementations."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support_live import LiveServer, live_server_in


@pytest.fixture
async def live_server(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server process with its own PLC directory, as `pds serve` runs it."""
    async with live_server_in(tmp_path / "server") as server:
        yield server
