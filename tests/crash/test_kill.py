"""The short version of the kill series: the long one is in tests/soak."""

from pathlib import Path

from tests.crash.harness import kill_many
from tests.fakes.plc import running_plc
from tests.support_pace import slowness
from tests.support_process import ServerProcess

START_LIMIT_S = 10
"""Promise A4: back after SIGKILL without an operator."""


async def test_killed_server_keeps_every_acknowledged_write(tmp_path: Path) -> None:
    async with running_plc() as plc:
        server = ServerProcess(tmp_path / "server", plc.url)
        run = await kill_many(server, plc.url, rounds=4, accounts=4, seed=4)
    assert run.rounds == 4
    assert sum(writer.acknowledged for writer in run.writers) > 20
    assert max(server.start_works_s) < START_LIMIT_S * slowness()
