"""Reads the database of a server that may be running, for commands that only look.

The lock on the data folder is about writing: SQLite serves a reader beside the server, and on
PostgreSQL it is one more connection.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Final, TypeVar, TypeVarTuple

from pds.app.database import DATABASE_FILE, has_database
from pds.config import Config
from pds.errors import ConfigError, StoreError
from pds.store.engine import Txn
from pds.store.migrate import (
    SCHEMA_VERSION,
    MigrationConnection,
    check_state,
    load_migrations,
)
from pds.store.reader import ReadConnection, ReaderTxn
from pds.store.statements import StatementCheck

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CACHE_BYTES: Final = 4 << 20


def read_beside(config: Config, fn: "Callable[[Txn, *Ts], T]", *args: *Ts) -> T:
    """Run `fn(txn, *args)` in one snapshot of the database and return its result.

    Raises: ConfigError when there is no database, or one of another version; StoreError.
    """
    if not has_database(config):
        raise ConfigError(
            f"there is no database in {config.data.directory}: set PDS_DATA_DIRECTORY"
        )
    connection, link = _open(config)
    with closing(connection):
        state = check_state(link, load_migrations(), version=SCHEMA_VERSION)
        if state.version < SCHEMA_VERSION:
            raise ConfigError(
                f"the database has schema {state.version}, and this program needs"
                f" {SCHEMA_VERSION}: the next start of the server brings it there"
            )
        connection.begin()
        try:
            return fn(ReaderTxn(connection, StatementCheck()), *args)
        finally:
            connection.end()


def _open(config: Config) -> tuple[ReadConnection, MigrationConnection]:
    """A connection for reading, and what the version is read from."""
    url = config.data.database_url
    if url is None:
        from pds.store.sqlite import SqliteConnection

        file = SqliteConnection(config.data.directory / DATABASE_FILE, cache_bytes=CACHE_BYTES)
        return file, file
    try:
        from pds.store.postgres_link import PostgresReader, check_url
    except ImportError as error:
        raise ConfigError(
            "PDS_DATABASE_URL needs the PostgreSQL driver: pip install 'freehold-pds[postgres]'"
        ) from error
    reader = PostgresReader(check_url(url))
    try:
        reader.link.ensure_open()
    except StoreError:
        reader.close()
        raise
    return reader, reader.link
