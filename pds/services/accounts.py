"""Accounts as the rest of the server meets them: finding them, opening them, settling leftovers.

A facade: finding is `account_cache`, opening is `account_creation`, what crashes leave behind is
settled by `account_journal`.
"""

from pds.protocol.syntax import Handle
from pds.services.account_cache import AccountCache
from pds.services.account_creation import AccountCreation, AccountRequest
from pds.services.account_journal import AccountJournal
from pds.services.journal_settling import Settled
from pds.services.principal import Principal
from pds.services.sessions import SessionView
from pds.store.accounts import Account, AccountStatus

__all__ = ["Account", "AccountRequest", "AccountStatus", "Accounts"]


class Accounts:
    """The accounts of this host."""

    def __init__(
        self, *, cache: AccountCache, creation: AccountCreation, journal: AccountJournal
    ) -> None:
        self.cache = cache
        self.creation = creation
        self._journal = journal

    async def lookup(self, did_or_handle: str) -> Account | None:
        """Return the account of a DID or handle, in any state, or None."""
        name = did_or_handle if did_or_handle.startswith("did:") else did_or_handle.lower()
        return await self.cache.get(name)

    async def lookup_aid(self, aid: int) -> Account | None:
        """Return the account with this number, in any state, or None."""
        return await self.cache.get_by_aid(aid)

    async def create(
        self, request: AccountRequest, principal: Principal | None = None
    ) -> SessionView:
        """Open an account and a session; see `AccountCreation.create`."""
        return await self.creation.create(request, principal)

    async def settle_handle(self, handle: Handle) -> None:
        """Settle a sign-up that was cut short under a handle, if nobody works on it."""
        await self._journal.settle_handle(handle)

    async def recover(self, *, now: bool | None = None) -> dict[Settled, int]:
        """Settle what crashes left behind; see `AccountJournal.recover`."""
        return await self._journal.recover(now=now)

    async def close(self) -> None:
        """Wait for accounts that are being opened."""
        await self.creation.close()
