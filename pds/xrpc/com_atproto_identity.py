"""com.atproto.identity: who is who (ID-13, ID-15)."""

from typing import Any, Final, cast

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
    body = cast("dict[str, Any]", call.input)
    return (await call.services.identity.refresh_identity(body["identifier"])).to_json()
