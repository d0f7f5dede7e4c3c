"""Who may call what, as declared at each `@routes.method(auth=, allows=, subject=)`, and its table.

A method declares two things about its caller: an `Auth` level (see `auth`) and `Allows`, the states
of the account. `check_caller` enforces the second where every request passes; a write asks again in
its own transaction. What a method says of another account is declared as its `Subject`; the rule
itself stands in `services/availability` and is asked in the snapshot that is read.

From these declarations `refusal` and `subject_refusal` tell the answer to every credential in every
state. `docs/reference/access.md` is that table; the tests ask a running server for each cell of it.

Spec: (XRPC-20, XRPC-21, XRPC-24, XRPC-28, XRPC-64, ACC-5, ACC-45, SYNC-70)
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, NamedTuple

from pds.errors import RequestError
from pds.services import Services
from pds.services.principal import Principal
from pds.xrpc.auth import BASIC_OK, FULL_ONLY, OPERATOR_ONLY, TAKENDOWN_OK, Auth


class Allows(Enum):
    """In which states the caller's account may be, beyond what the credential says."""

    CREDENTIAL = "as the credential"
    """Whatever the credential allows: a deactivated account may look after itself (ACC-5)."""
    ACTIVE = "active"
    """Not a deactivated one: it neither writes nor speaks to other services (XRPC-64)."""
    ENDED = "ended"
    """Also a credential that is no longer good: who signs out is told yes, whatever was before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """How a method answers about the account that its request names.

    With `is_hidden` only active accounts are shown, except to themselves and the operator
    (SYNC-70). `unknown` is the name of the 400 for an account that is not here; without it such an
    account is no error. With `asks_elsewhere` a caller who shows a credential is passed on to the
    service that knows other hosts' accounts.
    """

    is_hidden: bool
    unknown: str | None
    asks_elsewhere: bool = False


REPO: Final = Subject(is_hidden=True, unknown="RepoNotFound")
REPO_HEAD: Final = Subject(is_hidden=True, unknown="HeadNotFound")
RECORDS: Final = Subject(is_hidden=True, unknown="InvalidRequest")
RECORD: Final = Subject(is_hidden=True, unknown="RecordNotFound", asks_elsewhere=True)
REPO_STATUS: Final = Subject(is_hidden=False, unknown="RepoNotFound")
ACCOUNT: Final = Subject(is_hidden=False, unknown="NotFound")
ACCOUNT_GIVEN: Final = Subject(is_hidden=False, unknown="InvalidRequest")
ACCOUNTS: Final = Subject(is_hidden=False, unknown=None)


@dataclass(frozen=True, slots=True)
class Access:
    """What a method declares about its caller and about whom it speaks of."""

    auth: Auth
    allows: Allows = Allows.CREDENTIAL
    subject: Subject | None = None


PROXIED: Final = Access(Auth.SESSION, Allows.ACTIVE)
"""Every method that is not ours and goes to another service (XRPC-64)."""
REPORT: Final = Access(Auth.SESSION_TAKENDOWN_OK)
"""createReport, which a taken-down account may send too (ACC-45)."""


async def check_caller(allows: Allows, principal: Principal | None, services: Services) -> None:
    """Refuse an account in a state that the method does not take, before its body is read.

    What is in memory may be older than an activation on another node, so a refusal is not made
    without a look at the database.

    Raises: RequestError `AccountDeactivated`, 401. Spec: (XRPC-24, XRPC-64)
    """
    if allows is not Allows.ACTIVE or principal is None or principal.aid is None:
        return
    if principal.is_deactivated and await services.sessions.is_deactivated(principal.aid):
        raise RequestError("AccountDeactivated", "Account is deactivated", 401)


# The table


class State(StrEnum):
    """What may have become of an account."""

    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    SUSPENDED = "suspended"
    TAKENDOWN = "takendown"
    DELETED = "deleted"
    UNKNOWN = "unknown"


STOPPED: Final = frozenset({State.SUSPENDED, State.TAKENDOWN})
GONE: Final = frozenset({State.DELETED, State.UNKNOWN})


class Credential(StrEnum):
    """What may be shown. Those up to SERVICE_WRONG_ISS belong to an account in some state."""

    ACCESS = "access"
    PRIVILEGED = "privileged app password"
    APP_PASSWORD = "app password"  # noqa: S105 - a kind of credential
    NARROW = "narrow"
    REFRESH = "refresh"
    SERVICE = "service"
    SERVICE_WRONG_LXM = "service, wrong lxm"
    SERVICE_WRONG_AUD = "service, wrong aud"
    SERVICE_WRONG_ISS = "service, wrong iss"
    NONE = "none"
    ADMIN = "admin"
    WRONG_ADMIN = "wrong admin password"
    MODERATOR = "moderator"
    MODERATOR_WRONG_LXM = "moderator, wrong lxm"
    MODERATOR_WRONG_AUD = "moderator, wrong aud"


SESSIONS: Final = (
    Credential.ACCESS,
    Credential.PRIVILEGED,
    Credential.APP_PASSWORD,
    Credential.NARROW,
)
SERVICES: Final = (
    Credential.SERVICE,
    Credential.SERVICE_WRONG_LXM,
    Credential.SERVICE_WRONG_AUD,
    Credential.SERVICE_WRONG_ISS,
)
OF_ACCOUNTS: Final = (*SESSIONS, Credential.REFRESH, *SERVICES)
MODERATORS: Final = (
    Credential.MODERATOR,
    Credential.MODERATOR_WRONG_LXM,
    Credential.MODERATOR_WRONG_AUD,
)


class Refusal(NamedTuple):
    """An answer that is about the caller, or about the state of an account."""

    status: int
    name: str


AUTH_MISSING: Final = Refusal(401, "AuthMissing")
AUTH_REQUIRED: Final = Refusal(401, "AuthenticationRequired")
INVALID_TOKEN: Final = Refusal(400, "InvalidToken")
EXPIRED_TOKEN: Final = Refusal(400, "ExpiredToken")
NOT_FOUND: Final = Refusal(403, "AccountNotFound")
IS_TAKENDOWN: Final = Refusal(401, "AccountTakedown")
IS_DEACTIVATED: Final = Refusal(401, "AccountDeactivated")
UNTRUSTED: Final = Refusal(401, "UntrustedIss")
BAD_TYPE: Final = Refusal(401, "BadJwtType")
BAD_ISSUER: Final = Refusal(401, "BadJwtIss")
BAD_AUDIENCE: Final = Refusal(401, "BadJwtAudience")
BAD_METHOD: Final = Refusal(401, "BadJwtLexiconMethod")
BAD_SIGNATURE: Final = Refusal(401, "BadJwtSignature")

_WRONG: Final = {
    Credential.SERVICE_WRONG_LXM: BAD_METHOD,
    Credential.SERVICE_WRONG_AUD: BAD_AUDIENCE,
    Credential.SERVICE_WRONG_ISS: BAD_SIGNATURE,
    Credential.MODERATOR_WRONG_LXM: BAD_METHOD,
    Credential.MODERATOR_WRONG_AUD: BAD_AUDIENCE,
}
"""A service token that is wrong in one respect only."""


def refusal(access: Access, credential: Credential, state: State) -> Refusal | None:
    """Return how a method refuses a credential of an account in a state; None if it does not."""
    auth = access.auth
    if auth is Auth.NONE:
        return None
    if credential is Credential.NONE:
        if auth in (Auth.OPTIONAL, Auth.SERVICE_OPTIONAL):
            return None
        return AUTH_REQUIRED if auth in OPERATOR_ONLY else AUTH_MISSING
    if credential in (Credential.ADMIN, Credential.WRONG_ADMIN):
        if auth not in BASIC_OK:
            return INVALID_TOKEN
        return None if credential is Credential.ADMIN else AUTH_REQUIRED
    match auth:
        case Auth.ADMIN:
            return AUTH_REQUIRED
        case Auth.MODERATOR:
            return _moderator_refusal(credential)
        case Auth.REFRESH:
            return _refresh_refusal(access.allows, credential, state)
        case Auth.SERVICE_OPTIONAL:
            return _service_refusal(credential, state, with_account=False)
        case Auth.SESSION_OR_MODERATOR if credential in (*SERVICES, *MODERATORS):
            return _moderator_refusal(credential)
        case Auth.SESSION_OR_SERVICE if credential in (*SERVICES, *MODERATORS):
            return _service_refusal(credential, state, with_account=True)
        case _:
            return _session_refusal(access, credential, state)


def _session_refusal(access: Access, credential: Credential, state: State) -> Refusal | None:
    if credential not in SESSIONS:
        return INVALID_TOKEN
    if state in GONE:
        return NOT_FOUND
    if credential is Credential.NARROW:
        return None if access.auth in TAKENDOWN_OK else IS_TAKENDOWN
    if state in STOPPED:
        return IS_TAKENDOWN
    if access.auth in FULL_ONLY and credential is not Credential.ACCESS:
        return INVALID_TOKEN
    if access.allows is Allows.ACTIVE and state is State.DEACTIVATED:
        return IS_DEACTIVATED
    return None


def _refresh_refusal(allows: Allows, credential: Credential, state: State) -> Refusal | None:
    if credential is not Credential.REFRESH:
        return INVALID_TOKEN
    if allows is Allows.ENDED:
        return None
    if state in GONE:
        return EXPIRED_TOKEN
    return IS_TAKENDOWN if state in STOPPED else None


def _service_refusal(credential: Credential, state: State, *, with_account: bool) -> Refusal | None:
    if credential is Credential.MODERATOR:
        return BAD_ISSUER  # The key of labels is none that opens anything else (XRPC-42).
    if credential in _WRONG:
        return _WRONG[credential]
    if credential is not Credential.SERVICE:
        return BAD_TYPE
    if not with_account:
        return None
    if state in GONE:
        return NOT_FOUND
    return IS_TAKENDOWN if state in STOPPED else None


def _moderator_refusal(credential: Credential) -> Refusal | None:
    if credential is Credential.MODERATOR:
        return None
    if credential in MODERATORS:
        return _WRONG[credential]
    return UNTRUSTED if credential in SERVICES else BAD_TYPE


class Asker(StrEnum):
    """Who asks about an account."""

    NOBODY = "none"
    OWNER = "owner"
    OTHER = "other account"
    ADMIN = "admin"
    MODERATOR = "moderator"


_CREDENTIAL_OF: Final = {
    Asker.NOBODY: Credential.NONE,
    Asker.OWNER: Credential.ACCESS,
    Asker.OTHER: Credential.ACCESS,
    Asker.ADMIN: Credential.ADMIN,
    Asker.MODERATOR: Credential.MODERATOR,
}
_HIDDEN: Final = {
    State.DEACTIVATED: Refusal(400, "RepoDeactivated"),
    State.SUSPENDED: Refusal(400, "RepoSuspended"),
    State.TAKENDOWN: Refusal(400, "RepoTakendown"),
}


def subject_refusal(access: Access, asker: Asker, state: State) -> Refusal | None:
    """Return how a method refuses to speak of an account in a state; None if it does not.

    The owner of an account that is stopped asks with the narrow token, everybody else with a good
    credential of an active account.
    """
    subject = access.subject
    if subject is None:
        return None
    owner_state, credential = State.ACTIVE, _CREDENTIAL_OF[asker]
    if asker is Asker.OWNER:
        owner_state = state
        credential = Credential.NARROW if state in STOPPED else credential
    refused = refusal(access, credential, owner_state)
    if refused is not None:
        return refused
    if state in GONE:
        if subject.asks_elsewhere and asker is not Asker.NOBODY:
            return refusal(PROXIED, credential, owner_state)
        return None if subject.unknown is None else Refusal(400, subject.unknown)
    if not subject.is_hidden or state is State.ACTIVE:
        return None
    is_known = access.auth is not Auth.NONE
    if is_known and asker in (Asker.OWNER, Asker.ADMIN):
        return None
    return _HIDDEN[state]
