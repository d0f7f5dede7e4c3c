"""How the calls of a move are authorized at the other host: the seam between a host and a session.

`RemoteHost` makes the calls and knows no more of a session than `Session`: what to put on a
request, what to learn from an answer, how to renew, and what the session allows. There are two:
`Bearer`, the session of a login with the password, which allows everything, and `Bound`, an OAuth
session whose tokens are bound to a key.

Spec: (OAUTH-75)
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from pds.errors import RemoteError
from pds.protocol.oauth.answers import MAX_TOKEN_CHARS, REQUIRED_SCOPE
from pds.protocol.oauth.dpop import PROOF_HEADER
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.scopes import ANY, ScopeSet
from pds.protocol.syntax import Did
from pds.services.method_policy import CREATE_ACCOUNT
from pds.services.oauth_client import OAuthClient, OAuthRefused, OAuthSession, Proofs

GET_PREFERENCES: Final = "app.bsky.actor.getPreferences"


class Permission(StrEnum):
    """What a move needs of a session, beside what every session may do."""

    VOUCH = "vouch"
    """A service token for the account to be made at the new host."""
    EMAIL = "email"
    PREFERENCES = "preferences"
    SIGN = "sign"
    """The operation that changes the identity, with the code from the mail."""
    LEAVE = "leave"
    """To deactivate the account."""


SCOPE_VOUCH: Final = f"rpc:{CREATE_ACCOUNT}?aud=*"
"""For any audience: hosts compare the bare DID of a token's audience, which no scope can name."""
SCOPE_PREFERENCES: Final = f"rpc:{GET_PREFERENCES}?aud=*"
"""For any audience: which AppView the other host asks is its own affair."""
SCOPE_LEAVE: Final = "account:status?action=manage"
ALL_SCOPES: Final = " ".join(
    (
        REQUIRED_SCOPE,
        SCOPE_VOUCH,
        SCOPE_PREFERENCES,
        "account:email",
        "identity:*",
        SCOPE_LEAVE,
    )
)
"""All that this host ever asks another for; reading repo and blobs needs no permission."""
SCOPES_TO_TRY: Final = (
    ALL_SCOPES,
    ALL_SCOPES.removesuffix(f" {SCOPE_LEAVE}"),
    f"{REQUIRED_SCOPE} {SCOPE_VOUCH}",
)
"""From all to the least, for servers that refuse what they do not know: `account:status` is in no
specification yet."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A session that was opened with a password."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)


def read_tokens(answer: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens in the answer to a login, if they can be sent back in a header."""
    access, refresh = answer.get("accessJwt"), answer.get("refreshJwt")
    if not isinstance(access, str) or not isinstance(refresh, str):
        return None
    is_usable = all(
        0 < len(token) <= MAX_TOKEN_CHARS and token.isascii() and token.isprintable()
        for token in (access, refresh)
    )
    return Tokens(access, refresh) if is_usable else None


class SessionEnded(Exception):
    """The other host does not renew the session."""


class Session(Protocol):
    """Authorizes calls. `mark` changes when it is renewed."""

    @property
    def mark(self) -> object:
        """Tells one state of the tokens from the next."""

    def sign(self, verb: str, url: str) -> dict[str, str]:
        """Return the headers for one request."""

    def learn(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take what an answer brings; whether the same request may be sent once more."""

    def allows(self, permission: Permission) -> bool:
        """Whether calls of this kind are worth making."""

    async def renew(self) -> None:
        """Get new tokens and have them stored before they are used.

        Raises: SessionEnded, Unreachable, BadAnswer, StoreError.
        """


class Bearer:
    """A plain token that whoever has it may use."""

    def __init__(
        self,
        tokens: Tokens,
        refresh: Callable[[Tokens], Awaitable[Tokens]] | None = None,
    ) -> None:
        self._tokens = tokens
        self._refresh = refresh

    @property
    def mark(self) -> object:
        """The tokens."""
        return self._tokens

    def sign(self, verb: str, url: str) -> dict[str, str]:
        """Return the token."""
        return {"Authorization": f"Bearer {self._tokens.access}"}

    def learn(self, status: int, headers: Mapping[str, str]) -> bool:
        """Learn nothing."""
        return False

    def allows(self, permission: Permission) -> bool:
        """Whatever the account itself may do."""
        return True

    async def renew(self) -> None:
        """Refresh, if this is more than a single token. Raises: as `Session.renew`."""
        if self._refresh is None:
            raise SessionEnded("the token was refused")
        self._tokens = await self._refresh(self._tokens)


class Bound:
    """An OAuth session: each request proves the key that the tokens are bound to.

    The refresh token is good once. If this process dies after the other server has replaced it and
    before the new one is stored, the session is lost, because the old one shown again ends it
    (OAUTH-62); the owner then has to sign in once more, and the move goes on from where it was.
    """

    def __init__(
        self,
        client: OAuthClient,
        session: OAuthSession,
        did: Did,
        on_renewed: Callable[[OAuthSession], Awaitable[None]],
    ) -> None:
        """`did` is whose session this is, and must stay."""
        self._client = client
        self._did = did
        self._session = session
        self._on_renewed = on_renewed
        self._proofs = Proofs(client.clock, session.key)
        self._scopes = ScopeSet.parse(session.scope)

    @property
    def mark(self) -> object:
        """The tokens."""
        return self._session

    def sign(self, verb: str, url: str) -> dict[str, str]:
        """Return the token and the proof for one request."""
        access = self._session.access
        return {
            "Authorization": f"DPoP {access}",
            PROOF_HEADER: self._proofs.make(verb, url, access),
        }

    def learn(self, status: int, headers: Mapping[str, str]) -> bool:
        """Keep the nonce; a request refused along with a new one is sent again."""
        return self._proofs.note(status, headers) and status == 401

    def allows(self, permission: Permission) -> bool:
        """What the owner has granted; who grants less has to do a part by other means."""
        scopes = self._scopes
        match permission:
            case Permission.VOUCH:
                return scopes.allows_rpc(CREATE_ACCOUNT, ANY)
            case Permission.PREFERENCES:
                return scopes.allows_rpc(GET_PREFERENCES, ANY)
            case Permission.EMAIL:
                return scopes.allows_account("email", "read")
            case Permission.SIGN:
                return scopes.allows_identity(ANY)
            case Permission.LEAVE:
                return scopes.allows_account("status", "manage")

    async def renew(self) -> None:
        """Refresh. Raises: as `Session.renew`."""
        try:
            tokens = await self._client.renew(self._session)
        except (OAuthRefused, OAuthInvalid) as error:
            raise SessionEnded(str(error)) from error
        if tokens.sub != self._did:
            raise SessionEnded("it was renewed for another account")
        renewed = replace(
            self._session,
            access=tokens.access,
            refresh=tokens.refresh or self._session.refresh,
            scope=tokens.scope,
        )
        await self._on_renewed(renewed)
        self._session, self._scopes = renewed, ScopeSet.parse(renewed.scope)


async def revoke_quietly(client: OAuthClient, session: OAuthSession | None) -> None:
    """Have the other server forget a session; what it answers changes nothing for us."""
    if session is None:
        return
    try:
        await client.revoke(session)
    except (RemoteError, OAuthInvalid):
        return  # It ends by itself within weeks, and its key is dropped here.
