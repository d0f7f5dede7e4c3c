"""The life of an account as its owner and the clock drive it: activate, deactivate, delete.

Each act is one transaction with its events (`account_states`). What takes time or other hosts is
done before: the identity of an account is looked up before it becomes active (ACC-40), its password
is checked before it is deleted (ACC-46).

A date of deletion (`deleteAfter`) is kept: `sweep_overdue` deletes who is overdue. Since no code
from the mailbox is asked for then, the date lies at least a day ahead, so that an owner whose
session was stolen has that day to activate again. Accounts that were opened for a move and were
never active have such a date from the start (ACC-22).

The deletion itself takes the account's row, so it is unknown everywhere at once and its handle is
free (ACC-47); `sweep_deleted` removes what else is left behind, some hundred rows at a time.

What the operator does is in `moderation`, by the same `AccountStates`.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from pds.errors import RequestError
from pds.log import get_logger
from pds.services.account_cache import AccountCache
from pds.services.account_states import (
    ERASE_KIND,
    AccountStates,
    Change,
    account_not_found,
)
from pds.services.account_status import IdentityCheck
from pds.services.mail_tokens import MailCode, MailPurpose, MailTokens
from pds.services.repo_txn import Moment
from pds.services.resolving import Forgetful
from pds.services.sessions import Sessions, wrong_did_or_password
from pds.services.sweeping import finish_in_steps
from pds.store.accounts import (
    Account,
    get_account_by_aid,
    list_overdue_accounts,
)
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.erasure import erase_some
from pds.store.journal import delete_journal, list_journal

MIN_NOTICE_S: Final = 86_400
"""Between the wish to be deleted, made with a session alone, and the deletion."""
SWEEP_ACCOUNTS: Final = 100

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_log: Final = get_logger(__name__)


class AccountLifecycle:
    """Activates, deactivates and deletes accounts."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        clock_id: int,
        states: AccountStates,
        cache: AccountCache,
        sessions: Sessions,
        identities: IdentityCheck,
        documents: Forgetful,
        mail_tokens: MailTokens,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._clock_id = clock_id
        self._states = states
        self._cache = cache
        self._sessions = sessions
        self._identities = identities
        self._documents = documents
        self._mail_tokens = mail_tokens

    # What owners do

    async def activate(self, aid: int) -> Change:
        """Activate an account whose identity names this host; an active one stays as it is.

        Raises: RequestError `AccountNotFound`, `AccountTakedown`, `InvalidRequest`; RemoteError
        when the identity could not be looked up. Spec: (ACC-40, ID-70, SYNC-42)
        """
        account = await self._get(aid)
        _refuse_takendown(account)
        if account.deactivated_at is None:
            return Change(account, account)
        await self._identities.check(account)
        moment = self._moment()

        def activate(txn: Txn) -> Change:
            now = get_account_by_aid(txn, aid)
            if now is None:
                raise account_not_found()
            _refuse_takendown(now)
            if now.key_id != account.key_id:
                raise RequestError("InvalidRequest", "The signing key has changed meanwhile")
            return self._states.activate(txn, aid, moment)

        change = await self._act("account.activate", aid, activate)
        await self._documents.forget(account.did, account.handle)
        return change

    async def deactivate(self, aid: int, *, delete_after: str | None = None) -> Change:
        """Deactivate an account until it is activated, or deleted after a date.

        Without a date it is kept, also if there was one before.

        Raises: RequestError `AccountNotFound`, `InvalidRequest`. Spec: (ACC-42, ACC-43)
        """
        now_us = self._clock.now_us()
        delete_us = None if delete_after is None else parse_delete_after(delete_after, now_us)

        def deactivate(txn: Txn) -> Change:
            return self._states.deactivate(txn, aid, now_us=now_us, delete_after=delete_us)

        return await self._act("account.deactivate", aid, deactivate)

    async def delete(self, did: str, *, password: str, code: str, address: str = "") -> None:
        """Delete an account whose owner knows the password and reads its mail (ACC-46).

        Raises: RequestError `AuthenticationRequired` (401), `InvalidToken`, `ExpiredToken`; 429.
        """
        account = await self._sessions.check_password(did, password, address=address)
        now_us = self._clock.now_us()

        def delete(txn: Txn) -> None:
            now = get_account_by_aid(txn, account.aid)
            if now is None or now.password_hash != account.password_hash:
                raise wrong_did_or_password()
            self._states.delete(txn, account.aid, now_us=now_us)

        code_given = MailCode(account.aid, MailPurpose.DELETE_ACCOUNT, code, now_us)
        await self._mail_tokens.use("account.delete", code_given, delete)
        await self._forget(account, by="owner")

    # What the clock does

    async def sweep_overdue(self, now_us: int) -> int:
        """Delete the accounts whose date of deletion has come; return how many there were.

        Each is looked at again in the transaction that deletes it: its owner may have come back,
        or another node may have been faster. Spec: (ACC-22)
        """
        deleted = 0
        while True:
            overdue = await self._engine.read("account.overdue", _list_overdue, now_us)
            for aid in overdue:
                account = await self._engine.transact(
                    "account.delete_overdue", self._delete_overdue, aid, now_us, accounts=(aid,)
                )
                if account is not None:
                    deleted += 1
                    await self._forget(account, by="deleteAfter")
            if len(overdue) < SWEEP_ACCOUNTS:
                return deleted

    async def sweep_deleted(self) -> int:
        """Remove what deleted accounts left behind; return how many were done with."""
        done = 0
        for row in await self._engine.read("account.erase", list_journal, ERASE_KIND):
            aid, now_us = int(row.subject), self._clock.now_us()
            await finish_in_steps(
                self._engine, "account.erase", _erase, row.journal_id, aid, now_us
            )
            done += 1
        return done

    def _moment(self) -> Moment:
        return Moment(self._clock.now_us(), self._clock_id)

    async def _get(self, aid: int) -> Account:
        account = await self._cache.get_by_aid(aid)
        if account is None:
            raise account_not_found()
        return account

    async def _act(self, label: str, aid: int, fn: Callable[[Txn], Change]) -> Change:
        change = await self._engine.transact(label, fn, accounts=(aid,))
        if change.is_announced:
            _log.info("account.status_changed", did=change.after.did, status=change.after.status)
        return change

    def _delete_overdue(self, txn: Txn, aid: int, now_us: int) -> Account | None:
        account = get_account_by_aid(txn, aid)
        if account is None or account.deactivated_at is None:
            return None
        if account.delete_after is None or account.delete_after > now_us:
            return None
        return self._states.delete(txn, aid, now_us=now_us)

    async def _forget(self, account: Account, *, by: str) -> None:
        _log.info("account.deleted", did=account.did, by=by)
        await self._documents.forget(account.did, account.handle)


def parse_delete_after(text: str, now_us: int) -> int:
    """Return the date from which an account may be deleted: at least a day ahead.

    Raises: RequestError `InvalidRequest` for a text that is no date.
    """
    try:
        instant = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RequestError("InvalidRequest", "deleteAfter is not a date") from error
    asked_us = (instant - _EPOCH) // timedelta(microseconds=1)
    return max(asked_us, now_us + MIN_NOTICE_S * US_PER_S)


def _refuse_takendown(account: Account) -> None:
    """Refuse to activate what the operator has closed: 401, as for its sessions."""
    if account.takedown_ref is not None:
        raise RequestError("AccountTakedown", "Account has been taken down", 401)
    if account.suspended_at is not None:
        raise RequestError("AccountTakedown", "Account has been suspended", 401)


def _list_overdue(txn: Txn, now_us: int) -> list[int]:
    return list_overdue_accounts(txn, now_us, limit=SWEEP_ACCOUNTS)


def _erase(txn: Txn, journal_id: int, aid: int, now_us: int) -> bool:
    if not erase_some(txn, aid, now_us=now_us):
        return False
    delete_journal(txn, journal_id)
    return True
