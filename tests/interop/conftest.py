"""Fixtures of the tests against other implementations."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support_live import LiveServer, live_server_in

TIMEOUT_S = 2400
"""The first test that needs a peer installs it, and compiles the reference PDS's driver."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture
async def live_server(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server process with its own PLC directory, as `pds serve` runs it.

    With PDS_TEST_LIVE_URL and PDS_TEST_LIVE_PLC_URL the tests go to a server that runs already,
    for instance the one of `make run`.
    """
    url, plc_url = os.environ.get("PDS_TEST_LIVE_URL"), os.environ.get("PDS_TEST_LIVE_PLC_URL")
    if url and plc_url:
        server = LiveServer(tmp_path, plc_url)
        server.url, server.plc_url = url, plc_url
        yield server
        return
    async with live_server_in(tmp_path / "server") as server:
        yield server
