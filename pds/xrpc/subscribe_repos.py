"""com.atproto.sync.subscribeRepos: the firehose over WebSocket (SYNC-1 to SYNC-8).

Everything about order, cursors and slow readers is in `pds.services.firehose`; here are the
handshake and the refusals before it.
"""

from pds.errors import RequestError
from pds.xrpc.auth import Auth
from pds.xrpc.server import Answer, Call, MethodTable
from pds.xrpc.websocket import Upgraded, WebSocket, check_handshake

routes = MethodTable()


@routes.method("com.atproto.sync.subscribeRepos", auth=Auth.NONE)
async def subscribe_repos(call: Call) -> Answer:
    """Send the events of this host until the reader or the server leaves."""
    firehose = call.services.firehose
    cursor: int | None = call.params.get("cursor")
    if cursor is not None and cursor < 0:
        raise RequestError("InvalidRequest", "cursor must not be negative")
    accept = check_handshake(call.request)
    firehose.check_room()
    socket = WebSocket.upgrade(call.request, accept, buffer_bytes=firehose.sink_buffer_bytes)
    try:
        socket.attach(firehose.subscribe(cursor, socket))
        await socket.closed
    finally:
        if not socket.closed.done():
            socket.abort()
    return Upgraded()
