"""What becomes of a half-made account: the journal of creation, settled after any crash.

`reserve` writes the row, `publish` sends the operation, `complete` makes the account, `take_back`
undoes what was published. `settle` decides about a row that nobody works on, by asking the
directory what became of the operation:

| row | directory | then |
|---|---|---|
| any | does not know the DID | forget the row |
| any | has a tombstone | forget the row |
| open | has the DID | make the account; if it cannot be made any more: tombstone, forget |
| undo | has the DID | tombstone, forget |
| any | cannot be asked | later |

Spec: (ACC-11, ACC-12, ID-65)
"""

import contextlib
import secrets
from typing import Final

from pds.errors import NotResolvable, Rejected, RemoteError, RequestError, StoreError
from pds.log import get_logger
from pds.protocol.keys import Signer
from pds.protocol.plc import PlcOperation, make_tombstone, sign_operation
from pds.protocol.syntax import Handle
from pds.protocol.tid import next_tid
from pds.services.account_draft import (
    JOURNAL_KIND,
    Draft,
    DraftPhase,
    decode_draft,
    encode_draft,
)
from pds.services.account_rows import AccountRows, Claim, NewRows, check_claim
from pds.services.journal_settling import JournalSettings, Settled
from pds.services.plc_asking import PlcInTime, PlcPublisher, no_answer
from pds.services.sessions import Opening
from pds.store.accounts import Account, get_account_by_did
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.journal import (
    JournalRow,
    delete_journal,
    get_journal,
    get_journal_by_id,
    insert_journal,
    list_journal,
    update_journal,
)
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore
from pds.store.sessions import Session

_log: Final = get_logger(__name__)


class AccountJournal:
    """Writes, completes and undoes the journal rows of account creation."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        rows: AccountRows,
        plc: PlcPublisher,
        rotation_signer: Signer,
        settings: JournalSettings | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._rows = rows
        self._rotation_signer = rotation_signer
        self._settings = settings or JournalSettings()
        self._plc = PlcInTime(plc, self._settings.plc_timeout_s)
        self._under_way: set[int] = set()
        self._reserving = 0
        """Acts whose row may be there already, while its id is not yet known here."""
        self._has_recovered = False

    # The act itself

    async def reserve(self, draft: Draft) -> int:
        """Write the row, which also reserves the handle, and return its id.

        Raises: RequestError when something that it claims is not free.
        """
        self._reserving += 1
        try:
            journal_id = await self._engine.transact(
                "account.reserve", _reserve, draft, self._clock.now_us()
            )
            self._under_way.add(journal_id)
        finally:
            self._reserving -= 1
        return journal_id

    async def settle_handle(self, handle: Handle) -> None:
        """Settle what an earlier act left under this handle, if nobody works on it.

        Its client was refused and asks again, or somebody else asks much later.
        """
        row = await self._engine.read("account.reserved", get_journal, JOURNAL_KIND, handle)
        if row is None or row.journal_id in self._under_way:
            return
        if decode_draft(row.state).phase is DraftPhase.UNDO or self._is_due(row):
            await self.settle(row)

    async def publish(self, journal_id: int, draft: Draft) -> None:
        """Send the genesis operation to the directory.

        Raises: RequestError `InvalidRequest` when the directory refuses it, `UpstreamFailure`
        when it is not known what became of it; the row is then settled or marked.
        """
        try:
            await self._plc.submit(draft.did, draft.operation)
        except Rejected as error:
            await self._engine.transact("account.forget", delete_journal, journal_id)
            raise RequestError("InvalidRequest", str(error)) from error
        except RemoteError as error:
            await self._mark_undo(journal_id, draft)
            raise no_answer("the account was not made, try again later") from error

    async def complete(
        self, journal_id: int, draft: Draft, opening: Opening | None
    ) -> tuple[Account, Session | None]:
        """Make the account and forget the row, in one transaction.

        The directory has the operation by now, so the events that go out with the account name an
        identity that resolves (SYNC-43).

        Raises: RequestError when handle, address or invite were taken meanwhile.
        """
        now_us = self._clock.now_us()
        new = NewRows(
            did=draft.did,
            claim=claim_of(draft),
            password_hash=draft.password_hash,
            curve=draft.curve,
            secret=draft.secret(self._keystore),
            key_entropy=secrets.token_bytes(KEY_ENTROPY_BYTES),
            rev=next_tid(None, now_us, secrets.randbelow(1024)),
            now_us=now_us,
            opening=opening,
            journal_id=journal_id,
            is_active=True,
        )
        return await self._engine.transact("account.create", self._rows.insert, new)

    async def take_back(self, journal_id: int, draft: Draft, last: PlcOperation) -> Settled:
        """Tombstone a DID that was made in this act, and forget the row (ACC-11).

        The row is marked first, so that nobody can complete the account any more. If it is gone,
        somebody else settled the act while we were held up: an account that exists keeps its DID.
        """
        is_ours = await self._mark_undo(journal_id, draft)
        if not is_ours:
            account = await self._engine.read("account.get", get_account_by_did, draft.did)
            if account is not None:
                return Settled.COMPLETED
        tombstone = sign_operation(make_tombstone(last), self._rotation_signer)
        try:
            await self._plc.submit(draft.did, tombstone)
        except RemoteError as error:
            _log.warning("account.tombstone_failed", did=draft.did, reason=str(error))
            return Settled.WAITING
        await self._engine.transact("account.forget", delete_journal, journal_id)
        return Settled.UNDONE

    def release(self, journal_id: int) -> None:
        """Say that nobody here works on the row any more."""
        self._under_way.discard(journal_id)

    # What is left over

    async def recover(self, *, now: bool | None = None) -> dict[Settled, int]:
        """Settle the rows that nobody works on, and return how many went which way.

        With `now` also the young ones, which another node might be at work on; unless told
        otherwise that is the first run of a process that has the database for itself. A row that
        cannot be settled stops no other.
        """
        if now is None:
            now = self._settings.exclusive and not self._has_recovered
        outcome = dict.fromkeys(Settled, 0)
        rows = await self._engine.read("account.journal", list_journal, JOURNAL_KIND)
        if self._reserving:
            now = False
        else:
            self._has_recovered = True
        for row in rows:
            settled = Settled.WAITING
            if row.journal_id not in self._under_way and (now or self._is_due(row)):
                settled = await self.settle(row)
            outcome[settled] += 1
        return outcome

    async def settle(self, row: JournalRow) -> Settled:
        """Complete or undo one row; see the table above."""
        self._under_way.add(row.journal_id)
        try:
            settled = await self._settle(row)
        except Exception as error:
            # Logged and put off, whatever it was: a row must never stop the others or the start.
            _log.error("account.settle_failed", exc=error, journal_id=row.journal_id)
            with contextlib.suppress(StoreError):  # Then it is simply due again.
                await self._put_off(row)
            return Settled.WAITING
        finally:
            self._under_way.discard(row.journal_id)
        _log.info("account.settled", journal_id=row.journal_id, outcome=settled)
        return settled

    async def _settle(self, row: JournalRow) -> Settled:
        draft = decode_draft(row.state)
        try:
            last = await self._plc.get_last_op(draft.did)
        except NotResolvable:
            last = None
        except RemoteError:
            await self._put_off(row)
            return Settled.WAITING
        if last is None or last.is_tombstone:
            await self._engine.transact("account.forget", delete_journal, row.journal_id)
            return Settled.UNDONE
        if draft.phase is DraftPhase.OPEN:
            try:
                await self.complete(row.journal_id, draft, None)
            except RequestError as error:
                _log.info("account.not_completed", did=draft.did, error=error.name)
            else:
                return Settled.COMPLETED
        return await self.take_back(row.journal_id, draft, last)

    def _is_due(self, row: JournalRow) -> bool:
        if row.journal_id in self._under_way:
            return False
        return self._settings.is_due(row, self._clock.now_us())

    async def _put_off(self, row: JournalRow) -> None:
        await self._engine.transact(
            "account.put_off",
            _update,
            row.journal_id,
            row.state,
            row.attempts + 1,
            self._clock.now_us(),
        )

    async def _mark_undo(self, journal_id: int, draft: Draft) -> bool:
        """Mark the row, and return whether it was there."""
        state = encode_draft(draft.marked(DraftPhase.UNDO))
        return await self._engine.transact(
            "account.mark_undo", _mark, journal_id, state, self._clock.now_us()
        )


def claim_of(draft: Draft) -> Claim:
    """What the account of this draft claims."""
    return Claim(draft.did, draft.handle, draft.email, draft.invite_code)


def _reserve(txn: Txn, draft: Draft, now_us: int) -> int:
    check_claim(txn, claim_of(draft))
    return insert_journal(
        txn, kind=JOURNAL_KIND, subject=draft.handle, state=encode_draft(draft), now_us=now_us
    )


def _update(txn: Txn, journal_id: int, state: bytes, attempts: int, now_us: int) -> None:
    update_journal(txn, journal_id, state=state, attempts=attempts, now_us=now_us)


def _mark(txn: Txn, journal_id: int, state: bytes, now_us: int) -> bool:
    row = get_journal_by_id(txn, journal_id)
    if row is None:
        return False
    was_marked = decode_draft(row.state).phase is DraftPhase.UNDO
    attempts = row.attempts + 1 if was_marked else 0
    update_journal(txn, journal_id, state=state, attempts=attempts, now_us=now_us)
    return True
