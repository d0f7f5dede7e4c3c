"""Who is calling: the outcome of authentication, and what that credential may do.

A `Principal` is made once per request and handed to the services. It says nothing about the
permission to touch a certain repo: services compare `did` with the account they act on.

Scopes of legacy sessions (XRPC-22) form three nested sets: full (main password), privileged (full
and privileged app passwords) and standard (all app passwords). The narrow `TAKENDOWN` scope and the
`REFRESH` scope belong to none of them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from pds.protocol.syntax import Did
from pds.store.accounts import AccountStatus


class Scope(StrEnum):
    """What a session token may do."""

    ACCESS = "com.atproto.access"
    APP_PASS = "com.atproto.appPass"  # noqa: S105 - a scope, not a password
    APP_PASS_PRIVILEGED = "com.atproto.appPassPrivileged"  # noqa: S105
    REFRESH = "com.atproto.refresh"
    TAKENDOWN = "com.atproto.takendown"


PRIVILEGED_SCOPES: Final = frozenset({Scope.ACCESS, Scope.APP_PASS_PRIVILEGED})
STANDARD_SCOPES: Final = PRIVILEGED_SCOPES | {Scope.APP_PASS}
ACCESS_TOKEN_SCOPES: Final = STANDARD_SCOPES | {Scope.TAKENDOWN}


class PrincipalKind(StrEnum):
    """Which family of credentials was shown."""

    SESSION = "session"
    SERVICE = "service"
    ADMIN = "admin"
    MODERATOR = "moderator"


@dataclass(frozen=True, slots=True)
class ReplayId:
    """By what a token that works once is known, until `expires_at` in unix microseconds."""

    digest: bytes
    expires_at: int


class Principal(NamedTuple):
    """An authenticated caller.

    A session has `did`, `aid`, `scope`, `session_id` and the `status` of its account. A service
    principal is the holder of a DID's signing key: `did`, and `lxm`, the one method that the token
    names; `aid` only if the account lives here. A moderator is the configured moderation service:
    its `did`, and `lxm`. The admin has none of these. `replay` is there when the credential works
    once: whoever writes for this caller hands it to `used_tokens.refuse_replay`.
    """

    kind: PrincipalKind
    did: Did | None = None
    aid: int | None = None
    scope: Scope | None = None
    session_id: str | None = None
    status: AccountStatus | None = None
    lxm: str | None = None
    replay: ReplayId | None = None

    @property
    def is_admin(self) -> bool:
        """Whether this is the operator."""
        return self.kind is PrincipalKind.ADMIN

    @property
    def is_full(self) -> bool:
        """Whether the main password stands behind this."""
        return self.scope is Scope.ACCESS

    @property
    def is_privileged(self) -> bool:
        """Whether privileged methods are allowed (XRPC-63)."""
        return self.scope in PRIVILEGED_SCOPES

    @property
    def is_deactivated(self) -> bool:
        """Whether the account was deactivated when it was last looked at."""
        return self.status is AccountStatus.DEACTIVATED

    @property
    def is_takendown(self) -> bool:
        """Whether this is the narrow credential of a taken-down account (ACC-45)."""
        return self.scope is Scope.TAKENDOWN


ADMIN: Final = Principal(PrincipalKind.ADMIN)
"""The operator, after the admin password was checked."""
