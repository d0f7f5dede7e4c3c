"""Acts on the data of a server that is not running: what operators order by commands.

What a running server does by itself for its SQLite file is in `store/maintenance`.

With SQLite the lock on the data folder makes sure of that: with a running server they fail, but for
the conversion of the database, which is made for it. With PostgreSQL they lock what they change, as
any node does.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from pds.app.database import DATABASE_FILE, has_database, make_engine
from pds.app.foundation import open_keystore
from pds.app.wiring import CLOCK_IDS
from pds.config import Config
from pds.errors import ConfigError
from pds.services.database_conversion import (
    DatabaseConversion,
    Plan,
    cancel_conversion,
    plan_conversion,
)
from pds.services.rev_repair import RevRepair, repair_rev
from pds.store.base import ThreadedEngine
from pds.store.clock import SystemClock, put_accepted_us
from pds.store.convert_schema import read_schema
from pds.store.convert_side import Side
from pds.store.engine import Txn
from pds.store.migrate import load_migrations

SQLITE: Final = "sqlite"


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


@contextmanager
def opened_conversion(config: Config, to: str) -> Iterator[DatabaseConversion]:
    """Open this host's database and the one that `to` names, `sqlite` or a URL.

    Raises: ConfigError, StoreError.
    """
    with _opened_source(config) as source, _closing(_make_target(config, to)) as target:
        yield DatabaseConversion(
            source,
            target,
            read_schema(load_migrations()),
            new_id=secrets.token_hex(8),
            now_us=SystemClock().now_us,
        )


def plan_database_conversion(config: Config, to: str) -> tuple[Plan, str]:
    """Say what a conversion would do, and where its target is; nothing is made or changed.

    Raises: ConfigError, StoreError.
    """
    with _opened_source(config) as source:
        if to == SQLITE and config.data.is_shared:
            file = config.data.directory / DATABASE_FILE
            if not file.exists():
                return plan_conversion(source, None, read_schema(load_migrations())), str(file)
        with _closing(_make_target(config, to)) as target:
            plan = plan_conversion(source, target, read_schema(load_migrations()))
            return plan, target.place


def give_up_conversion(config: Config, *, is_sure: bool) -> str:
    """Make this host's database one that is used again; say what was done.

    Raises: ConfigError, StoreError.
    """
    with _opened_source(config) as side:
        return cancel_conversion(side, is_sure=is_sure)


@contextmanager
def _opened_source(config: Config) -> Iterator[Side]:
    if not has_database(config):
        raise ConfigError(
            f"there is no database in {config.data.directory}: set PDS_DATA_DIRECTORY"
        )
    url = config.data.database_url
    with _closing(_postgres(url) if url is not None else _sqlite(config)) as side:
        yield side


def _make_target(config: Config, to: str) -> Side:
    if to == SQLITE:
        if not config.data.is_shared:
            raise ConfigError("this host uses SQLite already")
        return _sqlite(config, is_target=True)
    if not to.startswith(("postgresql://", "postgres://")) and "=" not in to:
        raise ConfigError("--to must be `sqlite` or a URL like postgresql://user@host/database")
    return _postgres(to, is_target=True)


def _sqlite(config: Config, *, is_target: bool = False) -> Side:
    from pds.store.convert_sqlite import SqliteSide

    return SqliteSide(config.data.directory / DATABASE_FILE, is_target=is_target)


def _postgres(url: str, *, is_target: bool = False) -> Side:
    try:
        from pds.store.convert_postgres import PostgresSide
    except ImportError as error:
        raise ConfigError(
            "this needs the PostgreSQL driver: pip install 'freehold-pds[postgres]'"
        ) from error
    return PostgresSide(url, is_target=is_target)


@contextmanager
def _closing(side: Side) -> Iterator[Side]:
    try:
        yield side
    finally:
        side.close()
