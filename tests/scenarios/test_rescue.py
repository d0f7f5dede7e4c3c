"""An account leaves a host that is dead and lies, with nothing but an archive and its owner's key.

Real server processes and the command line, as people use them (issue "Moving accounts", 6).
"""

import asyncio
import io
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pds.cli import run
from pds.cli.recovery_kit import read_signer
from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcService, make_update, sign_operation
from tests.fakes.plc import FakePlc, running_plc
from tests.support_client import Client, Person, sign_up
from tests.support_live import LiveServer
from tests.support_s3 import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

OLD_KEY = "17" * 32
NEW_KEY = "23" * 32
PASSPHRASE = "a phrase that nobody guesses"
PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture" * 200_000


class Shell:
    """Runs command lines with the settings of one server."""

    def __init__(self, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server = server
        self._monkeypatch = monkeypatch

    async def run(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        out, error = io.StringIO(), io.StringIO()
        real, sys.stdin = sys.stdin, io.StringIO(stdin)
        with self._monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("PDS_")]:
                patch.delenv(name)
            for name, value in self._server.environment.items():
                if name.startswith("PDS_"):
                    patch.setenv(name, value)
            try:
                with redirect_stdout(out), redirect_stderr(error):
                    found = await asyncio.to_thread(run, list(arguments))
            finally:
                sys.stdin = real
        assert found == code, (arguments, out.getvalue(), error.getvalue())
        return out.getvalue() if code == 0 else out.getvalue() + error.getvalue()


@asynccontextmanager
async def running(
    folder: Path, plc: FakePlc, key: str, *, port: int | None = None, **settings: str
) -> AsyncIterator[LiveServer]:
    server = LiveServer(folder, plc.url, PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX=key, **settings)
    if port is not None:
        server.port, server.url = port, f"http://localhost:{port}"
        server.environment["PDS_PORT"] = str(port)
    server.plc_url = plc.url
    await server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            assert await server.stop() == 0, server.log_tail()


@asynccontextmanager
async def liar(port: int, car: bytes) -> AsyncIterator[list[str]]:
    """What stands in the old host's place: refuses everything, and hands out a wrong repo."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path.endswith("getRepo"):
            return web.Response(body=car, content_type="application/vnd.ipld.car")
        return web.json_response({"error": "Forbidden", "message": "never"}, status=403)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield asked
    finally:
        await runner.cleanup()


async def fill(person: Person) -> dict[str, Any]:
    """Write what has to arrive; return the picture's reference."""
    answer = await person.client.call(
        "POST",
        "com.atproto.repo.uploadBlob",
        data=io.BytesIO(PICTURE),
        headers={"Content-Type": "image/png"},
    )
    blob: dict[str, Any] = answer["blob"]
    image = {"image": blob, "alt": "one"}
    await person.post("a picture", embed={"$type": "app.bsky.embed.images", "images": [image]})
    for number in range(20):
        await person.post(f"post {number}")
    await person.client.post(
        "app.bsky.actor.putPreferences",
        preferences=[{"$type": "app.bsky.actor.defs#adultContentPref", "enabled": False}],
    )
    return blob


def steal(plc: FakePlc, did: str) -> None:
    """The old host uses its rotation key: out with the owner's, and the account to somewhere."""
    log = plc.directory.get_log(did)
    assert log is not None
    assert log.last is not None
    thief = make_signer("k256", bytes.fromhex(OLD_KEY))
    fields = make_update(
        log.last,
        rotation_keys=[thief.public_key.did_key],
        services={"atproto_pds": PlcService("AtprotoPersonalDataServer", "https://elsewhere.test")},
    )
    plc.directory.submit(did, sign_operation(fields, thief).to_json())


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_an_account_leaves_a_lying_host_in_two_acts_of_its_owner(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    http: aiohttp.ClientSession,
) -> None:
    kit, file = tmp_path / "kit.txt", tmp_path / "alice.tar.age"
    phrase = tmp_path / "phrase"
    phrase.write_text(PASSPHRASE + "\n")
    async with running_plc() as plc:
        async with running(tmp_path / "old", plc, OLD_KEY) as old:
            alice = await sign_up(Client(http, old.url), "alice.test")
            blob = await fill(alice)
            before = await old.export(alice.did)
            shell = Shell(old, monkeypatch)
            await shell.run("key", "create", "alice.test", "--kit", str(kit))
            await shell.run(
                "archive", "create", "alice.test", "--output", str(file),
                "--with-preferences", "--passphrase-file", str(phrase),
            )  # fmt: skip
            records = set(await old.check_repo(alice.did, set(await paths(alice))))
            await old.kill()
        steal(plc, alice.did)
        async with (
            liar(old.port, before[:200]) as asked,
            running(tmp_path / "new", plc, NEW_KEY) as new,
        ):
            # Act one: the command. Act two: the password for the new host.
            answer = await Shell(new, monkeypatch).run(
                "rescue", "start", "--archive", str(file), "--passphrase-file", str(phrase),
                "--kit", str(kit), "--handle", "alice2.test", "--email", "alice@example.test",
                "--password-stdin", "--yes", "--json",
                stdin="a new long password\n",
            )  # fmt: skip
            assert json.loads(answer[answer.index("{") :])["status"] == "active"
            assert asked == []  # Nobody asks the old host for anything.
            state = plc.directory.get_state(alice.did)
            assert state is not None
            assert state.services["atproto_pds"].endpoint == new.url
            assert state.also_known_as == ("at://alice2.test",)
            owner = read_signer(kit).public_key.did_key
            server = make_signer("k256", bytes.fromhex(NEW_KEY)).public_key.did_key
            assert state.rotation_keys == (owner, server)
            await new.check_repo(alice.did, records)
            client = Client(http, new.url)
            session = await client.post(
                "com.atproto.server.createSession",
                identifier="alice2.test",
                password="a new long password",
            )
            there = client.with_token(session["accessJwt"])
            status = await there.get("com.atproto.server.checkAccountStatus")
            assert (status["activated"], status["validDid"]) == (True, True)
            assert status["importedBlobs"] == status["expectedBlobs"] == 1
            content = await client.get(
                "com.atproto.sync.getBlob", did=alice.did, cid=blob["ref"]["$link"]
            )
            assert content == PICTURE
            kept = await there.get("app.bsky.actor.getPreferences")
            assert [p["$type"] for p in kept["preferences"]] == [
                "app.bsky.actor.defs#adultContentPref"
            ]
            await there.post(
                "com.atproto.repo.createRecord",
                repo=alice.did,
                collection="app.bsky.feed.post",
                record={"text": "home again", "createdAt": "2026-01-02T03:04:05.000Z"},
            )


@pytest.mark.xdist_group("s3")
async def test_an_account_survives_its_machine_in_a_bucket(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    http: aiohttp.ClientSession,
    s3_server: S3Server,
) -> None:
    """The host is gone with its disk: an owner's key, the bucket and the settings are left."""
    kit, folder = tmp_path / "kit.txt", s3_server.settings().folder
    bucket = {
        "PDS_ARCHIVE_S3_BUCKET": BUCKET,
        "PDS_ARCHIVE_S3_ENDPOINT": s3_server.endpoint,
        "PDS_ARCHIVE_S3_FORCE_PATH_STYLE": "true",
        "PDS_ARCHIVE_S3_ACCESS_KEY_ID": ACCESS_KEY,
        "PDS_ARCHIVE_S3_SECRET_ACCESS_KEY": SECRET_KEY,
        "PDS_ARCHIVE_S3_FOLDER": f"{folder}/archives",
        "PDS_ARCHIVE_PASSPHRASE": PASSPHRASE,
        "PDS_ARCHIVE_WITH_PREFERENCES": "true",
    }
    async with running_plc() as plc:
        async with running(tmp_path / "old", plc, OLD_KEY, **bucket) as old:
            alice = await sign_up(Client(http, old.url), "alice.test")
            blob = await fill(alice)
            bob = await sign_up(Client(http, old.url), "bob.test")
            await bob.post("hello")
            shell = Shell(old, monkeypatch)
            await shell.run("key", "create", "alice.test", "--kit", str(kit))
            done = json.loads(await shell.run("archive", "keep", "--json"))
            assert done == {"written": 2, "unchanged": 0, "failed": 0}
            records, bobs = set(await paths(alice)), set(await paths(bob))
            await old.kill()
        shutil.rmtree(tmp_path / "old")
        # A machine with the settings of the bucket, and nothing else.
        bare = LiveServer(tmp_path / "bare", plc.url)
        bare.environment = bucket
        listed = await Shell(bare, monkeypatch).run("archive", "list", "--handles")
        addresses = {line.split()[1]: line.split()[-1] for line in listed.splitlines()[1:]}
        assert sorted(addresses) == ["alice.test", "bob.test"]
        file = tmp_path / "alice.tar.age"
        await Shell(bare, monkeypatch).run("archive", "fetch", "alice.test", "--to", str(file))
        told = await Shell(bare, monkeypatch).run("archive", "verify", addresses["alice.test"])
        assert "complete" in told
        async with running(tmp_path / "new", plc, OLD_KEY, port=old.port, **bucket) as new:
            shell = Shell(new, monkeypatch)
            answer = await shell.run(
                "rescue", "start", alice.did, "--kit", str(kit), "--handle", "alice.test",
                "--email", "alice@example.test", "--password-stdin", "--yes", "--json",
                stdin="a new long password\n",
            )  # fmt: skip
            assert json.loads(answer[answer.index("{") :])["status"] == "active"
            state = plc.directory.get_state(alice.did)
            assert state is not None
            assert state.services["atproto_pds"].endpoint == new.url
            await new.check_repo(alice.did, records)
            there = Client(http, new.url)
            content = await there.get(
                "com.atproto.sync.getBlob", did=alice.did, cid=blob["ref"]["$link"]
            )
            assert content == PICTURE
            session = await there.post(
                "com.atproto.server.createSession",
                identifier="alice.test",
                password="a new long password",
            )
            kept = await there.with_token(session["accessJwt"]).get("app.bsky.actor.getPreferences")
            assert len(kept["preferences"]) == 1
            # Who has no key of their own has the server's, as long as its settings are there.
            await shell.run(
                "archive", "import", addresses["bob.test"], "--handle", "bob.test",
                "--email", "bob@example.test", "--password-stdin", stdin="a new long password\n",
            )  # fmt: skip
            await shell.run("account", "rotate-key", "bob.test")
            await shell.run("account", "activate", "bob.test")
            await new.check_repo(bob.did, bobs)
            left = tmp_path / "new" / "archives-under-way"
            assert list(left.iterdir()) == []


async def paths(person: Person) -> list[str]:
    found, cursor = [], None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = await person.client.get(
            "com.atproto.repo.listRecords",
            repo=person.did,
            collection="app.bsky.feed.post",
            limit=100,
            **more,
        )
        found += [record["uri"].partition(f"{person.did}/")[2] for record in page["records"]]
        cursor = page.get("cursor")
        if cursor is None:
            return found


async def test_a_rescue_from_a_car_and_a_folder_refuses_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http: aiohttp.ClientSession
) -> None:
    kit, car, blobs = tmp_path / "kit.txt", tmp_path / "repo.car", tmp_path / "blobs"
    async with running_plc() as plc:
        async with running(tmp_path / "old", plc, OLD_KEY) as old:
            alice = await sign_up(Client(http, old.url), "alice.test")
            blob = await fill(alice)
            eve = await sign_up(Client(http, old.url), "eve.test")
            await Shell(old, monkeypatch).run("key", "create", "alice.test", "--kit", str(kit))
            car.write_bytes(await old.export(alice.did))
            wrong = await old.export(eve.did)
            records = set(await paths(alice))
        blobs.mkdir()
        (blobs / "holiday.png").write_bytes(PICTURE)
        async with liar(old.port, wrong), running(tmp_path / "new", plc, NEW_KEY) as new:
            shell = Shell(new, monkeypatch)
            common = (
                "rescue", "start", alice.did, "--handle", "alice2.test",
                "--email", "alice@example.test", "--password-stdin", "--yes",
            )  # fmt: skip
            stranger = tmp_path / "stranger.txt"
            stranger.write_text("bad bad")
            told = await shell.run(
                *common, "--from", old.url, "--kit", str(kit), stdin="a new long password\n", code=1
            )
            assert "Invalid repo: commit belongs to another account" in told
            assert plc.directory.get_state(alice.did).services["atproto_pds"].endpoint == old.url  # type: ignore[union-attr]
            await shell.run(
                *common, "--repo", str(car), "--blobs", str(blobs), "--kit", str(kit),
                stdin="a new long password\n",
            )  # fmt: skip
            await new.check_repo(alice.did, records)
            got = await Client(http, new.url).get(
                "com.atproto.sync.getBlob", did=alice.did, cid=blob["ref"]["$link"]
            )
            assert got == PICTURE
