"""Looks at the identities of our accounts now and then: do they still fit what is here?

Documents and foreign handles belong to their owners, who change them without telling us. Every few
hours all active accounts are looked at, some at a time:

| found | then |
|---|---|
| the handle does not hold in both directions | `#identity` with `handle.invalid` |
| the document names another host | the account is deactivated here, and stays (ACC-6) |
| the document names another signing key | the operator is told |
| the DID is gone | the operator is told |

A handle that holds again is announced with `#identity` too (ID-4). Only what two looks have found,
hours apart, has a consequence; what could not be found out has none. The handle that is stored is
never changed by this. If most accounts seem to have moved at once, it is this host that is set up
wrongly, and none is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pds.errors import NotResolvable, RemoteError
from pds.log import get_logger
from pds.protocol.diddoc import INVALID_HANDLE
from pds.services.account_states import AccountStates
from pds.services.handles import HandlePolicy
from pds.services.repo_txn import emit_identity
from pds.services.resolving import Resolver
from pds.store.accounts import Account, get_account_by_aid, list_accounts
from pds.store.clock import US_PER_S
from pds.store.engine import Engine, Txn
from pds.store.identity_troubles import (
    Look,
    Trouble,
    delete_trouble,
    get_look,
    get_trouble,
    put_look,
    put_trouble,
)
from pds.store.keystore import Keystore

BATCH: Final = 100
"""Accounts looked at in one run."""
ROUND_S: Final = 6 * 3600
"""From the start of one look at all accounts to the next."""
CONFIRM_S: Final = 4 * 3600
"""Age of a trouble at which finding it again has a consequence."""
MIN_SUSPICIOUS: Final = 3
"""So many accounts of one run that moved, and half of them, are a mistake of ours."""


_log: Final = get_logger(__name__)


class Finding(StrEnum):
    """What may be wrong with an identity."""

    HANDLE = "handle"
    MOVED = "moved"
    KEY = "key"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Looked:
    """An account as it was when it was looked at, and what was found."""

    account: Account
    finding: Finding | None


class IdentityChecks:
    """Looks at the identities of the accounts here."""

    def __init__(
        self,
        *,
        engine: Engine,
        keystore: Keystore,
        resolver: Resolver,
        handles: HandlePolicy,
        states: AccountStates,
        public_url: str,
        former_urls: Sequence[str] = (),
        batch: int = BATCH,
    ) -> None:
        self._engine = engine
        self._keystore = keystore
        self._resolver = resolver
        self._handles = handles
        self._states = states
        self._public_url = public_url
        self._urls = frozenset({public_url, *former_urls})
        self._batch = batch

    async def recheck(self, now_us: int) -> int:
        """Look at the next accounts, if the last round began long enough ago; return how many."""
        look = await self._engine.read("identity.look", get_look)
        if look is None or look.is_over:
            if look is not None and now_us - look.started_us < ROUND_S * US_PER_S:
                return 0
            look = Look(now_us, 0, False)
        accounts = await self._engine.read("identity.accounts", _list, look.after_aid, self._batch)
        looked = []
        for account in accounts:
            if not account.is_active:
                continue
            try:
                looked.append(Looked(account, await self._look(account)))
            except RemoteError as error:  # Not found out, so nothing follows.
                _log.info("identity.not_looked_at", did=account.did, reason=str(error))
        may_act = not _is_suspicious(looked)
        if not may_act:
            _log.error("identity.most_have_moved", public_url=self._public_url)
        for each in looked:
            await self._engine.transact(
                "identity.note", self._note, each, now_us, may_act, accounts=(each.account.aid,)
            )
        is_over = len(accounts) < self._batch
        after_aid = accounts[-1].aid if accounts else look.after_aid
        await self._engine.transact(
            "identity.looked", put_look, Look(look.started_us, after_aid, is_over)
        )
        return len(looked)

    async def _look(self, account: Account) -> Finding | None:
        """Return what is wrong. Raises: RemoteError when that cannot be found out."""
        try:
            document = await self._resolver.resolve_did(account.did, refresh=True)
        except NotResolvable:
            return Finding.GONE
        if document.pds_endpoint is not None and document.pds_endpoint not in self._urls:
            return Finding.MOVED
        key, key_id = document.signing_key, account.key_id
        if key_id is not None:
            ours = await self._engine.read("identity.key", self._keystore.did_key, key_id)
            if key is None or key.did_key != ours:
                return Finding.KEY
        if account.handle is None:
            return None
        if document.handle != account.handle:
            return Finding.HANDLE
        if self._handles.is_ours(account.handle):
            return None
        try:
            did = await self._resolver.resolve_handle(account.handle, refresh=True)
        except NotResolvable:
            return Finding.HANDLE
        return None if did == account.did else Finding.HANDLE

    def _note(self, txn: Txn, looked: Looked, now_us: int, may_act: bool) -> None:
        """Note what was found, and let it have its consequence the second time."""
        account = get_account_by_aid(txn, looked.account.aid)
        if account != looked.account:
            return  # It changed meanwhile; the next round looks again.
        known = get_trouble(txn, account.aid)
        finding = looked.finding
        if finding is None:
            if known is not None:
                delete_trouble(txn, account.aid)
                if known.kind == Finding.HANDLE and known.is_settled:
                    emit_identity(txn, account.aid, account.did, account.handle)
        elif known is None or known.kind != finding:
            put_trouble(txn, account.aid, Trouble(finding, now_us, False))
        elif not known.is_settled and now_us - known.since_us >= CONFIRM_S * US_PER_S:
            if finding is Finding.MOVED and not may_act:
                return
            put_trouble(txn, account.aid, Trouble(finding, known.since_us, True))
            self._act(txn, account, finding, now_us)

    def _act(self, txn: Txn, account: Account, finding: Finding, now_us: int) -> None:
        match finding:
            case Finding.HANDLE:
                emit_identity(txn, account.aid, account.did, INVALID_HANDLE)
            case Finding.MOVED:
                self._states.deactivate(txn, account.aid, now_us=now_us)
            case Finding.KEY | Finding.GONE:
                pass  # For people to judge: the log says so.
        _log.warning("identity.does_not_fit", did=account.did, found=finding.value)


def _is_suspicious(looked: Sequence[Looked]) -> bool:
    moved = sum(each.finding is Finding.MOVED for each in looked)
    return moved >= MIN_SUSPICIOUS and 2 * moved >= len(looked)


def _list(txn: Txn, after_aid: int, limit: int) -> list[Account]:
    return list_accounts(txn, after_aid=after_aid, limit=limit)
