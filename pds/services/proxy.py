"""The service proxy: calls of methods that are not ours go to another service, signed for the user.

Whom to ask comes from the `atproto-proxy` header or from the settings; the user's own token never
leaves this host, a fresh service token that names the one method goes out instead. Destinations
that a header chooses are reached through the guarded client only.

Both bodies are streamed; a fault of the other side is never reported as ours: no answer, or a bad
one, is a 502, and error bodies are parsed and written anew.

Spec: xrpc#service-proxying (XRPC-60 to XRPC-69)
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from pds.errors import NotResolvable, ProtocolError, RemoteError, RequestError
from pds.protocol.data import parse_json
from pds.protocol.diddoc import DidDocument, parse_origin
from pds.protocol.syntax import Did, InvalidSyntax, parse_did
from pds.services.method_policy import is_privileged, is_protected
from pds.services.principal import Principal
from pds.store.accounts import AccountStatus

CREATE_REPORT: Final = "com.atproto.moderation.createReport"
METHODS: Final = frozenset({"GET", "HEAD", "POST"})

FORWARDED_REQUEST_HEADERS: Final = (
    "accept-language",
    "atproto-accept-labelers",
    "x-bsky-topics",
)
FORWARDED_BODY_HEADERS: Final = ("content-type", "content-encoding", "content-length")
FORWARDED_ANSWER_HEADERS: Final = (
    "content-length",
    "content-encoding",
    "content-type",
    "content-language",
    "atproto-repo-rev",
    "atproto-content-labelers",
    "retry-after",
)
MAX_ERROR_BODY_BYTES: Final = 64_000
MAX_ERROR_NAME_CHARS: Final = 100

_LABELER: Final = "atproto_labeler"
_APPVIEW: Final = "bsky_appview"


class UpstreamAnswer(Protocol):
    """An answer whose body is still on the way."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; look-up ignores case."""

    def iter_chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, content coding untouched. Raises: RemoteError."""

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, decoded. Raises: RemoteError."""


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


class DocumentSource(Protocol):
    """Finds DID documents."""

    async def resolve_did(self, did: Did) -> DidDocument:
        """Return the document. Raises: NotResolvable, Unreachable."""


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
    """One call to pass on. `query` is the raw query string without `?`."""

    nsid: str
    method: str
    query: str
    headers: Mapping[str, str]
    body: AsyncIterable[bytes] | None


@dataclass(frozen=True, slots=True)
class ProxiedAnswer:
    """What to answer. Iterate `chunks` inside the `async with` only."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Proxy:
    """Passes calls on to other services."""

    def __init__(
        self,
        *,
        trusted: UpstreamClient,
        guarded: UpstreamClient,
        documents: DocumentSource,
        tokens: TokenMinter,
        settings: ProxySettings,
    ) -> None:
        self._trusted = trusted
        self._guarded = guarded
        self._documents = documents
        self._tokens = tokens
        self._settings = settings

    @property
    def max_request_bytes(self) -> int:
        """The largest request body that is passed on."""
        return self._settings.max_request_bytes

    async def find_target(self, nsid: str, header: str | None) -> ProxyTarget:
        """Decide whom a call goes to (XRPC-61).

        Raises: RequestError 400 for a header that names nobody, 502 if that could not be found
        out.
        """
        if header is None:
            return self._default_target(nsid)
        did, service_id = _parse_header(header)
        for wanted, address in self._configured():
            if address is not None and address.did == did and wanted == service_id:
                return ProxyTarget(did, service_id, address.url, is_configured=True)
        try:
            document = await self._documents.resolve_did(did)
        except NotResolvable as error:
            raise _refused("could not resolve proxy did") from error
        except RemoteError as error:
            raise _failed("could not resolve proxy did") from error
        service = document.service(service_id)
        url = parse_origin(service.endpoint) if service is not None else None
        if url is None:
            raise _refused("could not resolve proxy did service url")
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
        self, principal: Principal, call: ProxiedCall
    ) -> AsyncIterator[ProxiedAnswer]:
        """Pass a call on and hand over its answer once the first bytes are here.

        Raises: RequestError, also in place of every error answer of the other side; RemoteError
        from `chunks` when it breaks off later.
        """
        if call.method not in METHODS:
            raise RequestError("MethodNotImplemented", "Method Not Implemented", 501)
        did = self.check_permission(principal, call.nsid)
        target = await self.find_target(call.nsid, call.headers.get("atproto-proxy"))
        token = await self._tokens.mint(did, aud=self._audience(target), lxm=call.nsid)
        client = self._trusted if target.is_configured else self._guarded
        url = f"{target.url}/xrpc/{call.nsid}" + (f"?{call.query}" if call.query else "")
        request = client.request(
            call.method,
            url,
            headers=_request_headers(call, token),
            body=call.body,
            max_bytes=self._settings.max_answer_bytes,
            headers_timeout_s=self._settings.headers_timeout_s,
        )
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(request)
            except RemoteError as error:
                raise _failed("Upstream service unreachable") from error
            yield await self._check_answer(answer, has_body=call.method != "HEAD")

    async def _check_answer(self, answer: UpstreamAnswer, *, has_body: bool) -> ProxiedAnswer:
        headers = {
            name: answer.headers[name]
            for name in FORWARDED_ANSWER_HEADERS
            if name in answer.headers
        }
        if answer.status >= 400:
            raise await _error_of(answer, headers.get("retry-after"))
        if not 200 <= answer.status < 300:
            raise _failed("Upstream service gave a bad answer")
        if not has_body:
            return ProxiedAnswer(answer.status, headers, _nothing())
        chunks = answer.iter_chunks()
        try:
            first = await anext(chunks, b"")
        except RemoteError as error:
            raise _failed("Upstream service gave a bad answer") from error
        return ProxiedAnswer(answer.status, headers, _resume(first, chunks))

    def _audience(self, target: ProxyTarget) -> str:
        full = self._settings.full_audience
        return target.name if "*" in full or target.name in full else target.did

    def _default_target(self, nsid: str) -> ProxyTarget:
        settings = self._settings
        if nsid.startswith("tools.ozone."):
            service_id, address = _LABELER, settings.moderation
        elif nsid == CREATE_REPORT:
            service_id, address = _LABELER, settings.reports or settings.moderation
        else:
            service_id, address = _APPVIEW, settings.appview
        if address is None:
            raise _refused(f"No service configured for {nsid}")
        return ProxyTarget(Did(address.did), service_id, address.url, is_configured=True)

    def _configured(self) -> tuple[tuple[str, ServiceAddress | None], ...]:
        settings = self._settings
        return (
            (_APPVIEW, settings.appview),
            (_LABELER, settings.moderation),
            (_LABELER, settings.reports),
        )


def _parse_header(header: str) -> tuple[Did, str]:
    did, hash_sign, service_id = header.partition("#")
    if not hash_sign or not service_id or "#" in service_id or set(header) & set(" \t,"):
        raise _refused("invalid format in proxy header")
    try:
        return parse_did(did), service_id
    except InvalidSyntax as error:
        raise _refused("invalid did in proxy header") from error


def _request_headers(call: ProxiedCall, token: str) -> dict[str, str]:
    """The headers that go out: a fixed list, and our own token (XRPC-66)."""
    names = [*FORWARDED_REQUEST_HEADERS]
    if call.body is not None:
        names += FORWARDED_BODY_HEADERS
    headers = {name: call.headers[name] for name in names if name in call.headers}
    headers["accept-encoding"] = call.headers.get("accept-encoding", "identity")
    headers["authorization"] = f"Bearer {token}"
    return headers


async def _error_of(answer: UpstreamAnswer, retry_after: str | None) -> RequestError:
    """Word an error answer anew: only a name and a message come through (XRPC-67)."""
    status = 502 if answer.status == 500 else answer.status
    name, message = _generic_error(status)
    try:
        detail = parse_json(await answer.read(MAX_ERROR_BODY_BYTES))
    except (RemoteError, ProtocolError):
        detail = None  # The status says enough.
    if isinstance(detail, dict):
        found = detail.get("error")
        if isinstance(found, str) and 0 < len(found) <= MAX_ERROR_NAME_CHARS:
            name = found
        text = detail.get("message")
        if isinstance(text, str):
            message = text
    headers = {"Retry-After": retry_after} if retry_after else None
    return RequestError(name, message, status, headers=headers)


def _generic_error(status: int) -> tuple[str, str]:
    if status >= 500:
        return "UpstreamFailure", "Upstream service failed"
    return "InvalidRequest", "Upstream service refused the request"


async def _resume(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in chunks:
        yield chunk


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _refused(message: str) -> RequestError:
    return RequestError("InvalidRequest", message)


def _failed(message: str) -> RequestError:
    return RequestError("UpstreamFailure", message, 502)
