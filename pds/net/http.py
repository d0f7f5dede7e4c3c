"""Outbound HTTP: one guarded client for addresses that strangers choose, one for the operator's.

`GuardedClient` is for everything that somebody else's input can aim (did:web hosts, handles,
service proxy targets): https on allowed ports only, no IP literals, and the address of *every*
connection attempt is checked when its socket is made, so neither redirects nor DNS answers that
change between check and use get around it. `TrustedClient` is for the addresses in our own
configuration; it refuses private addresses too unless the settings allow them.

Both send no cookies, follow no redirect by themselves, and limit the time to the headers, the time
between chunks, the whole time, and the bytes, counted after decompression.

The errors are in `http_errors`.
Spec: xrpc#service-proxying (XRPC-68)
"""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDictProxy
from yarl import URL

from pds.errors import BadAnswer, RemoteError, Unreachable
from pds.net.addresses import Network, is_address_like_host, is_in_networks, is_public_address
from pds.net.dns import MAX_ADDRESSES, DnsClient, DnsResolver
from pds.net.http_body import StreamedAnswer, Upload
from pds.net.http_errors import (
    AddressRefused,
    ForbiddenDestination,
    HttpFailed,
    HttpNotFound,
    HttpRejected,
    StatusError,
    remote_errors,
)

MAX_URL_CHARS: Final = 8192
MAX_ERROR_BODY_BYTES: Final = 16_384
"""How much of an error answer is kept to find its message."""

_UNSAFE_URL: Final = re.compile(r"[\x00-\x20\x7f\\]")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

OnDate = Callable[[str, int], None]
"""Called with the host and its `Date`, unix microseconds of whole seconds, per fresh answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and permissions of one client.

    `allowed_ports` None means any. `extra_networks` are addresses that may be reached although
    they are not public. `allow_private` switches the address check off (development, or
    `PDS_DISABLE_SSRF_PROTECTION`). `idle_timeout_s` is the longest wait for one chunk.
    """

    user_agent: str = "Freehold"
    allow_http: bool = False
    allow_private: bool = False
    allow_literals: bool = False
    allowed_ports: frozenset[int] | None = frozenset({443})
    extra_networks: tuple[Network, ...] = ()
    connect_timeout_s: float = 5.0
    headers_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0
    total_timeout_s: float = 300.0
    upload_idle_timeout_s: float = 60.0
    small_timeout_s: float = 10.0
    small_max_bytes: int = 512 * 1024
    max_connections: int = 200
    max_connections_per_host: int = 50

    @classmethod
    def guarded(cls, *, user_agent: str, unsafe: bool = False, **more: Any) -> Self:
        """Return settings for destinations that strangers choose; `unsafe` for development."""
        ports: dict[str, Any] = {"allowed_ports": None} if unsafe else {}
        return cls(
            user_agent=user_agent,
            allow_http=unsafe,
            allow_private=unsafe,
            allow_literals=unsafe,
            **(ports | more),
        )

    @classmethod
    def trusted(cls, *, user_agent: str, allow_private: bool = False, **more: Any) -> Self:
        """Return settings for destinations that the operator configured."""
        defaults: dict[str, Any] = {
            "allow_http": True,
            "allow_literals": True,
            "allowed_ports": None,
            "max_connections_per_host": 0,
        }
        return cls(user_agent=user_agent, allow_private=allow_private, **(defaults | more))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a 2xx status; `body` is decompressed."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    url: str

    def json(self) -> Any:
        """Return the body parsed as JSON. Raises: BadAnswer."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{URL(self.url).host} answered with invalid JSON") from error


class HttpClient:
    """What both clients share. Make a `GuardedClient` or a `TrustedClient`."""

    def __init__(
        self,
        settings: HttpSettings,
        *,
        dns: DnsClient | None = None,
        resolver: AbstractResolver | None = None,
        on_date: OnDate | None = None,
    ) -> None:
        """Prepare; the session is made at the first request.

        Hosts are found by `resolver`, else by `dns`, else by the system's resolver.
        """
        self._settings = settings
        self._dns = dns
        self._resolver = resolver
        self._on_date = on_date
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Close every connection. Requests still running fail."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def check_url(self, url: str) -> URL:
        """Return `url` parsed, exactly as it will be sent.

        Raises: ForbiddenDestination for a scheme, port or host that this client never contacts,
        and for text that is no absolute URL.
        """
        settings = self._settings
        if len(url) > MAX_URL_CHARS or _UNSAFE_URL.search(url) or not url.isascii():
            raise ForbiddenDestination("not a valid URL")
        try:
            parsed = URL(url, encoded=True)
            host, port = parsed.host, parsed.port
        except ValueError as error:
            raise ForbiddenDestination("not a valid URL") from error
        if parsed.scheme != "https" and not (parsed.scheme == "http" and settings.allow_http):
            raise ForbiddenDestination("only https URLs are allowed")
        if not host or parsed.user is not None or parsed.password is not None:
            raise ForbiddenDestination("a URL must have a host and no user name")
        if is_address_like_host(host) and not settings.allow_literals:
            raise ForbiddenDestination("IP addresses are not allowed as hosts")
        if settings.allowed_ports is not None and port not in settings.allowed_ports:
            raise ForbiddenDestination(f"port {port} is not allowed")
        return parsed.with_fragment(None)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: bytes | AsyncIterable[bytes] | None = None,
        max_bytes: int | None = None,
        headers_timeout_s: float | None = None,
        total_timeout_s: float | None = None,
    ) -> AsyncIterator[StreamedAnswer]:
        """Send one request and hand over its answer as soon as the headers are here.

        Any status is an answer; no redirect is followed; nothing is decompressed. `body` may be
        streamed (with a `Content-Length` header if it is known); an exception that it raises is
        raised here. The time limit for the headers starts anew with each chunk sent. The
        connection is given up when the block is left before the end of the body.
        """
        parsed = self.check_url(url)
        settings = self._settings
        wait_s = settings.headers_timeout_s if headers_timeout_s is None else headers_timeout_s
        ends_at = asyncio.get_running_loop().time() + (total_timeout_s or settings.total_timeout_s)
        upload = Upload(body, wait_s, settings.upload_idle_timeout_s, ends_at)
        response: aiohttp.ClientResponse | None = None
        try:
            try:
                with remote_errors(parsed.host):
                    async with asyncio.timeout_at(None) as upload.deadline:
                        upload.allow(wait_s)
                        started = time.monotonic()
                        response = await self._get_session().request(
                            method,
                            parsed,
                            headers=headers,
                            data=upload.data(),
                            allow_redirects=False,
                        )
            except RemoteError:
                if upload.error is not None:
                    raise upload.error from None
                raise
            self._note_date(response, time.monotonic() - started)
            yield StreamedAnswer(
                response,
                idle_s=settings.idle_timeout_s,
                ends_at=ends_at,
                max_bytes=1 << 62 if max_bytes is None else max_bytes,
            )
        finally:
            if response is not None:
                response.close()

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
        timeout_s: float | None = None,
        max_redirects: int = 0,
    ) -> Answer:
        """Return the whole answer to a small request.

        Redirects, at most `max_redirects`, each judged like the first URL, are for GET only and
        drop `Authorization` when they leave the origin.
        Raises: NotResolvable, Rejected, Unreachable, BadAnswer.
        """
        settings = self._settings
        limit = settings.small_max_bytes if max_bytes is None else max_bytes
        wait_s = settings.small_timeout_s if timeout_s is None else timeout_s
        sent = {"Accept-Encoding": "identity"} | dict(headers or {})
        ends_at = asyncio.get_running_loop().time() + wait_s
        while True:
            left_s = max(ends_at - asyncio.get_running_loop().time(), 0.001)
            async with self.request(
                method,
                url,
                headers=sent,
                body=body,
                max_bytes=limit,
                headers_timeout_s=left_s,
                total_timeout_s=left_s,
            ) as answer:
                if 200 <= answer.status < 300:
                    content = await answer.read(limit)
                    return Answer(answer.status, answer.headers, content, answer.url)
                if answer.status not in _REDIRECTS:
                    raise await _status_error(answer)
                if max_redirects <= 0 or method != "GET":
                    raise BadAnswer(f"{URL(url).host} answered with a redirect")
                target = _redirect_target(answer)
            if self.check_url(target).origin() != self.check_url(url).origin():
                sent = {k: v for k, v in sent.items() if k.lower() != "authorization"}
            url = target
            max_redirects -= 1

    async def get_bytes(self, url: str, **options: Any) -> Answer:
        """GET `url` whole. Options and errors are those of `fetch`."""
        return await self.fetch("GET", url, **options)

    async def get_json(self, url: str, **options: Any) -> Any:
        """GET `url` and parse its JSON. Options and errors are those of `fetch`."""
        headers = {"Accept": "application/json"} | dict(options.pop("headers", None) or {})
        return (await self.fetch("GET", url, headers=headers, **options)).json()

    async def post_json(self, url: str, value: Any, **options: Any) -> Answer:
        """POST `value` as JSON and return the answer, whose body may be empty or not JSON.

        Options and errors are those of `fetch`.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= dict(options.pop("headers", None) or {})
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return await self.fetch("POST", url, headers=headers, body=body, **options)

    def _get_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unreachable("the HTTP client is closed")
        if self._session is None:
            settings = self._settings
            resolver = self._resolver or (DnsResolver(self._dns) if self._dns else None)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_BoundedResolver(resolver or aiohttp.ThreadedResolver()),
                    socket_factory=self._make_socket,
                    limit=settings.max_connections,
                    limit_per_host=settings.max_connections_per_host,
                    ttl_dns_cache=10,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": settings.user_agent},
                skip_auto_headers=("Content-Type", "Accept", "Accept-Encoding"),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=settings.connect_timeout_s, sock_read=None
                ),
                auto_decompress=False,
                trust_env=False,
                raise_for_status=False,
            )
        return self._session

    def _make_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        settings = self._settings
        host = str(address[0])
        if not (
            settings.allow_private
            or is_public_address(host)
            or is_in_networks(host, settings.extra_networks)
        ):
            raise AddressRefused("the address of this host is not allowed")
        return socket.socket(family, kind, protocol)

    def _note_date(self, response: aiohttp.ClientResponse, took_s: float) -> None:
        """Report the server's clock, unless a cache or a slow line made it meaningless."""
        date = response.headers.get("Date")
        if self._on_date is None or date is None or took_s > 5 or "Age" in response.headers:
            return
        try:
            date_us = int(parsedate_to_datetime(date).timestamp()) * 1_000_000
        except (ValueError, TypeError, OverflowError):
            return
        self._on_date(response.url.host or "", date_us)


class GuardedClient(HttpClient):
    """For every destination that somebody else's input can choose.

    Looks hosts up with its own DNS client, so that slow zones cannot hold the system's resolver
    threads; in development (`allow_private`) with the system's, which knows local names.
    """

    def __init__(
        self,
        settings: HttpSettings | None = None,
        *,
        dns: DnsClient | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        settings = settings or HttpSettings()
        if dns is None and resolver is None and not settings.allow_private:
            dns = DnsClient()
        super().__init__(settings, dns=None if settings.allow_private else dns, resolver=resolver)


class TrustedClient(HttpClient):
    """For destinations named in our own configuration: PLC directory, AppView, relays."""


class _BoundedResolver(AbstractResolver):
    """Cuts long answers and never returns an empty one."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return found[:MAX_ADDRESSES]

    async def close(self) -> None:
        await self._inner.close()


def _redirect_target(answer: StreamedAnswer) -> str:
    location = answer.headers.get("Location", "")
    try:
        return str(URL(answer.url).join(URL(location)))
    except ValueError as error:
        raise BadAnswer(f"{URL(answer.url).host} redirected to no URL") from error


async def _status_error(answer: StreamedAnswer) -> RemoteError:
    host = URL(answer.url).host or ""
    if answer.status < 400:
        return BadAnswer(f"{host} answered {answer.status}")
    try:
        body = await answer.read(MAX_ERROR_BODY_BYTES)
    except RemoteError:
        body = b""  # the status alone decides; the body only words the message
    kind: type[StatusError] = HttpRejected
    if answer.status in (404, 410):
        kind = HttpNotFound
    elif answer.status == 429 or answer.status >= 500:
        kind = HttpFailed
    return kind(host, answer.status, body, answer.headers.get("Retry-After"))
