"""The rows and the first events of a new account, all made in one transaction.

`check_claim` asks whether handle, address and invite code are still free; it runs when an account
is first asked for and again in the transaction that makes it. `AccountRows.insert` makes account,
key, empty repo, invite use, session and, unless the account starts deactivated, its events.
"""

from dataclasses import dataclass, replace
from typing import Final

from pds.errors import RequestError
from pds.protocol.keys import Curve, make_signer
from pds.protocol.syntax import Did, Handle, Tid
from pds.services.account_cache import AccountCache
from pds.services.account_draft import JOURNAL_KIND, DraftPhase, decode_draft
from pds.services.principal import ReplayId
from pds.services.repo_txn import (
    create_repo,
    emit_account,
    emit_commit,
    emit_identity,
    emit_sync,
)
from pds.services.sessions import Opening, Sessions
from pds.services.used_tokens import refuse_replay
from pds.store.accounts import (
    Account,
    get_account_by_aid,
    get_account_by_did,
    get_account_by_email,
    get_account_by_handle,
    insert_account,
    update_email,
    update_handle,
    update_key,
)
from pds.store.engine import Txn
from pds.store.invites import insert_invite_use, is_invite_code_usable
from pds.store.journal import delete_journal, get_journal, get_journal_by_id
from pds.store.keystore import Keystore
from pds.store.mail_tokens import delete_account_mail_tokens
from pds.store.reserved_handles import HANDLE_KIND, is_handle_reserved
from pds.store.reserved_keys import delete_reserved_key
from pds.store.sessions import Session

UNFINISHED_MOVE_US: Final = 30 * 86_400 * 1_000_000
"""How long an account that was opened for a move, and never became active, is kept (ACC-22)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What nobody else may hold; an `invite_code` that was given counts, needed or not."""

    did: Did | None
    handle: Handle
    email: str | None
    invite_code: str | None


@dataclass(frozen=True, slots=True)
class NewRows:
    """Everything that `insert` needs; time and randomness were drawn before the transaction."""

    did: Did
    claim: Claim
    password_hash: str
    curve: Curve
    secret: bytes
    key_entropy: bytes
    rev: Tid
    now_us: int
    opening: Opening | None
    """The session to open; None when an account is completed without its client."""
    journal_id: int | None
    """The journal row that this settles; None for a DID that existed already."""
    is_active: bool
    """False for an account that is moving in: it starts deactivated (ACC-21)."""
    replay: ReplayId | None = None
    """The token that allows it, to be used up (XRPC-44)."""


def check_claim(txn: Txn, claim: Claim, journal_id: int | None = None) -> None:
    """Refuse what is not free; the row `journal_id` is the claim's own.

    Raises: RequestError `InvalidInviteCode`, `HandleNotAvailable`, `InvalidRequest`.
    Spec: (ACC-2, ACC-10, ACC-25)
    """
    if claim.invite_code is not None and not is_invite_code_usable(txn, claim.invite_code):
        raise RequestError("InvalidInviteCode", "Provided invite code not available")
    if claim.did is not None and get_account_by_did(txn, claim.did) is not None:
        raise account_exists()
    _check_handle(txn, claim.handle, journal_id)
    if claim.email is not None:
        _check_email(txn, claim.email)


def _check_handle(txn: Txn, handle: Handle, journal_id: int | None = None) -> None:
    reserved = get_journal(txn, JOURNAL_KIND, handle)
    if (
        get_account_by_handle(txn, handle) is not None
        or (reserved is not None and reserved.journal_id != journal_id)
        or get_journal(txn, HANDLE_KIND, handle) is not None
    ):
        raise RequestError("HandleNotAvailable", f"Handle already taken: {handle}")
    if journal_id is None and is_handle_reserved(txn, handle):
        raise RequestError("HandleNotAvailable", "Reserved handle")


def _check_email(txn: Txn, email: str) -> None:
    if get_account_by_email(txn, email) is not None:
        raise RequestError("InvalidRequest", f"Email already taken: {email}")


def account_exists() -> RequestError:
    """An account for this DID is here (ACC-24)."""
    return RequestError(
        "InvalidRequest", "Account already exists, sign in to continue the migration"
    )


class AccountRows:
    """Makes the rows of accounts."""

    def __init__(self, *, keystore: Keystore, sessions: Sessions, cache: AccountCache) -> None:
        self._keystore = keystore
        self._sessions = sessions
        self._cache = cache

    def amend(self, txn: Txn, account: Account, claim: Claim) -> Account:
        """Give an account that waits for its owner the handle and address of a repeated call.

        A confirmed address stays: only its holder may replace it. Nothing is announced; the
        activation announces the handle. Raises: RequestError, as `check_claim` (ACC-24).
        """
        if claim.handle != account.handle:
            _check_handle(txn, claim.handle)
            update_handle(txn, account.aid, claim.handle)
            account = replace(account, handle=claim.handle)
        if (
            claim.email is not None
            and claim.email != account.email
            and account.email_confirmed_at is None
        ):
            _check_email(txn, claim.email)
            update_email(txn, account.aid, claim.email, confirmed_at=None)
            delete_account_mail_tokens(txn, account.aid)  # They went to the address before.
            account = replace(account, email=claim.email)
        self._cache.forget_after(txn, account.aid)
        return account

    def insert(self, txn: Txn, new: NewRows) -> tuple[Account, Session | None]:
        """Make an account with everything that belongs to it.

        Raises: RequestError when something it claims was taken meanwhile.
        Spec: (ACC-11, ACC-15, ACC-22, SYNC-40, SYNC-41)
        """
        if new.journal_id is not None:
            _check_open(txn, new.journal_id)
        check_claim(txn, new.claim, new.journal_id)
        refuse_replay(txn, new.replay, new.now_us)
        aid = insert_account(
            txn,
            did=new.did,
            handle=new.claim.handle,
            email=new.claim.email,
            password_hash=new.password_hash,
            now_us=new.now_us,
            deactivated_at=None if new.is_active else new.now_us,
            delete_after=None if new.is_active else new.now_us + UNFINISHED_MOVE_US,
        )
        delete_reserved_key(txn, new.did)
        key_id, _ = self._keystore.create_signing_key(
            txn,
            aid,
            curve=new.curve,
            secret=new.secret,
            entropy=new.key_entropy,
            now_us=new.now_us,
        )
        update_key(txn, aid, key_id)
        self._insert_repo(txn, aid, new)
        if new.claim.invite_code is not None:
            insert_invite_use(txn, new.claim.invite_code, aid=aid, now_us=new.now_us)
        if new.journal_id is not None:
            delete_journal(txn, new.journal_id)
        account = get_account_by_aid(txn, aid)
        assert account is not None  # noqa: S101 - inserted above, in this transaction
        session = None
        if new.opening is not None:
            session = self._sessions.open_session(txn, account, new.opening)
        self._cache.forget_after(txn, aid)
        return account, session

    def _insert_repo(self, txn: Txn, aid: int, new: NewRows) -> None:
        """Make the empty repo and emit the events of an active account, in SYNC-40's order."""
        signer = make_signer(new.curve, new.secret)
        finished = create_repo(txn, aid, new.did, signer, rev=new.rev, now_us=new.now_us)
        if not new.is_active:
            return
        emit_identity(txn, aid, new.did, new.claim.handle)
        emit_account(txn, aid, new.did, active=True, status=None)
        emit_commit(txn, aid, finished)
        emit_sync(
            txn, aid, new.did, finished.signed.cid, finished.signed.block, rev=finished.plan.rev
        )


def _check_open(txn: Txn, journal_id: int) -> None:
    """Refuse an act that was settled by somebody else while its owner was held up."""
    row = get_journal_by_id(txn, journal_id)
    if row is None or decode_draft(row.state).phase is not DraftPhase.OPEN:
        raise RequestError("HandleNotAvailable", "The account was settled meanwhile")
