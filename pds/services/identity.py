"""Who is who, as this host answers it: its own accounts first, then the world.

* A handle of an active account here names that account, whatever DNS says.
* A handle under one of our own domains that we do not host names nobody, and nobody is asked.
* Everything else is resolved, by the AppView if one is configured (a hint only: when it has no
  answer we look ourselves), never through it when both directions must hold.

`refresh` looks again. It announces `#identity` for an account of ours only if what we had
remembered of it has changed.

Spec: (ID-1, ID-4, ID-13, ID-15, ID-36)
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from pds.errors import NotResolvable, RemoteError, RequestError, Unreachable
from pds.identity.errors import DidDeactivated
from pds.protocol.diddoc import INVALID_HANDLE, DidDocument
from pds.protocol.syntax import Did, Handle, InvalidSyntax, parse_at_identifier, parse_did
from pds.services.handles import HandlePolicy
from pds.services.repo_txn import emit_identity
from pds.services.resolving import Resolver
from pds.store.accounts import Account, get_account_by_aid
from pds.store.engine import Engine, Txn

AskAppview: TypeAlias = Callable[[Handle], Awaitable[str | None]]
"""Asks the AppView which DID a handle has; None or a RemoteError when it does not know."""

_NOT_FOUND: Final = "Unable to resolve handle"


class AccountLookup(Protocol):
    """What this needs of `pds.services.accounts.Accounts`."""

    async def lookup(self, did_or_handle: str) -> Account | None:
        """Return the account of a DID or handle, in any state, or None."""


@dataclass(frozen=True, slots=True)
class ResolvedIdentity:
    """A DID, its document, and its handle as far as both directions hold (ID-1, ID-4)."""

    did: Did
    handle: Handle
    document: DidDocument

    def to_json(self) -> dict[str, Any]:
        """The object `com.atproto.identity.defs#identityInfo`."""
        return {"did": self.did, "handle": self.handle, "didDoc": dict(self.document.source)}


class Identity:
    """Answers the identity methods."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        accounts: AccountLookup,
        handles: HandlePolicy,
        engine: Engine,
        ask_appview: AskAppview | None = None,
    ) -> None:
        self._resolver = resolver
        self._accounts = accounts
        self._handles = handles
        self._engine = engine
        self._ask_appview = ask_appview

    async def resolve_handle(self, handle: Handle) -> Did:
        """Return the DID that a handle names, in one direction (ID-13).

        Raises: RequestError `HandleNotFound`; Unreachable.
        """
        local = await self._find_local(handle)
        if local is not None:
            return local
        if self._ask_appview is not None:
            hint = await _ask(self._ask_appview, handle)
            if hint is not None:
                return hint
        return await self._look_up(handle, refresh=False)

    async def resolve_did(self, did: Did) -> DidDocument:
        """Return the document of a DID (ID-15).

        Raises: RequestError `DidNotFound` or `DidDeactivated`; Unreachable.
        """
        return await self._get_document(did, refresh=False)

    async def resolve_identity(
        self, identifier: Did | Handle, *, refresh: bool = False
    ) -> ResolvedIdentity:
        """Return the identity behind a DID or handle, the handle checked in both directions.

        Raises: RequestError `HandleNotFound`, `DidNotFound` or `DidDeactivated`; Unreachable.
        """
        if identifier.startswith("did:"):
            did = Did(identifier)
        else:
            handle = Handle(identifier)
            local = await self._find_local(handle)
            did = local or await self._look_up(handle, refresh=refresh)
        document = await self._get_document(did, refresh=refresh)
        claimed = document.handle
        if claimed is None or not await self._names(claimed, did, refresh=refresh):
            return ResolvedIdentity(did, INVALID_HANDLE, document)
        return ResolvedIdentity(did, claimed, document)

    async def refresh_identity(self, text: str) -> ResolvedIdentity:
        """Look again who somebody is, and announce it if it is an account here that changed.

        Raises: as `resolve_identity`; RequestError `InvalidRequest` for no identifier.
        """
        try:
            identifier = parse_at_identifier(text)
        except InvalidSyntax as error:
            raise RequestError("InvalidRequest", "identifier is neither DID nor handle") from error
        account = await self._accounts.lookup(identifier)
        before = None
        if account is not None:
            identifier = account.did
            before = await self._remembered(account.did)
        found = await self.resolve_identity(identifier, refresh=True)
        if account is not None and before is not None and _facts(before) != _facts(found.document):
            handle = found.handle if found.handle == account.handle else None
            await self._engine.transact(
                "identity.announce", _announce, account.aid, handle, accounts=(account.aid,)
            )
        return found

    async def _find_local(self, handle: Handle) -> Did | None:
        """Return the DID of an account here; None for a name that others may own.

        Raises: RequestError `HandleNotFound` for a name of ours that nobody has.
        """
        account = await self._accounts.lookup(handle)
        if account is not None and account.is_active:
            return account.did
        if self._handles.is_ours(handle):
            raise _handle_not_found()
        return None

    async def _look_up(self, handle: Handle, *, refresh: bool) -> Did:
        try:
            return await self._resolver.resolve_handle(handle, refresh=refresh)
        except NotResolvable as error:
            raise _handle_not_found() from error

    async def _get_document(self, did: Did, *, refresh: bool) -> DidDocument:
        try:
            return await self._resolver.resolve_did(did, refresh=refresh)
        except DidDeactivated as error:
            raise RequestError("DidDeactivated", "DID has been deactivated") from error
        except NotResolvable as error:
            raise RequestError("DidNotFound", "Unable to resolve DID") from error

    async def _names(self, handle: Handle, did: Did, *, refresh: bool) -> bool:
        """Whether a handle leads back to the DID; one that cannot be asked about does not."""
        try:
            local = await self._find_local(handle)
            return (local or await self._look_up(handle, refresh=refresh)) == did
        except (RequestError, Unreachable):
            return False

    async def _remembered(self, did: Did) -> DidDocument | None:
        try:
            return await self._resolver.resolve_did(did)
        except (NotResolvable, Unreachable):
            return None


async def _ask(ask_appview: AskAppview, handle: Handle) -> Did | None:
    """Return the AppView's answer; whatever goes wrong with it, we can look ourselves."""
    try:
        answer = await ask_appview(handle)
        return None if answer is None else parse_did(answer)
    except (RemoteError, InvalidSyntax):
        return None


def _facts(document: DidDocument) -> tuple[object, ...]:
    """What others act on; the rest of a document may change unannounced."""
    return document.handle, document.signing_key, document.pds_endpoint


def _announce(txn: Txn, aid: int, handle: Handle | None) -> None:
    account = get_account_by_aid(txn, aid)
    if account is not None and account.is_active:
        emit_identity(txn, aid, account.did, handle)


def _handle_not_found() -> RequestError:
    return RequestError("HandleNotFound", _NOT_FOUND)
