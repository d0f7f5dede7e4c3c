"""Changes of an identity whose account lives here: one operation and our rows, both or neither.

A new handle, a new signing key and an operation that an owner submits all touch the PLC directory
and our database. A crash or a dead directory between the two must not leave them different (promise
A8). So each such act goes this way:

1. one transaction checks everything in our database and writes a journal row under the DID, so that
   an identity has one act at a time; a new handle is reserved by a second row under its name;
2. the directory is asked for the last operation; the next one is made and signed;
3. it is written into the row;
4. it is sent to the directory;
5. one transaction changes our rows, emits the events and deletes the journal rows.

What is left over is finished forwards: the same operation is sent again, which is harmless when the
directory has it, and impossible when the identity has moved on, because an operation names the one
before it. So a row ends in one of two ways, whatever was told to the client:

| row | directory | then |
|---|---|---|
| without operation | nothing was sent | forget the row |
| with operation | takes it, or has it | step 5 |
| with operation | refuses it | forget the row |
| with operation | cannot be asked, or is asked too often | later |

Spec: (ID-25, ID-60, ID-72, SYNC-43)
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pds.errors import Rejected, RemoteError, RequestError, StoreError, invalid_request
from pds.identity.errors import PlcRateLimited
from pds.log import get_logger
from pds.protocol.keys import Signer
from pds.protocol.plc import (
    OperationJson,
    PlcError,
    PlcOperation,
    check_limits,
    sign_operation,
)
from pds.protocol.syntax import Did
from pds.services.identity_acts import (
    ACT_KIND,
    Act,
    ActRows,
    decode_act,
    find_act,
    under_way,
)
from pds.services.journal_settling import JournalSettings, Settled
from pds.services.plc_asking import PlcInTime, PlcPublisher, no_answer, refusing_without_plc
from pds.services.resolving import Forgetful
from pds.services.unbroken import UnbrokenActs
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.journal import JournalRow, list_journal
from pds.store.reserved_handles import HANDLE_KIND

_log: Final = get_logger(__name__)

Check = Callable[[Txn], None]
"""Refuses an act in the transaction that reserves it."""
Build = Callable[[PlcOperation], "OperationJson | None"]
"""Makes the unsigned operation that follows the last one; None when it says so already.

Raises: RequestError, PlcError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One act: what it is, what refuses it, and how its operation is made.

    Without `build` there is nothing to send: the operation is in the act already, or the identity
    is one that its owner publishes (did:web).
    """

    act: Act
    check: Check
    build: Build | None = None


class IdentityJournal:
    """Carries out acts on identities, and settles those that were cut short."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        rows: ActRows,
        plc: PlcPublisher,
        rotation_signer: Signer,
        resolver: Forgetful,
        settings: JournalSettings | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._rows = rows
        self._rotation_signer = rotation_signer
        self._resolver = resolver
        self._settings = settings or JournalSettings()
        self._plc = PlcInTime(plc, self._settings.plc_timeout_s)
        self._busy: set[str] = set()
        self._acts = UnbrokenActs()
        self._has_recovered = False

    async def carry_out(self, plan: Plan) -> None:
        """Do all of it; a caller who leaves does not stop it.

        Raises: RequestError, `UpstreamFailure` 502 when the directory did not answer.
        """
        await self._acts.run(self._carry_out(plan))

    async def rehearse(self, plan: Plan) -> None:
        """Check what can be checked without changing anything. Raises: RequestError."""
        await self._engine.read("identity.rehearse", plan.check)
        if plan.build is not None:
            plan.build(await self._ask_last(plan.act.did))

    async def settle(self, did: Did) -> bool:
        """Settle what an earlier act left under this DID; return whether nothing is open now."""
        if did in self._busy:
            return False
        self._busy.add(did)
        try:
            await self._settle_left_over(ACT_KIND, did)
        finally:
            self._busy.discard(did)
        return await self._engine.read("identity.left_over", find_act, ACT_KIND, did) is None

    async def close(self) -> None:
        """Wait for the acts that are under way."""
        await self._acts.close()

    async def _carry_out(self, plan: Plan) -> None:
        did = plan.act.did
        if did in self._busy:
            raise under_way()
        self._busy.add(did)
        try:
            await self._settle_left_over(ACT_KIND, did)
            if plan.act.handle is not None:
                await self._settle_left_over(HANDLE_KIND, plan.act.handle)
            await self._do(plan)
        finally:
            self._busy.discard(did)

    async def _do(self, plan: Plan) -> None:
        journal_id, act = await self._engine.transact(
            "identity.reserve", self._rows.reserve, plan.act, plan.check, self._clock.now_us()
        )
        if plan.build is not None:
            act = await self._prepare(journal_id, act, plan.build)
        if act.operation is not None:
            await self._publish(journal_id, act.did, act.operation)
        if not await self._confirm(journal_id, act):
            raise _settled_meanwhile()  # By another node; what it found is in the rows.

    async def _prepare(self, journal_id: int, act: Act, build: Build) -> Act:
        """Make the operation and write it into the row; nothing was sent before that."""
        try:
            last = await self._ask_last(act.did)
            if last.is_tombstone:
                raise invalid_request("The DID was ended by a tombstone")
            fields = build(last)
            if fields is None:
                return act
            operation = sign_operation(fields, self._rotation_signer)
            check_limits(operation)
        except (RequestError, PlcError) as error:
            await self._engine.transact("identity.undo", self._rows.undo, journal_id)
            if isinstance(error, PlcError):
                raise invalid_request(f"No valid operation can be made: {error}") from error
            raise
        act = act.with_operation(operation)
        is_ours = await self._engine.transact(
            "identity.record", self._rows.record, journal_id, act, self._clock.now_us()
        )
        if not is_ours:
            raise _settled_meanwhile()
        return act

    async def _ask_last(self, did: Did) -> PlcOperation:
        with refusing_without_plc("nothing was changed, try again later"):
            return await self._plc.get_last_op(did)

    async def _publish(self, journal_id: int, did: Did, operation: PlcOperation) -> None:
        try:
            await self._plc.submit(did, operation)
        except Rejected as error:
            await self._engine.transact("identity.undo", self._rows.undo, journal_id)
            if isinstance(error, PlcRateLimited):
                raise RequestError("RateLimitExceeded", str(error), 429) from error
            raise invalid_request(str(error)) from error
        except RemoteError as error:
            raise no_answer("the change is made as soon as it does") from error

    async def _confirm(self, journal_id: int, act: Act) -> bool:
        """Change our rows, and return whether the act was still open."""
        moment = self._rows.moment(self._clock.now_us())
        done = await self._engine.transact(
            "identity.confirm", self._rows.confirm, journal_id, moment
        )
        if done is None:
            return False
        await self._resolver.forget(act.did, act.handle)
        if done.old_handle is not None:
            await self._resolver.forget(act.did, done.old_handle)
        return True

    # What is left over

    async def _settle_left_over(self, kind: str, subject: str) -> None:
        """Settle what an earlier act left under this DID or handle, if nobody works on it.

        Its client was told that it is not done yet, and asks again.
        """
        row = await self._engine.read("identity.left_over", find_act, kind, subject)
        if row is None or (kind == HANDLE_KIND and row.subject in self._busy):
            return
        age_us = self._clock.now_us() - row.updated_at
        if self._settings.exclusive or age_us >= self._settings.grace_s * US_PER_S:
            await self._settle(row)

    async def recover(self, *, now: bool | None = None) -> dict[Settled, int]:
        """Settle the acts that nobody works on; as `AccountJournal.recover`."""
        if now is None:
            now = self._settings.exclusive and not self._has_recovered
        now_us = self._clock.now_us()
        outcome = dict.fromkeys(Settled, 0)
        for row in await self._engine.read("identity.journal", list_journal, ACT_KIND):
            settled = Settled.WAITING
            if row.subject not in self._busy and (now or self._settings.is_due(row, now_us)):
                self._busy.add(row.subject)
                try:
                    settled = await self._settle(row)
                finally:
                    self._busy.discard(row.subject)
            outcome[settled] += 1
        self._has_recovered = True
        return outcome

    async def _settle(self, row: JournalRow) -> Settled:
        """Finish or undo one act; see the table above."""
        try:
            settled = await self._finish(row)
        except Exception as error:
            # Logged and put off, whatever it was: a row must never stop the others or the start.
            _log.error("identity.settle_failed", exc=error, journal_id=row.journal_id)
            settled = Settled.WAITING
        if settled is Settled.WAITING:
            with contextlib.suppress(StoreError):  # Then it is simply due again.
                await self._engine.transact(
                    "identity.put_off", self._rows.put_off, row.journal_id, self._clock.now_us()
                )
        _log.info("identity.settled", journal_id=row.journal_id, outcome=settled)
        return settled

    async def _finish(self, row: JournalRow) -> Settled:
        act = decode_act(row.state)
        if act.operation is not None:
            try:
                await self._plc.submit(act.did, act.operation)
            except PlcRateLimited:
                return Settled.WAITING
            except Rejected as error:
                _log.info("identity.not_completed", did=act.did, reason=str(error))
            except RemoteError:
                return Settled.WAITING
            else:
                await self._confirm(row.journal_id, act)
                return Settled.COMPLETED
        is_closed = await self._engine.transact(
            "identity.undo", self._rows.undo, row.journal_id, row.state
        )
        return Settled.UNDONE if is_closed else Settled.WAITING


def _settled_meanwhile() -> RequestError:
    return invalid_request(
        "The change was settled meanwhile, look at the account before trying again"
    )
