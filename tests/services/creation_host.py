"""A host that opens accounts: real engine, keystore and PLC client, a fake directory on loopback.

`CrashPoint` stops everything at one moment, as `kill -9` would: before or after a transaction with
a certain label, or before or after an operation reaches the directory. `restart` then builds all
services anew over the same rows.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pds.errors import NotResolvable
from pds.identity.did_plc import PlcClient
from pds.net.http import HttpSettings, TrustedClient
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.frames import Frame, decode_frame
from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcOperation, render_document
from pds.protocol.syntax import Did, Handle
from pds.services.account_cache import AccountCache
from pds.services.account_creation import AccountCreation, AccountRequest, CreationSettings
from pds.services.account_journal import AccountJournal
from pds.services.account_mails import AccountMails, AccountMailSettings
from pds.services.account_rows import AccountRows
from pds.services.accounts import Accounts
from pds.services.handles import HandlePolicy, HandleSettings
from pds.services.journal_settling import JournalSettings
from pds.services.mail import MemoryMailbox
from pds.services.mail_tokens import MailTokens
from pds.services.passwords import Passwords
from pds.services.rate_limits import RateLimits
from pds.services.session_tokens import SessionTokens
from pds.services.sessions import Sessions, SessionSettings
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore
from tests.fakes.plc import FakePlc, running_plc
from tests.services.account_host import SECRET, SERVICE_DID, SettableClock
from tests.suites.engines import open_engine

PUBLIC_URL = "https://pds.test"
PASSWORD = "correct horse battery"
ROTATION = make_signer("k256", b"\x07" * 32)
OPERATOR_KEY = make_signer("p256", b"\x08" * 32).public_key.did_key
USER_KEY = make_signer("p256", b"\x09" * 32).public_key.did_key


class Crash(BaseException):
    """The process is gone."""


@dataclass
class CrashPoint:
    """Where the process ends: `when` is `before` or `after`, `what` a label or `plc.submit`."""

    when: str
    what: str
    hits: int = 0

    def reached(self, when: str, what: str) -> None:
        if (when, what) == (self.when, self.what):
            self.hits += 1
            raise Crash


class CrashingEngine:
    """Passes calls on and dies at the host's crash point."""

    def __init__(self, engine: Engine, host: "CreationHost") -> None:
        self._engine = engine
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def transact(self, label: str, fn: Any, *args: Any, **options: Any) -> Any:
        self._host.crash.reached("before", label)
        result = await self._engine.transact(label, fn, *args, **options)
        self._host.crash.reached("after", label)
        return result


class CrashingPlc:
    """The real client, with a crash point around what it submits and a hook before it."""

    def __init__(self, client: PlcClient, host: "CreationHost") -> None:
        self._client = client
        self._host = host

    async def submit(self, did: Did, operation: PlcOperation) -> None:
        what = "plc.tombstone" if operation.is_tombstone else "plc.submit"
        self._host.crash.reached("before", what)
        await self._client.submit(did, operation)
        self._host.crash.reached("after", what)
        if self._host.after_submit is not None and not operation.is_tombstone:
            await self._host.after_submit()

    async def get_last_op(self, did: Did) -> PlcOperation:
        return await self._client.get_last_op(did)


class TableResolver:
    """Resolves what a test wrote into it, and PLC identities by asking the fake directory."""

    def __init__(self, plc: FakePlc) -> None:
        self._plc = plc
        self.documents: dict[str, Any] = {}
        self.handles: dict[str, Did] = {}
        self.refreshed: list[str] = []

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        if refresh:
            self.refreshed.append(did)
        state = self._plc.directory.get_state(did)
        if did in self.documents:
            return parse_did_document(self.documents[did], did)
        if state is None:
            raise NotResolvable(f"{did} is not registered")
        return parse_did_document(render_document(did, state), did)

    async def resolve_handle(self, handle: Handle, *, refresh: bool = False) -> Did:
        try:
            return self.handles[handle]
        except KeyError:
            raise NotResolvable(f"{handle} names no DID") from None

    async def forget(self, did: Did, handle: Handle | None = None) -> None:
        self.documents.pop(did, None)


@dataclass
class CreationHost:
    real_engine: Engine
    clock: SettableClock
    plc: FakePlc
    plc_client: PlcClient
    passwords: Passwords
    resolver: TableResolver
    settings: CreationSettings
    mailbox: MemoryMailbox = field(default_factory=MemoryMailbox)
    crash: CrashPoint = field(default_factory=lambda: CrashPoint("never", ""))
    after_submit: Any = None

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Build everything anew, as the next process does: same rows, empty memory."""
        self.crash = CrashPoint("never", "")
        self.after_submit = None
        engine: Any = CrashingEngine(self.real_engine, self)
        self.engine = engine
        self.keystore = Keystore(b"\x01" * 32)
        self.cache = AccountCache(engine)
        self.sessions = Sessions(
            engine=engine,
            clock=self.clock,
            wall=self.clock,
            accounts=self.cache,
            tokens=SessionTokens(secrets=[SECRET], service_did=SERVICE_DID),
            passwords=self.passwords,
            settings=SessionSettings(login_floor_s=0.0),
            rate_limits=RateLimits(now_s=lambda: self.clock.now_us() / 1_000_000),
        )
        rows = AccountRows(keystore=self.keystore, sessions=self.sessions, cache=self.cache)
        journal = AccountJournal(
            engine=engine,
            clock=self.clock,
            keystore=self.keystore,
            rows=rows,
            plc=CrashingPlc(self.plc_client, self),
            rotation_signer=ROTATION,
            settings=JournalSettings(plc_timeout_s=0.5),
        )
        self.mails = AccountMails(
            engine=engine,
            clock=self.clock,
            tokens=MailTokens(engine=engine, secret=SECRET),
            mailer=self.mailbox,
            settings=AccountMailSettings(service_name="Tests", public_url=PUBLIC_URL),
        )
        creation = AccountCreation(
            engine=engine,
            clock=self.clock,
            keystore=self.keystore,
            rows=rows,
            journal=journal,
            sessions=self.sessions,
            passwords=self.passwords,
            handles=HandlePolicy(HandleSettings(service_domains=(".pds.test",), dev=True)),
            resolver=self.resolver,
            rotation_signer=ROTATION,
            mails=self.mails,
            settings=self.settings,
        )
        self.accounts = Accounts(cache=self.cache, creation=creation, journal=journal)

    def request(self, **changes: Any) -> AccountRequest:
        fields = {
            "handle": "alice.pds.test",
            "email": "Alice@Mail.Test",
            "password": PASSWORD,
            **changes,
        }
        return AccountRequest(**fields)

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        def read(txn: Txn) -> list[tuple[Any, ...]]:
            return txn.read(sql, params)

        return await self.real_engine.read("test.rows", read)

    async def frames(self) -> list[Frame]:
        return [
            decode_frame(row[0]) for row in await self.rows("SELECT frame FROM event ORDER BY seq")
        ]

    async def count(self, table: str) -> int:
        return int((await self.rows(f"SELECT count(*) FROM {table}"))[0][0])

    def live_dids(self) -> list[Did]:
        """The identities in the directory that were not ended."""
        directory = self.plc.directory
        return [did for did in directory._logs if directory.get_state(did) is not None]


@asynccontextmanager
async def creation_host(folder: Path, **settings: Any) -> AsyncIterator[CreationHost]:
    clock = SettableClock()
    passwords = Passwords()
    http = TrustedClient(HttpSettings.trusted(user_agent="tests", allow_private=True))
    options = {"invite_required": False, **settings}
    try:
        async with open_engine(folder, clock) as engine, running_plc(rate_limits=None) as plc:
            host = CreationHost(
                real_engine=engine,
                clock=clock,
                plc=plc,
                plc_client=PlcClient(plc.url, http),
                passwords=passwords,
                resolver=TableResolver(plc),
                settings=CreationSettings(public_url=PUBLIC_URL, **options),
            )
            yield host
            await host.accounts.close()
    finally:
        await http.close()
        passwords.close()
