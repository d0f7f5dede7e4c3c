"""`pds migrate in --oauth` from outside: the browser comes back to the server, or to the terminal.

Spec: (ACC-20, OAUTH-47)
"""

import asyncio
import json
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from pds.protocol.plc import PlcService, make_update, sign_operation
from pds.protocol.syntax import Did
from pds.services.migration_problems import EXIT_CODES, Code
from tests.cli.test_migrate import Setting, setting
from tests.fakes.oauth import FakeOAuth, running_oauth
from tests.scenarios.moving import NEW_PASSWORD, log_of, plc_code
from tests.support_client import Person, sign_up

__all__ = ["setting"]
LINK = re.compile(r"http://127\.0\.0\.1:\d+/oauth/authorize\?\S+")
PATIENCE_S = 60
WAITS = EXIT_CODES[Code.PLC_TOKEN_NEEDED]


@dataclass
class Door:
    """The old host with OAuth before it, and who lives there."""

    oauth: FakeOAuth
    alice: Person


@pytest.fixture
async def door(setting: Setting) -> AsyncIterator[Door]:
    async with running_oauth(setting.old.url) as oauth:
        alice = await sign_up(setting.old.client, "alice.old.test")
        await alice.post("hello")
        oauth.passwords[alice.did] = alice.password
        last = log_of(setting.old.plc, alice.did).last
        assert last is not None
        assert last.state is not None
        service = PlcService("AtprotoPersonalDataServer", oauth.host_url)
        fields = make_update(last, services={**last.state.services, "atproto_pds": service})
        signer = setting.old.server.services.migration.parts.rotation_signer
        setting.old.plc.submit(Did(alice.did), sign_operation(fields, signer).to_json())
        yield Door(oauth, alice)


async def link_of(setting: Setting, did: str) -> str:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, shown, _ = await setting.command("status", did, "--json")
            if "signIn" in shown:  # Nothing is shown before the move has begun.
                return str(json.loads(shown)["signIn"]["url"])
            await asyncio.sleep(0.02)


async def test_the_browser_comes_back_to_the_server(setting: Setting, door: Door) -> None:
    table = Path(setting.new.folder) / "moves.csv"
    table.write_text("account\n")
    code, _, error = await setting.command("in", "--csv", str(table), "--oauth")
    assert (code, "--oauth is for one account" in error) == (2, True)
    door.oauth.server_changes = {"scopes_supported": []}
    code, _, error = await setting.command(
        "in", door.alice.did, "--oauth", "--yes", "--password-stdin", stdin=f"{NEW_PASSWORD}\n"
    )
    assert code == EXIT_CODES[Code.OAUTH_UNAVAILABLE], error
    door.oauth.server_changes.clear()
    arguments = ["in", door.alice.did, "--oauth", "--yes", "--password-stdin"]
    url = f"{setting.new.url}/oauth-client/callback?state=1.x&code=1"
    command = asyncio.create_task(_in_process(setting, *arguments))
    back = door.oauth.sign_in(await link_of(setting, door.alice.did), door.alice.did)
    async with aiohttp.ClientSession() as http:
        async with http.get(url) as answer:
            assert answer.status == 400
        async with http.get(back) as answer:
            assert answer.status == 200, await answer.text()
    code, out, error = await command
    assert code == WAITS, error
    assert LINK.search(error)
    assert "approve" in out


async def _in_process(setting: Setting, *arguments: str) -> tuple[int, str, str]:
    """Run the command in a process of its own: another one may be run here meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds", "migrate", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=setting.new.environment,
    )  # fmt: skip
    out, error = await process.communicate(f"{NEW_PASSWORD}\n".encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


class Terminal:
    """A command at a terminal: what it shows, and what is typed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.shown = ""
        self._has_more = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            content = os.read(self._fd, 65536)
        except OSError:  # The command has ended.
            content = b""
        if not content:
            asyncio.get_running_loop().remove_reader(self._fd)
        self.shown += content.decode("utf-8", "replace")
        self._has_more.set()

    async def wait_for(self, pattern: str) -> str:
        """Wait until something is shown, and forget what was shown until then."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := re.search(pattern, self.shown)) is None:
                self._has_more.clear()
                await self._has_more.wait()
        self.shown = self.shown[found.end() :]
        return found.group()

    def type(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode())


@asynccontextmanager
async def at_terminal(
    setting: Setting, *arguments: str
) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds", "migrate", *arguments,
        stdin=theirs, stdout=theirs, stderr=theirs, env=setting.new.environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)


async def test_the_address_where_the_browser_ended_is_pasted(setting: Setting, door: Door) -> None:
    """No server runs: the command works by itself, and nothing answers the browser."""
    await setting.new.kill()
    did = door.alice.did
    async with at_terminal(setting, "in", did, "--oauth", "--yes") as (terminal, process):
        await terminal.wait_for("Password for it here")
        terminal.type(NEW_PASSWORD)
        await terminal.wait_for("[Rr]epeat")
        door.oauth.link_life_s = 1
        terminal.type(NEW_PASSWORD)
        await terminal.wait_for("within a minute")
        first = await terminal.wait_for(LINK.pattern)
        await terminal.wait_for("time is over: press Enter")
        door.oauth.link_life_s = 300
        terminal.type("")  # Another link.
        second = await terminal.wait_for(LINK.pattern)
        assert second != first
        await terminal.wait_for("press Enter")
        terminal.type("http://127.0.0.1/oauth-client/callback?state=1.x&code=y")
        await terminal.wait_for("Nothing here waits")
        terminal.type(door.oauth.sign_in(second, did))
        await terminal.wait_for("Code from the mail")
        terminal.type(await plc_code(setting.old))
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0, terminal.shown
    move = json.loads((await setting.command("status", did, "--json"))[1])
    assert move["status"] == "done"
