"""`pds convert database`, as an operator runs it beside a server that is written to."""

import asyncio
import sys
from pathlib import Path

import aiohttp

from pds.cli import run
from pds.services.database_conversion import cancel_conversion
from pds.store.convert_mark import Mark, Stage
from pds.store.convert_sqlite import SqliteSide
from tests.fakes.plc import running_plc
from tests.support_convert import MovingHost, move_there_and_back
from tests.support_postgres import database_url

__all__ = ["database_url"]


async def test_a_host_moves_there_and_back_while_it_is_written_to(
    tmp_path: Path, database_url: str
) -> None:
    """Zero lost, zero doubled; the same repos and blobs; one order of events (SYNC-10, SYNC-11)."""
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        host = MovingHost(tmp_path / "data", plc, session, database_url, pace_s=0.02)
        moves = await move_there_and_back(host, writers=3, before_s=0.3, kill_after_s=[])
        assert [move.to for move in moves] == ["postgresql", "sqlite"]
        assert all(move.rows > 20 for move in moves)
        assert host.refused > 0


async def test_a_paused_server_says_so_to_clients(tmp_path: Path) -> None:
    """503 with `Retry-After` for what changes something; reads are answered (XRPC-7)."""
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        host = MovingHost(tmp_path / "data", plc, session, "")
        await host.open(1)
        side = SqliteSide(host.folder / "freehold.sqlite")
        side.change_mark(lambda _: Mark(Stage.PAUSED, "ab", "there", 1))
        writer = host.writers[0]
        address = f"{host.server.url}/xrpc/com.atproto.repo.createRecord"
        body = {"repo": writer.did, "collection": "com.example.note", "record": {"n": 1}}
        login = {"Authorization": f"Bearer {writer.token}"}
        async with session.post(address, json=body, headers=login) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            assert "is being moved" in (await answer.json())["message"]
        assert await host.records(writer) == {}
        assert "takes writes again" in cancel_conversion(side, is_sure=False)
        side.close()
        async with session.post(address, json=body, headers=login) as answer:
            assert answer.status == 200
        assert await host.server.stop() == 0


def test_what_the_commands_say(tmp_path: Path, database_url: str, monkeypatch, capsys) -> None:
    """A dry run, the move, the old database refused, and the way back to it."""
    folder = tmp_path / "data"
    side = SqliteSide(folder / "freehold.sqlite", is_target=True)
    side.create(1)
    side.close()
    monkeypatch.setenv("PDS_HOSTNAME", "localhost")
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(folder))

    def says(*arguments: str) -> tuple[int, str]:
        code = run(["convert", *arguments])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    to = ("database", "--to", database_url)
    assert run(["clock", "accept", "--yes"]) == 0  # so that there is a row
    assert says("cancel")[0] == 2
    assert "would be started" in says(*to, "--dry-run")[1]
    code, text = says(*to)
    assert code == 0
    assert "the same in both databases" in text
    assert "without PDS_DATABASE_URL" not in text
    assert "was moved to" in says(*to)[1]
    assert run(["clock", "accept", "--yes"]) == 1
    assert "pds convert cancel --yes" in capsys.readouterr().err
    code, text = says("cancel")
    assert code == 2
    assert "would be lost" in text
    assert says("cancel", "--yes")[0] == 0
    assert run(["clock", "accept", "--yes"]) == 0
    capsys.readouterr()
    code, text = says(*to)
    assert code == 1
    assert "is not empty" in text
    assert says("database", "--to", "sqlite")[0] == 2
    assert says("database", "--to", "mysql://x")[0] == 2
    monkeypatch.setenv("PDS_DATABASE_URL", database_url)
    assert "is not empty" in says("database", "--to", "sqlite")[1]
    assert "same database" in says(*to)[1]
    (folder / "freehold.sqlite").unlink()
    assert "would be started" in says("database", "--to", "sqlite", "--dry-run")[1]
    assert not (folder / "freehold.sqlite").exists()
    code, text = says("database", "--to", "sqlite")
    assert code == 0
    assert "without PDS_DATABASE_URL" in text


def test_a_pause_that_was_left_behind_can_be_ended(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "data"
    side = SqliteSide(folder / "freehold.sqlite", is_target=True)
    side.create(1)
    side.change_mark(lambda _: Mark(Stage.PAUSED, "ab", "there", 1))
    side.close()
    monkeypatch.setenv("PDS_HOSTNAME", "localhost")
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(folder))
    assert run(["clock", "accept", "--yes"]) == 1
    assert "is being moved to there" in capsys.readouterr().err
    assert run(["convert", "cancel"]) == 0
    assert run(["clock", "accept", "--yes"]) == 0


async def test_killed_at_any_statement_it_is_finished_by_another_run(
    tmp_path: Path, database_url: str
) -> None:
    """There and back, each killed eight times; `convert_kills.py` holds what must be true."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cli.convert_kills", str(tmp_path), database_url, "1",
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert out.decode().splitlines()[-1].startswith("killed 16 times"), out.decode()
