"""The PLC operations that owners make with our help: what we recommend, sign and pass on.

Nothing is signed that we did not build: `sign` takes the last operation of the directory, replaces
the parts that the owner named and keeps everything else, foreign keys and services included. A code
that was mailed to the owner must come with it, and is used up only by an operation that can be
valid.

`submit` passes on an operation that anybody has signed, if the account can live here with it: our
endpoint, the signing key that we hold, the handle that we know. Our rotation key is not demanded
unless the operator wants it: who keeps the only rotation key is free to (ID-71), and is told what
this server cannot do then.

Spec: (ID-67..ID-71, ACC-36, ACC-63)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pds.errors import invalid_request
from pds.log import get_logger
from pds.protocol.data import Json
from pds.protocol.keys import Signer
from pds.protocol.plc import (
    PDS_SERVICE_ID,
    PDS_SERVICE_TYPE,
    SIGNING_KEY_ID,
    PlcError,
    PlcOperation,
    PlcService,
    PlcState,
    check_limits,
    make_update,
    parse_operation,
    sign_operation,
)
from pds.protocol.plc_log import PlcLog, validate_new_operation
from pds.protocol.syntax import Did
from pds.services.identity_acts import (
    Act,
    ActKind,
    check_not_taken_down,
    no_account,
)
from pds.services.identity_journal import IdentityJournal, Plan
from pds.services.mail_tokens import MailCode, MailPurpose, MailTokens
from pds.services.plc_asking import PlcLogReader, refusing_without_plc
from pds.store.accounts import Account, get_account_by_aid
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.keystore import Keystore

SELF_CUSTODY: Final = (
    "This server is none of the rotation keys: it cannot change the handle, the signing key or the "
    "host of this account, and cannot sign operations for it"
)

_log: Final = get_logger(__name__)


class PlcMails(Protocol):
    """Sends the code (`pds.services.account_mails.AccountMails`)."""

    async def request_code(self, aid: int, purpose: MailPurpose) -> None:
        """Make a code and mail it to the owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcSettings:
    """What an identity that lives here says."""

    public_url: str
    former_urls: tuple[str, ...] = ()
    """Earlier ones, which identities may still name."""
    recovery_did_key: str | None = None
    """The operator's rotation key, above ours (ACC-14)."""
    allow_self_custody: bool = True
    """Whether an identity may do without our rotation key (ID-71)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the document of an account here should say; None where it is not for us to say."""

    rotation_keys: tuple[str, ...] | None
    also_known_as: tuple[str, ...]
    signing_key: str
    endpoint: str

    def to_json(self) -> dict[str, Json]:
        """The answer of `getRecommendedDidCredentials`."""
        answer: dict[str, Json] = {
            "alsoKnownAs": list(self.also_known_as),
            "verificationMethods": {SIGNING_KEY_ID: self.signing_key},
            "services": {PDS_SERVICE_ID: {"type": PDS_SERVICE_TYPE, "endpoint": self.endpoint}},
        }
        if self.rotation_keys is not None:
            answer["rotationKeys"] = list(self.rotation_keys)
        return answer


class PlcOperations:
    """Recommends, signs and passes on operations."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        plc: PlcLogReader,
        journal: IdentityJournal,
        rotation_signer: Signer,
        tokens: MailTokens,
        mails: PlcMails,
        settings: PlcSettings,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._plc = plc
        self._journal = journal
        self._rotation_signer = rotation_signer
        self._tokens = tokens
        self._mails = mails
        self._settings = settings

    async def recommend(self, aid: int) -> Credentials:
        """Return what the identity of an account should say while it lives here (ID-67)."""
        return await self._engine.read("plc.recommend", self._credentials, aid)

    async def request_signature(self, aid: int) -> None:
        """Mail a code that allows one operation (ID-68).

        Raises: RequestError, as `AccountMails.request_code`.
        """
        account = await self._engine.read("plc.account", _get_account, aid)
        _check_is_plc(account.did)
        await self._mails.request_code(aid, MailPurpose.PLC_OPERATION)

    async def sign(self, aid: int, code: str | None, changes: Mapping[str, Any]) -> PlcOperation:
        """Return the operation that changes the named parts of the identity; it is not sent.

        `changes` may hold `rotationKeys`, `alsoKnownAs`, `verificationMethods` and `services`.

        Raises: RequestError `InvalidRequest`, `InvalidToken`, `ExpiredToken`, `UpstreamFailure`.
        Spec: (ID-68)
        """
        if not code:
            raise invalid_request("email confirmation token required to sign PLC operations")
        parts = _parse_changes(changes)
        account = await self._engine.read("plc.account", _get_account, aid)
        _check_is_plc(account.did)
        with refusing_without_plc():
            last = await self._plc.get_last_op(account.did)
        if last.state is None:
            raise invalid_request("Did is tombstoned")
        if self._rotation_signer.public_key.did_key not in last.state.rotation_keys:
            raise invalid_request(
                "This server holds no rotation key of the account, sign with a key of yours"
            )
        try:
            operation = sign_operation(make_update(last, **parts), self._rotation_signer)
            check_limits(operation)
        except PlcError as error:
            raise invalid_request(f"Not a valid operation: {error}") from error
        given = MailCode(aid, MailPurpose.PLC_OPERATION, code, self._clock.now_us())
        await self._tokens.use("plc.sign", given, _nothing_more)
        _log.info("plc.signed", did=account.did)
        return operation

    async def submit(self, aid: int, content: Any) -> list[str]:
        """Pass an operation on to the directory, and return what the owner should know about it.

        Raises: RequestError `InvalidRequest`, `RateLimitExceeded`, `UpstreamFailure`.
        Spec: (ID-69, ID-71, SYNC-34)
        """
        try:
            operation = parse_operation(content)
            check_limits(operation)
        except PlcError as error:
            raise invalid_request(f"Not a valid operation: {error}") from error
        if operation.state is None:
            raise invalid_request("Not a PLC operation: a tombstone would end the identity")
        state = operation.state
        is_ours = self._rotation_signer.public_key.did_key in state.rotation_keys
        if not is_ours and not self._settings.allow_self_custody:
            raise invalid_request("Rotation keys do not include server's rotation key")
        account = await self._engine.read("plc.account", _get_account, aid)
        _check_is_plc(account.did)

        def check(txn: Txn) -> None:
            check_not_taken_down(_get_account(txn, aid))
            _check_lives_here(state, self._credentials(txn, aid), self._settings.former_urls)

        await self._engine.read("plc.check", check)
        with refusing_without_plc():
            log = await self._plc.get_audit_log(account.did)
        _check_follows(account.did, log, operation, self._clock.now_us())
        act = Act(ActKind.SUBMITTED, aid, account.did, operation=operation)
        await self._journal.carry_out(Plan(act=act, check=check))
        if is_ours:
            return []
        _log.warning("plc.self_custody", did=account.did)
        return [SELF_CUSTODY]

    def _credentials(self, txn: Txn, aid: int) -> Credentials:
        account = _get_account(txn, aid)
        if account.key_id is None:
            raise no_account()
        keys = (self._settings.recovery_did_key, self._rotation_signer.public_key.did_key)
        is_plc = account.did.startswith("did:plc:")
        return Credentials(
            rotation_keys=tuple(dict.fromkeys(key for key in keys if key)) if is_plc else None,
            also_known_as=() if account.handle is None else (f"at://{account.handle}",),
            signing_key=self._keystore.did_key(txn, account.key_id),
            endpoint=self._settings.public_url,
        )


def _check_lives_here(state: PlcState, ours: Credentials, former_urls: tuple[str, ...]) -> None:
    """Refuse an identity with which the account could not live here (ID-69)."""
    service = state.services.get(PDS_SERVICE_ID)
    if service is None or service.type != PDS_SERVICE_TYPE:
        raise invalid_request("Incorrect type on atproto_pds service")
    if service.endpoint not in (ours.endpoint, *former_urls):
        raise invalid_request("Incorrect endpoint on atproto_pds service")
    if state.verification_methods.get(SIGNING_KEY_ID) != ours.signing_key:
        raise invalid_request("Incorrect signing key")
    if ours.also_known_as and state.also_known_as[:1] != ours.also_known_as:
        raise invalid_request("Incorrect handle in alsoKnownAs")


def _check_follows(did: Did, log: PlcLog, operation: PlcOperation, now_us: int) -> None:
    """Refuse what the directory would refuse; how often it may be asked is for itself to say."""
    if any(entry.operation.cid == operation.cid for entry in log.active):
        return
    after_us = log.entries[-1].created_at_us + 1 if log.entries else now_us
    try:
        validate_new_operation(did, log, operation, max(now_us, after_us), rate_limits=None)
    except PlcError as error:
        raise invalid_request(f"Not a valid operation: {error}") from error


def _parse_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parts that are given; whether they can be valid shows in the operation."""
    parts: dict[str, Any] = {}
    if changes.get("rotationKeys") is not None:
        parts["rotation_keys"] = _texts(changes["rotationKeys"], "rotationKeys")
    if changes.get("alsoKnownAs") is not None:
        parts["also_known_as"] = _texts(changes["alsoKnownAs"], "alsoKnownAs")
    if changes.get("verificationMethods") is not None:
        methods = _object(changes["verificationMethods"], "verificationMethods")
        _texts(list(methods.values()), "verificationMethods")
        parts["verification_methods"] = methods
    if changes.get("services") is not None:
        services = _object(changes["services"], "services")
        parts["services"] = {name: _service(entry) for name, entry in services.items()}
    return parts


def _service(entry: Any) -> PlcService:
    fields = _object(entry, "services")
    if fields.keys() != {"type", "endpoint"}:
        raise invalid_request("A service has a type and an endpoint")
    _texts(list(fields.values()), "services")
    return PlcService(fields["type"], fields["endpoint"])


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise invalid_request(f"{where} must hold strings")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid_request(f"{where} must be an object")
    return value


def _get_account(txn: Txn, aid: int) -> Account:
    account = get_account_by_aid(txn, aid)
    if account is None:
        raise no_account()
    return account


def _check_is_plc(did: Did) -> None:
    if not did.startswith("did:plc:"):
        raise invalid_request("Only did:plc identities have PLC operations")


def _nothing_more(_txn: Txn) -> None:
    """Signing changes no row; using up the code is all."""
