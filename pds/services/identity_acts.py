"""The rows of acts on identities: what the journal keeps of one, and what it changes in the end.

An act has one journal row under the DID (kind `identity_act`), so that an identity has one at a
time. A handle that it is about to take has a row under the handle (kind `handle`), which sign-up
looks at too. The plain functions here run in jobs that name no account: those run one at a time, on
all nodes together, so that two claims never pass each other.

What an act changes once the directory has its operation:

| kind | rows | events |
|---|---|---|
| handle | the handle | `#identity` with the handle |
| endpoint | none | `#identity` |
| signing key | the key, the head signed anew | `#identity`, then `#commit` and `#sync` if active |
| submitted | none | `#identity` |

Spec: (ID-25, ID-69, ID-72, SYNC-33, SYNC-34)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import orjson

from pds.errors import Corrupt, RequestError
from pds.log import get_logger
from pds.protocol.commit import sign_commit
from pds.protocol.keys import Curve
from pds.protocol.mst.tree import NodeCache
from pds.protocol.plc import PDS_SERVICE_ID, PlcError, PlcOperation, parse_operation
from pds.protocol.repo import Head
from pds.protocol.syntax import Did, Handle
from pds.services.account_cache import AccountCache
from pds.services.account_draft import JOURNAL_KIND
from pds.services.audit import Order, note_act
from pds.services.repo_txn import Moment, emit_identity, emit_sync, restate_head
from pds.store.accounts import (
    Account,
    AccountStatus,
    get_account_by_aid,
    get_account_by_handle,
    update_handle,
    update_key,
)
from pds.store.engine import Txn
from pds.store.journal import (
    JournalRow,
    delete_journal,
    get_journal,
    get_journal_by_id,
    insert_journal,
    update_journal,
)
from pds.store.keystore import Keystore
from pds.store.plc_watch import note_passed_on
from pds.store.repos import get_account_repo, update_head
from pds.store.reserved_handles import HANDLE_KIND, is_handle_reserved
from pds.store.reserved_keys import delete_reserved_key, get_reserved_key

ACT_KIND: Final = "identity_act"
"""`journal.kind` of these rows; `journal.subject` is the DID."""

_log: Final = get_logger(__name__)


class ActKind(StrEnum):
    """What an act is about."""

    HANDLE = "handle"
    ENDPOINT = "endpoint"
    """The URL of this host, after it got another name."""
    SIGNING_KEY = "signing_key"
    SUBMITTED = "submitted"


_ACT_NAMES: Final[Mapping[ActKind, str]] = MappingProxyType(
    {
        ActKind.HANDLE: "account.set-handle",
        ActKind.ENDPOINT: "account.set-endpoint",
        ActKind.SIGNING_KEY: "account.set-signing-key",
        ActKind.SUBMITTED: "account.submit-operation",
    }
)
"""In the audit trail."""
_CHANGED: Final[Mapping[ActKind, str]] = MappingProxyType(
    {
        ActKind.HANDLE: "handle",
        ActKind.ENDPOINT: "endpoint",
        ActKind.SIGNING_KEY: "signingKey",
        ActKind.SUBMITTED: "operation",
    }
)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A signing key to be; `entropy` was drawn before the transaction."""

    curve: Curve
    secret: bytes
    entropy: bytes


@dataclass(frozen=True, slots=True)
class Act:
    """One act on one identity. `new_key` is never stored: the row holds the `key_id` made of it."""

    kind: ActKind
    aid: int
    did: Did
    operation: PlcOperation | None = None
    handle: Handle | None = None
    key_id: int | None = None
    new_key: NewKey | None = None
    actor: str | None = None
    """The operator who wants it, for the audit trail; None for the owner."""
    note: str | None = None

    def ordered(self, order: Order | None) -> "Act":
        """Return the same act, done on behalf of an operator."""
        if order is None:
            return self
        return replace(self, actor=order.actor, note=order.note)

    def with_operation(self, operation: PlcOperation) -> "Act":
        """Return the same act with the operation that is about to be sent."""
        return replace(self, operation=operation)


@dataclass(frozen=True, slots=True)
class Done:
    """What an act has changed."""

    old_handle: Handle | None


def encode_act(act: Act) -> bytes:
    """Return the journal's form."""
    return orjson.dumps(
        {
            "kind": act.kind,
            "aid": act.aid,
            "did": act.did,
            "operation": None if act.operation is None else act.operation.to_json(),
            "handle": act.handle,
            "key_id": act.key_id,
            "actor": act.actor,
            "note": act.note,
        }
    )


def decode_act(state: bytes) -> Act:
    """Read the journal's form; raises Corrupt."""
    try:
        fields: dict[str, Any] = orjson.loads(state)
        operation = fields["operation"]
        return Act(
            kind=ActKind(fields["kind"]),
            aid=fields["aid"],
            did=Did(fields["did"]),
            operation=None if operation is None else parse_operation(operation),
            handle=fields["handle"],
            key_id=fields["key_id"],
            actor=fields["actor"],
            note=fields["note"],
        )
    except (KeyError, TypeError, ValueError, PlcError) as error:
        raise Corrupt("a journal row of an identity cannot be read") from error


def no_account() -> RequestError:
    """The account was deleted under its session."""
    return RequestError("AccountNotFound", "Account not found", 403)


def check_not_taken_down(account: Account) -> None:
    """Refuse owners whose account the operator has closed (XRPC-24)."""
    if account.status in (AccountStatus.TAKENDOWN, AccountStatus.SUSPENDED):
        raise RequestError("AccountTakedown", "Account has been taken down", 401)


def check_handle_free(txn: Txn, handle: Handle, aid: int | None, *, allow_reserved: bool) -> None:
    """Refuse a handle that another account has, is about to have, or that is set aside.

    Raises: RequestError `HandleNotAvailable`. Spec: ACC-2
    """
    holder = get_account_by_handle(txn, handle)
    is_held = holder is not None and holder.aid != aid
    if (
        is_held
        or get_journal(txn, JOURNAL_KIND, handle) is not None
        or get_journal(txn, HANDLE_KIND, handle) is not None
    ):
        raise RequestError("HandleNotAvailable", f"Handle already taken: {handle}")
    if not allow_reserved and holder is None and is_handle_reserved(txn, handle):
        raise RequestError("HandleNotAvailable", "Reserved handle")


def find_act(txn: Txn, kind: str, subject: str) -> JournalRow | None:
    """Return the open act on this DID (`ACT_KIND`), or for this handle (`HANDLE_KIND`)."""
    row = get_journal(txn, kind, subject)
    if row is None or kind == ACT_KIND:
        return row
    return get_journal(txn, ACT_KIND, row.state.decode())


def under_way() -> RequestError:
    """An identity changes one thing at a time."""
    return RequestError(
        "InvalidRequest", "Another change of this identity is under way, try again later"
    )


class ActRows:
    """Writes, finishes and drops the rows of acts. Jobs of transactions, all of them."""

    def __init__(
        self, *, keystore: Keystore, cache: AccountCache, nodes: NodeCache, clock_id: int
    ) -> None:
        self._keystore = keystore
        self._cache = cache
        self._nodes = nodes
        self._clock_id = clock_id

    def moment(self, now_us: int) -> Moment:
        """Return what a new rev is made of."""
        return Moment(now_us, self._clock_id)

    def reserve(
        self, txn: Txn, act: Act, check: Callable[[Txn], None], now_us: int
    ) -> tuple[int, Act]:
        """Write the rows of an act that may be done; return its number, and the act with its key.

        Raises: RequestError.
        """
        txn.lock_accounts((act.aid,))
        check(txn)
        if get_journal(txn, ACT_KIND, act.did) is not None:
            raise under_way()
        if act.new_key is not None:
            key_id, _ = self._keystore.create_signing_key(
                txn,
                act.aid,
                curve=act.new_key.curve,
                secret=act.new_key.secret,
                entropy=act.new_key.entropy,
                now_us=now_us,
            )
            act = replace(act, key_id=key_id, new_key=None)
        if act.operation is not None:
            note_passed_on(txn, act.aid, act.operation.cid, now_us=now_us)
        if act.handle is not None:
            insert_journal(
                txn, kind=HANDLE_KIND, subject=act.handle, state=act.did.encode(), now_us=now_us
            )
        journal_id = insert_journal(
            txn, kind=ACT_KIND, subject=act.did, state=encode_act(act), now_us=now_us
        )
        return journal_id, act

    def record(self, txn: Txn, journal_id: int, act: Act, now_us: int) -> bool:
        """Put the operation into the row; return whether the row was there."""
        if get_journal_by_id(txn, journal_id) is None:
            return False
        update_journal(txn, journal_id, state=encode_act(act), attempts=0, now_us=now_us)
        return True

    def put_off(self, txn: Txn, journal_id: int, now_us: int) -> None:
        """Note that the act could not be settled now."""
        row = get_journal_by_id(txn, journal_id)
        if row is not None:
            update_journal(
                txn, journal_id, state=row.state, attempts=row.attempts + 1, now_us=now_us
            )

    def undo(self, txn: Txn, journal_id: int, judged: bytes | None = None) -> bool:
        """Drop an act whose operation the directory does not have, and never will.

        With `judged` only if the row still is what was judged: its owner may have been about to
        send something. Return whether the act is closed now.
        """
        row = get_journal_by_id(txn, journal_id)
        if row is not None and judged is not None and row.state != judged:
            return False
        act = self._close(txn, journal_id)
        if act is not None and act.key_id is not None:
            self._keystore.delete_signing_key(txn, act.key_id)
        return True

    def confirm(self, txn: Txn, journal_id: int, moment: Moment) -> Done | None:
        """Change what the act is about and tell the world; None if somebody else closed the act.

        An account that was deleted meanwhile has nothing left to change.
        """
        act = self._close(txn, journal_id)
        if act is None:
            return None
        txn.lock_accounts((act.aid,))
        account = get_account_by_aid(txn, act.aid)
        if account is None or account.did != act.did:
            return Done(None)
        self._cache.forget_after(txn, act.aid)
        before: str | None = None
        after: str | None = None
        match act.kind:
            case ActKind.HANDLE:
                before, after = account.handle, act.handle
                self._take_handle(txn, act)
            case ActKind.SIGNING_KEY:
                before, after = self._take_key(txn, act, account.key_id, moment)
            case ActKind.ENDPOINT:
                after = _endpoint(act.operation)
                emit_identity(txn, act.aid, act.did, None)
            case ActKind.SUBMITTED:
                emit_identity(txn, act.aid, act.did, None)
        if act.actor is not None:
            note_act(
                txn,
                Order(act.actor, act.note),
                _ACT_NAMES[act.kind],
                act.did,
                now_us=moment.now_us,
                before={_CHANGED[act.kind]: before},
                after={_CHANGED[act.kind]: after},
            )
        return Done(account.handle)

    def _take_handle(self, txn: Txn, act: Act) -> None:
        if act.handle is None:
            raise Corrupt("an act on a handle names none")
        holder = get_account_by_handle(txn, act.handle)
        if holder is not None and holder.aid != act.aid:
            # The reservation forbids it, so this is damage; the rows must not fail over it for
            # ever, and the owner sees a handle that does not hold in both directions.
            _log.error("identity.handle_was_taken", did=act.did, handle=act.handle)
            return
        update_handle(txn, act.aid, act.handle)
        emit_identity(txn, act.aid, act.did, act.handle)

    def _take_key(
        self, txn: Txn, act: Act, old_key_id: int | None, moment: Moment
    ) -> tuple[str | None, str]:
        """Sign with the new key from here on, and return old and new as did:key (ID-72).

        The old one is not needed any more.
        """
        if act.key_id is None:
            raise Corrupt("an act on a signing key names none")
        new = self._keystore.did_key(txn, act.key_id)
        old = None if old_key_id is None else self._keystore.did_key(txn, old_key_id)
        update_key(txn, act.aid, act.key_id)
        reserved = get_reserved_key(txn, act.did, since_us=0)
        if reserved is not None and reserved.did_key == new:
            delete_reserved_key(txn, act.did)
        emit_identity(txn, act.aid, act.did, None)
        account = get_account_repo(txn, act.aid)
        if account is not None and account.repo is not None:
            signer = self._keystore.signer(txn, act.key_id)
            repo = account.repo
            if account.is_active:
                finished = restate_head(
                    txn, account, repo, signer, moment=moment, cache=self._nodes
                )
                signed, rev = finished.signed, finished.plan.rev
                emit_sync(txn, act.aid, act.did, signed.cid, signed.block, rev=rev)
            else:  # Nobody may hear of its commits (ACC-6); an export must verify all the same.
                rev = moment.rev_after(repo.head.rev)
                signed = sign_commit(signer, did=act.did, data=repo.head.data, rev=rev)
                head = Head(act.did, signed.cid, rev, repo.head.data)
                update_head(
                    txn, repo.repo_id, head, signed.block,
                    more_records=0, more_nodes=0, now_us=moment.now_us,
                )  # fmt: skip
        if old_key_id is not None and old_key_id != act.key_id:
            self._keystore.delete_signing_key(txn, old_key_id)
        return old, new

    def _close(self, txn: Txn, journal_id: int) -> Act | None:
        row = get_journal_by_id(txn, journal_id)
        if row is None:
            return None
        act = decode_act(row.state)
        delete_journal(txn, journal_id)
        if act.handle is not None:
            reserved = get_journal(txn, HANDLE_KIND, act.handle)
            if reserved is not None and reserved.state == act.did.encode():
                delete_journal(txn, reserved.journal_id)
        return act


def _endpoint(operation: PlcOperation | None) -> str | None:
    """Return the URL that an operation gives to the host of the account."""
    state = None if operation is None else operation.state
    service = None if state is None else state.services.get(PDS_SERVICE_ID)
    return None if service is None else service.endpoint
