"""com.atproto.temp: what of it a host like this can answer.

Not served: `fetchLabels`, because labels are not made here, and `requestPhoneVerification`, because
phone numbers are never asked for; both answer 501 like every method that a host does not have.
"""

from typing import Any, Final, cast

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.services.audit import order_of
from pds.xrpc.access import ACCOUNT
from pds.xrpc.server import Auth, Call, MethodTable

routes: Final = MethodTable()

_CHECK: Final = "com.atproto.temp.checkHandleAvailability"


@routes.method(_CHECK, auth=Auth.NONE)
async def check_handle_availability(call: Call) -> Json:
    """Whether a new account could have a handle; if not, which others."""
    params = call.params
    found = await call.services.handle_names.check(
        params["handle"], email=params.get("email"), birth_date=params.get("birthDate")
    )
    if found.is_available:
        result: Json = {"$type": f"{_CHECK}#resultAvailable"}
    else:
        result = {
            "$type": f"{_CHECK}#resultUnavailable",
            "suggestions": [
                {"handle": suggestion.handle, "method": suggestion.method}
                for suggestion in found.suggestions
            ],
        }
    return {"handle": found.handle, "result": result}


@routes.method("com.atproto.temp.checkSignupQueue", auth=Auth.SESSION)
async def check_signup_queue(call: Call) -> Json:
    """Accounts here are never queued: whoever has a session is in."""
    return {"activated": True}


@routes.method("com.atproto.temp.dereferenceScope", auth=Auth.NONE)
async def dereference_scope(call: Call) -> Json:
    """The scope behind a reference; this host shortens no scopes, so there is none."""
    raise RequestError("InvalidScopeReference", "This server has made no such scope reference")


@routes.method("com.atproto.temp.addReservedHandle", auth=Auth.ADMIN)
async def add_reserved_handle(call: Call) -> Json:
    """Set a handle, or a label under all our domains, aside for the operator to give."""
    body = cast("dict[str, Any]", call.input)
    await call.services.handle_names.reserve(body["handle"], order=order_of(call.principal))
    return {}


@routes.method("com.atproto.temp.revokeAccountCredentials", auth=Auth.ADMIN, subject=ACCOUNT)
async def revoke_account_credentials(call: Call) -> None:
    """End every session, app password and the password of an account."""
    body = cast("dict[str, Any]", call.input)
    await call.services.credentials.revoke_all(body["account"], order_of(call.principal))
