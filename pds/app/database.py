"""Which database this server uses: a SQLite file in its data folder, or PostgreSQL.

The drivers are imported here only when they are chosen: PostgreSQL's is an extra.
"""

from typing import Final

from pds.config import Config
from pds.errors import ConfigError
from pds.store.base import ThreadedEngine
from pds.store.clock import Clock

DATABASE_FILE: Final = "freehold.sqlite"


def has_database(config: Config) -> bool:
    """Whether there is a database; one that is named by a URL is taken to be there."""
    return config.data.is_shared or (config.data.directory / DATABASE_FILE).exists()


def make_engine(config: Config, clock: Clock) -> ThreadedEngine:
    """Return the engine, not started. Raises: ConfigError."""
    url = config.data.database_url
    if url is None:
        from pds.store.sqlite import SqliteEngine, SqliteSettings

        return SqliteEngine(SqliteSettings(config.data.directory / DATABASE_FILE), clock)
    try:
        from pds.store.postgres import PostgresEngine
        from pds.store.postgres_link import PostgresSettings
    except ImportError as error:
        raise ConfigError(
            "PDS_DATABASE_URL needs the PostgreSQL driver: pip install 'freehold-pds[postgres]'"
        ) from error
    return PostgresEngine(PostgresSettings(url), clock)
