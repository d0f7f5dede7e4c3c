"""Error bodies: the one table from what went wrong to `{"error": ..., "message": ...}`.

Every non-2xx answer under `/xrpc/` is built here (XRPC-7), whatever raised. What is not a refusal
of ours becomes a generic text: no detail of a fault of ours ever leaves the host (XRPC-8).
"""

from typing import Final

import orjson
from aiohttp import web

from pds.errors import (
    BadAnswer,
    NotResolvable,
    Paused,
    Rejected,
    RemoteError,
    RequestError,
    Unavailable,
    Unreachable,
    invalid_request,
)

STATUS_NAMES: Final = {
    400: "InvalidRequest",
    401: "AuthenticationRequired",
    403: "Forbidden",
    404: "XRPCNotSupported",
    405: "InvalidRequest",
    406: "NotAcceptable",
    408: "RequestTimeout",
    411: "InvalidRequest",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    417: "InvalidRequest",
    429: "RateLimitExceeded",
    431: "InvalidRequest",
    500: "InternalServerError",
    501: "MethodNotImplemented",
    502: "UpstreamFailure",
    503: "NotEnoughResources",
    504: "UpstreamTimeout",
}
"""Generic error names by status (XRPC-7)."""

INTERNAL_MESSAGE: Final = "Internal Server Error"
MAX_MESSAGE_CHARS: Final = 1000
"""Messages may quote the request; they never become a way to fill a log or a screen."""


def payload_too_large(limit_bytes: int) -> RequestError:
    """A body over its limit (XRPC-5)."""
    return RequestError("PayloadTooLarge", f"Request body is larger than {limit_bytes} bytes", 413)


def as_request_error(error: Exception) -> RequestError | None:
    """What to answer for `error`; None if it is a fault of ours.

    A remote failure that no service judged is never reported as ours, and a store that cannot
    answer now is a 503: both say that the same request may succeed later.
    """
    match error:
        case RequestError():
            return error
        case Paused():
            return RequestError(
                "NotEnoughResources",
                "The server is being moved and takes no changes for a moment",
                503,
                headers={"Retry-After": "5"},
            )
        case Unavailable():
            return RequestError(
                "NotEnoughResources",
                "The server cannot store data at the moment",
                503,
                headers={"Retry-After": "10"},
            )
        case Unreachable():
            return RequestError("UpstreamFailure", "Upstream service unreachable", 502)
        case BadAnswer():
            return RequestError("UpstreamFailure", "Upstream service gave a bad answer", 502)
        case NotResolvable() | Rejected():
            return invalid_request(str(error))
        case RemoteError():
            return RequestError("UpstreamFailure", "Upstream service failed", 502)
        case web.HTTPException():
            name = STATUS_NAMES.get(error.status, "InvalidRequest")
            return RequestError(name, error.reason or name, error.status)
        case _:
            return None


def error_response(error: RequestError) -> web.Response:
    """The answer for `error`.

    After a 413 the connection is closed: reading on to the end of what we refused could take
    hundreds of megabytes.
    """
    response = web.Response(
        body=_error_body(error.name, error.message),
        status=error.status,
        headers=error.headers,
        content_type="application/json",
    )
    if error.status == 413:
        response.force_close()
    return response


def _error_body(name: str, message: str) -> bytes:
    message = message[:MAX_MESSAGE_CHARS]
    try:
        return orjson.dumps({"error": name, "message": message})
    except orjson.JSONEncodeError:  # Half a surrogate pair, echoed from the request.
        clean = message.encode("utf-8", "replace").decode("utf-8")
        return orjson.dumps({"error": name, "message": clean})


def internal_error() -> RequestError:
    """What is said about a fault of ours."""
    return RequestError("InternalServerError", INTERNAL_MESSAGE, 500)
