"""com.atproto.identity: who is who (ID-13, ID-15), and changes of one's own identity.

An app password changes nothing here (promise D2).
"""

from typing import Any, Final, cast

import orjson
from aiohttp import web

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import Did, parse_at_identifier, parse_handle
from pds.xrpc.server import Auth, Call, MethodTable

routes: Final = MethodTable()


@routes.method("com.atproto.identity.resolveHandle", auth=Auth.NONE)
async def resolve_handle(call: Call) -> Json:
    """Which DID a handle names."""
    handle = parse_handle(call.params["handle"])
    return {"did": await call.services.identity.resolve_handle(handle)}


@routes.method("com.atproto.identity.resolveDid", auth=Auth.NONE)
async def resolve_did(call: Call) -> Json:
    """The document of a DID."""
    document = await call.services.identity.resolve_did(Did(call.params["did"]))
    return {"didDoc": cast("Json", dict(document.source))}


@routes.method("com.atproto.identity.resolveIdentity", auth=Auth.NONE)
async def resolve_identity(call: Call) -> Json:
    """DID, verified handle and document of a DID or handle."""
    identifier = parse_at_identifier(call.params["identifier"])
    return (await call.services.identity.resolve_identity(identifier)).to_json()


@routes.method("com.atproto.identity.refreshIdentity", auth=Auth.SESSION)
async def refresh_identity(call: Call) -> Json:
    """Look again who somebody is; needs a session, since it makes requests."""
    return (await call.services.identity.refresh_identity(_body(call)["identifier"])).to_json()


@routes.method("com.atproto.identity.updateHandle", auth=Auth.FULL)
async def update_handle(call: Call) -> None:
    """Take another handle (ID-25)."""
    await call.services.handle_change.change(_aid(call), _body(call)["handle"])


@routes.method("com.atproto.identity.getRecommendedDidCredentials", auth=Auth.SESSION_TAKENDOWN_OK)
async def get_recommended_did_credentials(call: Call) -> Json:
    """What the caller's identity should say while the account is here (ID-67)."""
    return (await call.services.plc_operations.recommend(_aid(call))).to_json()


@routes.method("com.atproto.identity.requestPlcOperationSignature", auth=Auth.FULL_TAKENDOWN_OK)
async def request_plc_operation_signature(call: Call) -> None:
    """Mail a code for signPlcOperation (ID-68)."""
    await call.services.plc_operations.request_signature(_aid(call))


@routes.method("com.atproto.identity.signPlcOperation", auth=Auth.FULL_TAKENDOWN_OK)
async def sign_plc_operation(call: Call) -> Json:
    """Sign a change of the caller's identity; it is not sent to the directory (ID-68)."""
    body = _body(call)
    operation = await call.services.plc_operations.sign(_aid(call), body.get("token"), body)
    return {"operation": cast("Json", operation.to_json())}


@routes.method("com.atproto.identity.submitPlcOperation", auth=Auth.FULL)
async def submit_plc_operation(call: Call) -> web.Response:
    """Pass a signed operation on to the directory (ID-69).

    What the owner should know stands in the answer's headers: there is no output to put it in.
    """
    notes = await call.services.plc_operations.submit(_aid(call), _body(call)["operation"])
    return web.Response(headers=[("Warning", f"299 - {orjson.dumps(n).decode()}") for n in notes])


def _body(call: Call) -> dict[str, Any]:
    """The input, which the lexicon has found to be an object."""
    return cast("dict[str, Any]", call.input)


def _aid(call: Call) -> int:
    if call.principal is None or call.principal.aid is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    return call.principal.aid
