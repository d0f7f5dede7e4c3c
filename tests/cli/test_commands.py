"""The commands: exit codes, plain errors, and a server that runs from the environment alone."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import pds
from pds.cli import MODULES, run
from tests.support_process import ServerProcess, free_port

ROOT = Path(pds.__file__).parents[1]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PDS_", "LOG_")):
            monkeypatch.delenv(name)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out.strip() == pds.__version__
    assert f'version = "{pds.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_routes_names_the_function_of_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["routes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert [
        "com.atproto.repo.createRecord",
        "session",
        "pds/xrpc/com_atproto_repo.py:create_record",
    ] in words
    assert lines == sorted(lines)


def test_every_command_is_found_and_a_server_imports_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    for name in MODULES:
        assert re.search(rf"^  {name} +[A-Z]", listed, re.M), name
        assert run([name, "--help"]) == 0
    probe = (
        "import sys; from pds.cli import run; run(['serve', '--help']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, check=True)
    modules = done.stdout.decode()
    assert "'pds.cli.serve'" in modules
    assert "'pds.cli.dev'" not in modules
    assert "'rich" not in modules


def test_wrong_settings_exit_with_2_and_name_the_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["serve"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "pds: PDS_JWT_SECRET is missing; make one with: openssl rand -hex 32, and keep it\n"
    )
    monkeypatch.setenv("PDS_HOSTNAM", "x")
    assert run(["config", "check"]) == 2
    assert "did you mean PDS_HOSTNAME" in capsys.readouterr().err


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_the_reference_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "reference"]) == 0
    assert "`PDS_HOSTNAME`" in capsys.readouterr().out


def test_accepting_the_clock_needs_a_database_and_a_stopped_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(tmp_path))
    assert run(["clock", "accept", "--yes"]) == 2
    assert "there is no database" in capsys.readouterr().err


async def test_serve_runs_from_the_environment_and_stops_on_a_signal(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "http://127.0.0.1:9")
    await server.start()
    describe = f"{server.url}/xrpc/com.atproto.server.describeServer"
    async with aiohttp.ClientSession() as http, http.get(describe) as answer:
        assert (await answer.json())["did"] == f"did:web:localhost%3A{server.port}"
    accepted = await _command("clock", "accept", "--yes", environment=server.environment)
    assert accepted[0] == 1, accepted
    assert await server.stop() == 0
    accepted = await _command("clock", "accept", "--yes", environment=server.environment)
    assert accepted[0] == 0, accepted
    await server.start()
    assert await server.stop() == 0
    events = [
        json.loads(line)["event"]
        for line in (server.folder / "server.log").read_text().splitlines()
    ]
    assert events.count("server.started") == 2
    assert "clock.believed" in events
    assert not any("Traceback" in line for line in server.log_tail(1000).splitlines())


async def test_a_taken_port_is_a_plain_error(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "http://127.0.0.1:9")
    holder = await asyncio.start_server(lambda r, w: None, "127.0.0.1", server.port)
    async with holder:
        code, _, error = await _command("serve", environment=server.environment)
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in error
    assert "Traceback" not in error


async def test_dev_prints_where_everything_is_and_cleans_up(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds", "dev", "--port", str(free_port()),
        env=environment, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    shown = ""
    async with asyncio.timeout(60):
        while "Ctrl-C" not in shown:
            line = (await process.stdout.readline()).decode()
            assert line, (await process.communicate())[1].decode()
            shown += line
    found = re.search(r"server\s+(http://localhost:\d+)", shown)
    login = re.search(r"account\s+(alice\.test)\s+(\S+)", shown)
    assert found
    assert login
    await _look_around(found[1], login[1], login[2])
    assert len(list(tmp_path.glob("freehold-*"))) == 1
    process.send_signal(signal.SIGINT)
    _, error = await process.communicate()
    said = [line for line in error.decode().splitlines() if "store.slow_job" not in line]
    assert (process.returncode, said) == (0, [])
    assert list(tmp_path.glob("freehold-*")) == []


async def _look_around(url: str, handle: str, password: str) -> None:
    async with aiohttp.ClientSession(f"{url}/xrpc/") as http:
        login: dict[str, Any] = {"identifier": handle, "password": password}
        async with http.post("com.atproto.server.createSession", json=login) as answer:
            assert answer.status == 200
        query = {"repo": handle, "collection": "app.bsky.feed.post"}
        async with http.get("com.atproto.repo.listRecords", params=query) as answer:
            records = (await answer.json())["records"]
        assert len(records) == 2
        image = records[0]["value"]["embed"]["images"][0]["image"]
        async with http.get("com.atproto.repo.describeRepo", params={"repo": "bob.test"}) as answer:
            bob = await answer.json()
        assert set(bob["collections"]) == {
            "app.bsky.actor.profile",
            "app.bsky.feed.like",
            "app.bsky.feed.post",
            "app.bsky.graph.follow",
        }
        did = records[0]["uri"].split("/")[2]
        blob = {"did": did, "cid": image["ref"]["$link"]}
        async with http.get("com.atproto.sync.getBlob", params=blob) as answer:
            assert answer.status == 200
            assert (await answer.read()).startswith(b"\x89PNG")
    async with aiohttp.ClientSession() as http, http.get(f"{url}/mailbox") as answer:
        assert "Welcome" in await answer.text()


async def _command(*arguments: str, environment: dict[str, str]) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds", *arguments, env=environment, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()
