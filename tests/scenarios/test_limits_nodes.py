"""Limits at two nodes on one PostgreSQL: a client that goes to both gains little or nothing."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.config import Config, SecretSettings
from pds.services.limits import RateSettings
from pds.services.rate_limits import SHARED_FROM, RateLimits
from tests.scenarios.conftest import Host, host_in
from tests.support_client import XrpcError
from tests.support_postgres import database_url

__all__ = ["database_url"]

REQUESTS = 320
SECRETS = SecretSettings(
    jwt_secret="the same at all nodes, and long enough",
    admin_password="the operator's password",
    plc_rotation_key="17" * 32,
)


class Telling(RateLimits):
    """Limits of one node, which note when they have told the others."""

    told = 0

    async def share(self) -> None:
        await super().share()
        self.told += 1

    async def until_told(self) -> None:
        """Wait for one that begins after this."""
        goal = self.told + 2
        async with asyncio.timeout(60):
            while self.told < goal:
                await asyncio.sleep(0.01)


async def status(host: Host, nsid: str, body: dict[str, str] | None = None) -> int:
    try:
        await (host.client.get(nsid) if body is None else host.client.post(nsid, body))
    except XrpcError as error:
        return error.status
    return 200


async def test_two_nodes_count_together(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise B6: all of a limit at one node leaves a sixteenth, and a second's worth, at another.

    A second's worth is what passes until both have told each other, which each does every second.

    Guesses at a password are counted to the point (XRPC-27). The clock of the limits stands still,
    so that no window ends meanwhile.
    """

    made: list[Telling] = []

    def standing(**parts: Any) -> RateLimits:
        made.append(Telling(**{**parts, "now_s": lambda: 1_760_000_000.0}))
        return made[-1]

    def change(config: Config) -> Config:
        data = replace(config.data, database_url=database_url, master_key="42" * 32)
        return replace(config, data=data, secrets=SECRETS, rates=RateSettings(requests=REQUESTS))

    monkeypatch.setattr("pds.app.wiring.RateLimits", standing)
    async with (
        host_in(tmp_path / "one", change=change) as here,
        host_in(tmp_path / "two", change=change) as there,
    ):
        guess = {"identifier": "nobody.test", "password": "wrong"}
        nsid = "com.atproto.server.createSession"
        both = (here, there)
        found = await asyncio.gather(*(status(both[n % 2], nsid, guess) for n in range(36)))
        assert sorted(found) == [401] * 30 + [429] * 6
        nsid = "com.atproto.server.describeServer"
        passed = 18  # at each node, by now
        while await status(here, nsid) == 200:
            passed += 1
        assert REQUESTS - 18 <= passed <= REQUESTS
        await made[0].until_told()
        for _ in range(REQUESTS // SHARED_FROM):
            await status(there, nsid)
        await made[1].until_told()
        assert await status(there, nsid) == 429
