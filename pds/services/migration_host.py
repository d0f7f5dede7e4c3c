"""Another host as a move sees it: its public calls, with or without a session.

The other host is a stranger. It is reached through the guarded client, every answer has a size
limit and a deadline, and nothing that it says is believed because it says so: repos and blobs are
verified where they are taken in, operations are compared with what was asked for.

What it does wrong is reported as its own: `Unreachable` and `BadAnswer` with its name, or a
`MoveProblem` where somebody can do something about it. A session (`migration_session`) may be
renewed at any call; its new tokens are stored before they are used.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import orjson

from pds.errors import BadAnswer, NotResolvable, Rejected
from pds.net.http import MAX_ERROR_BODY_BYTES, HttpClient
from pds.net.http_body import StreamedAnswer
from pds.net.http_errors import HttpFailed, HttpNotFound
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.cid import InvalidCid, parse_cid
from pds.protocol.jwt import JwtError, decode_jwt
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_tid
from pds.services.migration_problems import Code, MoveProblem, waits_for
from pds.services.migration_session import (
    Bearer,
    Permission,
    Session,
    SessionEnded,
    Tokens,
    read_tokens,
)

CALL_TIMEOUT_S: Final = 30.0
STREAM_TIMEOUT_S: Final = 3600.0
"""A large repo over a slow line; the time between two chunks is limited by the client."""
TAKE_IN_TIMEOUT_S: Final = 900.0
"""How long a host may be busy with a repo after the last byte was sent."""
MAX_ANSWER_BYTES: Final = 2 << 20
"""Preferences are the largest answers: 500 KB here, elsewhere perhaps more."""
MAX_REDIRECTS: Final = 3
PAGE: Final = 500
MAX_PAGES: Final = 2_000
"""A million blobs; a list that goes on after that is one without end."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_APP_PASSWORD_SCOPES: Final = frozenset({"com.atproto.appPass", "com.atproto.appPassPrivileged"})


@dataclass(frozen=True, slots=True)
class Login:
    """What a host answered to a login."""

    tokens: Tokens
    email: str | None
    status: str | None


OnTokens = Callable[[Tokens], Awaitable[None]]


class RemoteHost:
    """Calls one other host."""

    def __init__(
        self,
        http: HttpClient,
        url: str,
        *,
        tokens: Tokens | None = None,
        session: Session | None = None,
        on_tokens: OnTokens | None = None,
        elsewhere: HttpClient | None = None,
    ) -> None:
        """Calls are made in `session`, or in that of `tokens`, which `on_tokens` stores.

        `elsewhere` follows redirects: an operator may name a neighbour, a host may not.
        """
        self._elsewhere = elsewhere or http
        self.url = url.rstrip("/")
        self._http = http
        self._on_tokens = on_tokens
        self._renewing = asyncio.Lock()
        self._session = session if tokens is None else Bearer(tokens, self._refresh)

    @property
    def name(self) -> str:
        """The host's name, for messages."""
        return urlsplit(self.url).netloc

    @property
    def has_session(self) -> bool:
        """Whether calls of the account itself are possible."""
        return self._session is not None

    def allows(self, permission: Permission) -> bool:
        """Whether there is a session that may do this."""
        return self._session is not None and self._session.allows(permission)

    # Plain calls

    async def query(self, nsid: str, **params: Any) -> dict[str, Any]:
        """Call a public query.

        Raises: XrpcRejected, NotResolvable, Unreachable, BadAnswer.
        """
        return await self._call("GET", nsid, params=params)

    async def query_as_owner(self, nsid: str, **params: Any) -> dict[str, Any]:
        """Call a query in the session."""
        return await self._in_session(
            lambda session: self._call("GET", nsid, session, params=params)
        )

    async def procedure(self, nsid: str, value: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call a procedure in the session."""
        return await self._in_session(
            lambda session: self._call("POST", nsid, session, value=value)
        )

    async def procedure_with(
        self, token: str | None, nsid: str, value: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Call a procedure with another token than the session's, or with none."""
        return await self._call("POST", nsid, None if token is None else _once(token), value=value)

    # Sessions

    async def log_in(
        self,
        did: Did,
        password: str,
        auth_factor_token: str | None = None,
        *,
        handle: str | None = None,
    ) -> Login:
        """Open a session with the main password, which is not kept (XRPC-27, ACC-45).

        Raises: MoveProblem for wrong passwords, app passwords and missing codes.
        """
        # Hosts look names up in lower case, which the DID of a web host with a port is not.
        identifier = did if handle is None or did == did.lower() else handle
        given: dict[str, Any] = {
            "identifier": identifier,
            "password": password,
            "allowTakendown": True,
        }
        if auth_factor_token:
            given["authFactorToken"] = auth_factor_token
        try:
            answer = await self._call("POST", "com.atproto.server.createSession", value=given)
        except XrpcRejected as error:
            raise self._login_refused(error) from error
        tokens = read_tokens(answer)
        if answer.get("did") != did or tokens is None:
            raise BadAnswer(f"{self.name} answered a login with no session of {did}")
        if _scope(tokens.access) in _APP_PASSWORD_SCOPES:
            raise MoveProblem(
                Code.LOGIN_NEEDED,
                "That is an app password, and a host lets nobody move with one",
                "Give the main password of the account, or a service token",
            )
        email, status = answer.get("email"), answer.get("status")
        await self.use_tokens(tokens)
        return Login(
            tokens,
            email if isinstance(email, str) else None,
            status if isinstance(status, str) else None,
        )

    async def use_tokens(self, tokens: Tokens) -> None:
        """Go on in this session; it is stored first."""
        if self._on_tokens is not None:
            await self._on_tokens(tokens)
        self._session = Bearer(tokens, self._refresh)

    def _login_refused(self, error: XrpcRejected) -> MoveProblem:
        if error.error == "AuthFactorTokenRequired":
            return waits_for(
                Code.AUTH_FACTOR_NEEDED,
                f"{self.name} has mailed a sign-in code",
                "Give the code together with the password",
            )
        return MoveProblem(
            Code.LOGIN_NEEDED,
            f"{self.name} refused the login: {error.message or error.error}",
            "Check the password of the account at its present host",
        )

    async def _in_session(
        self, call: Callable[[Session], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        session = self._require_session()
        used = session.mark
        try:
            return await call(session)
        except XrpcRejected as error:
            if error.error != "ExpiredToken" and error.status != 401:
                raise
        await self._renew(session, used)
        return await call(session)

    def _require_session(self) -> Session:
        if self._session is None:
            raise self._login_needed("there is no session")
        return self._session

    async def _renew(self, session: Session, used: object) -> None:
        async with self._renewing:
            if session.mark is not used:
                return  # Another call was faster.
            try:
                await session.renew()
            except SessionEnded as error:
                raise self._login_needed("the session has ended") from error

    async def _refresh(self, tokens: Tokens) -> Tokens:
        """Renew the session of a login. Raises: as `Session.renew`."""
        try:
            answer = await self._call(
                "POST", "com.atproto.server.refreshSession", _once(tokens.refresh)
            )
        except (XrpcRejected, NotResolvable) as error:
            raise SessionEnded(str(error)) from error
        renewed = read_tokens(answer)
        if renewed is None:
            raise BadAnswer(f"{self.name} renewed a session without tokens")
        if self._on_tokens is not None:
            await self._on_tokens(renewed)
        return renewed

    def _login_needed(self, why: str) -> MoveProblem:
        return MoveProblem(
            Code.LOGIN_NEEDED,
            f"{self.name} has to be asked in the account's name, and {why}",
            "Start the same move again and sign in at that host",
        )

    # Streams

    @asynccontextmanager
    async def open_repo(
        self, did: Did, *, since: str | None, max_bytes: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the CAR of a repo; in the session if there is one, so that any state will do."""
        params = {"did": did} if since is None else {"did": did, "since": since}
        async with self._open("com.atproto.sync.getRepo", params, max_bytes) as answer:
            yield answer.iter_chunks()

    @asynccontextmanager
    async def open_blob(
        self, did: Did, cid: str, *, max_bytes: int
    ) -> AsyncIterator[tuple[AsyncIterator[bytes], str | None]]:
        """Open a blob, and tell the media type that the host gives it."""
        params = {"did": did, "cid": cid}
        async with self._open("com.atproto.sync.getBlob", params, max_bytes) as answer:
            yield answer.iter_chunks(), answer.headers.get("Content-Type")

    @asynccontextmanager
    async def _open(
        self, nsid: str, params: Mapping[str, Any], max_bytes: int
    ) -> AsyncIterator[StreamedAnswer]:
        """GET a stream; redirects (a bucket) are followed, without the session."""
        url: str = self._url(nsid, params)
        http, session = self._http, self._session
        redirects, is_resent = 0, False
        while redirects <= MAX_REDIRECTS:
            async with http.request(
                "GET",
                url,
                headers=_headers(session, "GET", url),
                max_bytes=max_bytes,
                headers_timeout_s=CALL_TIMEOUT_S,
                total_timeout_s=STREAM_TIMEOUT_S,
            ) as answer:
                may_resend = session is not None and session.learn(answer.status, answer.headers)
                if may_resend and not is_resent:
                    is_resent = True
                    continue
                if answer.status not in _REDIRECTS:
                    if answer.status >= 300:
                        error = await self._failure(answer)
                        if session is None or not _is_about_token(error):
                            raise error
                        # Public data may be asked for without a session that has ended.
                        session = None
                        continue
                    yield answer
                    return
                url = urljoin(url, answer.headers.get("Location", ""))
                http, session, redirects = self._elsewhere, None, redirects + 1
        raise BadAnswer(f"{self.name} redirects without end")

    async def list_blobs(self, did: Did) -> AsyncIterator[str]:
        """Yield the CIDs of all blobs that records of a repo refer to."""
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            params: dict[str, Any] = {"did": did, "limit": PAGE}
            if cursor is not None:
                params["cursor"] = cursor
            answer = await self.query("com.atproto.sync.listBlobs", **params)
            for cid in answer.get("cids") or []:
                if isinstance(cid, str):
                    yield cid
            following = answer.get("cursor")
            if not isinstance(following, str) or following == cursor or not answer.get("cids"):
                return
            cursor = following
        raise BadAnswer(f"{self.name} lists blobs without end")

    async def get_latest(self, did: Did) -> tuple[str, Tid]:
        """Return CID and rev of the newest commit, as far as the host can be believed."""
        call = self.query_as_owner if self.has_session else self.query
        answer = await call("com.atproto.sync.getLatestCommit", did=did)
        cid, rev = answer.get("cid"), answer.get("rev")
        try:
            return str(parse_cid(str(cid))), parse_tid(str(rev))
        except (InvalidCid, InvalidSyntax) as error:
            raise BadAnswer(f"{self.name} has no latest commit of {did}") from error

    async def send(
        self, nsid: str, chunks: AsyncIterable[bytes], *, media_type: str, size: int | None = None
    ) -> dict[str, Any]:
        """Send a stream in the session. It is read once: an ended session fails the call."""
        return await self._call(
            "POST",
            nsid,
            self._require_session(),
            body=chunks,
            media_type=media_type,
            size=size,
        )

    async def check_session(self) -> None:
        """Renew the session now if it has ended, before a stream is sent in it."""
        await self.query_as_owner("com.atproto.server.getSession")

    # The way all calls go

    async def _call(
        self,
        verb: str,
        nsid: str,
        session: Session | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        value: Mapping[str, Any] | None = None,
        body: AsyncIterable[bytes] | None = None,
        media_type: str | None = None,
        size: int | None = None,
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        content: bytes | AsyncIterable[bytes] | None = body
        if value is not None:
            content, media_type = orjson.dumps(value), "application/json"
        if media_type is not None:
            headers["Content-Type"] = media_type
        if size is not None:
            headers["Content-Length"] = str(size)
        is_stream = body is not None
        url = self._url(nsid, params or {})
        may_resend = not is_stream
        while True:
            async with self._http.request(
                verb,
                url,
                headers=headers | _headers(session, verb, url),
                body=content,
                max_bytes=MAX_ANSWER_BYTES,
                headers_timeout_s=TAKE_IN_TIMEOUT_S if is_stream else CALL_TIMEOUT_S,
                total_timeout_s=STREAM_TIMEOUT_S if is_stream else CALL_TIMEOUT_S,
            ) as answer:
                wants_more = session is not None and session.learn(answer.status, answer.headers)
                if wants_more and may_resend:
                    may_resend = False
                    continue
                if answer.status >= 300:
                    raise await self._failure(answer)
                return self._object(nsid, await answer.read(MAX_ANSWER_BYTES))

    def _object(self, nsid: str, content: bytes) -> dict[str, Any]:
        if not content.strip():
            return {}
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise BadAnswer(f"{self.name} answered {nsid} with invalid JSON") from error
        if not isinstance(value, dict):
            raise BadAnswer(f"the answer of {self.name} to {nsid} is no JSON object")
        return value

    async def _failure(self, answer: StreamedAnswer) -> Exception:
        """Return the error that an answer which is not 2xx stands for."""
        if answer.status < 400:
            return BadAnswer(f"{self.name} answered {answer.status}")
        try:
            content = await answer.read(MAX_ERROR_BODY_BYTES)
        except BadAnswer:
            content = b""  # The status alone decides; the body only words the message.
        retry_after = answer.headers.get("Retry-After")
        if answer.status == 429 or answer.status >= 500:
            return HttpFailed(self.name, answer.status, content, retry_after)
        plain = HttpNotFound(self.name, answer.status, content, retry_after)
        name, message = plain.detail.get("error"), plain.detail.get("message")
        if not isinstance(name, str):
            if answer.status in (404, 410):
                return plain
            name = ""
        message = message if isinstance(message, str) else ""
        return XrpcRejected(self.name, answer.status, name[:100] or "InvalidRequest", message[:500])

    def _url(self, nsid: str, params: Mapping[str, Any]) -> str:
        query = f"?{urlencode(params)}" if params else ""
        return f"{self.url}/xrpc/{nsid}{query}"


def is_definite(error: Exception) -> bool:
    """Whether a host has said no, rather than nothing."""
    return isinstance(error, (Rejected, NotResolvable))


def retry_after_s(error: BaseException | None) -> float:
    """How long a host asks to be left alone; at most an hour."""
    if not isinstance(error, HttpFailed) or error.retry_after is None:
        return 0.0
    try:
        return min(max(float(error.retry_after), 0.0), 3600.0)
    except ValueError:
        return 0.0  # A date; the growing pauses will do.


def _is_about_token(error: Exception) -> bool:
    return isinstance(error, XrpcRejected) and (
        error.status == 401 or error.error in ("ExpiredToken", "InvalidToken")
    )


def _headers(session: Session | None, verb: str, url: str) -> dict[str, str]:
    return {} if session is None else session.sign(verb, url)


def _once(token: str) -> Session:
    """A token that is used as it is."""
    return Bearer(Tokens(token, ""))


def _scope(token: str) -> object:
    """What a session token says that it may do; a hint only, nothing is allowed by it."""
    try:
        return decode_jwt(token).claims.get("scope")
    except JwtError:
        return None
