"""What other hosts and browsers need while somebody signs in elsewhere for a move to this host.

The document by which other servers know this one as an OAuth client, and the address at which a
browser comes back with a code. That address is for GET alone, and works once: what it brings is
bound to one sign-in by its `state`, which `services/migration_sign_in` checks, so nobody has to be
known here by a cookie. The requests to the other host are made in `services/oauth_client`.

Templates: `signed_in_elsewhere.html` (the move goes on), `sign_in_unknown.html` (no sign-in waits
for this answer, or it was used before), `not_signed_in.html` (why it did not work).

Spec: (OAUTH-10, OAUTH-11, OAUTH-15, OAUTH-47)
"""

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from pds.errors import RemoteError, RequestError, StoreError
from pds.log import get_logger
from pds.services.migration import Migration
from pds.services.oauth_client import CALLBACK_PATH, CLIENT_PATH
from pds.web.pages import Pages
from pds.web.router import WebHandler, WebRouter

DOCUMENT_AGE_S: Final = 300
STATUS_OF: Final = {"UnknownSignIn": 400, "busy": 409}

_log: Final = get_logger(__name__)


def add_routes(router: WebRouter, *, migration: Migration, pages: Pages) -> None:
    """Serve the document, and take browsers that come back."""
    router.get(CLIENT_PATH, _document(migration), is_public=True)
    router.get(CALLBACK_PATH, _callback(migration, pages))


def _document(migration: Migration) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        document = migration.client_metadata(request.headers.get("Host", ""))
        if document is None:
            raise web.HTTPNotFound
        return web.Response(
            body=orjson.dumps(document),
            content_type="application/json",
            headers={"Cache-Control": f"max-age={DOCUMENT_AGE_S}"},
        )

    return handle


def _callback(migration: Migration, pages: Pages) -> WebHandler:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method != "GET":  # HEAD: whoever looks only must not use it up.
            return web.Response(headers={"Cache-Control": "no-store"})
        page = await _finish(migration, pages, request.rel_url.raw_query_string)
        page.headers["Cache-Control"] = "no-store"
        return page

    return handle


async def _finish(migration: Migration, pages: Pages, query: str) -> web.Response:
    try:
        # A browser that hangs up must not stop what it has begun.
        move = await asyncio.shield(migration.finish_sign_in(query))
    except RequestError as error:
        if error.name == "UnknownSignIn":  # Also who looks at the page again.
            return pages.render("sign_in_unknown.html", {}, status=STATUS_OF[error.name])
        return _refused(pages, error.message, status=STATUS_OF.get(error.name, error.status))
    except RemoteError as error:
        return _refused(pages, str(error), status=502)
    except StoreError as error:
        _log.warning("oauth_client.put_off", reason=str(error))
        return _refused(pages, "This server cannot write now", status=503)
    return pages.render("signed_in_elsewhere.html", _about(move))


def _about(move: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": move["oldHandle"] or move["did"],
        "host": urlsplit(str(move["otherHost"])).netloc,
        "has_stopped": move["status"] not in ("running", "done"),
        "problem": (move.get("problem") or {}).get("message"),
    }


def _refused(pages: Pages, reason: str, *, status: int) -> web.Response:
    return pages.render("not_signed_in.html", {"reason": reason}, status=status)
