"""One move while a node works on it: what it is made of, and how it is written down.

`Work` is handed to the steps. Its `save` writes state and secrets in one transaction, on the
condition that this node still holds the move; a node that was held up learns so by `LeaseLost` and
does nothing more.
"""

import secrets as randomness
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from pds.errors import StoreError
from pds.identity.did_plc import PlcClient
from pds.identity.resolver import IdentityResolver
from pds.net.http import HttpClient
from pds.protocol.keys import Signer
from pds.protocol.syntax import Did
from pds.services.account_lifecycle import AccountLifecycle
from pds.services.account_status import IdentityCheck
from pds.services.accounts import Accounts
from pds.services.admin_accounts import AdminAccounts
from pds.services.blobs import Blobs
from pds.services.export import Exports
from pds.services.handles import HandlePolicy
from pds.services.identity_journal import IdentityJournal
from pds.services.invites import Invites
from pds.services.migration_host import RemoteHost
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_session import Bound, Tokens, revoke_quietly
from pds.services.migration_settings import MigrationSettings
from pds.services.migration_state import (
    Direction,
    MoveSecrets,
    MoveState,
    Status,
    Step,
    decode_state,
    encode_state,
    open_secrets,
    seal_secrets,
)
from pds.services.migration_watch import Watch
from pds.services.moderation import Moderation
from pds.services.oauth_client import OAuthClient, OAuthSession
from pds.services.plc_operations import PlcOperations
from pds.services.preferences import Preferences
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.repo_import import RepoImports
from pds.services.repos import Repos
from pds.services.service_tokens import ServiceTokens
from pds.services.sessions import Sessions
from pds.store.accounts import Account
from pds.store.clock import Clock
from pds.store.engine import Engine
from pds.store.keystore import NONCE_BYTES, Keystore
from pds.store.moves import MoveChange, MoveRow, update_move

ACTOR: Final = "move"
"""Who is named in the audit trail for what a move orders."""


class LeaseLost(StoreError):
    """Another node works on this move now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationParts:
    """What moves are made of. `node` names this process; `is_alone` says that there is no other."""

    engine: Engine
    clock: Clock
    keystore: Keystore
    http: HttpClient
    resolver: IdentityResolver
    plc: PlcClient
    rotation_signer: Signer
    accounts: Accounts
    admin_accounts: AdminAccounts
    blobs: Blobs
    exports: Exports
    handles: HandlePolicy
    identities: IdentityCheck
    identity_journal: IdentityJournal
    invites: Invites
    lifecycle: AccountLifecycle
    moderation: Moderation
    oauth: OAuthClient
    plc_operations: PlcOperations
    preferences: Preferences
    repo_imports: RepoImports
    repos: Repos
    service_tokens: ServiceTokens
    sessions: Sessions
    watch: Watch
    settings: MigrationSettings
    public_url: str
    former_urls: tuple[str, ...]
    service_did: str
    recovery_did_key: str | None
    invite_required: bool
    node: str
    is_alone: bool
    sleep: Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What somebody gave for a move just now. Nothing of it is stored, save for the PLC code."""

    password: str | None = field(default=None, repr=False)
    """At the other host: to log in there, or for the account to be made there."""
    auth_factor_token: str | None = field(default=None, repr=False)
    service_token: str | None = field(default=None, repr=False)
    new_password: str | None = field(default=None, repr=False)
    """Of the account here."""
    invite_code: str | None = field(default=None, repr=False)
    plc_token: str | None = field(default=None, repr=False)
    operation: dict[str, object] | None = None
    accepts_missing: bool = False
    requests_token: bool = False
    uses_oauth: bool = False
    """Have the owner sign in at the other host in a browser."""


class Work:
    """A move that this node holds."""

    def __init__(self, parts: MigrationParts, row: MoveRow) -> None:
        self.parts = parts
        self.row = row
        self.move_id = row.move_id
        self.direction = Direction(row.direction)
        self.step = Step(row.step)
        self.status = Status(row.status)
        self.switched_at = row.switched_at
        self.state: MoveState = decode_state(row)
        self.secrets: MoveSecrets = open_secrets(parts.keystore, row)
        self._host: RemoteHost | None = None

    @property
    def did(self) -> Did:
        """Whose account moves."""
        return self.state.did

    @property
    def is_plc(self) -> bool:
        """Whether the identity is changed by operations."""
        return self.did.startswith("did:plc:")

    @property
    def host(self) -> RemoteHost:
        """The other host, in the session that there is."""
        if self._host is None:
            kept = self.secrets.session
            self._host = RemoteHost(
                self.parts.http,
                self.state.other_url,
                session=None
                if kept is None
                else Bound(self.parts.oauth, kept, self.did, self._keep_session),
                tokens=self.secrets.tokens,
                on_tokens=self._keep_tokens,
            )
        return self._host

    async def use_session(self, session: OAuthSession) -> None:
        """Go on in an OAuth session; it is stored first, and the one before it revoked."""
        former = self.secrets.session
        await self._keep_session(session)
        self._host = None
        await revoke_quietly(self.parts.oauth, former)

    async def change_state(self, state: MoveState) -> None:
        """Begin anew from another state. What another host than its own has given is forgotten."""
        former: OAuthSession | None = None
        if state.other_url == self.state.other_url:
            state.sign_in = self.state.sign_in
            state.email = state.email or self.state.email
        else:
            former, self.secrets = self.secrets.session, MoveSecrets()
        self.state, self._host = state, None
        await revoke_quietly(self.parts.oauth, former)

    def forget_sign_in(self) -> None:
        """Nobody has to be waited for any more: who still comes back changes nothing."""
        self.secrets.sign_in = self.state.sign_in = None

    @property
    def aid(self) -> int:
        """The account here."""
        if self.state.aid is None:
            raise MoveProblem(
                Code.OUR_FAULT, "The move has no account here", "Undo the move and start again"
            )
        return self.state.aid

    @property
    def owner(self) -> Principal:
        """The owner of the account here, with all that the main password allows."""
        return Principal(PrincipalKind.SESSION, did=self.did, aid=self.aid, scope=Scope.ACCESS)

    async def account(self) -> Account:
        """Return the account here. Raises: MoveProblem when it is gone."""
        account = await self.parts.accounts.lookup_aid(self.aid)
        if account is None or account.did != self.did:
            raise MoveProblem(
                Code.ACCOUNT_NOT_FOUND,
                "The account was deleted here",
                "Undo the move and start again",
            )
        return account

    async def save(self, *, is_over: bool = False) -> None:
        """Write down how far the move is. Raises: LeaseLost, StoreError."""
        if is_over:
            self.secrets, self.state.sign_in = MoveSecrets(), None
            self.state.email = None  # The account has it; here it would outlive that.
        sealed = seal_secrets(
            self.parts.keystore,
            self.move_id,
            self.secrets,
            nonce=randomness.token_bytes(NONCE_BYTES),
        )
        change = MoveChange(
            move_id=self.move_id,
            node=self.parts.node,
            step=self.step,
            status=self.status,
            state=encode_state(self.state),
            secrets=sealed,
            switched_at=self.switched_at,
            now_us=self.parts.clock.now_us(),
            is_over=is_over,
        )
        if not await self.parts.engine.transact("move.save", update_move, change):
            raise LeaseLost(f"move {self.move_id} is worked on elsewhere")

    async def _keep_tokens(self, tokens: Tokens) -> None:
        former = self.secrets.session
        self.secrets.keep(tokens)
        self.forget_sign_in()
        await self.save()
        await revoke_quietly(self.parts.oauth, former)

    async def _keep_session(self, session: OAuthSession) -> None:
        self.secrets.keep_session(session)
        await self.save()
