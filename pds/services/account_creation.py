"""Opening an account: one act over two systems, always finished or undone.

A new account needs a DID in the PLC directory and rows in our database; a crash or a dead directory
between the two must not leave half of it (promise A8). So:

1. everything that can be refused is refused;
2. one transaction writes a journal row with the sealed signing key and the signed genesis
   operation. It also reserves the handle;
3. the operation is sent to the directory;
4. one transaction makes account, key, repo, password, invite use and session, emits the four
   events, and deletes the journal row.

A client that was refused has no account: when step 4 is refused, or the outcome of step 3 is
unknown, the DID gets a tombstone, at once or as soon as the directory can be asked. What a crash
leaves behind is completed: its client was told nothing, and can sign in. See `account_journal`.

An account for a DID that exists already touches our database only: it starts deactivated and
without events (ACC-21), whatever comes next is part of migration. Such a DID is never tombstoned.
Its document says whose it is; the host that it names is asked nothing (ACC-61).
"""

import secrets
from dataclasses import dataclass, replace
from typing import TypeVar

from pds.errors import ConfigError, NotResolvable, RequestError, invalid_request
from pds.protocol.data import Json
from pds.protocol.diddoc import DidDocument
from pds.protocol.keys import (
    InvalidKey,
    Signer,
    generate_secret,
    make_signer,
    parse_did_key,
)
from pds.protocol.plc import did_for_genesis, render_document, sign_genesis
from pds.protocol.syntax import Did, Handle, is_blessed_did
from pds.protocol.tid import next_tid
from pds.services.account_draft import Draft, DraftPhase, seal_subject
from pds.services.account_journal import AccountJournal
from pds.services.account_mails import AccountMails
from pds.services.account_rows import AccountRows, Claim, NewRows, account_exists, check_claim
from pds.services.email_addresses import parse_email
from pds.services.handles import HandlePolicy
from pds.services.passwords import Passwords, check_new_password
from pds.services.principal import Principal, PrincipalKind, ReplayId
from pds.services.reserved_keys import CURVE, ReservedKeys
from pds.services.resolving import ForgetfulResolver
from pds.services.sessions import Opening, Sessions, SessionView
from pds.services.unbroken import UnbrokenActs
from pds.services.used_tokens import refuse_replay
from pds.store.accounts import Account, AccountStatus, get_account_by_did
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.invites import is_invite_code_usable
from pds.store.keystore import KEY_ENTROPY_BYTES, NONCE_BYTES, Keystore
from pds.store.sessions import Session

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreationSettings:
    """How accounts are opened on this host."""

    public_url: str
    invite_required: bool = True
    recovery_did_key: str | None = None
    """The operator's rotation key, above ours in every new identity (ACC-14)."""
    blocked_email_domains: frozenset[str] = frozenset()
    dev: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRequest:
    """What a client asked for, unchecked."""

    handle: str
    email: str | None = None
    password: str | None = None
    did: str | None = None
    invite_code: str | None = None
    recovery_key: str | None = None
    has_plc_op: bool = False


@dataclass(frozen=True, slots=True)
class _Repetition:
    """A call for an account that waits here already."""

    account: Account
    claim: Claim
    opening: Opening
    replay: ReplayId | None


class AccountCreation:
    """Opens accounts."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        rows: AccountRows,
        journal: AccountJournal,
        sessions: Sessions,
        passwords: Passwords,
        handles: HandlePolicy,
        resolver: ForgetfulResolver,
        rotation_signer: Signer,
        mails: AccountMails,
        settings: CreationSettings,
        reserved_keys: ReservedKeys | None = None,
    ) -> None:
        """Take parts and settings; raises ConfigError for a recovery key that is none."""
        _check_operator_key(settings.recovery_did_key)
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._rows = rows
        self._journal = journal
        self._sessions = sessions
        self._passwords = passwords
        self._handles = handles
        self._resolver = resolver
        self._rotation_signer = rotation_signer
        self._mails = mails
        self._settings = settings
        self._reserved_keys = reserved_keys
        self._acts = UnbrokenActs()

    async def create(
        self, request: AccountRequest, principal: Principal | None = None
    ) -> SessionView:
        """Open an account and a session for it.

        `principal` is the holder of the key of `request.did`, when an account moves in. A caller
        that leaves does not stop an act that has begun.

        Raises: RequestError with the names of the lexicon, `AuthMissing`, `UpstreamFailure`.
        Spec: (ACC-10..14, ACC-20..25, ID-20, ID-21, SYNC-40, SYNC-41)
        """
        if request.has_plc_op:
            raise invalid_request("Unsupported input: plcOp")
        if not request.password:
            raise RequestError("InvalidPassword", "Password is required")
        check_new_password(request.password)
        if self._settings.invite_required and not request.invite_code:
            raise RequestError("InvalidInviteCode", "No invite code provided")
        claim = Claim(
            did=None,
            email=self._parse_email(request.email),
            handle=self._handles.parse(request.handle),
            invite_code=await self._usable_code(request.invite_code),
        )
        if request.did is not None:
            did = self._check_control(request.did, principal)
            replay = None if principal is None else principal.replay
            return await self._acts.run(
                self._create_for(replace(claim, did=did), did, request.password, replay)
            )
        self._handles.check_ours(claim.handle)
        recovery_key = self._parse_recovery_key(request.recovery_key)
        return await self._acts.run(self._create_new(claim, request.password, recovery_key))

    async def _usable_code(self, code: str | None) -> str | None:
        """Where no code is needed, one that is good counts and any other is as none."""
        if not code or self._settings.invite_required:
            return code or None
        is_usable = await self._engine.read("invite.check", is_invite_code_usable, code)
        return code if is_usable else None

    async def close(self) -> None:
        """Wait for the acts that are under way."""
        await self._acts.close()

    # A new DID

    async def _create_new(
        self, claim: Claim, password: str, recovery_key: str | None
    ) -> SessionView:
        draft = await self._draft(claim, password, recovery_key)
        journal_id = await self._journal.reserve(draft)
        try:
            await self._journal.publish(journal_id, draft)
            try:
                account, session = await self._journal.complete(
                    journal_id, draft, self._sessions.prepare()
                )
            except RequestError:
                await self._journal.take_back(journal_id, draft, draft.operation)
                raise
        finally:
            self._journal.release(journal_id)
        await self._resolver.forget(draft.did, draft.handle)
        state = draft.operation.state
        did_doc: Json = None if state is None else render_document(draft.did, state)
        return await self._welcome(account, session, did_doc)

    async def _draft(self, claim: Claim, password: str, recovery_key: str | None) -> Draft:
        """Check what is cheap to check, then make the keys and the genesis operation.

        The signing key is new and the account's own; it never signs operations (ID-66).
        """
        await self._journal.settle_handle(claim.handle)
        await self._engine.read("account.check", check_claim, claim)
        password_hash = await self._passwords.hash(password)
        secret = generate_secret(CURVE, secrets.token_bytes(32))
        operation = sign_genesis(
            self._rotation_signer,
            rotation_keys=self._rotation_keys(recovery_key),
            signing_key=make_signer(CURVE, secret).public_key.did_key,
            handle=claim.handle,
            pds_endpoint=self._settings.public_url,
        )
        did = did_for_genesis(operation)
        sealed = self._keystore.seal(
            seal_subject(did), secret, nonce=secrets.token_bytes(NONCE_BYTES)
        )
        return Draft(
            phase=DraftPhase.OPEN,
            did=did,
            handle=claim.handle,
            email=claim.email,
            password_hash=password_hash,
            invite_code=claim.invite_code,
            operation=operation,
            curve=CURVE,
            sealed_secret=sealed,
        )

    def _rotation_keys(self, recovery_key: str | None) -> list[str]:
        """The user's key, the operator's, ours: the first has the last word (ACC-14)."""
        keys = (
            recovery_key,
            self._settings.recovery_did_key,
            self._rotation_signer.public_key.did_key,
        )
        return list(dict.fromkeys(key for key in keys if key))

    # A DID that exists

    async def _create_for(
        self, claim: Claim, did: Did, password: str, replay: ReplayId | None
    ) -> SessionView:
        """Make the place for an identity that points elsewhere, and still may (ACC-1, ACC-21)."""
        existing = await self._engine.read("account.existing", get_account_by_did, did)
        if existing is not None:
            return await self._resume(existing, claim, password, replay)
        document = await self._resolve_brought(did)
        account, session = await self._insert_for(
            claim, did, password, opening=self._sessions.prepare(), replay=replay
        )
        return await self._welcome(account, session, dict(document.source))

    async def admit(self, request: AccountRequest) -> Account:
        """Make the place for an identity without a token of it, and without a session.

        Whoever calls this knows why: the operator wants it, and nothing but an operation on the
        identity itself makes the account active. One that waits here already is returned as it is,
        to who knows its password: the old host could have opened it, to own what comes here.

        Raises: RequestError, as `create`. Spec: (ACC-1, ACC-21, ACC-24)
        """
        if not request.password:
            raise RequestError("InvalidPassword", "Password is required")
        check_new_password(request.password)
        did = Did(request.did or "")
        if not is_blessed_did(did, dev=self._settings.dev):
            raise RequestError("UnresolvableDid", "DID method is not supported")
        existing = await self._engine.read("account.existing", get_account_by_did, did)
        if existing is not None:
            if existing.status is not AccountStatus.DEACTIVATED:
                raise account_exists()
            if not await self._passwords.verify(request.password, existing.password_hash):
                raise invalid_request(
                    "An account for this DID waits here under another password: give that one, or"
                    " delete that account first (pds account delete)"
                )
            return existing
        claim = Claim(
            did=did,
            email=self._parse_email(request.email),
            handle=self._handles.parse(request.handle),
            invite_code=None,
        )
        account, _ = await self._acts.run(self._insert_for(claim, did, request.password))
        return account

    async def _insert_for(
        self,
        claim: Claim,
        did: Did,
        password: str,
        *,
        opening: Opening | None = None,
        replay: ReplayId | None = None,
    ) -> tuple[Account, Session | None]:
        await self._check_brought_handle(claim.handle, did)
        await self._engine.read("account.check", check_claim, claim)
        now_us = self._clock.now_us()
        new = NewRows(
            did=did,
            claim=claim,
            password_hash=await self._passwords.hash(password),
            curve=CURVE,
            secret=await self._secret_for(did),
            key_entropy=secrets.token_bytes(KEY_ENTROPY_BYTES),
            rev=next_tid(None, now_us, secrets.randbelow(1024)),
            now_us=now_us,
            opening=opening,
            journal_id=None,
            is_active=False,
            replay=replay,
        )
        return await self._engine.transact("account.import", self._rows.insert, new)

    async def _resume(
        self, account: Account, claim: Claim, password: str, replay: ReplayId | None
    ) -> SessionView:
        """Answer a repeated call like the first one, if it knows the password (ACC-24).

        Another handle or address than the first time counts, as the owner means the last one.
        Guesses count like those at signing in: the old host, which can sign the token, may make
        some.
        """
        try:
            await self._sessions.check_password(account.did, password)
        except RequestError as error:
            if error.status == 429:
                raise
            raise account_exists() from error
        if account.status is not AccountStatus.DEACTIVATED:
            raise account_exists()
        if claim.handle != account.handle:
            await self._check_brought_handle(claim.handle, account.did)
        again = _Repetition(account, claim, self._sessions.prepare(), replay)
        account, session = await self._engine.transact(
            "session.open",
            self._open_again,
            again,
            self._clock.now_us(),
            accounts=(account.aid,),
        )
        return await self._sessions.view_opened(account, session)

    def _open_again(self, txn: Txn, again: "_Repetition", now_us: int) -> tuple[Account, Session]:
        """Open a session unless what was found out has changed meanwhile."""
        refuse_replay(txn, again.replay, now_us)
        if get_account_by_did(txn, again.account.did) != again.account:
            raise account_exists()
        account = self._rows.amend(txn, again.account, again.claim)
        return account, self._sessions.open_session(txn, account, again.opening)

    async def _secret_for(self, did: Did) -> bytes:
        """Return the key that was reserved for a DID, else a new one (ACC-15)."""
        reserved = None
        if self._reserved_keys is not None:
            reserved = await self._reserved_keys.get_secret(did)
        return reserved or generate_secret(CURVE, secrets.token_bytes(32))

    async def _resolve_brought(self, did: Did) -> DidDocument:
        try:
            document = await self._resolver.resolve_did(did, refresh=True)
        except NotResolvable as error:
            raise RequestError("UnresolvableDid", f"Could not resolve DID: {did}") from error
        if document.signing_key is None:
            raise RequestError("IncompatibleDidDoc", "DID document has no usable atproto key")
        return document

    async def _check_brought_handle(self, handle: Handle, did: Did) -> None:
        """A handle of ours by our rules, any other if it resolves to the DID (ACC-23, ID-21)."""
        if self._handles.is_ours(handle):
            self._handles.check_ours(handle)
            return
        try:
            resolved = await self._resolver.resolve_handle(handle, refresh=True)
        except NotResolvable:
            resolved = None
        if resolved != did:
            raise RequestError("InvalidHandle", "External handle did not resolve to DID")

    def _check_control(self, did: str, principal: Principal | None) -> Did:
        """Demand a service token of the DID itself (ACC-20)."""
        if (
            principal is None
            or principal.kind is not PrincipalKind.SERVICE
            or principal.did is None
            or principal.did != did
        ):
            raise RequestError(
                "AuthenticationRequired", f"Missing auth to create account with did: {did}", 401
            )
        if not is_blessed_did(did, dev=self._settings.dev):
            raise RequestError("UnresolvableDid", "DID method is not supported")
        return principal.did

    # Shared

    def _parse_email(self, email: str | None) -> str | None:
        if not email:
            raise invalid_request("Email is required")
        return parse_email(email, blocked_domains=self._settings.blocked_email_domains)

    def _parse_recovery_key(self, recovery_key: str | None) -> str | None:
        if not recovery_key:
            return None
        try:
            key = parse_did_key(recovery_key)
        except InvalidKey as error:
            raise invalid_request("recoveryKey is not a did:key of a P-256 or K-256 key") from error
        if key == self._rotation_signer.public_key:
            raise invalid_request("recoveryKey is the key of this server")
        return key.did_key

    async def _welcome(
        self, account: Account, session: Session | None, did_doc: Json
    ) -> SessionView:
        self._mails.note_welcome(account)
        if session is None:
            raise AssertionError("a session was asked for")
        return await self._sessions.view_opened(account, session, did_doc=did_doc)


def _check_operator_key(did_key: str | None) -> None:
    """Refuse to start with a key that every sign-up would fail on."""
    if did_key is None:
        return
    try:
        parse_did_key(did_key)
    except InvalidKey as error:
        message = "PDS_RECOVERY_DID_KEY is not a did:key of a P-256 or K-256 key"
        raise ConfigError(message) from error
