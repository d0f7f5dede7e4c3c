"""`POST /admin/api/<order>`: what the command line asks of a running server.

The body is a JSON object, the answer too; refusals have the form of XRPC errors. The credential is
the operator's (Basic, XRPC-28), checked with the same limits on guesses. A browser that knows the
password cannot be led here by another page: only POST with a JSON content type is answered, and no
origin is allowed any of that.

`GET /admin/api/proof?nonce=` needs no credential: by it a command finds out whether it is this
server that listens here, before it sends the password (see `AdminAuth.prove`).

What there is to order is in `services/admin_api`. Methods of com.atproto.admin are not repeated
here for other programs: the names below this path may change with the version.
"""

import base64
import re
from typing import Final

import orjson
from aiohttp import web

from pds.errors import ProtocolError, RemoteError, RequestError, StoreError
from pds.protocol.data import Json, parse_json
from pds.services.admin_api import AdminApi
from pds.services.admin_auth import AdminAuth
from pds.services.audit import ADMIN_ACTOR, CLI_PREFIX
from pds.web.router import WebHandler, WebRouter

PREFIX: Final = "/admin/api/"
ACTOR_HEADER: Final = "Freehold-Actor"
"""The name of who runs the command; believed of whoever knows the password."""
PROOF: Final = "proof"
MAX_BODY_BYTES: Final = 150 * 1024
CHALLENGE: Final = 'Basic realm="admin", charset="UTF-8"'

_ACTOR: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_NONCE: Final = re.compile(r"[0-9a-f]{32,128}")


def add_routes(router: WebRouter, *, api: AdminApi, auth: AdminAuth) -> None:
    """Answer orders."""
    router.mount(PREFIX, _handler(api, auth))


def _handler(api: AdminApi, auth: AdminAuth) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            name = request.rel_url.raw_path.removeprefix(PREFIX)
            if name == PROOF and request.method == "GET":
                return _json({"proof": _prove(request, auth)})
            await _check_operator(request, auth)
            values = await _read_body(request)
            answer = await api.call(name, values, actor=_actor(request))
        except RequestError as error:
            return _refusal(error)
        except StoreError as error:
            return _refusal(RequestError("NotEnoughResources", str(error), 503))
        except RemoteError as error:
            return _refusal(RequestError("UpstreamFailure", str(error), 502))
        return _json(answer)

    return handle


def _prove(request: web.Request, auth: AdminAuth) -> str | None:
    nonce = request.query.get("nonce", "")
    if not _NONCE.fullmatch(nonce):
        raise RequestError("InvalidRequest", "nonce must be 32 to 128 digits of hex")
    return auth.prove(nonce)


async def _check_operator(request: web.Request, auth: AdminAuth) -> None:
    """Raises: RequestError `AuthenticationRequired`, 429 after too many guesses."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        username, _, password = base64.b64decode(token, validate=True).decode().partition(":")
    except ValueError:  # Not base64, not ASCII, or not UTF-8 inside.
        username = password = ""
    if scheme.lower() != "basic" or not username:
        raise _unknown("Authentication Required")
    if not await auth.check(username, password, address=request.remote or ""):
        raise _unknown("Invalid admin credentials")


def _unknown(message: str) -> RequestError:
    headers = {"WWW-Authenticate": CHALLENGE}
    return RequestError("AuthenticationRequired", message, 401, headers=headers)


async def _read_body(request: web.Request) -> dict[str, Json]:
    if request.method != "POST":
        raise RequestError("InvalidRequest", "Orders are given by POST", 405)
    if request.content_type != "application/json":
        raise RequestError("InvalidRequest", "Orders are application/json", 415)
    content = bytearray()
    async for chunk in request.content.iter_any():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise RequestError("PayloadTooLarge", "Orders are shorter", 413)
    try:
        values = parse_json(bytes(content))
    except ProtocolError as error:
        raise RequestError("InvalidRequest", f"The body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RequestError("InvalidRequest", "The body must be a JSON object")
    return values


def _actor(request: web.Request) -> str:
    name = request.headers.get(ACTOR_HEADER, "")
    return CLI_PREFIX + name if _ACTOR.fullmatch(name) else ADMIN_ACTOR


def _refusal(error: RequestError) -> web.Response:
    response = _json({"error": error.name, "message": error.message}, status=error.status)
    response.headers.update(error.headers)
    if error.status >= 400:
        response.force_close()  # Part of a body may be unread.
    return response


def _json(value: dict[str, Json], *, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
