"""A host for tests of account services: a real engine in a folder and a settable clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pds.protocol.syntax import Did, Handle
from pds.services.account_cache import AccountCache
from pds.services.passwords import Passwords
from pds.services.rate_limits import RateLimits
from pds.services.session_tokens import SessionTokens
from pds.services.sessions import Sessions, SessionSettings
from pds.store.accounts import insert_account
from pds.store.engine import Engine, Txn
from tests.suites.engines import open_engine

SERVICE_DID = "did:web:pds.test"
SECRET = "a secret of the tests, long enough"
START_US = 1_760_000_000_000_000
ALICE = Did("did:plc:aliceaaaaaaaaaaaaaaaaaaa")
PASSWORD = "correct horse battery"


class SettableClock:
    """A clock that stands until it is set."""

    def __init__(self, now_us: int = START_US) -> None:
        self.time_us = now_us

    def now_us(self) -> int:
        return self.time_us

    def advance(self, seconds: float) -> None:
        self.time_us += int(seconds * 1_000_000)


class CountingEngine:
    """Passes everything to the engine and counts the reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def read(self, label, fn, *args):  # type: ignore[no-untyped-def]
        self.reads.append(label)
        return await self._engine.read(label, fn, *args)


@dataclass
class SessionHost:
    engine: Engine
    clock: SettableClock
    cache: AccountCache
    passwords: Passwords
    tokens: SessionTokens
    sessions: Sessions
    reads: list[str] = field(default_factory=list)

    async def add_account(
        self,
        *,
        did: Did = ALICE,
        handle: str = "alice.pds.test",
        email: str = "alice@mail.test",
        password: str = PASSWORD,
        password_hash: str | None = None,
    ) -> int:
        stored = password_hash or await self.passwords.hash(password)
        now_us = self.clock.now_us()

        def insert(txn: Txn) -> int:
            return insert_account(
                txn,
                did=did,
                handle=Handle(handle),
                email=email,
                password_hash=stored,
                now_us=now_us,
            )

        return await self.engine.transact("test.account", insert)

    async def change(self, fn, *args) -> None:  # type: ignore[no-untyped-def]
        """Run a row function in a transaction that drops every account from memory."""

        def job(txn: Txn) -> None:
            fn(txn, *args)
            self.cache.forget_after(txn, args[0])

        await self.engine.transact("test.change", job)

    def restart(self) -> Sessions:
        """Return the services as a new process would have them: same rows, empty memory."""
        self.cache = AccountCache(self.engine)
        self.sessions = make_sessions(self)
        return self.sessions


def make_sessions(host: "SessionHost") -> Sessions:
    return Sessions(
        engine=host.engine,
        clock=host.clock,
        wall=host.clock,
        accounts=host.cache,
        tokens=host.tokens,
        passwords=host.passwords,
        settings=SessionSettings(login_floor_s=0.0),
        rate_limits=RateLimits(now_s=lambda: host.clock.now_us() / 1_000_000),
    )


@asynccontextmanager
async def session_host(folder: Path) -> AsyncIterator[SessionHost]:
    clock = SettableClock()
    async with open_engine(folder, clock) as real:
        engine = CountingEngine(real)
        passwords = Passwords()
        host = SessionHost(
            engine=engine,  # type: ignore[arg-type]
            clock=clock,
            cache=AccountCache(engine),  # type: ignore[arg-type]
            passwords=passwords,
            tokens=SessionTokens(secrets=[SECRET], service_did=SERVICE_DID),
            sessions=None,  # type: ignore[arg-type]
            reads=engine.reads,
        )
        host.sessions = make_sessions(host)
        try:
            yield host
        finally:
            passwords.close()
