"""Watches the PLC log of every account that lives here: who changes an identity behind our back?

Each account is looked at every few hours, some at a time: one small question for its last
operation and, only if that is new, its log, verified from genesis. An operation counts as ours when
our rotation key has signed it, and as the owner's when it was passed on here. Any other one is
reported, once: a row in the audit trail, a line in the log at ERROR, a mail to the owner and one to
the operator. For 72 hours a key above the one that has signed it can take it back (`countermands`).

An owner who uses a key of his own elsewhere is reported too, to himself; nothing is done on a
report. What was in the log before an account came here is taken as it is.

Spec: (ID-55, ID-61)
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pds.errors import NotResolvable, RemoteError, RequestError
from pds.log import get_logger
from pds.protocol.plc_log import RECOVERY_WINDOW_US
from pds.protocol.plc_recovery import Signed, list_signed
from pds.protocol.syntax import format_datetime
from pds.services.audit import Order, note_act
from pds.services.plc_asking import PlcLogReader
from pds.services.settings import setting
from pds.store.accounts import Account, get_account_by_aid
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn
from pds.store.plc_watch import (
    ForeignOperation,
    WatchedAccount,
    count_recent,
    forget_idle,
    get_watched,
    has_idle,
    insert_foreign,
    list_due,
    list_foreign,
    list_untold,
    put_look,
    set_told,
)

EVERY_S: Final = 300
"""Between two runs of the job."""
BATCH: Final = 500
"""Accounts looked at in one run: 6,000 an hour."""
AT_ONCE: Final = 20
PAUSE_S: Final = 4.0
"""After so many questions, so that there are five a second: the directory is everybody's."""
MAX_UNKNOWN: Final = 5
"""So many questions without an answer end a run: the directory has other troubles than ours."""
IDLE_US: Final = 4 * 86_400 * US_PER_S
"""A deactivated account is watched for so long: it may be the attacker who has moved it away."""
ACTOR: Final = "plc-watch"
ACT: Final = "account.foreign-operation"

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcWatchSettings:
    """How closely identities are watched."""

    every_s: int = setting(
        "PDS_PLC_WATCH_INTERVAL_S",
        "Seconds between two looks at the PLC log of one account; 0 watches none. An operation that"
        " this server did not make can be taken back for 72 hours.",
        default=3 * 3600,
    )
    operator_address: str | None = setting(
        "PDS_ALARM_EMAIL_ADDRESS",
        "Where mail about changed identities goes, beside that to the account's holder;"
        " PDS_CONTACT_EMAIL_ADDRESS when unset.",
    )


class AlarmMails(Protocol):
    """Sends what is to be read at once (`pds.services.account_mails.AccountMails`)."""

    async def send_plc_alarm(
        self, account: Account, *, to: str, cid: str, signer: str, accepted: str, deadline: str
    ) -> None:
        """Tell somebody of an operation; raises RemoteError."""


class PlcWatch:
    """Looks at logs, and tells."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        plc: PlcLogReader,
        mails: AlarmMails,
        server_key: str,
        operator_address: str | None,
        settings: PlcWatchSettings,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._plc = plc
        self._mails = mails
        self._server_key = server_key
        self._operator_address = operator_address
        self._pause_s = pause_s
        self.settings = settings
        self.open_alarms = 0
        """Foreign operations that can still be taken back, for the metrics."""

    async def sweep(self) -> dict[str, int]:
        """Look at accounts that are due, and tell of what was found; return the numbers."""
        counts = {"looked": 0, "foreign": 0, "unknown": 0}
        if not self.settings.every_s:
            return counts
        now_us = self._clock.now_us()
        due, is_idle = await self._engine.read("plc_watch.due", self._list_due, now_us)
        if is_idle:
            await self._engine.transact("plc_watch.idle", forget_idle, now_us - IDLE_US, bulk=True)
        for number, account in enumerate(due, 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(self._pause_s)
            try:
                counts["foreign"] += await self.look(account)
                counts["looked"] += 1
            except RemoteError as error:
                # It stays due; an unreachable directory says nothing about anybody.
                counts["unknown"] += 1
                _log.info("plc_watch.not_looked", did=account.did, reason=str(error))
                if counts["unknown"] >= MAX_UNKNOWN:
                    break
        await self._tell()
        since_us = self._clock.now_us() - RECOVERY_WINDOW_US
        self.open_alarms = await self._engine.read("plc_watch.open", count_recent, since_us)
        return counts

    async def look_now(self, aid: int) -> list[Any]:
        """Look at one account at once, tell, and return its foreign operations that still count.

        Raises: RequestError `InvalidRequest`; RemoteError.
        """
        watched = await self._engine.read("plc_watch.get", get_watched, aid)
        if watched is None or not watched.did.startswith("did:plc:"):
            raise RequestError("InvalidRequest", "Only did:plc identities have a log to look at")
        await self.look(watched)
        await self._tell()
        since_us = self._clock.now_us() - RECOVERY_WINDOW_US
        found = await self._engine.read("plc_watch.foreign", list_foreign, aid)
        return [_view(entry) for entry in found if entry.accepted_at > since_us]

    async def look(self, account: WatchedAccount) -> int:
        """Judge what is new in one log; return how many foreign operations were noted.

        Raises: RemoteError.
        """
        try:
            if (await self._plc.get_last_op(account.did)).cid == account.last_cid:
                return await self._write(account, [], account.last_cid, account.seen_at or 0)
            log = await self._plc.get_audit_log(account.did)
        except NotResolvable:
            # Tombstones are operations too: this is no DID of this directory.
            _log.warning("plc_watch.unknown_did", did=account.did)
            return await self._write(account, [], account.last_cid or "", account.seen_at or 0)
        foreign: list[Signed] = []
        if account.seen_at is not None:
            seen_at = account.seen_at
            new = [found for found in list_signed(log) if found.entry.created_at_us > seen_at]
            foreign = [found for found in new if found.key != self._server_key]
        newest_us = log.entries[-1].created_at_us
        return await self._write(account, foreign, log.active[-1].operation.cid, newest_us)

    async def _write(
        self, account: WatchedAccount, foreign: list[Signed], last_cid: str, seen_at: int
    ) -> int:
        return await self._engine.transact(
            "plc_watch.note",
            self._note,
            account,
            foreign,
            last_cid,
            seen_at,
            accounts=(account.aid,),
        )

    def _list_due(self, txn: Txn, now_us: int) -> tuple[list[WatchedAccount], bool]:
        due = list_due(
            txn,
            looked_before=now_us - self.settings.every_s * US_PER_S,
            deactivated_after=now_us - IDLE_US,
            limit=BATCH,
        )
        return due, has_idle(txn, now_us - IDLE_US)

    def _note(
        self,
        txn: Txn,
        account: WatchedAccount,
        foreign: list[Signed],
        last_cid: str,
        seen_at: int,
    ) -> int:
        """Write down what was found; the audit row is there when the look is."""
        now_us = self._clock.now_us()
        if get_account_by_aid(txn, account.aid) is None:
            return 0
        count = 0
        for found in foreign:
            entry = found.entry
            operation = ForeignOperation(
                account.aid, entry.operation.cid, found.key, entry.created_at_us, now_us
            )
            if not insert_foreign(txn, operation):
                continue
            count += 1
            note_act(
                txn,
                Order(ACTOR),
                ACT,
                account.did,
                now_us=now_us,
                after={
                    "operation": entry.operation.cid,
                    "signer": found.key,
                    "acceptedAt": format_datetime(entry.created_at_us),
                    "deadline": format_datetime(found.deadline_us),
                },
            )
        put_look(txn, account.aid, last_cid=last_cid, seen_at=seen_at, now_us=now_us)
        return count

    async def _tell(self) -> None:
        """Tell of what nobody was told of yet; after a crash that is told again, never lost."""
        for found in await self._engine.read("plc_watch.untold", list_untold, BATCH):
            account = await self._engine.read("plc_watch.account", get_account_by_aid, found.aid)
            if account is not None:
                await self._tell_of(account, found)
            await self._engine.transact(
                "plc_watch.told", set_told, found.aid, found.cid, self._clock.now_us()
            )

    async def _tell_of(self, account: Account, found: ForeignOperation) -> None:
        deadline = format_datetime(found.accepted_at + RECOVERY_WINDOW_US)
        accepted = format_datetime(found.accepted_at)
        _log.error(
            "plc_watch.foreign_operation",
            did=account.did,
            operation=found.cid,
            signer=found.signer,
            accepted_at=accepted,
            deadline=deadline,
            remedy=f"pds rescue countermand {account.did}",
        )
        for address in dict.fromkeys((account.email, self._operator_address)):
            if address is None:
                continue
            try:
                await self._mails.send_plc_alarm(
                    account,
                    to=address,
                    cid=found.cid,
                    signer=found.signer,
                    accepted=accepted,
                    deadline=deadline,
                )
            except (RemoteError, RequestError) as error:
                # The log line and the audit row are there; mail must not keep them waiting.
                _log.warning("mail.failed", purpose="plc_alarm", reason=str(error))


def _view(found: ForeignOperation) -> dict[str, Any]:
    return {
        "operation": found.cid,
        "signer": found.signer,
        "acceptedAt": format_datetime(found.accepted_at),
        "deadline": format_datetime(found.accepted_at + RECOVERY_WINDOW_US),
    }
