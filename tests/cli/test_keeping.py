"""`pds key`, `pds archive` and `pds rescue` against a running server, and without one."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from pds.cli.recovery_kit import read_signer
from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcService, make_update, sign_operation
from pds.protocol.plc_log import verify_audit_log
from tests.cli.test_orders import Shell
from tests.support_client import Client, Person, sign_up
from tests.support_live import LiveServer, live_server_in

SERVER_SIGNER = make_signer("k256", bytes.fromhex("17" * 32))
SERVER_KEY = SERVER_SIGNER.public_key.did_key


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with live_server_in(tmp_path / "data") as server:
        yield server


@pytest.fixture
async def alice(server: LiveServer) -> AsyncIterator[Person]:
    async with aiohttp.ClientSession() as http:
        yield await sign_up(Client(http, server.url), "alice.test")


async def steal(server: LiveServer, did: str, signer: object, **changes: object) -> None:
    """Change an identity at the directory as somebody who has a key would."""
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{server.plc_url}/{did}/log/audit") as answer:
            log = verify_audit_log(did, await answer.json())  # type: ignore[arg-type]
        assert log.last is not None
        fields = make_update(log.last, **changes)  # type: ignore[arg-type]
        operation = sign_operation(fields, signer)  # type: ignore[arg-type]
        async with http.post(f"{server.plc_url}/{did}", json=operation.to_json()) as answer:
            assert answer.status == 200, await answer.text()


async def test_keys_archives_and_countermands_by_command(
    server: LiveServer, alice: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(server, monkeypatch)
    kit, second = tmp_path / "kit.txt", tmp_path / "second.txt"
    await shell.run("key", "create", "alice.test", "--kit", str(kit), "--dry-run")
    assert not kit.exists()
    told = await shell.run("key", "create", "alice.test", "--kit", str(kit))
    owner = read_signer(kit).public_key.did_key
    assert told.index(owner) < told.index(SERVER_KEY)
    code, _, error = await shell.try_run("key", "create", "alice.test", "--kit", str(kit))
    assert (code, "cannot be written" in error) == (1, True)

    # A key that is refused leaves no kit behind that would be worth nothing.
    arguments = ("key", "create", "alice.test", "--kit", str(second), "--replace", SERVER_KEY)
    code, _, error = await shell.try_run(*arguments)
    assert (code, "key of the owner" in error, second.exists()) == (1, True, False)
    # Another key stands above the one that is known to the thief later on.
    await shell.run("key", "create", "alice.test", "--kit", str(second), "--curve", "p256")
    listed = (await shell.json("key", "list", "alice.test"))["rotationKeys"]
    top = read_signer(second).public_key.did_key
    assert [key["key"] for key in listed] == [top, owner, SERVER_KEY]
    assert [key["role"] for key in listed] == ["owner", "owner", "server"]

    monkeypatch.chdir(tmp_path)
    told = await shell.run("archive", "create", "alice.test")
    [archive] = tmp_path.glob("did-plc-*.tar")
    assert str(archive) in told
    assert "complete" in await shell.run("archive", "verify", archive.name)
    report = await shell.json("archive", "verify", archive.name)
    assert (report["did"], report["complete"], report["encrypted"]) == (alice.did, True, False)

    assert "nothing of others" in await shell.run("rescue", "look", "alice.test")
    evil = {"atproto_pds": PlcService("AtprotoPersonalDataServer", "https://evil.test")}
    await steal(server, alice.did, read_signer(kit), services=evil)
    assert owner in await shell.run("rescue", "look", "alice.test")
    assert top in await shell.run("rescue", "countermand", "alice.test", "--dry-run")
    wrong = ("rescue", "countermand", "alice.test", "--yes", "--kit", str(kit))
    code, _, error = await shell.try_run(*wrong)
    assert (code, "not valid" in error) == (1, True)
    words = second.read_text().partition("words of the key:\n\n")[2].partition("\n\n")[0]
    line = " ".join(words.split())
    told = await shell.run("rescue", "countermand", "alice.test", "--yes", stdin=f"{line}\n")
    assert "1 operations taken back" in told
    assert "nothing" not in await shell.run("audit", "--subject", alice.did)
    await shell.run("key", "remove", "alice.test", owner)
    listed = (await shell.json("key", "list", "alice.test"))["rotationKeys"]
    assert [key["key"] for key in listed] == [top, SERVER_KEY]


async def test_without_a_server_the_same_commands_work_on_the_database(
    server: LiveServer, alice: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await server.stop() == 0
    shell = Shell(server, monkeypatch)
    phrase, file = tmp_path / "phrase", tmp_path / "a.tar.age"
    phrase.write_text("a phrase\n")
    arguments = ("--output", str(file), "--passphrase-file", str(phrase))
    await shell.run("archive", "create", alice.did, *arguments)
    assert os.stat(file).st_mode & 0o777 == 0o600
    verify = ("archive", "verify", str(file), "--passphrase-file")
    assert "complete" in await shell.run(*verify, str(phrase))
    phrase.write_text("another")
    code, out, _ = await shell.try_run(*verify, str(phrase))
    assert (code, "not the right one" in out) == (1, True)
    code, _, error = await shell.try_run("archive", "verify", str(tmp_path / "none"))
    assert (code, "cannot be read" in error) == (1, True)
    code, _, error = await shell.try_run(
        "archive", "import", str(file), "--passphrase-file", str(phrase), "--handle", "b.test",
        "--email", "b@example.test", "--password-stdin", stdin="a long password\n",
    )  # fmt: skip
    assert (code, "not sound" in error) == (1, True)
    await server.start()


async def test_what_is_missing_for_archives_is_said_with_what_to_do(
    server: LiveServer, alice: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(server, monkeypatch)
    account = ("--handle", "a.test", "--email", "a@example.test")
    for arguments, code, advice in (
        (("archive", "keep"), 1, "set PDS_ARCHIVE_S3_BUCKET"),
        (("archive", "list"), 1, "set PDS_ARCHIVE_S3_BUCKET"),
        (("archive", "fetch", alice.did), 1, "set PDS_ARCHIVE_S3_BUCKET"),
        (("archive", "verify", str(tmp_path / "none.tar")), 1, "`pds archive list` shows"),
        (("archive", "verify", "s3://b/archives/x.tar"), 1, "PDS_ARCHIVE_S3_FOLDER"),
        (("rescue", "start", *account), 2, "name an --archive"),
        (("rescue", "start", alice.did, *account), 1, "set PDS_ARCHIVE_S3_BUCKET"),
    ):
        found, out, error = await shell.try_run(*arguments)
        assert (found, advice in error) == (code, True), (arguments, out, error)
    folder = tmp_path / "archives"
    server.environment["PDS_ARCHIVE_DIRECTORY"] = str(folder)
    shell = Shell(server, monkeypatch)
    assert f"no archives in {folder}" in (await shell.try_run("archive", "list"))[2]
    assert await server.stop() == 0
    assert "written" in await shell.run("archive", "keep")  # No server is needed for it.
    [file] = folder.iterdir()
    listed = (await shell.json("archive", "list", alice.did, "--handles"))["archives"]
    assert [(one["handle"], one["address"]) for one in listed] == [("alice.test", str(file))]
    target = tmp_path / "fetched.tar"
    told = await shell.run("archive", "fetch", "@alice.test", "--to", str(target))
    assert (str(target) in told, target.read_bytes()) == (True, file.read_bytes())
    found, _, error = await shell.try_run("archive", "fetch", alice.did, "--to", str(target))
    assert (found, "exists already" in error) == (1, True)
    found, _, error = await shell.try_run("archive", "fetch", "carol.test")
    assert (found, "`pds archive list` shows all" in error) == (1, True)
    await server.start()
