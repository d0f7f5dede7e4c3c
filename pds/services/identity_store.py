"""Where resolved identities survive a restart: the database, as the resolver's `IdentityStore`."""

from pds.services.sweeping import sweep_rows
from pds.store.engine import Engine
from pds.store.identity_cache import (
    delete_old_identities,
    delete_saved_identity,
    get_saved_identity,
    save_identity,
)


class SavedIdentities:
    """Reads and writes saved answers; writes wait behind those of users."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def load(self, subject: str) -> tuple[bytes, int] | None:
        """Return the saved answer and when it was fetched (unix microseconds)."""
        return await self._engine.read("identity.load", get_saved_identity, subject)

    async def save(self, subject: str, value: bytes, fetched_at_us: int) -> None:
        """Save an answer over an older one."""
        await self._engine.transact(
            "identity.save", save_identity, subject, value, fetched_at_us, bulk=True
        )

    async def forget(self, subject: str) -> None:
        """Drop a saved answer."""
        await self._engine.transact("identity.forget", delete_saved_identity, subject, bulk=True)

    async def sweep(self, before_us: int) -> int:
        """Drop every answer fetched before a time; return how many there were."""
        return await sweep_rows(self._engine, "identity.sweep", delete_old_identities, before_us)
