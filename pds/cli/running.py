"""Runs a server in this process until a signal asks it to stop."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from pds.app import Options, RunningServer, running_server
from pds.config import Config

GARBAGE_THRESHOLDS: Final = (10_000, 20, 20)
"""New objects before the collector looks for cycles, and rounds before it looks at older ones.

Writes leave tree nodes and events that stay: with the defaults the collector walks all of these
often, and nothing is answered meanwhile.
"""

OnReady = Callable[[RunningServer], Awaitable[None]]


def run_on_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on the fastest event loop of this platform."""
    if sys.platform == "win32":
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)


async def serve_until_stopped(
    config: Config,
    *,
    sock: socket.socket | None = None,
    on_ready: OnReady | None = None,
    server_options: Options | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order; a second signal does not hurry it."""
    _allow_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows has no handlers on the loop.
            loop.add_signal_handler(number, stop.set)
    async with running_server(config, sock=sock, options=server_options) as server:
        if on_ready is not None:
            await on_ready(server)
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        await stop.wait()


def _allow_many_files() -> None:
    """Every connection is a file: allow as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
