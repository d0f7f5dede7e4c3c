"""Makes this host of a stopped reference PDS: the same name, keys, accounts and event numbers.

1. *Accounts*, one after another (`reference_import_account`). One in which something is wrong
   is reported, and the others go on; then the run ends here, to be started again when the source is
   repaired or the account is left out on purpose.
2. *Invite codes* and *reserved keys*.
3. *Events*, under their old numbers (`reference_import_events`).

The source is opened for reading only, and looked at again at the end: a server that was started on
it meanwhile has written what is not here. A run that was cut off in whatever way is started again
with the same command; what is done is not done twice. Only an empty host takes over another.

What cannot go on: sessions of OAuth clients and codes sent by mail.

Spec: (ACC-30, ACC-52, SYNC-10)
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pds.blobstore.base import BlobStore
from pds.blobstore.reference import SourceBlobs
from pds.errors import ConfigError, Unavailable
from pds.services.reference_import_account import (
    AccountImport,
    AccountReport,
    AccountSource,
    Outcome,
    check_account,
)
from pds.services.reference_import_events import (
    EventImport,
    EventReport,
    import_invites,
    import_reserved_keys,
    last_outdated,
)
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore
from pds.store.reference_reader import ReferenceAccount, ReferenceHost
from pds.store.takeover import count_others, get_takeover, put_takeover


class Step(StrEnum):
    """What an import is doing."""

    ACCOUNTS = "accounts"
    INVITES = "invite codes"
    EVENTS = "events"


@dataclass(frozen=True, slots=True)
class Progress:
    """`count` more of the step are done, of `total`; in `account` so many `parts` of a kind."""

    step: Step
    count: int
    total: int
    account: str = ""
    detail: str = ""
    """The kind: `records` or `blobs`."""
    parts: int = 0


Tell = Callable[[Progress], None]


@dataclass(slots=True)
class ImportReport:
    """What an import has done. It is complete when `events` is there."""

    accounts: list[AccountReport] = field(default_factory=list)
    invites: int = 0
    reserved_keys: int = 0
    oauth_sessions: int = 0
    """Sessions of OAuth clients, which cannot go on."""
    events: EventReport | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[AccountReport]:
        """Accounts in which something is wrong."""
        return [one for one in self.accounts if one.outcome is Outcome.FAILED]

    def count(self, outcome: Outcome) -> int:
        """Return how many accounts came to this."""
        return sum(one.outcome is outcome for one in self.accounts)

    def to_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {**asdict(self), "isComplete": self.events is not None}


class NotEmptyHost(ConfigError):
    """This host has accounts or events of its own, or is taking over another one."""


class AlreadyTaken(NotEmptyHost):
    """There is nothing to do: the host was taken over before."""


class SourceChanged(Unavailable):
    """Somebody wrote to the source while it was read."""


class ReferenceImport:
    """One run from a stopped reference PDS to this host."""

    def __init__(
        self,
        host: ReferenceHost,
        blobs: SourceBlobs,
        *,
        engine: Engine,
        keystore: Keystore,
        blobstore: BlobStore,
        service_did: str,
        window_s: float,
        now_us: Callable[[], int],
        without: Collection[str] = (),
    ) -> None:
        self._host = host
        self._blobs = blobs
        self._engine = engine
        self._keystore = keystore
        self._blobstore = blobstore
        self._service_did = service_did
        self._window_s = window_s
        self._now_us = now_us
        self._without = frozenset(without)

    async def run(self, tell: Tell) -> ImportReport:
        """Take the host over, as far as nothing is wrong with an account.

        Raises: NotEmptyHost, SourceChanged, ConfigError, StoreError.
        """
        before = self._host.fingerprint()
        await self._engine.transact("takeover.claim", _claim, self._service_did, self._now_us())
        await self._engine.transact("keys.check", self._keystore.check_master_key)
        report = ImportReport(oauth_sessions=self._host.count_oauth_tokens())
        importing = self._account_import(tell)
        await _each_account(self._host, self._without, importing.run, report, tell)
        events = None
        if not report.failed:
            report.invites = await import_invites(self._host, self._engine)
            report.reserved_keys = await import_reserved_keys(
                self._host, self._engine, self._keystore
            )
            tell(Progress(Step.INVITES, report.invites, report.invites))
            events = await self._import_events(tell)
        if self._host.fingerprint() != before:
            raise SourceChanged(
                "the databases of the reference PDS changed while they were read: stop its server,"
                " make this host's data folder empty, and begin again"
            )
        if events is not None:
            report.events = events
            await self._engine.transact(
                "takeover.complete", _complete, self._service_did, self._now_us()
            )
        return report

    def _account_import(self, tell: Tell) -> AccountImport:
        return AccountImport(
            AccountSource(host=self._host, blobs=self._blobs),
            engine=self._engine,
            keystore=self._keystore,
            blobstore=self._blobstore,
            now_us=self._now_us,
            advance=_advance(self._host.count_accounts(), tell),
        )

    async def _import_events(self, tell: Tell) -> EventReport:
        importing = EventImport(
            self._host, self._engine, window_s=self._window_s, without=self._without
        )
        now_us = self._now_us()
        after = last_outdated(self._host, window_s=self._window_s, now_us=now_us)
        total = self._host.count_events(after)
        return await importing.run(now_us, lambda count: tell(Progress(Step.EVENTS, count, total)))


async def check_reference(
    host: ReferenceHost, blobs: SourceBlobs, *, without: Collection[str] = (), tell: Tell
) -> ImportReport:
    """Check everything that can be checked without a host to take it (`--dry-run`).

    Raises: StoreError.
    """
    report = ImportReport(oauth_sessions=host.count_oauth_tokens())
    source = AccountSource(host=host, blobs=blobs)
    advance = _advance(host.count_accounts(), tell)

    async def check(account: ReferenceAccount) -> AccountReport:
        return await check_account(source, account, advance)

    await _each_account(host, without, check, report, tell)
    report.invites = sum(1 for _ in host.list_invites())
    report.reserved_keys = len(host.list_reserved_keys())
    return report


def _advance(total: int, tell: Tell) -> Callable[[str, int], None]:
    """Return what tells of parts of an account."""
    return lambda what, count: tell(Progress(Step.ACCOUNTS, 0, total, detail=what, parts=count))


async def _each_account(
    host: ReferenceHost,
    without: Collection[str],
    deal_with: Callable[[ReferenceAccount], Awaitable[AccountReport]],
    report: ImportReport,
    tell: Tell,
) -> None:
    total = host.count_accounts()
    for account in host.list_accounts():
        name = account.handle or account.did
        tell(Progress(Step.ACCOUNTS, 0, total, name))
        if account.did in without:
            left_out = AccountReport(account.did, account.handle, Outcome.LEFT_OUT)
            report.accounts.append(left_out)
        else:
            report.accounts.append(await deal_with(account))
        tell(Progress(Step.ACCOUNTS, 1, total, name))


def _claim(txn: Txn, service_did: str, now_us: int) -> None:
    """Note that this host takes over another. Raises: NotEmptyHost."""
    noted = get_takeover(txn)
    if noted is None:
        if count_others(txn):
            raise NotEmptyHost(
                "this host has accounts or events already: only an empty one can take over another"
            )
        put_takeover(txn, {"service_did": service_did, "begun_at": now_us})
    elif noted["service_did"] != service_did:
        raise NotEmptyHost(f"this host is the one that takes over {noted['service_did']}")
    elif "completed_at" in noted:
        raise AlreadyTaken("this host has taken over the reference PDS already: nothing to do")


def _complete(txn: Txn, service_did: str, now_us: int) -> None:
    noted = get_takeover(txn) or {"service_did": service_did}
    put_takeover(txn, {**noted, "completed_at": now_us})
