"""app.bsky.*: what is more than passed on to an AppView.

Preferences are kept with the account, save when the call names an AppView other than ours. The six
views are answered through `services/app_views`: an AppView's answer, brought up to date or made
here. Feeds and push notifications need tokens for somebody else than the AppView. All other methods
of this namespace take the way of the service proxy (`xrpc/proxy`).
"""

from collections.abc import AsyncIterator
from typing import Any, Final, cast

import orjson
from aiohttp import web
from multidict import CIMultiDict

from pds.errors import RequestError, invalid_request
from pds.services.principal import Principal, PrincipalKind
from pds.services.proxy import ProxiedCall
from pds.services.proxy_answers import ProxiedAnswer
from pds.xrpc.access import Allows
from pds.xrpc.auth import Auth
from pds.xrpc.proxy import ANSWER_HEADERS, make_proxied, stream_answer
from pds.xrpc.server import Answer, Call, MethodTable

routes: Final = MethodTable()

VIEWS: Final = (
    "app.bsky.actor.getProfile",
    "app.bsky.actor.getProfiles",
    "app.bsky.feed.getActorLikes",
    "app.bsky.feed.getAuthorFeed",
    "app.bsky.feed.getPostThread",
    "app.bsky.feed.getTimeline",
)
PUSH: Final = ("app.bsky.notification.registerPush", "app.bsky.notification.unregisterPush")


@routes.method("app.bsky.actor.getPreferences", auth=Auth.SESSION_OR_MODERATOR)
async def get_preferences(call: Call) -> Answer:
    """Return the caller's private preferences, or those of an account to the moderation service."""
    principal = _principal(call)
    is_elsewhere = await _is_for_another_appview(call, principal)
    if principal.kind is PrincipalKind.MODERATOR:
        if is_elsewhere:
            raise invalid_request("Moderator requests cannot be proxied to other app views")
        items = await call.services.preferences.get_for_moderator(await _named_account(call))
        return {"preferences": items}
    if is_elsewhere:
        return await _pass_on(call, principal, make_proxied(call))
    return {"preferences": await call.services.preferences.get(principal)}


@routes.method("app.bsky.actor.putPreferences", auth=Auth.SESSION)
async def put_preferences(call: Call) -> Answer:
    """Replace the caller's private preferences."""
    principal = _principal(call)
    if await _is_for_another_appview(call, principal):
        return await _pass_on(call, principal, _with_body(call))
    body = cast("dict[str, Any]", call.input)
    await call.services.preferences.put(principal, body["preferences"])
    return None


async def get_view(call: Call) -> Answer:
    """Answer one of the six views."""
    proxied = make_proxied(call, is_read_here=True)
    views = call.services.app_views
    async with views.open_view(_principal(call), proxied, call.params) as view:
        if isinstance(view, ProxiedAnswer):
            return await stream_answer(call.request, view)
        headers = {**view.headers, **ANSWER_HEADERS}
        return web.Response(body=view.body, status=view.status, headers=headers)


@routes.method("app.bsky.feed.getFeed", auth=Auth.SESSION, allows=Allows.ACTIVE)
async def get_feed(call: Call) -> Answer:
    """Pass a feed on, with a token for its generator."""
    views, feed = call.services.app_views, call.params["feed"]
    async with views.open_feed(_principal(call), make_proxied(call), feed) as answer:
        return await stream_answer(call.request, answer)


async def pass_push(call: Call) -> Answer:
    """Register or unregister a device with the notification service that the call names."""
    body = cast("dict[str, Any]", call.input)
    await call.services.app_views.send_to_notifier(
        _principal(call), _with_body(call), body["serviceDid"]
    )
    return None


for _nsid in VIEWS:
    routes.method(_nsid, auth=Auth.SESSION, allows=Allows.ACTIVE)(get_view)
for _nsid in PUSH:
    routes.method(_nsid, auth=Auth.SESSION, allows=Allows.ACTIVE)(pass_push)


async def _is_for_another_appview(call: Call, principal: Principal) -> bool:
    """Whether the header names a service, while the AppView of the settings is another.

    The account's own AppView counts as ours: its preferences stay with the account.
    """
    header = call.request.headers.get("atproto-proxy")
    ours = call.services.proxy.appview
    if not header or ours is None or header == ours.name:
        return False
    if principal.aid is None:
        return True
    return header != await call.services.appview_choices.get(principal.aid)


async def _pass_on(call: Call, principal: Principal, proxied: ProxiedCall) -> Answer:
    async with call.services.proxy.forward(principal, proxied) as answer:
        return await stream_answer(call.request, answer)


def _with_body(call: Call) -> ProxiedCall:
    """Return a call whose JSON body was read, with that body again."""
    content = orjson.dumps(call.input)

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    proxied = make_proxied(call, body=chunks())
    headers = CIMultiDict(proxied.headers)
    headers.popall("content-encoding", None)
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(content))
    return ProxiedCall(
        proxied.nsid, proxied.method, proxied.query, headers, proxied.body, is_read_here=True
    )


async def _named_account(call: Call) -> int:
    """Return the number of the account that a moderator asks about."""
    did = call.request.rel_url.query.get("did", "")
    account = await call.services.accounts.lookup(did) if did.startswith("did:") else None
    if account is None:
        raise invalid_request("Invalid or missing did parameter")
    return account.aid


def _principal(call: Call) -> Principal:
    if call.principal is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    return call.principal
