"""The owner of a moving account signs in at its old host in a browser, and the move goes on by it.

`begin` finds the host's authorization server and pushes a request; the link to it is shown to
whoever ordered the move. When the browser comes back, to any node, `accept` takes its answer once:
the code is redeemed, and the session stored with the move before it is used.

What belongs to a sign-in (verifier, key, and the password and invite code for the account here) is
locked with a key that is in the `state` of the request and nowhere else: only the browser that
comes back can open it, no copy of the database and no node by itself. `state` names the move, is
good once and for an hour. While the answer is worked on the move is running; if the process dies,
whoever takes the move up finds that it cannot go on by itself and says so (`migration_drive`). The
order given again goes on with the session, or, if that was not stored yet, has another sign-in.

An answer is believed if it is from the issuer that was asked (RFC 9207) and the tokens are for the
account that moves: who signs in with another account, or is led astray by another server, changes
nothing.

Spec: (OAUTH-30, OAUTH-47, OAUTH-60, OAUTH-63, OAUTH-66)
"""

import base64
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NoReturn

import orjson

from pds.errors import BadAnswer, NotResolvable, Rejected, RequestError
from pds.protocol.keys import make_cipher
from pds.protocol.oauth.answers import Redirect
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.metadata import ServerMetadata
from pds.services.migration_problems import Code, MoveProblem, waits_for
from pds.services.migration_session import SCOPES_TO_TRY, revoke_quietly
from pds.services.migration_state import US_PER_S, MoveSecrets, Status
from pds.services.migration_work import Given, Work
from pds.services.oauth_client import OAuthClient, OAuthRefused, PendingSignIn

LIFE_S: Final = 3600
"""From the order to the answer of the browser; links are good for minutes only."""
STATE_BYTES: Final = 32
MAX_STATE_CHARS: Final = 200
INSTEAD: Final = "Start the move with the password of the account there, or with a service token"
AGAIN: Final = "Start the same move again and sign in at that host"

_UNKNOWN_CLIENTS: Final = frozenset({"invalid_client_metadata", "invalid_client"})
_UNKNOWN_SCOPES: Final = _UNKNOWN_CLIENTS | {"invalid_scope"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is locked until the browser is back."""

    pending: PendingSignIn
    given: Given
    expires_at: int


@dataclass(frozen=True, slots=True)
class StateParam:
    """The `state` of a request, taken apart."""

    move_id: int
    key: str = field(repr=False)


def parse_state(text: str) -> StateParam:
    """Read a `state`. Raises: RequestError."""
    number, dot, key = text.partition(".")
    if len(text) > MAX_STATE_CHARS or not dot or not key or not number.isascii():
        raise unknown_sign_in()
    if not number.isdigit() or len(number) > 18:
        raise unknown_sign_in()
    return StateParam(int(number), key)


def unknown_sign_in() -> RequestError:
    """Return the refusal of an answer that nobody waits for."""
    return RequestError(
        "UnknownSignIn",
        "Nothing here waits for this sign-in: it was used already, or another has taken its place",
    )


def is_awaited(held: MoveSecrets, state: StateParam) -> bool:
    """Whether a sign-in waits for this `state`."""
    return _unlock(held, state) is not None


async def begin(work: Work, given: Given) -> NoReturn:
    """Prepare a sign-in, and have the move wait for it.

    Raises: MoveProblem, always; RemoteError.
    """
    client, state = work.parts.oauth, work.state
    server = await _discover(work)
    for scope in SCOPES_TO_TRY:
        key = secrets.token_urlsafe(STATE_BYTES)
        try:
            with _problems(server.issuer):
                link, pending = await client.begin(
                    server,
                    scope=scope,
                    state=f"{work.move_id}.{key}",
                    login_hint=state.old_handle or work.did,
                )
        except OAuthRefused as error:
            if error.error in _UNKNOWN_SCOPES and scope is not SCOPES_TO_TRY[-1]:
                continue
            raise MoveProblem(
                Code.OAUTH_UNAVAILABLE,
                f"{server.issuer} refused to let this host ask for what a move needs: {error}",
                _what_instead(client, error),
            ) from error
        now_us = work.parts.clock.now_us()
        kept = _Kept(
            pending=pending,
            given=Given(new_password=given.new_password, invite_code=given.invite_code),
            expires_at=now_us + LIFE_S * US_PER_S,
        )
        work.secrets.sign_in = _lock(kept, key)
        state.sign_in = {
            "url": link.url,
            "host": server.issuer,
            "expiresAt": now_us + link.life_s * US_PER_S,
        }
        break
    raise waits_for(
        Code.SIGN_IN_NEEDED,
        f"The owner of the account has to sign in at {server.issuer}",
        "Open the link there within its time; if the browser cannot come back to this server, give"
        " the address at which it ended",
    )


def _what_instead(client: OAuthClient, error: OAuthRefused) -> str:
    """Return what to do when a server asks nobody for us: often it cannot read who we are."""
    instead = f"{INSTEAD[:1].lower()}{INSTEAD[1:]}"
    if error.error == "invalid_dpop_proof":
        return f"See that the clock of this server is right; or: {instead}"
    if error.error not in _UNKNOWN_CLIENTS or not client.is_confidential:
        return INSTEAD
    return (
        f"See that {client.client_id('')} can be read from everywhere, and that the clock of this"
        f" server is right; or: {instead}"
    )


async def _discover(work: Work) -> ServerMetadata:
    url = work.state.other_url
    try:
        return await work.parts.oauth.discover(url)
    except NotResolvable as error:
        raise MoveProblem(
            Code.OAUTH_UNAVAILABLE, f"{work.host.name} has no OAuth: {error}", INSTEAD
        ) from error
    except (OAuthInvalid, BadAnswer, Rejected) as error:
        raise MoveProblem(
            Code.OAUTH_UNAVAILABLE,
            f"The OAuth of {work.host.name} cannot be used: {error}",
            INSTEAD,
        ) from error


async def accept(work: Work, redirect: Redirect, state: StateParam) -> Given:
    """Take what the browser brought, once; return what was given with the order.

    Raises: RequestError when no sign-in waits for it; MoveProblem; RemoteError.
    """
    kept = _unlock(work.secrets, state)
    if kept is None:
        raise unknown_sign_in()
    work.forget_sign_in()
    work.state.note_progress()
    work.status = Status.RUNNING
    await work.save()  # From here on the answer is used, whatever comes.
    pending = kept.pending
    if kept.expires_at < work.parts.clock.now_us():
        raise MoveProblem(Code.LOGIN_NEEDED, "The sign-in took longer than an hour", AGAIN)
    if redirect.iss != pending.issuer:
        raise MoveProblem(
            Code.LOGIN_NEEDED,
            f"The answer was not from {pending.issuer}, where the sign-in was begun",
            AGAIN,
        )
    if redirect.code is None:
        raise _declined(redirect, pending.issuer)
    await _redeem(work, pending, redirect.code)
    return kept.given


async def _redeem(work: Work, pending: PendingSignIn, code: str) -> None:
    client = work.parts.oauth
    try:
        with _problems(pending.issuer):
            sub, session = await client.redeem(pending, code)
    except OAuthRefused as error:
        raise MoveProblem(
            Code.LOGIN_NEEDED, f"{pending.issuer} did not complete the sign-in: {error}", AGAIN
        ) from error
    if sub != work.did:
        await revoke_quietly(client, session)
        raise MoveProblem(
            Code.LOGIN_NEEDED,
            f"That was another account than {work.did}",
            "Start the same move again and sign in with the account that moves",
        )
    await work.use_session(session)


def _declined(redirect: Redirect, issuer: str) -> MoveProblem:
    words = "".join(char for char in redirect.description[:200] if char.isprintable())
    name = "".join(char for char in (redirect.error or "")[:50] if char.isprintable())
    if name == "access_denied":
        return MoveProblem(
            Code.LOGIN_NEEDED, f"The sign-in at {issuer} was declined ({words or name})", AGAIN
        )
    return MoveProblem(
        Code.LOGIN_NEEDED, f"{issuer} did not complete the sign-in: {words or name}", AGAIN
    )


async def end(work: Work) -> None:
    """The move is over: have the other host forget the session, if it can be reached."""
    await revoke_quietly(work.parts.oauth, work.secrets.session)


@contextmanager
def _problems(issuer: str) -> Iterator[None]:
    """Say whose fault an answer is that breaks a rule."""
    try:
        yield
    except OAuthInvalid as error:
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY, f"{issuer} breaks a rule of OAuth: {error}", INSTEAD
        ) from error


def _lock(kept: _Kept, key: str) -> str:
    content: dict[str, Any] = {
        "pending": asdict(kept.pending),
        "newPassword": kept.given.new_password,
        "inviteCode": kept.given.invite_code,
        "expiresAt": kept.expires_at,
    }
    sealed = _cipher(key).seal(_NONCE, orjson.dumps(content))
    return base64.b64encode(sealed).decode()


def _unlock(held: MoveSecrets, state: StateParam) -> _Kept | None:
    if held.sign_in is None:
        return None
    content = _cipher(state.key).unseal(_NONCE, base64.b64decode(held.sign_in))
    if content is None:
        return None
    values = orjson.loads(content)
    return _Kept(
        pending=PendingSignIn(**values["pending"]),
        given=Given(new_password=values["newPassword"], invite_code=values["inviteCode"]),
        expires_at=values["expiresAt"],
    )


_NONCE: Final = bytes(12)
"""Each key locks one thing only."""


def _cipher(key: str) -> Any:
    return make_cipher(hashlib.sha256(f"sign-in {key}".encode()).digest())
