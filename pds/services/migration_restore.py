"""Gives an identity back what it said before a move that is undone.

Only as long as our operation is the newest: what somebody else has changed since is not ours to
overwrite. Our key is among the rotation keys by then, so we sign; the journal of identities makes
sure that it happens or does not.
"""

from typing import Any

from pds.errors import RequestError
from pds.protocol.plc import PlcOperation, PlcState, operation_fields, parse_operation
from pds.services.identity_acts import Act, ActKind
from pds.services.identity_journal import Plan
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_work import Work
from pds.store.engine import Txn


async def restore_identity(work: Work) -> None:
    """Undo the operation of this move, if the directory has it.

    Raises: MoveProblem, RemoteError.
    """
    operation = parse_operation(work.state.operation)
    log = await work.parts.plc.get_audit_log(work.did)
    cids = [entry.operation.cid for entry in log.active]
    if operation.cid not in cids:
        return
    at = cids.index(operation.cid)
    if at == 0 or at != len(cids) - 1:
        raise MoveProblem(
            Code.TOO_LATE,
            "The identity has been changed again since this move changed it",
            "Change it by hand, with a rotation key",
        )
    before = log.active[at - 1].operation.state
    if before is None:
        raise MoveProblem(
            Code.TOO_LATE, "The identity was ended by a tombstone before", "It stays as it is"
        )
    try:
        await work.parts.identity_journal.carry_out(_plan(work, operation, before))
    except RequestError as error:
        raise MoveProblem(
            Code.DIRECTORY_UNREACHABLE,
            f"The identity could not be given back: {error.message}",
            "Undo the move again in a while",
        ) from error
    work.state.operation = None
    work.switched_at = None
    await work.save()


def _plan(work: Work, ours: PlcOperation, before: PlcState) -> Plan:
    def check(_txn: Txn) -> None:
        """Whatever the rows say, the directory is put back."""

    def build(last: PlcOperation) -> dict[str, Any] | None:
        if last.state == before:
            return None  # An attempt before this one got there.
        if last.cid != ours.cid:
            raise RequestError("InvalidRequest", "The identity was changed meanwhile")
        return operation_fields(before, prev=last.cid)

    return Plan(act=Act(ActKind.SUBMITTED, work.aid, work.did), check=check, build=build)
