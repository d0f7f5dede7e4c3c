"""Acts on the data of a server that is not running."""

from pds.app.foundation import DATABASE_FILE
from pds.config import Config
from pds.errors import ConfigError
from pds.store.clock import SystemClock, put_accepted_us
from pds.store.sqlite import SqliteEngine, SqliteSettings


async def accept_clock(config: Config) -> None:
    """Note that the operator believes this machine's clock.

    Raises: ConfigError when there is no database; Unavailable when a server is running on it.
    """
    path = config.data.directory / DATABASE_FILE
    if not path.exists():
        raise ConfigError(
            f"there is no database in {config.data.directory}: set PDS_DATA_DIRECTORY"
        )
    wall = SystemClock()
    engine = SqliteEngine(SqliteSettings(path), wall)
    await engine.start()
    try:
        await engine.transact("clock.accept", put_accepted_us, wall.now_us())
    finally:
        await engine.close()
