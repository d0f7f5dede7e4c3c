"""Small XRPC calls to other hosts: a query or a procedure, one JSON answer, no session.

For what this server asks of relays (`requestCrawl`, `getHostStatus`) and of the AppView
(`resolveHandle`). Calls made on behalf of a user go through the service proxy, which streams.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pds.errors import BadAnswer, Rejected, RemoteError
from pds.net.http import HttpClient
from pds.net.http_errors import HttpNotFound, HttpRejected, StatusError

ParamValue = str | int | bool


class XrpcRejected(Rejected):
    """The service answered a 4xx; `error` is the name in its body, or InvalidRequest.

    Its words are kept without characters that steer terminals.
    """

    def __init__(self, host: str, status: int, error: str, message: str) -> None:
        error, message = _printable(error), _printable(message)
        super().__init__(f"{host}: {error}: {message}")
        self.status = status
        self.error = error
        self.message = message


class XrpcClient:
    """Calls methods at the base URLs that it is given."""

    def __init__(self, http: HttpClient) -> None:
        """Send through `http`, which decides where calls may go and how long they take."""
        self._http = http

    async def query(
        self,
        base_url: str,
        nsid: str,
        params: Mapping[str, ParamValue | list[str]] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Call a query and return its JSON object.

        Raises: XrpcRejected (a 4xx), NotResolvable (404 without one),
        Unreachable, BadAnswer.
        """
        url = _method_url(base_url, nsid)
        if params:
            pairs = [
                (name, _param_text(item))
                for name, value in params.items()
                for item in (value if isinstance(value, list) else [value])
            ]
            url = f"{url}?{urlencode(pairs)}"
        try:
            answer = await self._http.get_json(url, headers=headers, timeout_s=timeout_s)
        except (HttpRejected, HttpNotFound) as error:
            raise _named(error, base_url) from error
        return _check_object(answer, nsid)

    async def procedure(
        self,
        base_url: str,
        nsid: str,
        value: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Call a procedure with JSON input and return its output, `{}` if it has none.

        Raises: as `query`.
        """
        url = _method_url(base_url, nsid)
        try:
            answer = await self._http.post_json(
                url, dict(value), headers=headers, timeout_s=timeout_s
            )
        except (HttpRejected, HttpNotFound) as error:
            raise _named(error, base_url) from error
        return _check_object(answer.json(), nsid) if answer.body.strip() else {}


def _method_url(base_url: str, nsid: str) -> str:
    return f"{base_url.rstrip('/')}/xrpc/{nsid}"


def _param_text(value: ParamValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _check_object(value: Any, nsid: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"the answer to {nsid} is no JSON object")
    return value


def _named(error: HttpRejected | HttpNotFound, base_url: str) -> RemoteError:
    detail = error.detail
    name, message = detail.get("error"), detail.get("message")
    if not isinstance(name, str):
        return error if isinstance(error, HttpNotFound) else _rejected(error, base_url, "", "")
    return _rejected(error, base_url, name, message if isinstance(message, str) else "")


def _rejected(error: StatusError, base_url: str, name: str, message: str) -> XrpcRejected:
    return XrpcRejected(base_url, error.status, name[:100] or "InvalidRequest", message[:500])


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
