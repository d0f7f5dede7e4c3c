"""10,000 random writes over 50 repositories, every event held against independent rules."""

import os
from pathlib import Path

import pytest

from tests.support_live import live_server_in
from tests.support_random_writes import random_writes

WRITES = int(os.environ.get("PDS_SOAK_WRITES", "10000"))


@pytest.mark.timeout(1800)
async def test_ten_thousand_random_writes(tmp_path: Path) -> None:
    async with live_server_in(tmp_path / "server") as server:
        result = await random_writes(server, accounts=50, writes=WRITES, seed=2026)
    print(f"\nrandom writes: {result}")
    assert result.commits >= WRITES
