"""Taking back an operation that somebody else has made on an identity of ours.

Within 72 hours a new operation may fork off before the foreign one and so nullify it and all that
followed, if it is signed with a key that stood higher than the foreign one's. The countermand
states again what the identity was before. Our key can do that against the keys below it; the owner
can with a key above ours, which is signed where the key is: `plan` says what is to be signed and
with which keys, `carry_out` signs with our key or takes the operation that the owner has signed.

Spec: (ACC-62, ID-55, ID-57)
"""

from dataclasses import dataclass
from typing import Any, Final

from pds.errors import RequestError, invalid_request
from pds.protocol.keys import Signer
from pds.protocol.plc import (
    OperationJson,
    PlcError,
    PlcOperation,
    find_signer,
    operation_fields,
    parse_operation,
    sign_operation,
)
from pds.protocol.plc_log import RECOVERY_WINDOW_US, PlcLog
from pds.protocol.plc_recovery import check_can_undo
from pds.protocol.syntax import Did, format_datetime
from pds.services.account_cache import AccountCache
from pds.services.audit import Order
from pds.services.identity_acts import Act, ActKind, no_account
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.plc_asking import PlcHistory, refusing_without_plc
from pds.store.accounts import Account, get_account_by_aid
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.plc_watch import list_foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class Countermand:
    """What would take an operation back.

    `undone` are the CIDs of all operations that it nullifies, `keys` the rotation keys that may
    sign it, `obstacle` says why ours may not.
    """

    account: Account
    fields: OperationJson
    undone: tuple[str, ...]
    signer: str
    keys: tuple[str, ...]
    deadline_us: int
    obstacle: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it for people and for whoever signs it."""
        return {
            "did": self.account.did,
            "operation": self.fields,
            "undone": list(self.undone),
            "signedBy": self.signer,
            "signWith": list(self.keys),
            "deadline": format_datetime(self.deadline_us),
            "obstacle": self.obstacle,
        }


class Countermands:
    """Plans countermands, and sends them."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        accounts: AccountCache,
        plc: PlcHistory,
        journal: IdentityJournal,
        rotation_signer: Signer,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._plc = plc
        self._journal = journal
        self._signer: Final = rotation_signer

    async def plan(self, did: str, cid: str | None = None) -> Countermand:
        """Say what would take back the operation `cid`, or the oldest foreign one.

        Raises: RequestError `AccountNotFound`, `InvalidRequest` with the reason, `UpstreamFailure`.
        """
        account = await self._accounts.get(did)
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 404)
        log = await self._log(account.did)
        cids = [entry.operation.cid for entry in log.active]
        at = cids.index(cid) if cid in cids else -1
        if cid is None:
            known = await self._engine.read("plc_watch.foreign", list_foreign, account.aid)
            foreign = {operation.cid for operation in known}
            since_us = self._clock.now_us() - RECOVERY_WINDOW_US
            at = next(
                (
                    at
                    for at, entry in enumerate(log.active)
                    if entry.operation.cid in foreign and entry.created_at_us > since_us
                ),
                -1,
            )
        if at < 1:
            raise invalid_request(
                "There is no foreign operation that can still be taken back"
                if cid is None
                else "That operation is not in effect, or is the first of the identity"
            )
        return self._countermand(account, log, at)

    async def carry_out(
        self, did: str, *, order: Order, cid: str | None = None, signed: Any = None
    ) -> Countermand:
        """Send the countermand, signed with our key, or as `signed` by the owner.

        Raises: as `plan`.
        """
        plan = await self.plan(did, cid)
        if signed is not None:
            operation = _check_signed(signed, plan)
        elif plan.obstacle is None:
            operation = sign_operation(plan.fields, self._signer)
        else:
            raise invalid_request(_explain(plan))
        account = plan.account

        def check(txn: Txn) -> None:
            found = get_account_by_aid(txn, account.aid)
            if found is None or found.did != account.did:
                raise no_account()

        if not order.is_rehearsal:
            act = Act(ActKind.SUBMITTED, account.aid, account.did, operation=operation)
            await self._journal.carry_out(Plan(act=act.ordered(order), check=check))
        return plan

    def _countermand(self, account: Account, log: PlcLog, at: int) -> Countermand:
        before, target = log.active[at - 1], log.active[at]
        state = before.operation.state
        if state is None:
            raise invalid_request("The identity had been ended before that")
        rank = find_signer(target.operation, state.rotation_keys)
        now_us = self._clock.now_us()
        if now_us - target.created_at_us > RECOVERY_WINDOW_US:
            raise invalid_request(
                f"It is too late: the operation was accepted at"
                f" {format_datetime(target.created_at_us)}, and can be taken back for 72 hours"
            )
        obstacle: str | None = None
        try:
            check_can_undo(log.active, at, self._signer.public_key.did_key, now_us)
        except PlcError as error:
            obstacle = str(error)
        return Countermand(
            account=account,
            fields=operation_fields(state, prev=before.operation.cid),
            undone=tuple(entry.operation.cid for entry in log.active[at:]),
            signer=state.rotation_keys[rank],
            keys=state.rotation_keys[:rank],
            deadline_us=target.created_at_us + RECOVERY_WINDOW_US,
            obstacle=obstacle,
        )

    async def _log(self, did: Did) -> PlcLog:
        with refusing_without_plc("try again at once"):
            return await self._plc.get_audit_log(did)


def _check_signed(content: Any, plan: Countermand) -> PlcOperation:
    try:
        operation = parse_operation(content)
        unsigned = {name: value for name, value in operation.to_json().items() if name != "sig"}
        if unsigned != plan.fields:
            raise invalid_request("That is not the countermand: sign what the plan says")
        find_signer(operation, plan.keys)
    except PlcError as error:
        raise invalid_request(f"The countermand is not valid: {error}") from error
    return operation


def _explain(plan: Countermand) -> str:
    if not plan.keys:
        return (
            f"Nobody can take it back: {plan.signer}, which signed it, was the first rotation key."
            " Only the holder of that key has a say now"
        )
    return (
        f"This server cannot take it back: {plan.obstacle}. One of these keys can, until"
        f" {format_datetime(plan.deadline_us)}: {', '.join(plan.keys)}"
    )
