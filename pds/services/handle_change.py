"""Giving an account another handle.

A handle under one of our domains is ours to give, by our rules (ID-20); any other must already lead
to the account's DID (ID-21). The operator may give reserved names, and with them the names of the
domains themselves, but breaks no other rule. The new handle is reserved in our database before the
PLC directory hears of it, and confirmed after (promise A8); see `identity_journal`.

What our keys cannot change, the owner publishes first: the document of a did:web, and of a did:plc
whose rotation keys do not include ours. Such a document must name the handle already (ID-26).

Asking for the handle that an account has announces it again, and repairs a document that has
fallen behind.

Spec: (ID-25, ID-26, ACC-48)
"""

from typing import Protocol

from pds.errors import NotResolvable, RequestError
from pds.protocol.keys import Signer
from pds.protocol.plc import OperationJson, PlcOperation, make_handle_update
from pds.protocol.syntax import Did, Handle
from pds.services.account_cache import AccountCache
from pds.services.audit import Order
from pds.services.handles import HandlePolicy
from pds.services.identity_acts import (
    Act,
    ActKind,
    check_handle_free,
    check_not_taken_down,
    no_account,
)
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.resolving import Resolver
from pds.store.accounts import get_account_by_aid
from pds.store.engine import Txn


class LeftOvers(Protocol):
    """What this needs of `pds.services.account_journal.AccountJournal`."""

    async def settle_handle(self, handle: Handle) -> None:
        """Settle a sign-up that was cut short under this handle."""


class HandleChange:
    """Changes the handles of accounts."""

    def __init__(
        self,
        *,
        accounts: AccountCache,
        handles: HandlePolicy,
        resolver: Resolver,
        journal: IdentityJournal,
        sign_ups: LeftOvers,
        rotation_signer: Signer,
    ) -> None:
        self._accounts = accounts
        self._handles = handles
        self._resolver = resolver
        self._journal = journal
        self._sign_ups = sign_ups
        self._rotation_key = rotation_signer.public_key.did_key

    async def change(self, aid: int, text: str, *, order: Order | None = None) -> Handle:
        """Give the account the handle `text`, and return it.

        With an `order` it is the operator who wants it: noted in the audit trail, or with a
        rehearsal only checked.

        Raises: RequestError `InvalidHandle`, `HandleNotAvailable`, `InvalidRequest`,
        `UpstreamFailure`; Unreachable when it cannot be found out whether a foreign handle leads
        to the account. Spec: (ID-20, ID-21, ID-25)
        """
        handle = self._handles.parse(text)
        account = await self._accounts.get_by_aid(aid)
        if account is None:
            raise no_account()
        if self._handles.is_ours(handle):
            if handle != account.handle:
                self._handles.check_ours(handle, allow_reserved=order is not None)
            await self._sign_ups.settle_handle(handle)
        else:
            await self._check_leads_to(handle, account.did)
        if not account.did.startswith("did:plc:"):
            await self._check_document(account.did, handle)

        def check(txn: Txn) -> None:
            found = get_account_by_aid(txn, aid)
            if found is None or found.did != account.did:
                raise no_account()
            if order is None:
                check_not_taken_down(found)
            check_handle_free(txn, handle, aid, allow_reserved=order is not None)

        def build(last: PlcOperation) -> OperationJson | None:
            return self._next_operation(last, handle)

        is_plc = account.did.startswith("did:plc:")
        act = Act(ActKind.HANDLE, aid, account.did, handle=handle).ordered(order)
        plan = Plan(act=act, check=check, build=build if is_plc else None)
        if order is not None and order.is_rehearsal:
            await self._journal.rehearse(plan)
        else:
            await self._journal.carry_out(plan)
        return handle

    def _next_operation(self, last: PlcOperation, handle: Handle) -> OperationJson | None:
        """Return the operation that names the handle; None when the last one does."""
        state = last.state
        aliases = () if state is None else state.also_known_as
        if (
            next((alias for alias in aliases if alias.startswith("at://")), None)
            == f"at://{handle}"
        ):
            return None
        if state is None or self._rotation_key not in state.rotation_keys:
            raise RequestError(
                "InvalidRequest",
                "This server holds no rotation key of the account: sign an operation that sets "
                f"alsoKnownAs to at://{handle} with a key of yours, then try again",
            )
        return make_handle_update(last, handle)

    async def _check_leads_to(self, handle: Handle, did: Did) -> None:
        try:
            resolved = await self._resolver.resolve_handle(handle, refresh=True)
        except NotResolvable:
            resolved = None
        if resolved != did:
            raise RequestError("InvalidRequest", "External handle did not resolve to DID")

    async def _check_document(self, did: Did, handle: Handle) -> None:
        try:
            document = await self._resolver.resolve_did(did, refresh=True)
        except NotResolvable:
            document = None
        if document is None or document.handle != handle:
            raise RequestError(
                "InvalidRequest",
                "DID is not properly configured for handle: its document must list "
                f"at://{handle} first in alsoKnownAs",
            )
