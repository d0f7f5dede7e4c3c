"""The HTTP face of the embedded PLC directory: the same paths, statuses and content types as the
public one, so that clients cannot tell the difference.

A request that the rules refuse answers 400, an identity that is unknown or was ended 404, both
with `{"message": ...}`.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from pds.protocol.plc import PlcError, PlcState, render_document
from pds.protocol.plc_log import PlcLog, parse_time_us
from pds.protocol.syntax import Did
from pds.services.plc_directory import MAX_EXPORT, PlcDirectory

MAX_BODY_BYTES: Final = 100_000
DOCUMENT_TYPE: Final = "application/did+ld+json"
EXPORT_TYPE: Final = "application/jsonlines"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_plc_app(directory: PlcDirectory) -> web.Application:
    """Return an aiohttp application that serves `directory`."""
    routes = _Routes(directory)
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/_health", routes.health)
    app.router.add_get("/export", routes.export)
    app.router.add_get("/{did}", routes.document)
    app.router.add_get("/{did}/data", routes.data)
    app.router.add_get("/{did}/log", routes.log)
    app.router.add_get("/{did}/log/audit", routes.audit_log)
    app.router.add_get("/{did}/log/last", routes.last_operation)
    app.router.add_post("/{did}", routes.submit)
    return app


class _Routes:
    def __init__(self, directory: PlcDirectory) -> None:
        self._directory = directory

    async def health(self, _request: web.Request) -> web.Response:
        return _json({"version": "embedded"})

    async def document(self, request: web.Request) -> web.Response:
        did, state = self._state(request)
        return _json(render_document(did, state), content_type=DOCUMENT_TYPE)

    async def data(self, request: web.Request) -> web.Response:
        did, state = self._state(request)
        return _json(state.to_json(did))

    async def log(self, request: web.Request) -> web.Response:
        return _json([entry.operation.to_json() for entry in self._log(request).active])

    async def audit_log(self, request: web.Request) -> web.Response:
        log = self._log(request)
        return _json([entry.to_json(log.did) for entry in log.entries])

    async def last_operation(self, request: web.Request) -> web.Response:
        return _json(self._log(request).active[-1].operation.to_json())

    async def submit(self, request: web.Request) -> web.Response:
        try:
            content: object = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(reason="Body is not JSON") from error
        self._directory.submit(request.match_info["did"], content)
        return web.Response(text="OK")

    async def export(self, request: web.Request) -> web.Response:
        count = _parse_count(request.query.get("count", str(MAX_EXPORT)))
        after = request.query.get("after", "")
        by_seq = after.isascii() and after.isdigit()
        after_seq = int(after) if by_seq else self._seq_at(after)
        found = self._directory.export(count=count, after_seq=after_seq)
        lines = [
            {"type": "sequenced_op", "seq": seq, **entry} if by_seq else entry
            for seq, entry in found
        ]
        body = "\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
        return web.Response(body=body.encode(), content_type=EXPORT_TYPE)

    def _seq_at(self, after: str) -> int:
        return self._directory.seq_at(parse_time_us(after)) if after else 0

    def _log(self, request: web.Request) -> PlcLog:
        did = request.match_info["did"]
        log = self._directory.get_log(did)
        if log is None:
            raise web.HTTPNotFound(reason=f"DID not registered: {_printable(did)}")
        return log

    def _state(self, request: web.Request) -> tuple[Did, PlcState]:
        log = self._log(request)
        if log.state is None:
            raise web.HTTPNotFound(reason=f"DID not available: {log.did}")
        return log.did, log.state


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PlcError as error:
        return _json({"message": str(error)}, status=400)
    except web.HTTPException as error:
        return _json({"message": error.reason}, status=error.status)


def _parse_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise web.HTTPBadRequest(reason="Invalid count parameter")
    return int(text)


def _printable(text: str) -> str:
    return "".join(char for char in text[:100] if char.isprintable())


def _json(value: Any, *, status: int = 200, content_type: str = "application/json") -> web.Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return web.Response(body=body.encode(), status=status, content_type=content_type)
