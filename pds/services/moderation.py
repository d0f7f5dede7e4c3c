"""Moderation: takedowns of accounts, records and blobs, suspension, and the state of a subject.

A takedown hides; it deletes nothing and can be lifted. What is hidden stays open to its owner and
to the operator (`availability.sees_hidden`), so that people can take their data along.

* An *account* that is taken down or suspended loses its sessions and is announced on the firehose
  in the same transaction; its content is refused everywhere (SYNC-70, SYNC-81).
* A *record* is hidden by its path: `getRecord`, `listRecords`, proofs, blocks and exports leave its
  content out. The signed tree still names it by its CID, so the repo verifies as before.
* A *blob* is in quarantine by its row: every way to its bytes asks the row first, the bytes stay
  where they are, an upload of the same bytes is refused, and nothing collects them (XRPC-83). When
  the takedown is lifted, a blob that no record refers to any more goes the way of all such.

Asking for a state that holds already changes nothing and announces nothing. Each act leaves a row
in the audit trail.

Spec: (ACC-44, SYNC-80, SYNC-81, SYNC-83)
"""

from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.protocol.cid import Cid
from pds.protocol.data import Json
from pds.protocol.syntax import Did, format_datetime
from pds.services.account_cache import AccountCache
from pds.services.account_states import AccountStates
from pds.services.account_status import IdentityCheck
from pds.services.audit import Order, carry_out, note_act
from pds.services.repo_txn import Moment
from pds.services.resolving import Forgetful
from pds.services.sessions import Sessions
from pds.store.accounts import (
    Account,
    get_account_by_aid,
    get_account_by_did,
)
from pds.store.blobs import Blob, get_blob, hide_blob, show_blob
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.moderation import (
    delete_record_takedown,
    get_record_takedown,
    put_record_takedown,
)
from pds.store.records import get_record

MAX_REF_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class RecordSubject:
    """A record by its path; `cid` is the version that was judged, if it was told."""

    did: Did
    path: str
    cid: Cid | None = None

    @property
    def uri(self) -> str:
        """The record's `at://` URI."""
        return f"at://{self.did}/{self.path}"


@dataclass(frozen=True, slots=True)
class BlobSubject:
    """A blob of an account."""

    did: Did
    cid: Cid


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What shall become of an account; None leaves a part as it is.

    `takedown_ref` counts only where `takedown` is True; without one the time is the reference.
    """

    takedown: bool | None = None
    takedown_ref: str | None = None
    suspended: bool | None = None
    deactivated: bool | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What an act did to its subject; both sides are as the audit trail has them."""

    before: dict[str, Json]
    after: dict[str, Json]

    @property
    def is_changed(self) -> bool:
        """Whether anything is different now."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class SubjectState:
    """The takedown of a subject, and of an account whether it is deactivated."""

    takedown_ref: str | None
    is_deactivated: bool | None = None
    cid: Cid | None = None
    """Of a record: its current CID, or that of the takedown when it is gone."""


class Moderation:
    """Takes down and restores."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        clock_id: int,
        accounts: AccountCache,
        sessions: Sessions,
        states: AccountStates,
        identities: IdentityCheck,
        documents: Forgetful,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._clock_id = clock_id
        self._accounts = accounts
        self._sessions = sessions
        self._states = states
        self._identities = identities
        self._documents = documents

    # Accounts

    async def change_account(self, did: Did, change: AccountChange, order: Order) -> Changed:
        """Take down, suspend, deactivate an account, or lift any of these.

        Who is activated must still have its identity here: the network would be told otherwise.

        Raises: RequestError `NotFound`, `InvalidRequest`; RemoteError when the identity could not
        be looked up. Spec: (ACC-40, ACC-44, SYNC-42, SYNC-81)
        """
        if change.takedown and change.deactivated is False:
            raise RequestError(
                "InvalidRequest", "Cannot activate and takedown an account at the same time"
            )
        _check_ref(change.takedown_ref)
        aid = await self._aid(did)
        if change.deactivated is False:
            await self._check_identity(aid)
        return await carry_out(
            self._engine,
            "moderation.account",
            order,
            self._change_account,
            aid,
            change,
            order,
            Moment(self._clock.now_us(), self._clock_id),
            accounts=(aid,),
        )

    def _change_account(
        self, txn: Txn, aid: int, change: AccountChange, order: Order, moment: Moment
    ) -> Changed:
        old = get_account_by_aid(txn, aid)
        if old is None:
            raise subject_not_found()
        self._apply(txn, old, change, moment)
        new = get_account_by_aid(txn, aid)
        if new is None:
            raise subject_not_found()
        changed = Changed(_account_state(old), _account_state(new))
        act = _name_act(change)
        _note(txn, order, act, subject=new.did, now_us=moment.now_us, changed=changed)
        return changed

    def _apply(self, txn: Txn, old: Account, change: AccountChange, moment: Moment) -> None:
        """Do all parts of a change; each announces what it brings about."""
        aid, states = old.aid, self._states
        if change.takedown:
            ref = change.takedown_ref or old.takedown_ref or _default_ref(moment.now_us)
            states.take_down(txn, aid, ref)
        elif change.takedown is False:
            states.lift_takedown(txn, aid, moment)
        if change.suspended:
            states.suspend(txn, aid, now_us=moment.now_us)
        elif change.suspended is False:
            states.lift_suspension(txn, aid, moment)
        if change.deactivated and old.deactivated_at is None:
            states.deactivate(txn, aid, now_us=moment.now_us)
        elif change.deactivated is False:
            states.activate(txn, aid, moment)

    async def _check_identity(self, aid: int) -> None:
        account = await self._accounts.get_by_aid(aid)
        if account is not None and account.deactivated_at is not None:
            await self._identities.check(account)

    async def delete_account(self, did: Did, order: Order) -> dict[str, Json]:
        """Delete an account for good, and return what it was (ACC-46).

        Raises: RequestError `NotFound`.
        """
        aid = await self._aid(did)
        before = await carry_out(
            self._engine,
            "moderation.delete",
            order,
            self._delete_account,
            aid,
            order,
            self._clock.now_us(),
            accounts=(aid,),
        )
        if not order.is_rehearsal:
            await self._documents.forget(did)
        return before

    def _delete_account(self, txn: Txn, aid: int, order: Order, now_us: int) -> dict[str, Json]:
        old = get_account_by_aid(txn, aid)
        if old is None:
            raise subject_not_found()
        before = {"handle": old.handle, "email": old.email, **_account_state(old)}
        self._states.delete(txn, aid, now_us=now_us)
        note_act(txn, order, "account.delete", old.did, now_us=now_us, before=before, after={})
        return before

    async def end_sessions(self, did: Did, order: Order) -> None:
        """Sign an account out everywhere. Raises: RequestError `NotFound`. Spec: XRPC-26"""
        aid = await self._aid(did)

        def end(txn: Txn, now_us: int) -> None:
            self._sessions.end_sessions(txn, aid)
            note_act(txn, order, "account.end-sessions", did, now_us=now_us)

        await carry_out(
            self._engine,
            "moderation.end_sessions",
            order,
            end,
            self._clock.now_us(),
            accounts=(aid,),
        )

    # Records

    async def change_record(
        self, subject: RecordSubject, *, takedown: bool, ref: str | None, order: Order
    ) -> Changed:
        """Hide a record, or show it again.

        A path may be hidden without a record under it when the CID is told. Raises: RequestError
        `NotFound`, `InvalidRequest`. Spec: ACC-44
        """
        aid = await self._aid(subject.did)
        return await carry_out(
            self._engine,
            "moderation.record",
            order,
            _change_record,
            aid,
            subject,
            order,
            self._judge(takedown, ref),
            accounts=(aid,),
        )

    # Blobs

    async def change_blob(
        self, subject: BlobSubject, *, takedown: bool, ref: str | None, order: Order
    ) -> Changed:
        """Put a blob in quarantine, or let it out. Raises: RequestError `NotFound`.

        Spec: (ACC-44, XRPC-83, XRPC-87)
        """
        aid = await self._aid(subject.did)
        return await carry_out(
            self._engine,
            "moderation.blob",
            order,
            _change_blob,
            aid,
            subject,
            order,
            self._judge(takedown, ref),
            accounts=(aid,),
        )

    def _judge(self, takedown: bool, ref: str | None) -> "_Verdict":
        now_us = self._clock.now_us()
        _check_ref(ref)
        return _Verdict(ref or _default_ref(now_us) if takedown else None, now_us)

    # States

    async def account_state(self, did: str) -> SubjectState:
        """Return the state of an account. Raises: RequestError `NotFound`."""
        account = await self._engine.read("moderation.state", get_account_by_did, did)
        if account is None:
            raise subject_not_found()
        return SubjectState(account.takedown_ref, account.deactivated_at is not None)

    async def record_state(self, subject: RecordSubject) -> SubjectState:
        """Return the state of a record. Raises: RequestError `NotFound`."""

        def read(txn: Txn) -> SubjectState:
            account = get_account_by_did(txn, subject.did)
            if account is None:
                raise subject_not_found()
            hidden = get_record_takedown(txn, account.aid, subject.path)
            current = _current_cid(txn, account.aid, subject.path)
            if hidden is None and current is None:
                raise subject_not_found()
            cid = current or (hidden.cid if hidden else None)
            return SubjectState(hidden.takedown_ref if hidden else None, cid=cid)

        return await self._engine.read("moderation.state", read)

    async def blob_state(self, subject: BlobSubject) -> SubjectState:
        """Return the state of a blob. Raises: RequestError `NotFound`."""

        def read(txn: Txn) -> Blob | None:
            account = get_account_by_did(txn, subject.did)
            return None if account is None else get_blob(txn, account.aid, subject.cid)

        blob = await self._engine.read("moderation.state", read)
        if blob is None:
            raise subject_not_found()
        return SubjectState(blob.takedown_ref)

    async def _aid(self, did: str) -> int:
        account = await self._accounts.get(did)
        if account is None:
            raise subject_not_found()
        return account.aid


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The reference of a takedown, or None to lift it, and when."""

    ref: str | None
    now_us: int


def subject_not_found() -> RequestError:
    """Nothing here has that name."""
    return RequestError("NotFound", "Subject not found")


def _change_record(
    txn: Txn, aid: int, subject: RecordSubject, order: Order, verdict: _Verdict
) -> Changed:
    ref, now_us = verdict.ref, verdict.now_us
    old = get_record_takedown(txn, aid, subject.path)
    cid = subject.cid or _current_cid(txn, aid, subject.path) or (old.cid if old else None)
    if cid is None:
        raise subject_not_found()
    if ref is None:
        delete_record_takedown(txn, aid, subject.path)
    else:
        put_record_takedown(txn, aid, subject.path, cid=cid, takedown_ref=ref, now_us=now_us)
    before = _ref_state(old.takedown_ref if old else None)
    changed = Changed(before, _ref_state(ref))
    act = "record.untakedown" if ref is None else "record.takedown"
    _note(txn, order, act, subject=subject.uri, now_us=now_us, changed=changed)
    return changed


def _change_blob(
    txn: Txn, aid: int, subject: BlobSubject, order: Order, verdict: _Verdict
) -> Changed:
    ref, now_us = verdict.ref, verdict.now_us
    blob = get_blob(txn, aid, subject.cid)
    if blob is None:
        raise subject_not_found()
    if ref is not None:
        hide_blob(txn, aid, subject.cid, takedown_ref=ref)
    elif blob.is_taken_down:
        show_blob(txn, aid, subject.cid, now_us=now_us)
    changed = Changed(_ref_state(blob.takedown_ref), _ref_state(ref))
    act = "blob.untakedown" if ref is None else "blob.takedown"
    name = f"{subject.did} {subject.cid}"
    _note(txn, order, act, subject=name, now_us=now_us, changed=changed)
    return changed


def _note(txn: Txn, order: Order, act: str, *, subject: str, now_us: int, changed: Changed) -> None:
    note_act(txn, order, act, subject, now_us=now_us, before=changed.before, after=changed.after)


def _current_cid(txn: Txn, aid: int, path: str) -> Cid | None:
    account = get_account_by_aid(txn, aid)
    if account is None or account.repo_id is None:
        return None
    record = get_record(txn, account.repo_id, path)
    return None if record is None else record.cid


def _account_state(account: Account) -> dict[str, Json]:
    state: dict[str, Json] = {"status": account.status.value}
    if account.takedown_ref is not None:
        state["takedownRef"] = account.takedown_ref
    if account.suspended_at is not None:
        state["suspendedAt"] = format_datetime(account.suspended_at)
    if account.deactivated_at is not None:
        state["deactivatedAt"] = format_datetime(account.deactivated_at)
    return state


def _ref_state(ref: str | None) -> dict[str, Json]:
    return {"takedownRef": ref} if ref is not None else {}


def _name_act(change: AccountChange) -> str:
    names = [
        name if is_on else lifted
        for is_on, name, lifted in (
            (change.takedown, "takedown", "untakedown"),
            (change.suspended, "suspend", "unsuspend"),
            (change.deactivated, "deactivate", "activate"),
        )
        if is_on is not None
    ]
    return "account." + "+".join(names or ["look"])


def _default_ref(now_us: int) -> str:
    """The reference of a takedown that was given none: when it was."""
    return format_datetime(now_us)


def _check_ref(ref: str | None) -> None:
    if ref is not None and len(ref) > MAX_REF_CHARS:
        raise RequestError("InvalidRequest", f"ref has more than {MAX_REF_CHARS} characters")
