"""`pds jobs` beside a running server, on both databases."""

import asyncio
import json
from pathlib import Path

import pytest

from pds.cli import run
from pds.cli.jobs import show_span
from pds.store.jobs import put_job, take_job
from tests.fakes.plc import running_plc
from tests.support_postgres import database_url
from tests.support_process import ServerProcess

__all__ = ["database_url"]


def show(node: ServerProcess, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    for name, value in node.environment.items():
        if name.startswith("PDS_"):
            monkeypatch.setenv(name, value)
    return run(["jobs", *options])


async def check_beside_a_server(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    **settings: str,
) -> None:
    async with running_plc() as plc:
        node = ServerProcess(folder, plc.url, **settings)
        await node.start()
        try:
            async with asyncio.timeout(60):
                while True:
                    assert await asyncio.to_thread(show, node, monkeypatch, "--json") == 0
                    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
                    recover = rows.get("accounts.recover", {"result": None})
                    if recover["result"] is not None:
                        break
        finally:
            await node.stop()
    assert recover["result"] == "nothing to do"
    assert recover["period_us"] == 30_000_000
    assert recover["succeeded_at"] == recover["finished_at"] is not None
    assert recover["next_at"] > recover["started_at"]
    assert not recover["is_running"]
    assert "clock.check" not in rows


async def test_jobs_beside_a_server_on_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await check_beside_a_server(tmp_path, monkeypatch, capsys)


async def test_jobs_beside_a_server_on_postgresql(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await check_beside_a_server(
        tmp_path,
        monkeypatch,
        capsys,
        PDS_DATABASE_URL=database_url,
        PDS_MASTER_KEY="42" * 32,
    )


def test_the_table_names_the_node_and_marks_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pds.store.clock import SystemClock
    from pds.store.jobs import FinishedRun, finish_job
    from pds.store.sqlite import SqliteEngine, SqliteSettings

    async def fill() -> None:
        engine = SqliteEngine(SqliteSettings(tmp_path / "freehold.sqlite"), SystemClock())
        await engine.start()
        now_us = SystemClock().now_us()

        def put(txn) -> None:
            for name in ("broken", "held", "new"):
                put_job(
                    txn,
                    name,
                    period_us=86_400_000_000,
                    now_us=now_us,
                    first_at=now_us,
                    at_start=False,
                    alone=False,
                )
            for name in ("broken", "held"):
                until = now_us + 60_000_000
                assert take_job(txn, name, node="host:1:ab", now_us=now_us, lease_until=until)
            assert finish_job(
                txn,
                FinishedRun(
                    name="broken",
                    node="host:1:ab",
                    finished_at=now_us + 1_500_000,
                    next_at=now_us + 7_200_500_000,
                    result="failed: [disk]",
                    failures=2,
                ),
            )

        await engine.transact("test", put)
        await engine.close()

    asyncio.run(fill())
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["jobs"]) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if " " in line}
    assert "failed: [disk]" in lines["broken"]
    assert "1.5 s" in lines["broken"]
    assert "in 2 h" in lines["broken"]
    assert "host" not in lines["broken"]
    assert "running" in lines["held"]
    assert "host:1:ab" in lines["held"]
    assert "never" in lines["new"]
    assert "due" in lines["new"]


def test_without_a_database_there_is_nothing_to_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PDS_DATA_DIRECTORY", str(tmp_path))
    assert run(["jobs"]) == 2
    assert "there is no database" in capsys.readouterr().err


def test_spans_have_two_units() -> None:
    assert [show_span(s * 1_000_000) for s in (-5, 59, 3600, 90_061)] == [
        "0 s",
        "59 s",
        "1 h",
        "1 d 1 h",
    ]
