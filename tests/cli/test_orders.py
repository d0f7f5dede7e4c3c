"""Commands that give orders: to a running server, to the database alone, and to nobody.

The same command line is run both ways; what it does must be the same, and stand in the audit trail.
"""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pds.app.orders import PlainAdmin
from pds.cli import run
from pds.errors import RequestError
from pds.net.xrpc_client import XrpcRejected
from tests.support_client import Client, XrpcError
from tests.support_live import LiveServer, live_server_in
from tests.support_process import free_port

SETTINGS = {"PDS_BSKY_APP_VIEW_URL": "", "PDS_INVITE_REQUIRED": "true"}
GONE = "http://127.0.0.1:9"


class Shell:
    """Runs command lines in a thread, with the settings of a server."""

    def __init__(self, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in server.environment.items():
            if name.startswith("PDS_"):
                monkeypatch.setenv(name, value)
        self.server = server

    async def try_run(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        out, error = io.StringIO(), io.StringIO()
        real, sys.stdin = sys.stdin, io.StringIO(stdin)
        try:
            with redirect_stdout(out), redirect_stderr(error):
                code = await asyncio.to_thread(run, list(arguments))
        finally:
            sys.stdin = real
        return code, out.getvalue(), error.getvalue()

    async def run(self, *arguments: str, stdin: str = "") -> str:
        code, out, error = await self.try_run(*arguments, stdin=stdin)
        assert code == 0, (arguments, out, error)
        return out

    async def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(await self.run(*arguments, "--json", stdin=stdin))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with live_server_in(tmp_path / "data", **SETTINGS) as server:
        yield server


@pytest.fixture
def shell(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(server, monkeypatch)


async def login(http: aiohttp.ClientSession, url: str, name: str, password: str) -> Client:
    client = Client(http, url)
    answer = await client.post(
        "com.atproto.server.createSession", identifier=name, password=password
    )
    return client.with_token(answer["accessJwt"])


async def test_orders_do_the_same_with_and_without_a_running_server(shell: Shell) -> None:
    """Accounts, records and blobs, invites and events, one after the other, both ways."""
    server = shell.server
    made = await shell.json("account", "create", "alice.test", "alice@example.test")
    did, password = made["did"], made["password"]
    async with aiohttp.ClientSession() as http:
        alice = await login(http, server.url, "alice.test", password)
        blob = await alice.upload(b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png")
        image = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
        record = {"text": "hi", "createdAt": "2026-01-02T03:04:05Z", "embed": image}
        wrote = await alice.post(
            "com.atproto.repo.createRecord",
            repo=did,
            collection="app.bsky.feed.post",
            record=record,
        )
    uri, cid = wrote["uri"], blob["ref"]["$link"]
    await story(shell, did, uri, cid)
    first = (await shell.json("audit", "--limit", "500"))["acts"]
    await long_story(shell, did)
    assert await server.stop() == 0
    before = (await shell.json("audit"))["acts"][0]["id"]
    await story(shell, did, uri, cid)
    acts = (await shell.json("audit", "--limit", "500"))["acts"]
    told = [(act["actor"], act["act"], act.get("note")) for act in acts if act["id"] > before]
    assert told == [(act["actor"], act["act"], act.get("note")) for act in first][: len(told)]
    assert len(told) > 10
    assert all(actor.startswith("cli:") for actor, _, _ in told)

    await server.start()
    async with aiohttp.ClientSession() as http:
        client = Client(http, server.url)
        status = await client.get("com.atproto.sync.getRepoStatus", did=did)
        assert status["active"] is True
        await login(http, server.url, "alice.test", "given by stdin")
        with pytest.raises(XrpcError):
            await login(http, server.url, "alice.test", password)
    await server.check_repo(did, {uri.removeprefix(f"at://{did}/")})
    assert (await shell.run("account", "delete", "alice.test", "--yes")).startswith(did)
    assert (await shell.try_run("account", "show", did))[0] == 1


async def story(shell: Shell, did: str, uri: str, cid: str) -> None:
    """Give orders of each kind and leave things as they were."""
    done = await shell.run("account", "takedown", "@alice.test", "--ref", "c1", "--note", "spam")
    assert done == f"{did}: active -> takendown (c1)\n"
    again = await shell.run("account", "takedown", did)
    assert again == f"{did}: nothing to change, it is takendown (c1)\n"
    events = await shell.json("event", "list", "--account", did, "--limit", "1")
    assert (events["events"][0]["kind"], events["events"][0]["status"]) == ("account", "takendown")
    await shell.run("account", "untakedown", did)
    assert "takendown" in await shell.run("record", "takedown", uri, "--ref", "c2")
    assert uri in await shell.run("record", "list-hidden", did)
    assert "visible" in await shell.run("record", "untakedown", uri)
    assert "takendown" in await shell.run("blob", "takedown", did, cid)
    assert cid in await shell.run("blob", "list", did, "--taken-down")
    assert "visible" in await shell.run("blob", "untakedown", did, cid)
    code = (await shell.run("invite", "create", "--uses", "3", "--for", did)).split()[0]
    assert "1" in await shell.run("invite", "disable", code)
    await shell.run("account", "set-handle", did, "admin.test")
    await shell.run("account", "set-handle", did, "alice.test")
    ours = "the AppView of the settings"
    assert await shell.run("account", "set-appview", did, "none") == f"{did}: {ours} -> none\n"
    again = await shell.run("account", "set-appview", did, "none")
    assert again == f"{did}: nothing to change, it is none\n"
    assert await shell.run("account", "set-appview", did) == f"{did}: none -> {ours}\n"
    await shell.run("account", "reset-password", did, "--password-stdin", stdin="given by stdin\n")
    assert (await shell.json("account", "show", did))["status"] == "active"


async def long_story(shell: Shell, did: str) -> None:
    """Give all other orders, to a running server."""
    listed = await shell.run("account", "list", "alice")
    assert did in listed
    assert "active" in listed
    assert (await shell.json("account", "list", "--status", "takendown"))["accounts"] == []
    shown = await shell.json("account", "show", "alice.test")
    assert (shown["did"], shown["records"], shown["blobs"]) == (did, 1, 1)
    dry = await shell.run("account", "takedown", did, "--ref", "c1", "--dry-run")
    assert "nothing was changed" in dry
    assert "active -> takendown (c1)" in dry
    for act in ("suspend", "unsuspend", "deactivate", "activate"):
        assert did in await shell.run("account", act, did)
    assert "active" in await shell.run("event", "list", "--kind", "account")
    assert (await shell.try_run("blob", "missing", did))[0] == 0
    assert (await shell.json("repo", "show", did))["records"] == 1
    assert did in await shell.run("invite", "list")
    await shell.run("account", "disable-invites", did)
    await shell.run("account", "enable-invites", did)
    await shell.run("account", "set-email", did, "New@example.test")
    await shell.run("account", "rotate-key", did)
    await shell.run("account", "end-sessions", did)
    assert "openedAt" in await shell.run("account", "sessions", did)
    assert (await shell.json("account", "sessions", did))["sessions"] == []
    assert "password  " in await shell.run("account", "reset-password", did)
    code, _, error = await shell.try_run("account", "set-appview", did, "no did")
    assert (code, "named by its DID" in error) == (1, True)
    await shell.run("event", "request-crawl", "--dry-run")
    trail = await shell.run("audit", "--subject", did)
    assert "account.takedown" in trail
    assert "spam" in trail
    assert "given by stdin" not in trail


async def refusals_are_plain(shell: Shell) -> None:
    for arguments, expected, code in (
        (["account", "show", "nobody.test"], "Subject not found", 1),
        (["account", "create", "a.test", "no-address"], "email", 1),
        (["record", "takedown", "at://alice.test"], "collection", 1),
        (["account", "set-appview", "nobody.test", "none"], "Subject not found", 1),
        (["blob", "takedown", "did:plc:nobody", "x"], "not found", 1),
        (["invite", "disable"], "name codes", 2),
        (["invite", "create", "--count", "0"], "codes can be made", 1),
        (["account", "reset-password", "x.test", "--password-stdin"], "no password", 2),
        (["account", "list", "--cursor", "x"], "cursor", 1),
    ):
        got, out, error = await shell.try_run(*arguments)
        assert (got, out) == (code, ""), (arguments, out, error)
        assert expected in error, (arguments, error)
        assert "Traceback" not in error


async def test_refusals_are_plain_and_nobody_else_is_asked(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and an exit code, whoever refuses; the password goes to no other server, and no
    folder is opened that a server holds."""
    await refusals_are_plain(shell)
    monkeypatch.setenv("PDS_ADMIN_PASSWORD", "not the right one")
    code, _, error = await shell.try_run("account", "list")
    assert (code, "Invalid admin credentials" in error) == (1, True)
    monkeypatch.delenv("PDS_ADMIN_PASSWORD")
    code, _, error = await shell.try_run("account", "list")
    assert (code, "PDS_ADMIN_PASSWORD" in error) == (2, True)
    monkeypatch.setenv("PDS_ADMIN_PASSWORD", "x")
    monkeypatch.setenv("PDS_ADMIN_URL", GONE)
    assert (await shell.try_run("account", "list"))[0] == 1
    monkeypatch.setenv("PDS_ADMIN_URL", "http://pds.example.com")
    code, _, error = await shell.try_run("account", "list")
    assert (code, "https://" in error) == (2, True)
    monkeypatch.setenv("PDS_ADMIN_URL", f"http://127.0.0.1:{shell.server.port}")
    monkeypatch.setenv("PDS_SERVICE_DID", "did:web:other.example.com")
    code, _, error = await shell.try_run("account", "list")
    assert (code, "did:web:other.example.com" in error) == (2, True)
    monkeypatch.delenv("PDS_ADMIN_URL")
    monkeypatch.delenv("PDS_SERVICE_DID")
    monkeypatch.setenv("PDS_PORT", str(free_port()))
    code, _, error = await shell.try_run("account", "list")
    if "PDS_DATABASE_URL" not in shell.server.environment:
        assert (code, "PDS_ADMIN_URL" in error) == (1, True)
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(shell.server.folder / "nowhere"))
    monkeypatch.delenv("PDS_DATABASE_URL", raising=False)
    code, _, error = await shell.try_run("account", "list")
    assert (code, "there is no database" in error) == (2, True)


async def test_answers_cannot_steer_the_terminal() -> None:
    """Other hosts word parts of answers, such as why a move does not go on."""
    hostile = "\x1b]0;owned\x07\x9b2J ok\n\u202egpj"

    class Hostile:
        async def call(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
            if name == "refused":
                raise RequestError("busy", hostile)
            problem = {"message": hostile}
            return {"moves": [{"problem": problem, "attempts": 3, "types": {hostile: 1}}]}

    client = PlainAdmin(Hostile())
    shown = (await client.call("move.list", {}))["moves"][0]
    assert shown["attempts"] == 3
    with pytest.raises(RequestError) as refused:
        await client.call("refused", {})
    for text in (shown["problem"]["message"], *shown["types"], refused.value.message):
        assert text.replace("\ufffd", "") == "]0;owned2J ok\ngpj"
    said = XrpcRejected("host", 400, "Odd\x1b", "no\x1b[2J")
    assert (said.error, said.message) == ("Odd ", "no [2J")


@pytest.mark.parametrize("proof", [None, "0" * 64, 7])
async def test_who_took_the_port_of_the_server_is_not_told_the_password(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, proof: Any
) -> None:
    """Any user of the machine may listen there while the server is down, and its DID is public."""
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        if request.path.endswith("describeServer"):
            real = await Client(http, shell.server.url).get("com.atproto.server.describeServer")
            return web.json_response(real)
        return web.json_response({"proof": proof} if proof is not None else {"accounts": []})

    runner = web.AppRunner(_anything(answer), shutdown_timeout=0.1)
    port = free_port()
    await runner.setup()
    async with aiohttp.ClientSession() as http:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            monkeypatch.setenv("PDS_ADMIN_URL", f"http://127.0.0.1:{port}")
            code, _, error = await shell.try_run("account", "list")
        finally:
            await runner.cleanup()
    assert (code, "does not prove" in error) == (2, True), error
    assert len(seen) == 2
    assert set(seen) == {None}


def _anything(answer: Any) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def test_the_command_runs_as_a_process_of_its_own(shell: Shell) -> None:
    """As an operator types it."""
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pds", "invite", "create", "--json",
            env=shell.server.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        assert json.loads(out)["codes"][0]["account"] == "admin"
        if shell.server.process is not None:
            assert await shell.server.stop() == 0
