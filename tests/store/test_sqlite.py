"""What is special about the SQLite engine: the file, the log, old reads, versions, the lock."""

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from pds.errors import Unavailable
from pds.store.engine import HealthStatus, Txn
from pds.store.maintenance import MaintenanceSettings
from pds.store.sqlite import (
    SqliteConnection,
    SqliteEngine,
    UnsafeSqlite,
    check_library,
    copy_database,
    is_safe_version,
)
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import count, get, put
from tests.suites.engines import SqliteBackend

ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    return SqliteBackend(tmp_path)


def make_engine(backend: SqliteBackend, **maintenance: float | int) -> SqliteEngine:
    """An engine whose maintenance thread runs often."""
    values = {"interval_s": 0.01, "free_warning_bytes": 0} | maintenance
    settings = backend.settings(maintenance=MaintenanceSettings(**values))
    return SqliteEngine(settings, FakeClock())


def log_path(backend: SqliteBackend) -> Path:
    return Path(f"{backend.path}-wal")


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("3.7.0", False),
        ("3.40.1", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.45.0", False),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.51.0", False),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.52.0", True),
        ("4.0.0", True),
    ],
)
def test_versions_that_lose_data_are_known(version: str, safe: bool) -> None:
    assert is_safe_version(version) == safe


def test_an_unsafe_library_is_refused() -> None:
    check_library()
    with pytest.raises(UnsafeSqlite):
        check_library("3.51.2")


async def test_the_file_has_the_settings_that_cannot_be_changed_later(
    backend: SqliteBackend,
) -> None:
    engine = make_engine(backend)
    await engine.start()

    def read_settings(_txn: Txn) -> dict[str, int]:
        connection = engine._sqlite
        assert connection is not None
        names = ("page_size", "auto_vacuum", "synchronous", "secure_delete", "journal_size_limit")
        return {name: connection.pragma(name) for name in names}

    settings = await engine.transact("settings", read_settings)
    await engine.close()
    assert settings == {
        "page_size": 4096,
        "auto_vacuum": 2,
        "synchronous": 2,
        "secure_delete": 2,
        "journal_size_limit": 32 << 20,
    }
    connection = apsw.Connection(str(backend.path))
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


async def test_only_the_owner_reads_the_file_and_its_log(backend: SqliteBackend) -> None:
    engine = make_engine(backend)
    await engine.start()
    try:
        await engine.transact("put", put, "a")
        files = list(backend.path.parent.glob("pds.sqlite*"))
        assert len(files) == 3
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    finally:
        await engine.close()


async def test_closing_leaves_one_file_without_a_log(backend: SqliteBackend) -> None:
    engine = make_engine(backend)
    await engine.start()
    await engine.transact("put", put, "a")
    await engine.close()
    assert sorted(path.name for path in backend.path.parent.iterdir()) == ["lock", "pds.sqlite"]


async def test_a_second_engine_on_the_folder_is_refused(backend: SqliteBackend) -> None:
    engine = make_engine(backend)
    await engine.start()
    with pytest.raises(Unavailable, match="in use by process"):
        await make_engine(backend).start()
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from pds.errors import Unavailable\n"
        "from tests.suites.engines import SqliteBackend; from tests.fakes.clock import FakeClock\n"
        "try: asyncio.run(SqliteBackend(Path(sys.argv[1])).engine(FakeClock()).start())\n"
        "except Unavailable: sys.exit(7)\n"
    )
    folder = str(backend.path.parents[1])
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, folder], cwd=ROOT, check=False
    )
    assert result.returncode == 7
    await engine.transact("put", put, "a")
    await engine.close()
    engine = make_engine(backend)
    await engine.start()
    assert await engine.read("get", get, "a") == b"v"
    await engine.close()


async def test_the_database_opens_while_the_clock_is_in_doubt(backend: SqliteBackend) -> None:
    clock = FakeClock()
    clock.error = Unavailable("no time")
    engine = backend.engine(clock)
    await engine.start()
    assert await engine.read("count", count) == 0
    with pytest.raises(Unavailable, match="no time"):
        await engine.transact("put", put, "a")
    await engine.close()


async def wait_for(condition: "asyncio.Future[None] | object", *, tries: int = 6000) -> None:
    """Wait until a condition holds."""
    assert callable(condition)
    for _ in range(tries):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition never held")


async def test_the_log_is_emptied_when_idle(backend: SqliteBackend) -> None:
    engine = make_engine(backend, idle_s=0.05)
    await engine.start()
    for step in range(2):
        await engine.transact("put", put, f"f{step}", b"x" * 100_000)
        await wait_for(lambda: log_path(backend).stat().st_size == 0)
    assert backend.path.stat().st_size > 200_000
    await wait_for(lambda: engine.health().log_bytes == 0)
    await engine.close()


async def test_the_log_stays_short_under_constant_writing(
    backend: SqliteBackend,
) -> None:
    engine = make_engine(backend, checkpoint_pages=50, idle_s=1000)
    await engine.start()
    written = 0

    async def write(worker: int) -> None:
        nonlocal written
        for step in range(60):
            await engine.transact("put", put, f"{written}/{worker}/{step}", b"x" * 20_000)
            written += 20_000

    for _ in range(10):  # The thread that copies the log is not always given its turn at once.
        await asyncio.gather(*(write(worker) for worker in range(4)))
        if log_path(backend).stat().st_size < written * 0.52:
            break
    assert log_path(backend).stat().st_size < written * 0.52
    await engine.close()


async def test_free_pages_are_given_back_when_idle(backend: SqliteBackend) -> None:
    engine = make_engine(backend, idle_s=0.05, vacuum_from_pages=10, vacuum_step_pages=64)
    await engine.start()
    for step in range(20):
        await engine.transact("put", put, f"f{step}", b"x" * 100_000)
    await wait_for(lambda: log_path(backend).stat().st_size == 0)
    full = backend.path.stat().st_size
    await engine.transact("delete", lambda txn: txn.write("DELETE FROM fact"))
    await wait_for(lambda: backend.path.stat().st_size < full - 1_500_000)
    await engine.transact("put", put, "after")
    assert await engine.read("count", count) == 1
    await engine.close()


async def test_a_read_that_is_too_old_is_ended(backend: SqliteBackend) -> None:
    engine = make_engine(backend, max_read_s=600)
    await engine.start()
    assert engine._maintenance is not None
    old, idle = (replace(engine._maintenance._settings, max_read_s=s) for s in (0.01, 600))
    engine._maintenance._settings = old
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    )
    with pytest.raises(Unavailable):
        await engine.read("endless", lambda txn: txn.read(endless))

    def stuck(txn: Txn) -> None:
        for _ in range(6000):  # A minute, if nobody ends it.
            txn.read("SELECT name FROM fact")
            assert not threading.Event().wait(0.01)

    with pytest.raises(Unavailable, match="was ended after"):
        await engine.read("stuck", stuck)
    engine._maintenance._settings = idle
    assert await engine.read("count", count) == 0
    await engine.close()


async def test_a_long_log_is_a_warning(backend: SqliteBackend) -> None:
    engine = make_engine(backend, log_warning_bytes=100_000, idle_s=1000)
    await engine.start()
    await engine.transact("put", put, "a", b"x" * 200_000)
    await wait_for(lambda: engine.health().status is HealthStatus.WARNING)
    assert any("write-ahead log" in problem for problem in engine.health().problems)
    await engine.close()


async def test_a_disk_that_is_nearly_full_is_a_warning(backend: SqliteBackend) -> None:
    engine = make_engine(backend, free_warning_bytes=1 << 62)
    await engine.start()
    assert engine.health().status is HealthStatus.WARNING
    await engine.close()


async def test_a_copy_of_a_database_in_use_is_whole(backend: SqliteBackend, tmp_path: Path) -> None:
    engine = make_engine(backend)
    await engine.start()
    for step in range(20):
        await engine.transact("put", put, f"f{step}")
    copy = tmp_path / "copy.sqlite"
    await asyncio.to_thread(copy_database, backend.path, copy)
    await engine.transact("put", put, "later")
    await engine.close()
    connection = SqliteConnection(copy, cache_bytes=1 << 20)
    assert connection.execute("SELECT COUNT(*) FROM fact") == [(20,)]
    connection.close()
