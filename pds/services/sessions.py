"""Sessions: signing in, refreshing, signing out, and telling who holds an access token.

A login opens a session: one chain of refresh-token rows that share a `session_id`. Access tokens
name their session, so signing out, changing the password, revoking an app password or taking the
account down ends them at once, not when they expire: whoever deletes session rows does it with the
functions here that also drop the memory of them (`end_sessions` and its siblings).

`authenticate_access` is on the path of every request. It checks the token, then looks in two
bounded memories (session -> account, account -> row) and asks the database only for what is not
there.

Spec: xrpc#authentication (XRPC-22..27)
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import Did
from pds.services.account_cache import AccountCache, AidCache
from pds.services.login_limits import AttemptCounter, LoginLimits
from pds.services.passwords import Passwords, hash_app_password
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.rate_limits import RateLimits
from pds.services.session_tokens import RefreshClaims, SessionTokens
from pds.services.sweeping import sweep_rows
from pds.store import sessions as rows
from pds.store.accounts import (
    Account,
    AccountStatus,
    get_account,
    get_account_by_aid,
    get_account_by_email,
    update_password_hash,
)
from pds.store.app_passwords import (
    AppPassword,
    list_app_passwords,
    update_app_password_hash,
)
from pds.store.clock import US_PER_S, Clock
from pds.store.engine import Engine, Txn

PLACEHOLDER_HANDLE: Final = "handle.invalid"

DidDocuments = Callable[[Did], Awaitable[Json]]
"""Returns the DID document to show with a session, or None when it cannot be had now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Lifetimes (XRPC-23, XRPC-25) and the floor under the time of a login (XRPC-27).

    Without `limits` nobody counts attempts to sign in (`PDS_SIGN_IN_LIMITS_ENABLED=false`).
    """

    access_lifetime_s: int = 120 * 60
    refresh_lifetime_s: int = 90 * 86_400
    refresh_grace_s: int = 2 * 3600
    login_floor_s: float = 0.35
    limits: LoginLimits | None = field(default_factory=LoginLimits)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The two tokens of a session."""

    access: str
    refresh: str


class SessionView(NamedTuple):
    """An account as its own session sees it; `tokens` only where a session was opened."""

    did: Did
    handle: str
    email: str | None
    email_confirmed: bool
    status: AccountStatus
    did_doc: Json
    tokens: TokenPair | None = None

    @property
    def is_active(self) -> bool:
        """Whether the account is in no other state than active."""
        return self.status is AccountStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class Opening:
    """Everything that a session needs that is not in the database: fixed before the transaction."""

    session_id: str
    token_id: str
    now_us: int


class Sessions:
    """Opens, renews and ends sessions, and recognises their tokens.

    `clock` gives the time that is written and may refuse while it is in doubt; `wall` is asked
    when a token is only checked, so that a doubted clock stops writes and not reads.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        wall: Clock,
        accounts: AccountCache,
        tokens: SessionTokens,
        passwords: Passwords,
        settings: SessionSettings | None = None,
        did_documents: DidDocuments | None = None,
        rate_limits: RateLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._wall = wall
        self._accounts = accounts
        self._tokens = tokens
        self._passwords = passwords
        self._settings = settings or SessionSettings()
        self._did_documents = did_documents
        self._monotonic = monotonic
        self._live: AidCache[str, int] = AidCache(monotonic=monotonic)
        engine.add_foreign_hook(self._live.forget_foreign)
        limits = self._settings.limits
        rates = rate_limits or RateLimits()
        self._attempts = None if limits is None else AttemptCounter(rates, limits, "sign-in")
        self._vain_attempts = (
            None if limits is None else AttemptCounter(rates, limits, "sign-in-unknown")
        )

    # Recognising tokens

    async def authenticate_access(self, token: str) -> Principal:
        """Return who holds this access token.

        Raises: RequestError `ExpiredToken` (also for a session that was ended), `InvalidToken`,
        `AccountNotFound` or `AccountTakedown`. Cost: no thread hop when session and account are
        in memory. Spec: (XRPC-22, XRPC-24)
        """
        claims = self._tokens.parse_access(token, now_s=self._wall.now_us() / US_PER_S)
        aid = self._live.get(claims.session_id)
        account = None if aid is None else self._accounts.peek(aid)
        if account is None:
            is_narrow = claims.scope is Scope.TAKENDOWN
            account = await self._load_session(claims.session_id, claims.did, is_narrow=is_narrow)
        if account.did != claims.did:
            raise RequestError("InvalidToken", "Malformed token")
        status = account.status
        if claims.scope is not Scope.TAKENDOWN:
            _refuse_takendown(status)
        return Principal(
            PrincipalKind.SESSION, account.did, account.aid, claims.scope, claims.session_id, status
        )

    async def is_deactivated(self, aid: int) -> bool:
        """Whether an account is deactivated in the database now, whatever is in memory."""
        account = await self._engine.read("session.state", get_account_by_aid, aid)
        return account is not None and account.status is AccountStatus.DEACTIVATED

    async def _load_session(self, session_id: str, did: str, *, is_narrow: bool) -> Account:
        tickets = self._live.ticket, self._accounts.ticket
        owner, account = await self._engine.read(
            "session.load", _read_session, session_id, did, self._wall.now_us()
        )
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        if owner is None:
            if not is_narrow:  # Ended by the takedown: say so, as no refresh will help.
                _refuse_takendown(account.status)
            raise _revoked()
        self._live.put(session_id, owner, owner, ticket=tickets[0])
        self._accounts.remember(account, ticket=tickets[1])
        return account

    # Signing in

    async def login(
        self, identifier: str, password: str, *, allow_takendown: bool = False, address: str = ""
    ) -> SessionView:
        """Open a session with a handle, DID or e-mail address and a password.

        The main password is tried first, then the app passwords. Unknown name and wrong password
        give the same answer after the same work and at least the same time.

        Raises: RequestError `AuthenticationRequired`, `AccountTakedown` (401), 429 when tried too
        often. Spec: (XRPC-27)
        """
        started = self._monotonic()
        outcome: SessionView | RequestError
        try:
            outcome = await self._login(identifier, password, allow_takendown, address)
        except RequestError as error:
            outcome = error
        if isinstance(outcome, RequestError) and outcome.status == 429:
            raise outcome
        rest_s = started + self._settings.login_floor_s - self._monotonic()
        if rest_s > 0:
            await asyncio.sleep(rest_s)
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _login(
        self, identifier: str, password: str, allow_takendown: bool, address: str
    ) -> SessionView:
        name = identifier.strip().lower().removeprefix("@")
        account, app_passwords = await self._engine.read("session.login", _read_login, name)
        await self._count_attempt(account, name, address)
        stored = account.password_hash if account else None
        is_main = await self._passwords.verify(password, stored)
        app_password = _find_app_password(password, app_passwords)
        upgraded = None
        if not (is_main or app_password):
            app_password = await self._find_reference_app_password(password, app_passwords)
            upgraded = hash_app_password(password) if app_password is not None else None
        if account is None or not (is_main or app_password):
            raise _wrong_password()
        if account.status in (AccountStatus.TAKENDOWN, AccountStatus.SUSPENDED):
            if not is_main:
                raise _wrong_password()
            if not allow_takendown:
                _refuse_takendown(account.status)
        rehashed = None
        if is_main and stored is not None and self._passwords.needs_rehash(stored):
            rehashed = await self._passwords.hash(password)
        session, opened = await self._engine.transact(
            "session.open",
            self._open_after_login,
            _Verified(account.aid, stored if is_main else None, rehashed, app_password, upgraded),
            self.prepare(),
            accounts=(account.aid,),
        )
        return await self._view(opened, session)

    async def _find_reference_app_password(
        self, password: str, candidates: Sequence[AppPassword]
    ) -> AppPassword | None:
        """Look among app passwords that a reference server has hashed: there are none, mostly."""
        found = await self._passwords.find_reference_app_password(
            password, [candidate.hash for candidate in candidates]
        )
        return next((one for one in candidates if one.hash == found), None)

    async def check_password(self, did: str, password: str, *, address: str = "") -> Account:
        """Return the account of a DID whose main password this is, in any state.

        Counted, and as slow, as an attempt to sign in: what guards a password guards it everywhere.
        An unknown DID and a wrong password look the same.

        Raises: RequestError `AuthenticationRequired` (401), 429 when tried too often.
        """
        started = self._monotonic()
        account = await self._engine.read("session.account", get_account, did)
        await self._count_attempt(account, did, address)
        is_right = await self._passwords.verify(
            password, account.password_hash if account else None
        )
        rest_s = started + self._settings.login_floor_s - self._monotonic()
        if rest_s > 0:
            await asyncio.sleep(rest_s)
        if account is None or not is_right:
            raise wrong_did_or_password()
        return account

    async def _count_attempt(self, account: Account | None, name: str, address: str) -> None:
        """Count a guess at a password, before it is judged. Raises: RequestError 429."""
        if self._attempts is not None and account is not None:
            await self._attempts.count(f"aid {account.aid}", address)
        elif self._vain_attempts is not None:
            await self._vain_attempts.count(name, address)

    def _open_after_login(
        self, txn: Txn, verified: "_Verified", opening: Opening
    ) -> tuple[rows.Session, Account]:
        """Open the session unless what was verified has changed meanwhile."""
        account = get_account_by_aid(txn, verified.aid)
        if account is None:
            raise _wrong_password()
        if verified.app_password is not None and verified.stored is None:
            if verified.app_password not in list_app_passwords(txn, account.aid):
                raise _wrong_password()
            if verified.upgraded is not None:
                update_app_password_hash(
                    txn, verified.app_password.app_password_id, verified.upgraded
                )
        elif account.password_hash != verified.stored:
            raise _wrong_password()
        if verified.rehashed is not None:
            update_password_hash(txn, account.aid, verified.rehashed)
            self._accounts.forget_after(txn, account.aid)
        app_password = verified.app_password if verified.stored is None else None
        return self.open_session(txn, account, opening, app_password=app_password), account

    def prepare(self) -> Opening:
        """Return what `open_session` needs, drawn before the transaction."""
        return Opening(secrets.token_urlsafe(16), secrets.token_urlsafe(32), self._clock.now_us())

    def open_session(
        self,
        txn: Txn,
        account: Account,
        opening: Opening,
        *,
        app_password: AppPassword | None = None,
    ) -> rows.Session:
        """Insert a new session inside a transaction of the caller's.

        The session of a taken-down account has a row, so that it can be ended, but no refresh
        token: the id of its row is told to nobody (XRPC-27).
        """
        lifetime_s = self._settings.refresh_lifetime_s
        if account.status in (AccountStatus.TAKENDOWN, AccountStatus.SUSPENDED):
            scope = Scope.TAKENDOWN
            lifetime_s = self._settings.access_lifetime_s
        elif app_password is None:
            scope = Scope.ACCESS
        else:
            scope = Scope.APP_PASS_PRIVILEGED if app_password.privileged else Scope.APP_PASS
        session = rows.Session(
            token_id=opening.token_id,
            session_id=opening.session_id,
            aid=account.aid,
            scope=scope,
            app_password_id=app_password.app_password_id if app_password else None,
            next_token_id=None,
            created_at=opening.now_us,
            expires_at=opening.now_us + lifetime_s * US_PER_S,
        )
        rows.delete_expired_of_account(txn, account.aid, opening.now_us)
        rows.insert_session(txn, session)
        return session

    # Renewing and ending

    async def refresh(self, token: str) -> SessionView:
        """Exchange a refresh token for the next pair.

        A token that was exchanged already still works for the grace, and leads to the same
        successor: for clients that lost the answer. Spec: (XRPC-25)
        """
        claims = self._tokens.parse_refresh(token, now_s=self._wall.now_us() / US_PER_S)
        known = await self._accounts.get(claims.did)
        session, account = await self._engine.transact(
            "session.refresh",
            self._rotate,
            claims.token_id,
            claims.did,
            secrets.token_urlsafe(32),
            self._clock.now_us(),
            accounts=() if known is None else (known.aid,),
        )
        return await self._view(account, session)

    def _rotate(
        self, txn: Txn, token_id: str, did: str, next_token_id: str, now_us: int
    ) -> tuple[rows.Session, Account]:
        used = rows.get_session(txn, token_id)
        if used is None or used.expires_at <= now_us:
            holder = get_account(txn, did)
            if holder is not None:  # A takedown ended the session: say so, not that it expired.
                _refuse_takendown(holder.status)
            raise _revoked()
        account = get_account_by_aid(txn, used.aid)
        if account is None or account.did != did:
            raise _revoked()
        _refuse_takendown(account.status)
        if used.next_token_id is not None:
            successor = rows.get_session(txn, used.next_token_id)
            if successor is None:
                raise _revoked()
            return successor, account
        successor = rows.Session(
            token_id=next_token_id,
            session_id=used.session_id,
            aid=used.aid,
            scope=used.scope,
            app_password_id=used.app_password_id,
            next_token_id=None,
            created_at=now_us,
            expires_at=now_us + self._settings.refresh_lifetime_s * US_PER_S,
        )
        grace_end = now_us + self._settings.refresh_grace_s * US_PER_S
        rows.update_successor(txn, token_id, next_token_id, min(used.expires_at, grace_end))
        rows.insert_session(txn, successor)
        rows.delete_expired_of_account(txn, used.aid, now_us)
        return successor, account

    async def logout(self, token: str) -> None:
        """End the session of a refresh token, expired or not: all of its tokens (XRPC-25)."""
        claims = self._tokens.parse_refresh(
            token, now_s=self._wall.now_us() / US_PER_S, expired_ok=True
        )
        known = await self._accounts.get(claims.did)
        aids = () if known is None else (known.aid,)
        await self._engine.transact("session.end", self._end_session, claims, aids, accounts=aids)

    def _end_session(self, txn: Txn, claims: RefreshClaims, aids: tuple[int, ...]) -> None:
        session_id = claims.session_id
        if session_id is None:  # A token of the server that was here before does not name it.
            row = rows.get_session(txn, claims.token_id)
            if row is None:
                return
            session_id = row.session_id
        rows.delete_session_chain(txn, session_id)
        txn.on_commit(lambda: self._live.forget_key(session_id))
        for aid in aids:
            txn.announce(aid)

    def end_sessions(self, txn: Txn, aid: int, *, keep_session_id: str | None = None) -> None:
        """End all sessions of an account, inside a transaction of the caller's (XRPC-26)."""
        rows.delete_account_sessions(txn, aid, keep_session_id=keep_session_id)
        txn.on_commit(lambda: self._live.forget(aid))
        txn.announce(aid)

    def end_app_password_sessions(self, txn: Txn, aid: int, app_password_id: int) -> None:
        """End the sessions opened with an app password, inside the caller's transaction."""
        rows.delete_app_password_sessions(txn, aid, app_password_id)
        txn.on_commit(lambda: self._live.forget(aid))
        txn.announce(aid)

    async def sweep(self) -> int:
        """Delete the rows of expired tokens and return how many there were."""
        return await sweep_rows(
            self._engine, "session.sweep", rows.delete_expired_sessions, self._clock.now_us()
        )

    # Showing

    async def describe(self, principal: Principal) -> SessionView:
        """Return the account of a session principal as getSession shows it."""
        account = await self._accounts.get_by_aid(principal.aid or 0)
        if account is None:
            raise RequestError("AccountNotFound", "Account not found", 403)
        return await self._view(account, None)

    async def view_opened(
        self, account: Account, session: rows.Session, *, did_doc: Json = None
    ) -> SessionView:
        """Return the account with the tokens of a session opened by `open_session`."""
        return await self._view(account, session, did_doc)

    async def _view(
        self, account: Account, session: rows.Session | None, did_doc: Json = None
    ) -> SessionView:
        if did_doc is None and self._did_documents is not None:
            did_doc = await self._did_documents(account.did)
        return SessionView(
            did=account.did,
            handle=account.handle or PLACEHOLDER_HANDLE,
            email=account.email,
            email_confirmed=account.email_confirmed_at is not None,
            status=account.status,
            did_doc=did_doc,
            tokens=None if session is None else self._pair(account.did, session),
        )

    def _pair(self, did: Did, session: rows.Session) -> TokenPair:
        now_s = self._wall.now_us() // US_PER_S
        scope = Scope(session.scope)
        token_id = secrets.token_urlsafe(32) if scope is Scope.TAKENDOWN else session.token_id
        access = self._tokens.issue_access(
            did=did,
            scope=scope,
            session_id=session.session_id,
            issued_s=now_s,
            expires_s=now_s + self._settings.access_lifetime_s,
        )
        refresh = self._tokens.issue_refresh(
            did=did,
            token_id=token_id,
            session_id=session.session_id,
            issued_s=now_s,
            expires_s=session.expires_at // US_PER_S,
        )
        return TokenPair(access, refresh)


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a login proved: the main password (its `stored` hash) or an app password."""

    aid: int
    stored: str | None
    rehashed: str | None
    app_password: AppPassword | None
    upgraded: bytes | None
    """The hash that this app password gets, in the place of one of the reference server."""


def _read_session(
    txn: Txn, session_id: str, did: str, now_us: int
) -> tuple[int | None, Account | None]:
    owner = rows.get_session_owner(txn, session_id, now_us)
    account = get_account(txn, did) if owner is None else get_account_by_aid(txn, owner)
    return owner, account


def _read_login(txn: Txn, name: str) -> tuple[Account | None, list[AppPassword]]:
    account = get_account_by_email(txn, name) if "@" in name else get_account(txn, name)
    return account, list_app_passwords(txn, account.aid) if account else []


def _find_app_password(password: str, candidates: Sequence[AppPassword]) -> AppPassword | None:
    given = hash_app_password(password)
    found = None
    for candidate in candidates:
        if hmac.compare_digest(candidate.hash, given):
            found = candidate
    return found


def _refuse_takendown(status: AccountStatus) -> None:
    if status is AccountStatus.TAKENDOWN:
        raise RequestError("AccountTakedown", "Account has been taken down", 401)
    if status is AccountStatus.SUSPENDED:
        raise RequestError("AccountTakedown", "Account has been suspended", 401)


def _wrong_password() -> RequestError:
    return RequestError("AuthenticationRequired", "Invalid identifier or password", 401)


def wrong_did_or_password() -> RequestError:
    """An unknown DID, or a password that is not its account's."""
    return RequestError("AuthenticationRequired", "Invalid did or password", 401)


def _revoked() -> RequestError:
    return RequestError("ExpiredToken", "Token has been revoked")
