"""The states of an account and the ways between them, each inside a transaction of the caller's.

An account is active, deactivated (by its owner, or because it is moving in), suspended or taken
down (by the operator), and deleted when its row is gone. The columns are independent, and what
counts is derived from them, takedown first (ACC-3). So each function here sets its column, and
`#account` is announced if and only if the derived state has changed: doing something twice, or
lifting a suspension of an account that is also taken down, tells the network nothing new.

An account that becomes active is announced with `#account` first; `#identity` follows if its
owner activated it, and `#sync` always. The head is signed again before that, under a rev of now and
with the key of today: the old one may have been signed with the key of another host, and readers
that were behind have not been given what was committed before (ACC-41, SYNC-22, SYNC-42).

An account that is deleted loses its row, all credentials and its keys at once. What may be large is
listed in the journal and removed behind it, a little at a time: see `store/erasure`.

Spec: (ACC-3, ACC-40, ACC-42, ACC-44, ACC-46, SYNC-31, SYNC-42, SYNC-80, SYNC-83)
"""

from dataclasses import dataclass
from typing import Final

from pds.errors import Corrupt, RequestError
from pds.protocol.commit import sign_commit
from pds.protocol.repo import Head
from pds.services.account_cache import AccountCache
from pds.services.repo_txn import Moment, emit_account, emit_identity, emit_sync
from pds.services.sessions import Sessions
from pds.store.accounts import (
    Account,
    AccountStatus,
    delete_account,
    get_account_by_aid,
    update_deactivation,
    update_suspension,
    update_takedown,
)
from pds.store.engine import Txn
from pds.store.erasure import delete_account_rows
from pds.store.events import delete_account_events
from pds.store.invites import disable_codes_of
from pds.store.journal import insert_journal
from pds.store.keystore import Keystore
from pds.store.repos import discard_account_repos, get_account_repo, update_head

ERASE_KIND: Final = "erase_account"
"""`journal.kind` of accounts whose rows are not all gone; `journal.subject` is the aid."""
DELETED: Final = "deleted"
"""The word for an account that is gone; as it has no row, it is no `AccountStatus`."""


@dataclass(frozen=True, slots=True)
class Change:
    """An account before and after an act; it may be the same."""

    before: Account
    after: Account

    @property
    def is_announced(self) -> bool:
        """Whether the network was told."""
        return self.before.status is not self.after.status


class AccountStates:
    """Moves accounts from state to state. Every method belongs inside a transaction.

    The transaction names the account in `accounts=(aid,)`, so that acts on one account follow each
    other on all nodes.
    """

    def __init__(self, *, keystore: Keystore, sessions: Sessions, cache: AccountCache) -> None:
        self._keystore = keystore
        self._sessions = sessions
        self._cache = cache

    # What the owner does

    def activate(self, txn: Txn, aid: int, moment: Moment) -> Change:
        """End the deactivation of an account; whether its identity points here is asked before.

        Raises: RequestError `AccountNotFound`.
        """
        before = _get(txn, aid)
        if before.deactivated_at is None:
            return Change(before, before)
        update_deactivation(txn, aid, deactivated_at=None, delete_after=None)
        return self._announce(txn, before, moment, with_identity=True)

    def deactivate(
        self, txn: Txn, aid: int, *, now_us: int, delete_after: int | None = None
    ) -> Change:
        """Deactivate an account; done again it changes nothing but `delete_after`.

        Raises: RequestError `AccountNotFound`.
        """
        before = _get(txn, aid)
        since = now_us if before.deactivated_at is None else before.deactivated_at
        update_deactivation(txn, aid, deactivated_at=since, delete_after=delete_after)
        return self._announce(txn, before)

    # What the operator does

    def take_down(self, txn: Txn, aid: int, takedown_ref: str) -> Change:
        """Take an account down under a reference, and end its sessions (ACC-44).

        Raises: RequestError `AccountNotFound`.
        """
        before = _get(txn, aid)
        update_takedown(txn, aid, takedown_ref)
        if before.takedown_ref is None:
            self._sessions.end_sessions(txn, aid)
        return self._announce(txn, before)

    def lift_takedown(self, txn: Txn, aid: int, moment: Moment) -> Change:
        """Lift the takedown of an account. Raises: RequestError `AccountNotFound`."""
        before = _get(txn, aid)
        update_takedown(txn, aid, None)
        return self._announce(txn, before, moment)

    def suspend(self, txn: Txn, aid: int, *, now_us: int) -> Change:
        """Suspend an account, and end its sessions. Raises: RequestError `AccountNotFound`."""
        before = _get(txn, aid)
        if before.suspended_at is not None:
            return Change(before, before)
        update_suspension(txn, aid, now_us)
        self._sessions.end_sessions(txn, aid)
        return self._announce(txn, before)

    def lift_suspension(self, txn: Txn, aid: int, moment: Moment) -> Change:
        """Lift the suspension of an account. Raises: RequestError `AccountNotFound`."""
        before = _get(txn, aid)
        update_suspension(txn, aid, None)
        return self._announce(txn, before, moment)

    # The end

    def delete(self, txn: Txn, aid: int, *, now_us: int) -> Account:
        """Delete an account: its row, credentials and keys now, the rest behind it (ACC-46).

        Name and address are free from now on, and the secrets cannot be read any more. What it had
        sent is taken back from the firehose, and `#account` says why. Invite codes that it held
        are disabled.

        Raises: RequestError `AccountNotFound`.
        """
        account = _get(txn, aid)
        self._sessions.end_sessions(txn, aid)
        self._keystore.erase_account(txn, aid)
        delete_account_rows(txn, aid)
        disable_codes_of(txn, account.did)
        discard_account_repos(txn, aid, now_us=now_us)
        delete_account(txn, aid)
        delete_account_events(txn, aid)
        emit_account(txn, aid, account.did, active=False, status=DELETED)
        insert_journal(txn, kind=ERASE_KIND, subject=str(aid), state=b"{}", now_us=now_us)
        self._cache.forget_after(txn, aid)
        return account

    def _announce(
        self,
        txn: Txn,
        before: Account,
        moment: Moment | None = None,
        *,
        with_identity: bool = False,
    ) -> Change:
        """Tell the network of a change, if it is one, and the caches in any case.

        `moment` is needed by acts that may make an account active.
        """
        after = _get(txn, before.aid)
        self._cache.forget_after(txn, before.aid)
        if before.status is after.status:
            return Change(before, after)
        is_active = after.status is AccountStatus.ACTIVE
        status = None if is_active else after.status.value
        emit_account(txn, after.aid, after.did, active=is_active, status=status)
        if is_active and moment is not None:
            if with_identity:
                emit_identity(txn, after.aid, after.did, after.handle)
            restate_with_sync(txn, self._keystore, after.aid, moment)
        return Change(before, after)


def restate_with_sync(txn: Txn, keystore: Keystore, aid: int, moment: Moment) -> bool:
    """Sign the head of a repo again, under a rev of now, and emit `#sync` (SYNC-33).

    Returns False, and does nothing, when there is no active account with a repo.
    """
    account = get_account_repo(txn, aid)
    if account is None or account.repo is None or not account.is_active:
        return False
    if account.key_id is None:
        raise Corrupt(f"{account.did} has a repo and no key")
    repo = account.repo
    rev = moment.rev_after(repo.head.rev)
    signer = keystore.signer(txn, account.key_id)
    signed = sign_commit(signer, did=account.did, data=repo.head.data, rev=rev)
    head = Head(account.did, signed.cid, rev, repo.head.data)
    update_head(
        txn,
        repo.repo_id,
        head,
        signed.block,
        more_records=0,
        more_nodes=0,
        now_us=moment.now_us,
    )
    emit_sync(txn, aid, account.did, signed.cid, signed.block, rev=rev)
    return True


def account_not_found() -> RequestError:
    """There is no such account here."""
    return RequestError("AccountNotFound", "Account not found", 403)


def _get(txn: Txn, aid: int) -> Account:
    account = get_account_by_aid(txn, aid)
    if account is None:
        raise account_not_found()
    return account
