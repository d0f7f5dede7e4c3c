"""A host whose accounts change handles, keys and identities; crash points as `creation_host`."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pds.identity.did_plc import PlcClient
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.keys import parse_did_key
from pds.protocol.mst.tree import NodeCache
from pds.protocol.plc import PlcState
from pds.protocol.plc_log import PlcLog
from pds.protocol.syntax import Did
from pds.services.handle_change import HandleChange
from pds.services.handle_names import HandleNames
from pds.services.handles import HandlePolicy, HandleSettings
from pds.services.identity_acts import ActRows
from pds.services.identity_journal import IdentityJournal
from pds.services.journal_settling import JournalSettings
from pds.services.key_rotation import KeyRotation
from pds.services.mail_tokens import MailPurpose, MailTokens
from pds.services.plc_operations import PlcOperations, PlcSettings
from pds.services.reserved_keys import ReservedKeys
from pds.store.accounts import Account
from pds.store.engine import Txn
from pds.store.repos import get_account_repo
from tests.services.creation_host import (
    OPERATOR_KEY,
    PUBLIC_URL,
    ROTATION,
    CrashingPlc,
    CrashPoint,
    CreationHost,
    creation_host,
)

PLC_TIMEOUT_S = 0.3


class IdentityPlc(CrashingPlc):
    """The client with crash points; it can be held before it sends."""

    gate: asyncio.Event | None = None

    async def submit(self, did: Did, operation: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await super().submit(did, operation)

    async def get_audit_log(self, did: Did) -> PlcLog:
        return await self._client.get_audit_log(did)


class Codes:
    """Keeps the codes that would have been mailed."""

    def __init__(self, host: "IdentityHost") -> None:
        self._host = host
        self.tokens = MailTokens(engine=host.engine, secret="a secret of the tests")
        self.sent: list[str] = []

    async def request_code(self, aid: int, purpose: MailPurpose) -> None:
        def issue(txn: Txn) -> str:
            return self.tokens.issue(
                txn, aid, purpose, now_us=self._host.clock.now_us(), entropy=secrets.token_bytes(7)
            )

        self.sent.append(await self._host.engine.transact("test.issue", issue))


class IdentityHost:
    """A `CreationHost` with everything that changes identities; what it has is had here too."""

    plc_timeout_s = PLC_TIMEOUT_S
    """A directory that is slow on purpose takes longer than this."""

    def __init__(self, base: CreationHost, handle_settings: HandleSettings | None) -> None:
        self.base = base
        self.handle_settings = handle_settings
        self.plc_settings = PlcSettings(public_url=PUBLIC_URL, recovery_did_key=OPERATOR_KEY)
        self._build()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    @property
    def crash(self) -> CrashPoint:
        return self.base.crash

    @crash.setter
    def crash(self, point: CrashPoint) -> None:
        self.base.crash = point

    def restart(self) -> None:
        """Build everything anew, as the next process does."""
        self.base.restart()
        self._build()

    def _build(self) -> None:
        self.policy = HandlePolicy(
            self.handle_settings or HandleSettings(service_domains=(".pds.test",), dev=True)
        )
        self.identity_plc = IdentityPlc(self.plc_client, self.base)
        self.nodes = NodeCache(1000)
        self.journal = self.make_journal()
        self.handle_change = self.make_change(self.journal)
        self.names = HandleNames(engine=self.engine, clock=self.clock, handles=self.policy)
        self.codes = Codes(self)
        self.operations = PlcOperations(
            engine=self.engine,
            clock=self.clock,
            keystore=self.keystore,
            plc=self.identity_plc,
            journal=self.journal,
            rotation_signer=ROTATION,
            tokens=self.codes.tokens,
            mails=self.codes,
            settings=self.plc_settings,
        )
        self.reserved = ReservedKeys(engine=self.engine, clock=self.clock, keystore=self.keystore)
        self.rotation = KeyRotation(
            engine=self.engine,
            resolver=self.resolver,
            journal=self.journal,
            reserved=self.reserved,
            keystore=self.keystore,
            rotation_signer=ROTATION,
        )

    def make_journal(self, *, exclusive: bool = True) -> IdentityJournal:
        return IdentityJournal(
            engine=self.engine,
            clock=self.clock,
            rows=ActRows(keystore=self.keystore, cache=self.cache, nodes=self.nodes, clock_id=7),
            plc=self.identity_plc,
            rotation_signer=ROTATION,
            resolver=self.resolver,
            settings=JournalSettings(plc_timeout_s=self.plc_timeout_s, exclusive=exclusive),
        )

    def make_change(self, journal: IdentityJournal) -> HandleChange:
        return HandleChange(
            accounts=self.cache,
            handles=self.policy,
            resolver=self.resolver,
            journal=journal,
            sign_ups=self.accounts,
            rotation_signer=ROTATION,
        )

    async def add(self, handle: str = "alice.pds.test") -> Account:
        name = handle.partition(".")[0]
        view = await self.accounts.create(self.request(handle=handle, email=f"{name}@mail.test"))
        return await self.account(view.did)

    async def account(self, did: str) -> Account:
        account = await self.accounts.lookup(did)
        assert account is not None
        return account

    def state(self, did: str) -> PlcState:
        state = self.plc.directory.get_state(did)
        assert state is not None
        return state

    def operations_of(self, did: str) -> int:
        log = self.plc.directory.get_log(did)
        assert log is not None
        return len(log.entries)

    async def assert_agrees(self, did: str) -> Account:
        """What our rows say of an identity is what its document says, and nothing is left over."""
        account = await self.account(did)
        state = self.state(did)
        assert state.also_known_as[0] == f"at://{account.handle}"
        keys = await self.rows("SELECT key_id, did_key FROM signing_key WHERE aid = ?", account.aid)
        assert keys == [(account.key_id, state.verification_methods["atproto"])]
        found = await self.real_engine.read("test.repo", get_account_repo, account.aid)
        assert found is not None
        assert found.repo is not None
        key = parse_did_key(state.verification_methods["atproto"])
        commit = decode_commit(found.repo.commit_block)
        assert commit.rev == found.repo.head.rev
        assert verify_commit(commit, key)
        assert await self.count("journal") == 0
        return account

    async def events_since(self, count: int) -> list[tuple[str, Any]]:
        """Type and payload of the events after the first `count`."""
        return [(frame.type, frame.payload) for frame in (await self.frames())[count:]]


@asynccontextmanager
async def identity_host(
    folder: Path, *, handle_settings: HandleSettings | None = None
) -> AsyncIterator[IdentityHost]:
    async with creation_host(folder) as base:
        base.plc_client = PlcClient(base.plc.url, base.plc_client._http, confirm_delays_s=(0.0,))
        host = IdentityHost(base, handle_settings)
        yield host
        await host.journal.close()
