"""One path for every XRPC method: check the request, find out who calls, run the handler, answer.

A handler module fills a `MethodTable`; `XrpcServer` joins the tables with the catalog and answers
everything under `/xrpc/`. In order: path (XRPC-1), verb (XRPC-2), parameters (XRPC-3), credential
(XRPC-20), body (XRPC-4, XRPC-5), handler, and one error body for whatever went wrong (XRPC-7). The
credential comes before the body, so nobody uploads without one.

Dispatch is one dictionary look-up; there is no middleware.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import orjson
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, istr

from pds.errors import ConfigError, ProtocolError, RequestError, invalid_request
from pds.protocol.data import Json, parse_json
from pds.protocol.lexicon.catalog import Method
from pds.protocol.syntax import InvalidSyntax, parse_nsid
from pds.services import Services
from pds.services.limits import RequestLimits
from pds.services.principal import Principal
from pds.services.rate_limits import RateLimited
from pds.xrpc.access import PROXIED, REPORT, Access, Allows, Subject, check_caller
from pds.xrpc.auth import BEARER_CHALLENGE, Auth, authenticate
from pds.xrpc.body import BodyReader, drain_refused_body
from pds.xrpc.errors import (
    as_request_error,
    error_response,
    internal_error,
)
from pds.xrpc.listener import ServerRequest
from pds.xrpc.rate_hook import RateHook

__all__ = ["Allows", "Auth", "Call", "Handler", "MethodTable", "XrpcServer"]

PREFIX: Final = "/xrpc/"
RECORD_WRITES: Final = frozenset(
    f"com.atproto.repo.{name}" for name in ("createRecord", "putRecord", "applyWrites")
)
"""Methods whose JSON may be as large as a record (XRPC-5)."""

HEAVY_JSON_BYTES: Final = 65_536
"""Longer bodies are parsed on a thread: 1 MB of small values takes 100 ms, and the event loop
serves everybody (promise B5)."""

EXPOSED_HEADERS: Final = (
    "DPoP-Nonce, WWW-Authenticate, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    "RateLimit-Policy, Retry-After, atproto-repo-rev, atproto-content-labelers, "
    "Atproto-Upstream-Lag, X-Freehold-View"
)
PUBLIC_HEADERS: Final[Mapping[str, str]] = {  # `istr`: folded once, not for each answer
    istr("Access-Control-Allow-Origin"): "*",
    istr("Access-Control-Expose-Headers"): EXPOSED_HEADERS,
    istr("X-Content-Type-Options"): "nosniff",
}
OPTIONAL_HEADERS: Final[Mapping[str, str]] = {**PUBLIC_HEADERS, istr("Vary"): "Authorization"}
PRIVATE_HEADERS: Final[Mapping[str, str]] = {
    **PUBLIC_HEADERS,
    istr("Cache-Control"): "private",
    istr("Vary"): "Authorization, atproto-proxy, atproto-accept-labelers",
}
JSON_HEADERS: Final = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
CLIENT_GONE: Final = 499
"""Status in the log of a request whose client left before the end; nobody receives it."""
PREFLIGHT_MAX_AGE_S: Final = 86_400

PROXIED_BY_DEFAULT: Final = frozenset({"com.atproto.moderation.createReport"})
"""The only com.atproto methods that go to another service without being asked to (XRPC-61)."""

_log = logging.getLogger(__name__)

_PATH_NSID: Final = re.compile(r"[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*")


@dataclass(slots=True)
class Call:
    """One request, checked, as a handler sees it.

    `params` are typed and defaulted by the lexicon. `input` is the JSON body of methods that take
    JSON; `body` is the unread body of methods that take anything else. `token` is the bare token
    of the Authorization header, for handlers that check it themselves (`Auth.REFRESH`).
    """

    nsid: str
    params: dict[str, Any]
    input: Json
    body: BodyReader | None
    principal: Principal | None
    token: str | None
    services: Services
    request: web.Request


Answer: TypeAlias = "Json | bytes | web.StreamResponse"
"""What a handler returns: JSON, JSON already rendered, nothing (None), or a response of its own."""

Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Registration:
    """One line of a method table."""

    nsid: str
    handler: Handler
    access: Access

    @property
    def auth(self) -> Auth:
        """The level of the credential."""
        return self.access.auth


class MethodTable:
    """The methods of one handler module, filled by the `method` decorator."""

    def __init__(self) -> None:
        self._registrations: list[Registration] = []

    def method(
        self,
        nsid: str,
        *,
        auth: Auth,
        allows: Allows = Allows.CREDENTIAL,
        subject: Subject | None = None,
    ) -> Callable[[Handler], Handler]:
        """Register a handler; kind, parameters and body come from the lexicon of `nsid`.

        `auth` and `allows` say who may call, `subject` about whom it speaks: see `access`.
        """

        def register(handler: Handler) -> Handler:
            access = Access(auth, allows, subject)
            self._registrations.append(Registration(nsid, handler, access))
            return handler

        return register

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._registrations)


@dataclass(slots=True)
class Finished:
    """What is worth a line and a count about one answered request; filled in on its way.

    `method` is an NSID of ours, or `proxy` or `unknown`: never text that a caller can vary.
    """

    address: str | None
    method: str = "unknown"
    did: str | None = None
    error: str | None = None
    status: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A method with everything that is decided once, at start."""

    name: str
    verb: str
    method: Method
    handler: Handler
    auth: Auth
    allows: Allows
    headers: Mapping[str, str]
    limit_bytes: int | None


class XrpcServer:
    """Answers everything under `/xrpc/`.

    `fallback` takes authenticated calls of methods that are not ours (XRPC-60): the service proxy.
    `observe` is told about every finished request. With `check_outputs` a handler's answer is
    held against the lexicon, which is for tests and `pds dev`. Without a `rate_hook` nobody is
    counted.
    """

    def __init__(
        self,
        services: Services,
        tables: Iterable[MethodTable],
        *,
        fallback: Handler,
        observe: Callable[[Finished], None],
        check_outputs: bool = False,
        rate_hook: RateHook | None = None,
    ) -> None:
        self._services = services
        self._rate_hook = rate_hook
        self._fallback = fallback
        self._observe = observe
        self._check_outputs = check_outputs
        self._idle_s = services.limits.body_idle_s
        self._endpoints: dict[str, _Endpoint] = {}
        for registration in (entry for table in tables for entry in table):
            nsid = registration.nsid
            if nsid in self._endpoints:
                raise ConfigError(f"two handlers are registered for {nsid}")
            self._endpoints[nsid] = _make_endpoint(registration, services)

    @property
    def methods(self) -> list[tuple[str, str, Handler, Auth]]:
        """(nsid, verb, handler, auth) of every method, for `pds routes` and the access matrix."""
        return sorted(
            (name, point.verb, point.handler, point.auth) for name, point in self._endpoints.items()
        )

    async def handle(self, request: ServerRequest) -> web.StreamResponse:
        """Answer one request."""
        started = time.perf_counter()
        trace = Finished(request.remote)
        try:
            nsid = request.rel_url.raw_path[len(PREFIX) :]
            if self._rate_hook is not None and request.method != "OPTIONS":
                self._rate_hook.admit(request, nsid)
            endpoint = self._endpoints.get(nsid)
            if endpoint is not None and endpoint.verb == request.method:
                response = await self._run(endpoint, request, trace)
            else:
                response = await self._run_other(nsid, request, trace)
        except Exception as error:
            try:
                response = await self._refuse(error, request, trace)
            except ConnectionResetError:
                trace.status = CLIENT_GONE if isinstance(error, ConnectionError) else 500
                self._tell(trace, started)
                raise
        trace.status = response.status
        trace.size_bytes = _body_size(response)
        self._tell(trace, started)
        return response

    def _tell(self, trace: Finished, started: float) -> None:
        trace.duration_s = time.perf_counter() - started
        self._observe(trace)

    async def _run(
        self, endpoint: _Endpoint, request: ServerRequest, trace: Finished
    ) -> web.StreamResponse:
        method = endpoint.method
        trace.method = endpoint.name
        request.answer_headers = endpoint.headers
        params = _parse_params(method, request)
        principal = token = body = value = None
        if endpoint.auth is not Auth.NONE:
            principal, token = await authenticate(
                endpoint.auth, request=request, services=self._services, nsid=endpoint.name
            )
        if principal is not None:
            trace.did = principal.did
            request.answer_headers = PRIVATE_HEADERS
            if self._rate_hook is not None:
                self._rate_hook.admit_account(request, principal)
            if endpoint.allows is Allows.ACTIVE:
                await check_caller(endpoint.allows, principal, self._services)
        if method.kind == "subscription":
            _require_websocket(request)
        elif method.input_encoding is not None or not request.content.at_eof():
            body, value = await self._take_body(endpoint, request)
        if self._rate_hook is not None:
            self._rate_hook.charge(request, endpoint.name, principal, value, body)
        call = Call(
            nsid=endpoint.name,
            params=params,
            input=value,
            body=body,
            principal=principal,
            token=token,
            services=self._services,
            request=request,
        )
        answer = await endpoint.handler(call)
        if isinstance(answer, web.StreamResponse):
            return answer
        if self._check_outputs and method.output_encoding == "application/json":
            value = orjson.loads(answer) if isinstance(answer, bytes) else answer
            method.check_output(value)
        return _json_response(answer)

    async def _take_body(
        self, endpoint: _Endpoint, request: ServerRequest
    ) -> tuple[BodyReader | None, Json]:
        encoding = endpoint.method.input_encoding
        if encoding is None:
            await _require_empty_body(request, self._idle_s)
            return None, None
        _check_content_type(request, encoding)
        body = BodyReader(request, limit_bytes=endpoint.limit_bytes, idle_s=self._idle_s)
        if body.is_absent:
            raise invalid_request("A request body is expected but none was provided")
        if encoding != "application/json":
            return body, None
        content = await body.read()
        if not content:
            raise invalid_request("A request body is expected but none was provided")
        try:
            if len(content) > HEAVY_JSON_BYTES:
                value = await asyncio.to_thread(_parse_input, endpoint.method, content)
            else:
                value = _parse_input(endpoint.method, content)
        except ProtocolError as error:
            raise invalid_request(str(error)) from error
        return None, value

    async def _run_other(
        self, nsid: str, request: ServerRequest, trace: Finished
    ) -> web.StreamResponse:
        """Preflights, HEAD, wrong verbs, odd spellings, and methods that are not ours."""
        request.answer_headers = PUBLIC_HEADERS
        if request.method == "OPTIONS":
            return _preflight_response(request)
        name = nsid.removesuffix("/")
        if not _PATH_NSID.fullmatch(name):
            raise invalid_request("invalid xrpc path")
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return await self._run_fallback(name, request, trace)
        is_subscription = endpoint.method.kind == "subscription"
        is_head = request.method == "HEAD" and endpoint.verb == "GET" and not is_subscription
        if endpoint.verb != request.method and not is_head:
            trace.method = name
            refusal = invalid_request(
                f"Incorrect HTTP method ({request.method}) expected {endpoint.verb}"
            )
            if is_subscription:  # SYNC-4
                refusal.status, refusal.headers["Allow"] = 405, "GET"
            raise refusal
        return await self._run(endpoint, request, trace)

    async def _run_fallback(
        self, nsid: str, request: ServerRequest, trace: Finished
    ) -> web.StreamResponse:
        _check_nsid(nsid)
        is_ours = nsid.startswith("com.atproto.") and nsid not in PROXIED_BY_DEFAULT
        if request.method not in ("GET", "HEAD", "POST") or (
            is_ours and not request.headers.get("atproto-proxy")
        ):
            raise RequestError("MethodNotImplemented", "Method Not Implemented", 501)
        request.answer_headers = PRIVATE_HEADERS
        trace.method = "proxy"
        access = REPORT if nsid == "com.atproto.moderation.createReport" else PROXIED
        principal, token = await authenticate(
            access.auth, request=request, services=self._services, nsid=nsid
        )
        if principal is not None:
            trace.did = principal.did
            if self._rate_hook is not None:
                self._rate_hook.admit_account(request, principal)
            await check_caller(access.allows, principal, self._services)
        answer = await self._fallback(
            Call(
                nsid=nsid,
                params={},
                input=None,
                body=None,
                principal=principal,
                token=token,
                services=self._services,
                request=request,
            )
        )
        return answer if isinstance(answer, web.StreamResponse) else _json_response(answer)

    async def _refuse(
        self, error: Exception, request: ServerRequest, trace: Finished
    ) -> web.StreamResponse:
        """The answer for a request that failed, sent before the rest of its body is read."""
        if isinstance(error, RateLimited):
            request.rate_count = error.count
            request.answer_headers = request.answer_headers or PUBLIC_HEADERS
        refusal = as_request_error(error)
        if refusal is None or request.writer.output_size > 0:
            is_client_gone = isinstance(error, ConnectionError)
            if not is_client_gone:
                _log.error("request failed", extra={"method": trace.method}, exc_info=error)
            if request.writer.output_size > 0 or is_client_gone:
                trace.error = "ClientGone" if is_client_gone else "InternalServerError"
                # Too late for another answer: cut the connection, so that nobody takes what was
                # sent for the whole.
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the answer could not be finished") from error
            refusal = internal_error()
        trace.error = refusal.name
        response = error_response(refusal)
        if refusal.status == 401:
            response.headers.setdefault("WWW-Authenticate", BEARER_CHALLENGE)
        if not request.content.is_eof():
            response.force_close()
            await response.prepare(request)
            await response.write_eof()
            await drain_refused_body(request)
        return response


def _parse_input(method: Method, content: bytes) -> Json:
    value = parse_json(content)
    method.check_input(value)
    return value


def _check_nsid(text: str) -> None:
    """Refuse what can be no method anywhere: service tokens name an NSID."""
    try:
        parse_nsid(text)
    except InvalidSyntax:
        raise invalid_request("invalid xrpc path") from None


def _make_endpoint(registration: Registration, services: Services) -> _Endpoint:
    method = services.catalog.method(registration.nsid)
    if method is None:
        raise ConfigError(f"no lexicon defines the method {registration.nsid}")
    return _Endpoint(
        name=registration.nsid,
        verb="POST" if method.kind == "procedure" else "GET",
        method=method,
        handler=registration.handler,
        auth=registration.auth,
        allows=registration.access.allows,
        headers=_headers_for(registration.auth),
        limit_bytes=_body_limit(registration.nsid, method.input_encoding, services.limits),
    )


def _headers_for(auth: Auth) -> Mapping[str, str]:
    """Common headers of an answer before it is known whether the caller showed a credential."""
    match auth:
        case Auth.NONE:
            return PUBLIC_HEADERS
        case Auth.OPTIONAL | Auth.SERVICE_OPTIONAL:
            return OPTIONAL_HEADERS
        case _:
            return PRIVATE_HEADERS


def _body_limit(nsid: str, encoding: str | None, limits: RequestLimits) -> int | None:
    match encoding:
        case "application/json":
            return limits.record_write_bytes if nsid in RECORD_WRITES else limits.json_bytes
        case "application/vnd.ipld.car":
            return limits.repo_import_bytes
        case str() if encoding.startswith("text/"):
            return limits.text_bytes
        case _:
            return limits.blob_bytes


def _parse_params(method: Method, request: web.Request) -> dict[str, Any]:
    try:
        return method.parse_params(_split_query(request.rel_url.raw_query_string))
    except UnicodeError:
        raise invalid_request("Query parameters must be UTF-8") from None
    except ProtocolError as error:
        raise invalid_request(str(error)) from error


def _split_query(query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    if not query.isascii():
        query.encode()  # Bytes that are not UTF-8 arrive as half surrogate pairs, and fail here.
    elif "%" not in query and "+" not in query:
        parts = (part.partition("=") for part in query.split("&"))
        return [(name, value) for name, _, value in parts if name]
    return parse_qsl(query, keep_blank_values=True, errors="strict")


def _check_content_type(request: web.Request, encoding: str) -> None:
    header = request.headers.get("Content-Type")
    if header == encoding:
        return
    if not header:
        raise invalid_request("Request encoding (Content-Type) required but not provided")
    given = header.partition(";")[0].strip().lower()
    kind = encoding.removesuffix("*")
    if encoding not in (given, "*/*") and not (kind.endswith("/") and given.startswith(kind)):
        raise invalid_request(f"Wrong request encoding (Content-Type): {given}")


async def _require_empty_body(request: web.Request, idle_s: float) -> None:
    """An empty chunked body is fine where none is expected (XRPC-4)."""
    try:
        body = await BodyReader(request, limit_bytes=0, idle_s=idle_s).read()
    except RequestError as error:
        if error.status != 413:
            raise
        body = b"\0"
    if body:
        raise invalid_request("A request body was provided when none was expected")


def _require_websocket(request: web.Request) -> None:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise RequestError(
            "InvalidRequest",
            "This method is a WebSocket subscription",
            426,
            headers={"Upgrade": "websocket"},
        )


def _json_response(answer: "Json | bytes") -> web.Response:
    """A 200: JSON, or nothing at all for a method without output (XRPC-6)."""
    if answer is None:
        return web.Response()
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    return web.Response(body=body, headers=JSON_HEADERS)


def _preflight_response(request: web.Request) -> web.Response:
    """Allow everything (XRPC-11). The wildcard never covers Authorization, so names are echoed."""
    asked = request.headers.get("Access-Control-Request-Headers", "*")
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
            "Access-Control-Allow-Headers": asked,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
            "Vary": "Access-Control-Request-Headers",
        },
    )


def _body_size(response: web.StreamResponse) -> int:
    if response.prepared:
        return response.body_length
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0
