"""The service proxy: decides which service a call goes to, and sends it there, signed for the user.

Whom to ask comes from the `atproto-proxy` header, from the account's own choice of an AppView, or
from the settings; the user's own token never leaves this host, a fresh service token that names the
one method goes out instead. Destinations that users choose are reached through the guarded client
only.

Both bodies are streamed; what comes back is `proxy_answers`. A fault of the other side is never
reported as ours: no answer, or a bad one, is a 502.

Spec: xrpc#service-proxying (XRPC-60 to XRPC-69)
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from pds.errors import NotResolvable, RemoteError, RequestError, invalid_request
from pds.protocol.diddoc import parse_origin
from pds.protocol.syntax import Did, InvalidSyntax, parse_did
from pds.services.method_policy import is_privileged, is_protected
from pds.services.principal import Principal
from pds.services.proxy_answers import (
    ProxiedAnswer,
    UpstreamAnswer,
    UpstreamError,
    announced_bytes,
    check_answer,
    failed,
)
from pds.services.resolving import DidDocuments
from pds.store.accounts import AccountStatus

CREATE_REPORT: Final = "com.atproto.moderation.createReport"
METHODS: Final = frozenset({"GET", "HEAD", "POST"})

FORWARDED_REQUEST_HEADERS: Final = (
    "accept-language",
    "atproto-accept-labelers",
    "x-bsky-topics",
)
FORWARDED_PREFIX: Final = "x-atproto-"
"""Every header that begins so is meant for the service behind us."""
FORWARDED_BODY_HEADERS: Final = ("content-type", "content-encoding", "content-length")
MAX_ASKED_BYTES: Final = 1024 * 1024
"""Largest answer to a question of our own."""

APPVIEW_ID: Final = "bsky_appview"
NO_APPVIEW: Final = "none"
"""The choice of an account that wants no AppView at all."""

_LABELER: Final = "atproto_labeler"


class UpstreamClient(Protocol):
    """An outbound HTTP client that streams and limits itself."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: AsyncIterable[bytes] | None,
        max_bytes: int,
        headers_timeout_s: float,
    ) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send one request and follow no redirect. Raises: RemoteError."""


class AppviewSource(Protocol):
    """Knows which AppView an account wants."""

    async def get(self, aid: int) -> str | None:
        """Return `did#service`, `NO_APPVIEW`, or None for the one of the settings."""


class TokenMinter(Protocol):
    """Signs service tokens for accounts of this host."""

    async def mint(self, did: Did, *, aud: str, lxm: str) -> str:
        """Return a token for one method of `aud` that lives a minute (XRPC-46)."""


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """A service named in the settings."""

    did: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Where calls go, and how much they may cost.

    `full_audience` names services (`did#id`, or `*` for all) whose tokens carry `did#id` as the
    audience instead of the bare DID, which older verifiers expect (XRPC-65).
    """

    appview: ServiceAddress | None = None
    moderation: ServiceAddress | None = None
    reports: ServiceAddress | None = None
    full_audience: frozenset[str] = field(default_factory=frozenset)
    headers_timeout_s: float = 10.0
    max_answer_bytes: int = 10 * 1024 * 1024
    max_request_bytes: int = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProxyTarget:
    """Whom a call goes to. `is_configured` means that the operator, not a header, gave the URL."""

    did: Did
    service_id: str
    url: str
    is_configured: bool

    @property
    def name(self) -> str:
        """The DID and the service id, as permissions name it."""
        return f"{self.did}#{self.service_id}"


@dataclass(frozen=True, slots=True)
class ProxiedCall:
    """One call to pass on. `query` is the raw query string without `?`.

    With `is_read_here` only content codings are asked for that `ProxiedAnswer.read` can undo.
    """

    nsid: str
    method: str
    query: str
    headers: Mapping[str, str]
    body: AsyncIterable[bytes] | None
    is_read_here: bool = False


@dataclass(frozen=True, slots=True)
class TokenFor:
    """Whom a service token is for, where that is not simply the target and the method."""

    aud: str
    lxm: str


class NoService(RequestError):
    """There is no service that such calls go to."""

    def __init__(self, nsid: str) -> None:
        super().__init__("InvalidRequest", f"No service configured for {nsid}")


class Proxy:
    """Passes calls on to other services."""

    def __init__(
        self,
        *,
        trusted: UpstreamClient,
        guarded: UpstreamClient,
        documents: DidDocuments,
        tokens: TokenMinter,
        settings: ProxySettings,
        choices: AppviewSource | None = None,
    ) -> None:
        self._trusted = trusted
        self._guarded = guarded
        self._documents = documents
        self._tokens = tokens
        self._settings = settings
        self._choices = choices

    @property
    def max_request_bytes(self) -> int:
        """The largest request body that is passed on."""
        return self._settings.max_request_bytes

    @property
    def appview(self) -> ProxyTarget | None:
        """The AppView of the settings."""
        address = self._settings.appview
        if address is None:
            return None
        return ProxyTarget(Did(address.did), APPVIEW_ID, address.url, is_configured=True)

    async def find_target(
        self, nsid: str, header: str | None, *, aid: int | None = None
    ) -> ProxyTarget:
        """Decide whom a call of the account `aid` goes to (XRPC-61).

        Raises: RequestError 400 for a header that names nobody; NoService; UpstreamError 502 if it
        could not be found out.
        """
        if header:
            return await self.find_named(header)
        if self._choices is None or aid is None or _service_of(nsid) != APPVIEW_ID:
            return self._default_target(nsid)
        chosen = await self._choices.get(aid)
        if chosen is None:
            return self._default_target(nsid)
        if chosen == NO_APPVIEW:
            raise NoService(nsid)
        try:
            return await self.find_named(chosen)
        except UpstreamError:
            raise
        except RequestError as error:  # The choice was good once: no fault of this call.
            raise failed("could not resolve the chosen AppView") from error

    async def find_named(self, name: str) -> ProxyTarget:
        """Find a service by `did#service`. Raises: as `find_target`."""
        did, service_id = _parse_header(name)
        for wanted, address in self._configured():
            if address is not None and address.did == did and wanted == service_id:
                return ProxyTarget(did, service_id, address.url, is_configured=True)
        try:
            document = await self._documents.resolve_did(did)
        except NotResolvable as error:
            raise invalid_request("could not resolve proxy did") from error
        except RemoteError as error:
            raise failed("could not resolve proxy did") from error
        service = document.service(service_id)
        url = parse_origin(service.endpoint) if service is not None else None
        if url is None:
            raise invalid_request("could not resolve proxy did service url")
        return ProxyTarget(did, service_id, url, is_configured=False)

    def check_permission(self, principal: Principal, nsid: str) -> Did:
        """Check that the caller may use `nsid` elsewhere, and return its DID.

        Raises: RequestError. Spec: (XRPC-62, XRPC-63, XRPC-64)
        """
        if principal.did is None or principal.scope is None:
            raise RequestError("AuthMissing", "Authentication Required", 401)
        is_report = nsid == CREATE_REPORT
        if principal.is_takendown and not is_report:
            raise RequestError("AccountTakedown", "Account has been taken down", 401)
        if is_protected(nsid) or (is_privileged(nsid) and not principal.is_privileged):
            raise RequestError("InvalidToken", "Bad token method")
        if principal.status is not AccountStatus.ACTIVE and not is_report:
            if principal.status is AccountStatus.DEACTIVATED:
                raise RequestError("AccountDeactivated", "Account is deactivated", 401)
            raise RequestError("AccountTakedown", "Account has been taken down", 401)
        return principal.did

    @asynccontextmanager
    async def forward(
        self,
        principal: Principal,
        call: ProxiedCall,
        *,
        target: ProxyTarget | None = None,
        token_for: TokenFor | None = None,
    ) -> AsyncIterator[ProxiedAnswer]:
        """Pass a call on and hand over its answer once the headers are here.

        Without a `target` the header, the account and the settings decide.
        Raises: UpstreamError for every answer that is not good, and for none; RequestError.
        """
        if call.method not in METHODS:
            raise RequestError("MethodNotImplemented", "Method Not Implemented", 501)
        did = self.check_permission(principal, call.nsid)
        if target is None:
            header = call.headers.get("atproto-proxy")
            target = await self.find_target(call.nsid, header, aid=principal.aid)
        token_for = token_for or TokenFor(self._audience(target), call.nsid)
        token = await self._tokens.mint(did, aud=token_for.aud, lxm=token_for.lxm)
        async with self._send(call, target, token) as answer:
            yield answer

    async def ask(
        self, target: ProxyTarget, nsid: str, query: str, *, asker: Did | None = None
    ) -> bytes:
        """Return the whole answer to a small query of our own, made for `asker` if given.

        It has as long as a proxied answer has to begin. Raises: UpstreamError.
        """
        call = ProxiedCall(nsid, "GET", query, {}, None, is_read_here=True)
        token = None
        if asker is not None:
            token = await self._tokens.mint(asker, aud=self._audience(target), lxm=nsid)
        try:
            async with (
                asyncio.timeout(self._settings.headers_timeout_s),
                self._send(call, target, token) as answer,
            ):
                return await answer.read(MAX_ASKED_BYTES)
        except TimeoutError as error:
            raise failed("Upstream service unreachable") from error

    @asynccontextmanager
    async def _send(
        self, call: ProxiedCall, target: ProxyTarget, token: str | None
    ) -> AsyncIterator[ProxiedAnswer]:
        client = self._trusted if target.is_configured else self._guarded
        request = client.request(
            call.method,
            f"{target.url}/xrpc/{call.nsid}" + (f"?{call.query}" if call.query else ""),
            headers=_request_headers(call, token),
            body=call.body,
            max_bytes=self._settings.max_answer_bytes,
            headers_timeout_s=self._settings.headers_timeout_s,
        )
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(request)
            except RemoteError as error:
                raise failed("Upstream service unreachable") from error
            has_body = call.method != "HEAD"
            if has_body and announced_bytes(answer.headers) > self._settings.max_answer_bytes:
                raise failed("Upstream service gave a bad answer")
            yield await check_answer(answer, has_body=has_body)

    def _audience(self, target: ProxyTarget) -> str:
        full = self._settings.full_audience
        return target.name if "*" in full or target.name in full else target.did

    def _default_target(self, nsid: str) -> ProxyTarget:
        settings = self._settings
        service_id = _service_of(nsid)
        if service_id == APPVIEW_ID:
            address = settings.appview
        elif nsid == CREATE_REPORT:
            address = settings.reports or settings.moderation
        else:
            address = settings.moderation
        if address is None:
            raise NoService(nsid)
        return ProxyTarget(Did(address.did), service_id, address.url, is_configured=True)

    def _configured(self) -> tuple[tuple[str, ServiceAddress | None], ...]:
        settings = self._settings
        return (
            (APPVIEW_ID, settings.appview),
            (_LABELER, settings.moderation),
            (_LABELER, settings.reports),
        )


def _parse_header(header: str) -> tuple[Did, str]:
    did, hash_sign, service_id = header.partition("#")
    if not hash_sign or not service_id or "#" in service_id or set(header) & set(" \t,"):
        raise invalid_request("invalid format in proxy header")
    try:
        return parse_did(did), service_id
    except InvalidSyntax as error:
        raise invalid_request("invalid did in proxy header") from error


def _service_of(nsid: str) -> str:
    """Return the id of the service that calls of `nsid` go to by default."""
    is_for_labeler = nsid.startswith("tools.ozone.") or nsid == CREATE_REPORT
    return _LABELER if is_for_labeler else APPVIEW_ID


def _request_headers(call: ProxiedCall, token: str | None) -> dict[str, str]:
    """The headers that go out: a fixed list, what begins right, and our own token (XRPC-66)."""
    names = [*FORWARDED_REQUEST_HEADERS]
    if call.body is not None:
        names += FORWARDED_BODY_HEADERS
    headers = {name: call.headers[name] for name in names if name in call.headers}
    for name, value in call.headers.items():
        if name.lower().startswith(FORWARDED_PREFIX):
            headers[name.lower()] = value
    codings = call.headers.get("accept-encoding", "identity")
    headers["accept-encoding"] = _readable(codings) if call.is_read_here else codings
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return headers


def _readable(codings: str) -> str:
    """Return which of the codings that a client takes we ask for when we must read the answer."""
    for item in codings.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip" and weight.replace(" ", "") not in ("q=0", "q=0.0"):
            return "gzip"
    return "identity"
