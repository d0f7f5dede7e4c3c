"""The services of a server without its port: for commands, while no server runs.

With SQLite the lock on the data folder makes sure that no server runs; with PostgreSQL the command
is one more node for as long as it takes. What is done here is announced like anything else: events
wait in the database for readers to come.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from pds.app.database import has_database
from pds.app.foundation import lay_foundation
from pds.app.options import Options
from pds.app.wiring import build_services
from pds.config import Config
from pds.errors import ConfigError
from pds.services import Services
from pds.services.passwords import Passwords
from pds.store.clock import get_accepted_us


@asynccontextmanager
async def services_alone(config: Config) -> AsyncIterator[Services]:
    """Have all services until the block ends; nothing listens and nothing is timed.

    Raises: ConfigError when there is no database; Unavailable when a server uses the folder.
    """
    if not has_database(config):
        raise ConfigError(
            f"there is no database in {config.data.directory}: set PDS_DATA_DIRECTORY"
        )
    async with AsyncExitStack() as stack:
        base = await lay_foundation(config, stack)
        accepted_us = await base.engine.read("clock.accepted", get_accepted_us)
        await base.clock.start(last_seq=base.engine.last_seq, accepted_us=accepted_us)
        passwords = Passwords()
        stack.callback(passwords.close)
        services = build_services(base, passwords, Options())
        stack.push_async_callback(services.account_mails.settle)
        stack.push_async_callback(services.accounts.close)
        stack.push_async_callback(services.identity_journal.close)
        stack.push_async_callback(services.migration.close)
        yield services
