"""app.bsky.*: the methods that are kept with the account instead of being proxied."""

from typing import Any, Final, cast

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.services.principal import Principal
from pds.xrpc.server import Auth, Call, MethodTable

routes: Final = MethodTable()


@routes.method("app.bsky.actor.getPreferences", auth=Auth.SESSION_TAKENDOWN_OK)
async def get_preferences(call: Call) -> Json:
    """Return the caller's private preferences."""
    return {"preferences": await call.services.preferences.get(_principal(call))}


@routes.method("app.bsky.actor.putPreferences", auth=Auth.SESSION)
async def put_preferences(call: Call) -> None:
    """Replace the caller's private preferences."""
    body = cast("dict[str, Any]", call.input)
    await call.services.preferences.put(_principal(call), body["preferences"])


def _principal(call: Call) -> Principal:
    if call.principal is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    return call.principal
