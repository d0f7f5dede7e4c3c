"""Acts on the data of a server that is not running.

With SQLite the lock on the data folder makes sure of that: with a running server every one of these
fails. With PostgreSQL they lock what they change, as any node does.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pds.app.database import has_database, make_engine
from pds.app.foundation import open_keystore
from pds.app.wiring import CLOCK_IDS
from pds.config import Config
from pds.errors import ConfigError
from pds.services.rev_repair import RevRepair, repair_rev
from pds.store.base import ThreadedEngine
from pds.store.clock import SystemClock, put_accepted_us
from pds.store.engine import Txn


async def accept_clock(config: Config) -> None:
    """Note that the operator believes this machine's clock.

    Raises: ConfigError when there is no database; Unavailable when a server is running on it.
    """
    async with _opened(config) as engine:
        await engine.transact("clock.accept", put_accepted_us, SystemClock().now_us())


async def repair_repo_rev(config: Config, did_or_handle: str) -> RevRepair:
    """Bring one repo back whose rev lies in the future; see `rev_repair`.

    Raises: as `accept_clock`; RequestError when there is nothing to repair.
    """
    keystore = open_keystore(config)
    now_us = SystemClock().now_us()
    clock_id = secrets.randbelow(CLOCK_IDS)

    def repair(txn: Txn) -> RevRepair:
        keystore.check_master_key(txn)
        return repair_rev(txn, keystore, did_or_handle, now_us=now_us, clock_id=clock_id)

    async with _opened(config) as engine:
        return await engine.transact("repo.repair_rev", repair)


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[ThreadedEngine]:
    if not has_database(config):
        raise ConfigError(
            f"there is no database in {config.data.directory}: set PDS_DATA_DIRECTORY"
        )
    engine = make_engine(config, SystemClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
