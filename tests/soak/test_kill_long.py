"""A hundred kills under load."""

import os
from pathlib import Path

import pytest

from tests.crash.harness import kill_many
from tests.fakes.plc import running_plc
from tests.support_process import ServerProcess

ROUNDS = int(os.environ.get("PDS_SOAK_KILLS", "100"))


@pytest.mark.timeout(3000)
async def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    async with running_plc() as plc:
        server = ServerProcess(tmp_path / "server", plc.url)
        run = await kill_many(server, plc.url, rounds=ROUNDS, accounts=8, seed=100)
    writes = sum(writer.acknowledged for writer in run.writers)
    starts = sorted(server.start_times_s)
    print(
        f"\nkills: {run.rounds}, acknowledged writes {writes}, events {run.follower.events}, "
        f"commits {run.follower.commits}, restart p50 {starts[len(starts) // 2]:.2f} s, "
        f"worst {starts[-1]:.2f} s"
    )
    assert run.rounds == ROUNDS
