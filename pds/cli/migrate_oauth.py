"""The sign-in at the old host, as part of `pds migrate in --oauth`.

The link is printed, and the browser may come back by two ways: to this server, which is noticed by
asking how the move stands, or, if it cannot reach this server, by the address at which it ended,
typed in here.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from pds.app.orders import AdminClient
from pds.errors import RequestError
from pds.services.migration_problems import Code

LOOK_S: Final = 0.5
AFTER_S: Final = 600
"""How long after the end of the link's time the browser is still waited for: who has opened the
link in time may take a while to sign in."""
MAX_LINE_BYTES: Final = 20_000


def needs_sign_in(move: Mapping[str, Any]) -> bool:
    """Whether a move waits for its owner to sign in at the old host."""
    return (move.get("problem") or {}).get("code") == Code.SIGN_IN_NEEDED


async def wait_for_sign_in(admin: AdminClient, move: dict[str, Any]) -> dict[str, Any] | None:
    """Show the link until the browser is back, and return the move as it is then.

    None when another link is wanted. Without a terminal the move is returned as it is when the time
    of the link is over. Raises: RequestError.
    """
    link = move["signIn"]
    ends_at = link["expiresAt"] / 1_000_000
    has_terminal = sys.stdin.isatty()
    minutes = max(round((ends_at - time.time()) / 60), 1)
    span = "a minute" if minutes == 1 else f"{minutes} minutes"
    click.echo(f"Sign in at {link['host']} within {span}:\n\n{link['url']}\n", err=True)
    if has_terminal:
        click.echo(
            "If the browser cannot come back to this server, paste the address at which it ends;"
            " for another link press Enter.",
            err=True,
        )
    is_told = not has_terminal
    with _typed_lines() as lines:
        while has_terminal or time.time() < ends_at + AFTER_S:
            if not is_told and time.time() >= ends_at:
                is_told = True
                click.echo(
                    "The link's time is over: press Enter for another, unless it is open.", err=True
                )
            try:
                line = await asyncio.wait_for(lines.get(), LOOK_S)
            except TimeoutError:
                move = await admin.call("move.show", {"account": move["did"]})
                if not needs_sign_in(move):
                    return move
                continue
            if not line:
                return None
            try:
                return await admin.call("move.finish-sign-in", {"url": line})
            except RequestError as error:
                if error.name not in ("InvalidRequest", "UnknownSignIn"):
                    raise
                click.echo(f"{error.message}.", err=True)
    return move


@contextmanager
def _typed_lines() -> Iterator["asyncio.Queue[str]"]:
    """Take what is typed, line by line, without a thread that would wait for it for ever."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    if not sys.stdin.isatty():
        yield lines
        return
    loop, fd, held = asyncio.get_running_loop(), sys.stdin.fileno(), bytearray()

    def read() -> None:
        content = os.read(fd, 4096)
        held.extend(content)
        *whole, rest = bytes(held).split(b"\n")
        held[:] = rest[-MAX_LINE_BYTES:]
        for line in whole:
            lines.put_nowait(line.decode("utf-8", "replace").strip())
        if not content:  # The terminal is gone; the browser may still come back.
            loop.remove_reader(fd)

    loop.add_reader(fd, read)
    try:
        yield lines
    finally:
        loop.remove_reader(fd)
