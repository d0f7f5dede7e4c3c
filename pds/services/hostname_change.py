"""Another name for this host: every identity that names it under a former one is told the new one.

The server answers under both names meanwhile (`PDS_HOSTNAME`, `PDS_FORMER_HOSTNAMES`): what an
identity says decides where others look for the account, so identities change one by one, and no
moment is needed at which all have to. For each did:plc whose document names a former URL there is
one operation, signed with our rotation key and carried out by the identity journal, that puts the
new URL in its place; with `handles` it also takes a handle under a former domain to the same label
under the first domain of today. `#identity` follows in the same transaction as our rows.

`page` works on some accounts and says where to go on. It keeps nothing: what an identity says is
what was done, so whoever begins anew finds the rest, and nobody is moved twice.

| outcome | meaning |
|---|---|
| `moved` | done now; in a rehearsal: would be done |
| `current` | the document says it already |
| `elsewhere` | the document names another host, or was ended: none of our business |
| `owner` | only the owner can do it, and `todo` says what |
| `later` | the directory did not answer, or has too many operations of this identity |
| `refused` | it cannot be done, and `reason` says why |

A new handle that cannot be had does not hold up the move: the old one stays, and `conflict` says
why.

Spec: (ID-25, ID-26, ID-60, SYNC-34, SYNC-60)
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pds.errors import NotResolvable, RemoteError, RequestError
from pds.log import get_logger
from pds.protocol.diddoc import DidDocument
from pds.protocol.keys import Signer
from pds.protocol.plc import (
    PDS_SERVICE_ID,
    OperationJson,
    PlcOperation,
    PlcService,
    PlcState,
    make_update,
)
from pds.protocol.syntax import Did, Handle
from pds.services.audit import Order
from pds.services.handles import HandlePolicy
from pds.services.identity_acts import Act, ActKind, check_handle_free, no_account
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.plc_asking import PlcReader
from pds.services.resolving import DidDocuments
from pds.services.settings import setting
from pds.store.accounts import (
    Account,
    count_accounts,
    get_account_by_aid,
    get_account_by_did,
    list_accounts,
)
from pds.store.engine import Engine, Txn

PAGE_S: Final = 20.0
"""Time that one page takes at most, beside one answer of the directory: callers wait for it."""
MAX_PAGE: Final = 500
LOOK_PAUSE_S: Final = 0.05
"""Between two questions: the directory is everybody's."""
ASK_TIMEOUT_S: Final = 10.0
MANY_FAILURES: Final = 3
"""So many accounts in a row without an answer, and it is the directory, not the accounts."""
FAILURE_PAUSE_S: Final = 15.0

_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostnameChangeSettings:
    """How fast identities are told."""

    per_hour: int = setting(
        "PDS_HOSTNAME_MOVES_PER_HOUR",
        "Identities that `pds hostname move` changes in an hour, evenly spaced. Each makes one"
        " event, and relays take 1,500 an hour and 20,000 a day from a host that is new to them;"
        " the PLC directory is asked four times for each.",
        default=600,
    )


class Outcome(StrEnum):
    """What became of one account; see the module."""

    MOVED = "moved"
    CURRENT = "current"
    ELSEWHERE = "elsewhere"
    OWNER = "owner"
    LATER = "later"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One account and what became of it."""

    did: Did
    handle: Handle | None
    outcome: Outcome
    new_handle: Handle | None = None
    conflict: str | None = None
    todo: str | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for people and programs; what there is not is left out."""
        content = {
            "did": self.did,
            "handle": self.handle,
            "outcome": self.outcome.value,
            "newHandle": self.new_handle,
            "conflict": self.conflict,
            "todo": self.todo,
            "reason": self.reason,
        }
        return {name: value for name, value in content.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What became of some accounts; `after_aid` is where to go on, None at the end.

    `pause_s` is how long to wait before that; with `is_stuck` because nobody answers.
    """

    entries: tuple[Entry, ...]
    after_aid: int | None
    pause_s: float
    is_stuck: bool
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Whether this server was found at one of its URLs."""

    url: str
    is_current: bool
    problem: str | None


AskDid = Callable[[str], Awaitable[str | None]]
"""Asks the server at a URL for its DID; raises RemoteError."""


class HostnameChange:
    """Tells identities the new name of this host."""

    def __init__(
        self,
        *,
        engine: Engine,
        plc: PlcReader,
        resolver: DidDocuments,
        journal: IdentityJournal,
        handles: HandlePolicy,
        rotation_signer: Signer,
        ask_did: AskDid,
        public_url: str,
        former_urls: Sequence[str],
        service_did: str,
        settings: HostnameChangeSettings,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._plc = plc
        self._resolver = resolver
        self._journal = journal
        self._handles = handles
        self._server_key: Final = rotation_signer.public_key.did_key
        self._ask_did = ask_did
        self._url: Final = public_url
        self._former: Final = tuple(former_urls)
        self._service_did = service_did
        self._interval_s = 3600 / max(settings.per_hour, 1)
        self._now_s = monotonic
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._next_s = float("-inf")

    @property
    def url(self) -> str:
        """What identities are to say."""
        return self._url

    @property
    def former_urls(self) -> tuple[str, ...]:
        """What they may say as yet."""
        return self._former

    async def check(self) -> list[Reach]:
        """Look whether this server is reached under all of its names, as others would.

        Raises: RequestError when there is no former name.
        """
        self._check_set()
        return [await self._reach(url) for url in (self._url, *self._former)]

    async def page(
        self,
        order: Order,
        *,
        handles: bool = False,
        dids: Sequence[str] | None = None,
        after_aid: int = 0,
        limit: int = MAX_PAGE,
    ) -> Page:
        """Tell the next accounts, or those of `dids`; with a rehearsal only look.

        Ends when the time for a page is over: `entries` says how far it came. Only one page is
        worked on at a time. Raises: RequestError when there is no former name; StoreError.
        """
        self._check_set()
        limit = max(1, min(limit, MAX_PAGE))
        async with self._turn:
            if dids is None:
                accounts = await self._engine.read("hostname.list", _list, after_aid, limit)
                is_last = len(accounts) < limit
            else:
                accounts = await self._engine.read("hostname.named", _named, tuple(dids))
                is_last = True
            run = _Run(order, handles, self._now_s() + PAGE_S)
            await self._work(run, accounts)
        total = await self._engine.read("hostname.count", count_accounts)
        done = len(run.entries)
        is_over = is_last and done == len(accounts)
        last_aid = accounts[done - 1].aid if done else after_aid
        return Page(
            entries=tuple(run.entries),
            after_aid=None if is_over else last_aid,
            pause_s=run.pause_s,
            is_stuck=run.is_stuck,
            total=total,
        )

    async def _work(self, run: "_Run", accounts: Sequence[Account]) -> None:
        """Go through accounts until the time is over, or the directory seems to be away."""
        silent = 0
        for number, account in enumerate(accounts):
            if number:
                await self._sleep(LOOK_PAUSE_S)
            if self._now_s() >= run.ends_s:
                return
            plan = await self._look(account, run)
            entry: Entry | None = plan.entry
            if plan.is_to_do and not run.order.is_rehearsal:
                entry = await self._take_turn(account, plan, run)
            if entry is None:
                return
            silent = silent + 1 if entry.outcome is Outcome.LATER and not plan.is_busy else 0
            run.entries.append(entry)
            if silent == MANY_FAILURES:
                del run.entries[-silent:]
                run.pause_s, run.is_stuck = FAILURE_PAUSE_S, True
                return

    # What an identity says

    async def _look(self, account: Account, run: "_Run") -> "_Plan":
        """Find out what is to be done for one account."""
        if not run.order.is_rehearsal and not await self._journal.settle(account.did):
            entry = _entry(account, Outcome.LATER, reason="Another change is under way")
            return _Plan(entry, is_busy=True)
        account = await self._reread(account)
        new_handle, conflict = await self._choose_handle(account, run)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if account.did.startswith("did:plc:"):
                    last = await self._plc.get_last_op(account.did)
                    return self._judge(account, last.state, new_handle, conflict)
                document = await self._resolver.resolve_did(account.did, refresh=True)
                return self._judge_web(account, document, new_handle, conflict)
        except NotResolvable:
            return _Plan(_entry(account, Outcome.REFUSED, reason="The DID does not resolve"))
        except (RemoteError, TimeoutError):
            entry = _entry(account, Outcome.LATER, reason="No answer about the identity")
            return _Plan(entry, is_busy=not account.did.startswith("did:plc:"))

    async def _reread(self, account: Account) -> Account:
        """Return the row as it is now: settling may have changed the handle."""
        found = await self._engine.read("hostname.account", get_account_by_aid, account.aid)
        return found or account

    async def _choose_handle(self, account: Account, run: "_Run") -> tuple[Handle | None, str]:
        """Return the handle that the account shall have, or why it cannot have it."""
        if not run.handles or account.handle is None:
            return None, ""
        try:
            wanted = self._handles.find_successor(account.handle)
            if wanted is None:
                return None, ""
            self._handles.check_ours(wanted, allow_reserved=True)
            await self._engine.read("hostname.handle", _check_free, wanted, account.aid)
        except RequestError as error:
            return None, error.message
        if run.order.is_rehearsal and wanted in run.promised:
            return None, f"Handle already taken: {wanted}"
        run.promised.add(wanted)
        return wanted, ""

    def _judge(
        self, account: Account, state: PlcState | None, new_handle: Handle | None, conflict: str
    ) -> "_Plan":
        if state is None:
            return _Plan(_entry(account, Outcome.ELSEWHERE, reason="The DID was ended"))
        service = state.services.get(PDS_SERVICE_ID)
        endpoint = None if service is None else service.endpoint.rstrip("/")
        if endpoint != self._url and endpoint not in self._former:
            return _Plan(_entry(account, Outcome.ELSEWHERE, reason=f"It names {endpoint}"))
        named = next((name for name in state.also_known_as if name.startswith("at://")), None)
        if new_handle and named not in (f"at://{account.handle}", f"at://{new_handle}"):
            new_handle, conflict = None, f"The document names {named} first"
        entry = _entry(account, Outcome.MOVED, new_handle=new_handle, conflict=conflict or None)
        if self._change(state, new_handle) is None and new_handle is None:
            return _Plan(_entry(account, Outcome.CURRENT, conflict=conflict or None))
        if (
            self._change(state, new_handle) is not None
            and self._server_key not in state.rotation_keys
        ):
            todo = (
                "Sign an operation with a rotation key of yours that sets the endpoint of"
                f" {PDS_SERVICE_ID} to {self._url}"
            )
            if new_handle is not None:
                todo += f" and the first of alsoKnownAs to at://{new_handle}"
            return _Plan(_entry(account, Outcome.OWNER, todo=todo, conflict=conflict or None))
        return _Plan(entry, is_to_do=True)

    def _judge_web(
        self, account: Account, document: DidDocument, new_handle: Handle | None, conflict: str
    ) -> "_Plan":
        """A did:web is its owner's to change; our own row follows once it says the new handle."""
        endpoint = document.pds_endpoint
        if endpoint != self._url and endpoint not in self._former:
            return _Plan(_entry(account, Outcome.ELSEWHERE, reason=f"It names {endpoint}"))
        wanted = []
        if endpoint != self._url:
            wanted.append(f"serviceEndpoint of #{PDS_SERVICE_ID} must be {self._url}")
        if new_handle is not None and document.handle != new_handle:
            wanted.append(f"at://{new_handle} must be first in alsoKnownAs")
        if wanted:
            todo = f"Change the document of {account.did}: {'; '.join(wanted)}"
            return _Plan(_entry(account, Outcome.OWNER, todo=todo, conflict=conflict or None))
        if new_handle is not None:
            return _Plan(_entry(account, Outcome.MOVED, new_handle=new_handle), is_to_do=True)
        return _Plan(_entry(account, Outcome.CURRENT, conflict=conflict or None))

    def _change(self, state: PlcState, handle: Handle | None) -> dict[str, Any] | None:
        """Return the parts of an identity that have to change, None when none has."""
        parts: dict[str, Any] = {}
        service = state.services[PDS_SERVICE_ID]
        if service.endpoint != self._url:
            moved = PlcService(service.type, self._url)
            parts["services"] = {**state.services, PDS_SERVICE_ID: moved}
        aliases = state.also_known_as
        at = next((at for at, name in enumerate(aliases) if name.startswith("at://")), len(aliases))
        if handle is not None and aliases[at : at + 1] != (f"at://{handle}",):
            changed = [*aliases[:at], f"at://{handle}", *aliases[at + 1 :]]
            parts["also_known_as"] = list(dict.fromkeys(changed))
        return parts or None

    # What is done about it

    async def _take_turn(self, account: Account, plan: "_Plan", run: "_Run") -> Entry | None:
        """Change one identity when it is time to; None when that is not in this page."""
        wait_s = self._next_s - self._now_s()
        if wait_s > 0:
            if self._now_s() + wait_s > run.ends_s:
                run.pause_s = wait_s
                return None
            await self._sleep(wait_s)
        entry = plan.entry
        try:
            try:
                await self._carry_out(account, entry.new_handle, run.order)
            except RequestError as error:
                if error.name != "HandleNotAvailable" or entry.new_handle is None:
                    raise
                entry = _entry(account, Outcome.MOVED, conflict=error.message)
                await self._carry_out(account, None, run.order)
        except RequestError as error:
            is_passing = error.name in ("UpstreamFailure", "RateLimitExceeded")
            plan.is_busy = error.name == "RateLimitExceeded"  # Said of this identity alone.
            outcome = Outcome.LATER if is_passing else Outcome.REFUSED
            _log.info("hostname.not_moved", did=account.did, reason=error.message)
            return _entry(account, outcome, reason=error.message)
        finally:
            self._next_s = self._now_s() + self._interval_s
        _log.info("hostname.moved", did=account.did, handle=entry.new_handle)
        return entry

    async def _carry_out(self, account: Account, handle: Handle | None, order: Order) -> None:
        aid, did = account.aid, account.did

        def check(txn: Txn) -> None:
            found = get_account_by_aid(txn, aid)
            if found is None or found.did != did:
                raise no_account()
            if handle is not None:
                _check_free(txn, handle, aid)

        def build(last: PlcOperation) -> OperationJson | None:
            plan = self._judge(account, last.state, handle, "")
            if not plan.is_to_do or last.state is None:
                raise RequestError("InvalidRequest", "The identity was changed meanwhile")
            parts = self._change(last.state, handle)
            return None if parts is None else make_update(last, **parts)

        kind = ActKind.ENDPOINT if handle is None else ActKind.HANDLE
        act = Act(kind, aid, did, handle=handle).ordered(order)
        is_plc = did.startswith("did:plc:")
        await self._journal.carry_out(Plan(act=act, check=check, build=build if is_plc else None))

    async def _reach(self, url: str) -> Reach:
        problem: str | None = None
        try:
            did = await self._ask_did(url)
            if did != self._service_did:
                problem = f"the server there is {did}, and this one {self._service_did}"
        except RemoteError as error:
            problem = str(error)
        return Reach(url=url, is_current=url == self._url, problem=problem)

    def _check_set(self) -> None:
        if not self._former:
            raise RequestError(
                "InvalidRequest",
                "This server has no former name: set PDS_HOSTNAME to the new name and"
                " PDS_FORMER_HOSTNAMES to the old one, and start it again",
            )


class _Run:
    """One page under way."""

    def __init__(self, order: Order, handles: bool, ends_s: float) -> None:
        self.order = order
        self.handles = handles
        self.ends_s = ends_s
        self.entries: list[Entry] = []
        self.promised: set[Handle] = set()
        self.pause_s = 0.0
        self.is_stuck = False


@dataclass(slots=True)
class _Plan:
    """What is to be said of an account, and whether something is to be done first.

    `is_busy`: what is in the way is the account's own, and says nothing about the directory.
    """

    entry: Entry
    is_to_do: bool = False
    is_busy: bool = False


def _entry(account: Account, outcome: Outcome, **parts: Any) -> Entry:
    return Entry(did=account.did, handle=account.handle, outcome=outcome, **parts)


def _check_free(txn: Txn, handle: Handle, aid: int) -> None:
    check_handle_free(txn, handle, aid, allow_reserved=True)


def _list(txn: Txn, after_aid: int, limit: int) -> list[Account]:
    return list_accounts(txn, after_aid=after_aid, limit=limit)


def _named(txn: Txn, dids: Sequence[str]) -> list[Account]:
    found = (get_account_by_did(txn, did) for did in dids)
    return [account for account in found if account is not None]
