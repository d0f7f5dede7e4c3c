"""`/.well-known/did.json` of this server, `/.well-known/atproto-did` of its handles, `/tls-check`.

The second is answered by the Host header: a handle that is a name of this host proves itself over
HTTP, as long as its account is active (ID-12). Nothing else about the account is told. The last
tells a reverse proxy that makes certificates on demand which names are worth one (ID-14).
"""

import orjson
from aiohttp import web

from pds.services.accounts import Accounts
from pds.services.server_info import ServerInfo
from pds.web.router import WebHandler, WebRouter


def add_routes(router: WebRouter, *, info: ServerInfo, accounts: Accounts) -> None:
    """Serve the well-known documents."""
    router.get("/.well-known/did.json", _did_document(info), is_public=True)
    router.get("/.well-known/atproto-did", _handle_proof(accounts), is_public=True)
    router.get("/tls-check", _name_check(info, accounts))


def _did_document(info: ServerInfo) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        document = info.did_document(request.headers.get("Host", ""))
        if document is None:
            raise web.HTTPNotFound
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    return handle


def _handle_proof(accounts: Accounts) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        handle_text = request.headers.get("Host", "").partition(":")[0].lower().rstrip(".")
        account = await accounts.lookup(handle_text) if handle_text.isascii() else None
        if account is None or not account.is_active or account.handle != handle_text:
            return web.Response(status=404, text="User not found\n")
        return web.Response(text=account.did)

    return handle


def _name_check(info: ServerInfo, accounts: Accounts) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        name = request.query.get("domain", "").lower()
        if info.is_own_name(name):
            return web.Response(text="this server\n")
        account = await accounts.lookup(name) if name.isascii() else None
        if account is None or account.handle != name:
            return web.Response(status=404, text="No such name\n")
        return web.Response(text="a handle\n")

    return handle
