"""The HTTP server below all handlers: connections, their limits and deadlines, and plain refusals.

aiohttp's low-level server with what it leaves open closed (all measured on 3.14):

* it waits for ever for the rest of a header: here headers are cut at `header_timeout_s`;
* it waits for ever for a client that does not read its answer, with all that the answer holds: here
  the connection is cut when nothing was taken for `write_idle_s` (event readers have a rule of
  their own, see `websocket`);
* it takes any number of connections from one address: here they are counted;
* it parses on after a malformed message, and keeps an error for every piece that follows: here all
  of that is thrown away;
* it reads 32 requests ahead, each with a megabyte of headers if a client likes: here 4, with half;
* at the end it waits for each request twice: here once;
* it decompresses bodies without bound: switched off, `pds/xrpc/body.py` does it;
* after a refusal it reads the rest of the body for 10 s: switched off, see `drain_refused_body`;
* it logs a traceback for every malformed request and quotes the parser to the client: here the
  answer is one JSON body and the log one line at debug level;
* its `Server:` header names versions: here it does not.

X-Forwarded-For is believed only when the connection comes from a configured proxy; such a proxy
is not counted as one address.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import istr

from pds.errors import RequestError
from pds.services.callers import Network, caller_block, parse_networks, unmapped_address
from pds.services.rate_limits import Count
from pds.services.settings import parse_port
from pds.xrpc.errors import STATUS_NAMES, error_response, internal_error

RootHandler: TypeAlias = Callable[["ServerRequest"], Awaitable[web.StreamResponse]]

SERVER_NAME: Final = "Freehold"
SERVER: Final = istr("Server")
RATE_LIMIT: Final = istr("RateLimit-Limit")
RATE_REMAINING: Final = istr("RateLimit-Remaining")
RATE_RESET: Final = istr("RateLimit-Reset")
RATE_POLICY: Final = istr("RateLimit-Policy")
MAX_HEADERS: Final = 64
MAX_WAITING_REQUESTS: Final = 4
"""Requests of one connection that are read before the one in progress is answered."""
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """Where to listen, and what one connection may cost."""

    host: str = field(
        default="127.0.0.1",
        metadata={"env": "PDS_BIND", "help": "Address to listen on; `0.0.0.0` for all."},
    )
    port: int = field(
        default=2583,
        metadata={"env": "PDS_PORT", "help": "Port to listen on.", "parse": parse_port},
    )
    metrics_port: int | None = field(
        default=None,
        metadata={
            "env": "PDS_METRICS_PORT",
            "help": "Port on 127.0.0.1 that serves `/metrics` for Prometheus; none when unset.",
            "parse": parse_port,
        },
    )
    trusted_proxies: tuple[Network, ...] = field(
        default=LOOPBACK,
        metadata={
            "env": "PDS_TRUSTED_PROXIES",
            "help": (
                "Addresses and networks of reverse proxies, whose `X-Forwarded-For` is believed."
            ),
            "parse": parse_networks,
        },
    )
    connections_per_address: int = field(
        default=256,
        metadata={
            "env": "PDS_CONNECTIONS_PER_ADDRESS",
            "help": "Open connections from one address (IPv6: /64), trusted proxies excepted.",
        },
    )
    header_timeout_s: float = 30.0
    keepalive_s: float = 75.0
    """Longer than the 60 s for which common reverse proxies keep an idle connection."""
    write_idle_s: float = 60.0
    """How long a client may take nothing of an answer that waits for it."""
    shutdown_timeout_s: float = 8.0
    """Containers are commonly given 10 s to stop."""


class ServerRequest(web.Request):
    """A request that puts the common headers on whatever answers it.

    Whoever routes the request puts those of its kind into `answer_headers`; a header that the
    answer sets itself always wins. `rate_count` is the limit that is nearest, shown to the client
    (XRPC-70).
    """

    ATTRS = web.Request.ATTRS | {"answer_headers", "is_exempt", "rate_count"}
    answer_headers: Mapping[str, str] = NO_HEADERS
    is_exempt: bool = False
    rate_count: Count | None = None

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        headers = response.headers
        for name, value in self.answer_headers.items():
            if name not in headers:
                headers[name] = value
        count = self.rate_count
        if count is not None:
            headers[RATE_LIMIT] = count.bucket.limit_text
            headers[RATE_REMAINING] = str(count.remaining)
            headers[RATE_RESET] = str(count.ends_at)
            headers[RATE_POLICY] = count.bucket.policy_text
        headers[SERVER] = SERVER_NAME


class Listener(web.Server):
    """Accepts connections and hands each request to `handler`."""

    def __init__(self, handler: RootHandler, settings: ListenerSettings) -> None:
        super().__init__(
            cast("Any", handler),
            request_factory=cast("Any", self._make_server_request),
            keepalive_timeout=settings.keepalive_s,
            access_log=None,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=0.0,
            logger=_log,
        )
        self.settings = settings
        self._open_by_address: dict[str, int] = {}
        self._has_warned = False

    def __call__(self) -> "Connection":
        """Make the protocol of one new connection."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def admit(self, address: str) -> bool:
        """Count one more connection from `address`; False if that is one too many."""
        address = caller_block(address)
        count = self._open_by_address.get(address, 0)
        if count >= self.settings.connections_per_address:
            return False
        self._open_by_address[address] = count + 1
        return True

    def forget(self, address: str) -> None:
        """Count one connection less."""
        address = caller_block(address)
        count = self._open_by_address[address] - 1
        if count:
            self._open_by_address[address] = count
        else:
            del self._open_by_address[address]

    def is_proxy(self, address: str) -> bool:
        """Whether `address` is a configured reverse proxy."""
        try:
            parsed = unmapped_address(address)
        except ValueError:
            return not address  # A Unix socket has no address; who can reach it is local.
        return any(parsed in network for network in self.settings.trusted_proxies)

    def client_behind(self, forwarded: str, peer: str) -> str:
        """The client's address: the last one in X-Forwarded-For that is not a proxy of ours."""
        for part in reversed(forwarded.split(",")):
            text = part.strip()
            try:
                address = str(unmapped_address(text))
            except ValueError:
                return peer
            if not self.is_proxy(address):
                return address
        return peer

    def _look_for_forgotten_proxy(self, message: RawRequestMessage, address: str) -> None:
        """Tell the operator, once, of what looks like a proxy that nobody configured.

        All its clients count as one address and would soon be refused together.
        """
        if "X-Forwarded-For" not in message.headers:
            return
        try:
            is_near = unmapped_address(address).is_private
        except ValueError:
            return
        if is_near:
            self._has_warned = True
            _log.warning(
                "listener.proxy_not_trusted",
                extra={"address": address, "hint": "name it in PDS_TRUSTED_PROXIES"},
            )

    def _make_server_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: "Connection",
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> ServerRequest:
        remote: str | None = None
        if protocol.is_proxied and "X-Forwarded-For" in message.headers:
            # A proxy appends to what the client sent: all lines together are one list.
            forwarded = ",".join(message.headers.getall("X-Forwarded-For"))
            remote = self.client_behind(forwarded, protocol.address)
        elif not protocol.is_proxied and not self._has_warned:
            self._look_for_forgotten_proxy(message, protocol.address)
        return ServerRequest(message, payload, protocol, writer, task, self._loop, remote=remote)


class Connection(web.RequestHandler):
    """One connection, with a deadline for headers and quiet refusals."""

    __slots__ = (
        "_header_timer",
        "_is_broken",
        "_is_counted",
        "_listener",
        "_untaken_bytes",
        "_write_timer",
        "address",
        "is_proxied",
    )

    def __init__(self, listener: Listener, **kwargs: Any) -> None:
        super().__init__(listener, **kwargs)
        self._listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._untaken_bytes = 0
        self._max_msg_queue_size = MAX_WAITING_REQUESTS
        self._msg_queue_resume_size = MAX_WAITING_REQUESTS // 2
        self._is_broken = False
        self._is_counted = False
        self.address = ""
        self.is_proxied = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit or drop the connection, and start the clock for its first header."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.is_proxied = self._listener.is_proxy(self.address)
        if not self.is_proxied:
            if not self._listener.admit(self.address):
                cast("asyncio.Transport", transport).abort()
                return
            self._is_counted = True
        super().connection_made(transport)
        self._start_header_clock()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._stop_header_clock()
        self._stop_write_clock()
        if self._is_counted:
            self._is_counted = False
            self._listener.forget(self.address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; bytes that complete no request start the clock for the header.

        After a malformed message nothing that follows has a meaning.
        """
        if self._is_broken:
            return
        waiter = self._waiter
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._is_broken = True
            self._give_up_body()
        if waiter is None:
            if self._messages:
                self._stop_header_clock()
        elif waiter.done():
            self._stop_header_clock()
        elif self._header_timer is None:
            self._start_header_clock()

    def _give_up_body(self) -> None:
        """Tell the request in progress that the rest of its body will not come."""
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError("malformed body"))

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let the request in progress finish within `timeout` seconds, then cut the connection.

        aiohttp waits that long for the answer, and as long again once it has cancelled the request.
        """
        await super().shutdown(None if timeout is None else timeout / 2)

    def pause_writing(self) -> None:
        """Wait for the client to take what was written, but not for ever."""
        super().pause_writing()
        self._start_write_clock()

    def resume_writing(self) -> None:
        """Go on: the client has taken most of it."""
        self._stop_write_clock()
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what is not HTTP, or end what a handler could not: one body, no parser text."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionResetError("the answer could not be finished")
        if status == 500:
            _log.error("request failed", exc_info=exc)
            refusal = internal_error()
        else:
            _log.debug("malformed request", extra={"address": self.address})
            refusal = RequestError(
                STATUS_NAMES.get(status, "InvalidRequest"), "Malformed HTTP request", status
            )
        response = error_response(refusal)
        response.force_close()
        return response

    def _start_header_clock(self) -> None:
        timeout_s = self._listener.settings.header_timeout_s
        self._header_timer = self._loop.call_later(timeout_s, self._headers_overdue)

    def _stop_header_clock(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _start_write_clock(self) -> None:
        if self.transport is not None:
            self._untaken_bytes = self.transport.get_write_buffer_size()
            timeout_s = self._listener.settings.write_idle_s
            self._write_timer = self._loop.call_later(timeout_s, self._writing_overdue)

    def _stop_write_clock(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _writing_overdue(self) -> None:
        self._write_timer = None
        if self.transport is None:
            return
        is_event_reader = self._payload_parser is not None
        if is_event_reader or self.transport.get_write_buffer_size() < self._untaken_bytes:
            self._start_write_clock()
        else:
            self.transport.abort()

    def _headers_overdue(self) -> None:
        self._header_timer = None
        self.force_close()
