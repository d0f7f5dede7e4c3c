"""A host on which accounts come, go and return: real engine, keys and repos; identities by table.

Accounts are made by the same rows as always, without a directory: `identities` says what each DID
is told to point at, rightly unless a test writes something else into it.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pds.errors import NotResolvable, Unreachable
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.frames import Frame, decode_frame
from pds.protocol.keys import generate_secret, make_signer, parse_did_key
from pds.protocol.plc import PlcService, PlcState
from pds.protocol.syntax import Did, Handle
from pds.protocol.tid import next_tid
from pds.services.account_cache import AccountCache
from pds.services.account_lifecycle import AccountLifecycle
from pds.services.account_rows import AccountRows, Claim, NewRows
from pds.services.account_states import AccountStates
from pds.services.account_status import AccountReports, IdentityCheck
from pds.services.app_passwords import AppPasswords
from pds.services.export import Exports
from pds.services.lexicons import load_catalog
from pds.services.mail_tokens import ENTROPY_BYTES, MailPurpose, MailTokens
from pds.services.repo_txn import Moment
from pds.services.repos import RecordWrite, Repos, WriteResult
from pds.services.reserved_keys import ReservedKeys
from pds.services.session_tokens import SessionTokens
from pds.services.sessions import Sessions, SessionSettings, SessionView
from pds.store.accounts import Account
from pds.store.engine import CommittedEvent, Engine, Txn
from pds.store.events import get_event_page
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore
from pds.store.repos import delete_garbage, list_garbage
from tests.services.account_host import SECRET, SERVICE_DID, SettableClock
from tests.suites.engines import open_engine

PUBLIC_URL = "https://pds.test"
PASSWORD = "correct horse battery"
ROTATION_KEY = make_signer("k256", b"\x07" * 32).public_key.did_key
POST = "app.bsky.feed.post"
CATALOG = load_catalog()


class PlainPasswords:
    """Hashes nothing: what hashing costs is no question of these tests."""

    async def hash(self, password: str) -> str:
        return f"plain {password}"

    async def verify(self, password: str, stored: str | None) -> bool:
        return stored == f"plain {password}"

    async def find_reference_app_password(
        self, password: str, candidates: Sequence[bytes]
    ) -> bytes | None:
        return None

    def needs_rehash(self, stored: str) -> bool:
        return False


@dataclass
class Told:
    """What an identity says; None in place of the whole: it does not resolve."""

    endpoint: str
    signing_key: str
    rotation_keys: tuple[str, ...] = (ROTATION_KEY,)


@dataclass
class Identities:
    """Directory and did:web hosts in one table."""

    told: dict[str, Told] = field(default_factory=dict)
    is_reachable: bool = True
    forgotten: list[str] = field(default_factory=list)

    def _get(self, did: str) -> Told:
        if not self.is_reachable:
            raise Unreachable("nobody answers")
        if did not in self.told:
            raise NotResolvable(f"{did} is not registered")
        return self.told[did]

    async def get_data(self, did: Did) -> PlcState:
        told = self._get(did)
        services = {"atproto_pds": PlcService("AtprotoPersonalDataServer", told.endpoint)}
        return PlcState(told.rotation_keys, {"atproto": told.signing_key}, (), services)

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        told = self._get(did)
        multibase = parse_did_key(told.signing_key).multibase
        method = {"id": f"{did}#atproto", "type": "Multikey", "controller": did}
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer"}
        document = {
            "id": did,
            "verificationMethod": [{**method, "publicKeyMultibase": multibase}],
            "service": [{**service, "serviceEndpoint": told.endpoint}],
        }
        return parse_did_document(document, did)

    async def forget(self, did: Did, handle: Handle | None = None) -> None:
        self.forgotten.append(did)


@dataclass
class LifeHost:
    engine: Engine
    clock: SettableClock
    identities: Identities = field(default_factory=Identities)
    heard: list[CommittedEvent] = field(default_factory=list)
    rotation_key: str | None = ROTATION_KEY

    def __post_init__(self) -> None:
        self.engine.add_event_hook(self.heard.extend)
        self.restart()

    def restart(self) -> None:
        """Build all services anew, as the next process does: same rows, empty memory."""
        engine, clock = self.engine, self.clock
        self.keystore = Keystore(b"\x01" * 32)
        self.cache = AccountCache(engine)
        passwords = PlainPasswords()
        self.sessions = Sessions(
            engine=engine,
            clock=clock,
            wall=clock,
            accounts=self.cache,
            tokens=SessionTokens(secrets=[SECRET], service_did=SERVICE_DID),
            passwords=passwords,  # type: ignore[arg-type]
            settings=SessionSettings(login_floor_s=0.0, limits=None),
        )
        self.app_passwords = AppPasswords(engine=engine, clock=clock, sessions=self.sessions)
        self.rows = AccountRows(keystore=self.keystore, sessions=self.sessions, cache=self.cache)
        self.mail_tokens = MailTokens(engine=engine, secret=SECRET)
        self.check = IdentityCheck(
            engine=engine,
            keystore=self.keystore,
            plc=self.identities,
            documents=self.identities,
            public_url=PUBLIC_URL,
            rotation_key=self.rotation_key,
        )
        self.reports = AccountReports(engine=engine, identities=self.check)
        self.states = AccountStates(
            keystore=self.keystore, sessions=self.sessions, cache=self.cache
        )
        self.life = AccountLifecycle(
            engine=engine,
            clock=clock,
            clock_id=7,
            states=self.states,
            cache=self.cache,
            sessions=self.sessions,
            identities=self.check,
            documents=self.identities,
            mail_tokens=self.mail_tokens,
        )
        self.repos = Repos(
            engine=engine,
            clock=clock,
            keystore=self.keystore,
            catalog=CATALOG,
            accounts=self.cache,
            documents=self.identities,
            clock_id=7,
        )
        self.exports = Exports(engine=engine, cache=self.repos.cache)
        self.reserved_keys = ReservedKeys(engine=engine, clock=clock, keystore=self.keystore)

    # Acts

    async def open(self, name: str, *, did: str | None = None, is_active: bool = True) -> Account:
        """Open an account `NAME.pds.test`, whose identity points here at once."""
        did = Did(did or f"did:plc:{name.ljust(24, 'a')}")
        secret = generate_secret("k256", secrets.token_bytes(32))
        now_us = self.clock.now_us()
        new = NewRows(
            did=did,
            claim=Claim(did, Handle(f"{name}.pds.test"), f"{name}@mail.test", None),
            password_hash=f"plain {PASSWORD}",
            curve="k256",
            secret=secret,
            key_entropy=secrets.token_bytes(KEY_ENTROPY_BYTES),
            rev=next_tid(None, now_us, 7),
            now_us=now_us,
            opening=None,
            journal_id=None,
            is_active=is_active,
        )
        account, _ = await self.engine.transact("test.open", self.rows.insert, new)
        did_key = make_signer("k256", secret).public_key.did_key
        self.identities.told[did] = Told(PUBLIC_URL, did_key)
        return account

    async def login(self, name: str, password: str = PASSWORD, **options: bool) -> SessionView:
        return await self.sessions.login(f"{name}.pds.test", password, **options)

    async def set_takedown(self, aid: int, takedown_ref: str | None) -> None:
        """Do what a moderator does, without the audit."""
        moment = Moment(self.clock.now_us(), 7)
        if takedown_ref is None:
            await self._act(lambda txn: self.states.lift_takedown(txn, aid, moment), aid)
        else:
            await self._act(lambda txn: self.states.take_down(txn, aid, takedown_ref), aid)

    async def set_suspended(self, aid: int, *, is_suspended: bool) -> None:
        moment = Moment(self.clock.now_us(), 7)
        if is_suspended:
            await self._act(lambda txn: self.states.suspend(txn, aid, now_us=moment.now_us), aid)
        else:
            await self._act(lambda txn: self.states.lift_suspension(txn, aid, moment), aid)

    async def delete_now(self, aid: int) -> None:
        now_us = self.clock.now_us()
        await self._act(lambda txn: self.states.delete(txn, aid, now_us=now_us), aid)

    async def _act(self, act: Callable[[Txn], object], aid: int) -> None:
        await self.engine.transact("test.act", act, accounts=(aid,))

    async def write(self, aid: int, text: str = "hello") -> WriteResult:
        self.clock.advance(0.001)
        value = {"text": text, "createdAt": "2026-01-01T00:00:00.000Z"}
        return await self.repos.write(aid, [RecordWrite("create", POST, None, value)])

    async def issue_code(self, aid: int) -> str:
        """Make a code for deletion, as the mail would bring it."""

        def issue(txn: Txn, entropy: bytes) -> str:
            return self.mail_tokens.issue(
                txn,
                aid,
                MailPurpose.DELETE_ACCOUNT,
                now_us=self.clock.now_us(),
                entropy=entropy,
            )

        entropy = secrets.token_bytes(ENTROPY_BYTES)
        return await self.engine.transact("test.code", issue, entropy, accounts=(aid,))

    async def collect_garbage(self) -> None:
        """Delete repos that are no longer live, as the background does."""
        for repo_id in await self.engine.read("test.garbage", list_garbage):
            while not await self.engine.transact("test.garbage", delete_garbage, repo_id):
                pass

    # What can be seen

    async def rows_of(self, sql: str, *params: object) -> list[tuple]:
        return await self.engine.read("test.rows", lambda txn: txn.read(sql, params))

    def frames(self, did: str, *, since: int = 0) -> list[Frame]:
        """What a reader that was always there got about a DID, from an index of `heard` on."""
        frames = [decode_frame(event.frame) for event in self.heard[since:]]
        return [f for f in frames if f.payload.get("did", f.payload.get("repo")) == did]

    def kinds(self, did: str, *, since: int = 0) -> list[str]:
        return [frame.type for frame in self.frames(did, since=since)]

    async def stored(self, aid: int) -> list[Frame]:
        """What the store still has of an account, whether or not it may be sent."""
        rows = await self.rows_of("SELECT frame FROM event WHERE aid = ? ORDER BY seq", aid)
        return [decode_frame(row[0]) for row in rows]

    async def replay(self) -> list[Frame]:
        """What a reader from the beginning gets now."""
        page = await self.engine.read("test.page", get_event_page, 0, 100_000, 1 << 30)
        return [decode_frame(event.frame) for event in page.events]


@asynccontextmanager
async def life_host(folder: Path) -> AsyncIterator[LifeHost]:
    clock = SettableClock()
    async with open_engine(folder, clock) as engine:
        yield LifeHost(engine, clock)
