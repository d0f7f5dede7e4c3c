"""What can go wrong with an outbound HTTP request, and how aiohttp's errors become ours.

`NotResolvable`: 404, 410, no such host, or a destination that is not allowed. `Rejected`: another
4xx. `Unreachable`: no answer in time, 429, 5xx. `BadAnswer`: not HTTP, too large, or not in the
form that was asked for. The classes here add what only HTTP knows (status, body).
"""

import json
import socket
from types import TracebackType
from typing import Any

import aiohttp

from pds.errors import BadAnswer, NotResolvable, Rejected, RemoteError, Unreachable


class ForbiddenDestination(NotResolvable):
    """The URL, or the address behind it, is one that we never connect to."""


class AnswerTooLarge(BadAnswer):
    """More bytes than the caller allowed."""


class StatusError(RemoteError):
    """An answer whose status is an error, with the beginning of its body."""

    def __init__(self, host: str, status: int, body: bytes, retry_after: str | None) -> None:
        super().__init__(f"{host} answered {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after

    @property
    def detail(self) -> dict[str, Any]:
        """The JSON object in the error body, or an empty one."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


class HttpNotFound(StatusError, NotResolvable):
    """The server answered 404 or 410."""


class HttpRejected(StatusError, Rejected):
    """The server answered 4xx, but not 404, 410 or 429: it understood and refused."""


class HttpFailed(StatusError, Unreachable):
    """The server answered 5xx or 429: asking later may help."""


class AddressRefused(OSError):
    """The address check said no; raised while a socket is made, where only OSError may be."""


class remote_errors:  # noqa: N801 - used like a function
    """Turns whatever aiohttp raises into our error families."""

    def __init__(self, host: str | None) -> None:
        self._host = host

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        host = self._host
        if isinstance(error, TimeoutError):
            raise Unreachable(f"{host} did not answer in time") from error
        cause = getattr(error, "os_error", error)
        if isinstance(cause, AddressRefused):
            raise ForbiddenDestination(f"the address of {host} is not allowed") from None
        if isinstance(cause, socket.gaierror):
            if cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
                raise NotResolvable(f"there is no host {host}") from error
            raise Unreachable(f"could not look up {host}") from error
        if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            raise ForbiddenDestination(f"not a valid URL for {host}") from error
        if isinstance(error, aiohttp.ClientResponseError):
            raise BadAnswer(f"{host} did not answer in HTTP") from error
        if isinstance(error, (aiohttp.ClientError, OSError)):
            raise Unreachable(f"could not talk to {host}") from error
        # uvloop reports some socket failures so; UnicodeError is a host name that is none.
        if isinstance(error, UnicodeError):
            raise ForbiddenDestination("not a valid host name") from error
        if isinstance(error, RuntimeError):
            raise Unreachable(f"could not talk to {host}") from error
