"""A host that is written to all the time moves from SQLite to PostgreSQL and back, and the command
that moves it is killed again and again: nothing acknowledged is lost or doubled."""

import os
import random
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.plc import running_plc
from tests.support_convert import MovingHost, move_there_and_back
from tests.support_load import fill_repo, sign_up
from tests.support_postgres import database_url

__all__ = ["database_url"]

ACCOUNTS = int(os.environ.get("PDS_SOAK_CONVERT_ACCOUNTS", "200"))
RECORDS = int(os.environ.get("PDS_SOAK_CONVERT_RECORDS", "600"))
KILLS = 6


@pytest.mark.timeout(1800)
async def test_a_host_that_moves_under_load_loses_nothing(
    tmp_path: Path, database_url: str
) -> None:
    rng = random.Random(5)
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        host = MovingHost(tmp_path / "data", plc, session, database_url)
        await host.server.start()
        for account in await sign_up(host.server.url, ACCOUNTS, "load"):
            host.did_keys[account.did] = await _key(session, plc.url, account.did)
            await fill_repo(host.server.url, account, RECORDS)
        await host.server.stop()
        delays = [rng.uniform(0.3, 2.5) for _ in range(KILLS)]
        moves = await move_there_and_back(host, writers=6, before_s=3.0, kill_after_s=delays)
        acknowledged = sum(writer.acknowledged for writer in host.writers)
        print(
            f"\nacknowledged {acknowledged}, refused {host.refused},"
            f" events {host.reader.follower.events}"
        )
        for move in moves:
            print(move)
        assert sum(move.kills for move in moves) >= KILLS


async def _key(session: aiohttp.ClientSession, plc_url: str, did: str) -> str:
    async with session.get(f"{plc_url}/{did}/data") as answer:
        key: str = (await answer.json())["verificationMethods"]["atproto"]
        return key
