"""The SQLite engine keeps the contract of every engine."""

from pathlib import Path

import pytest

from tests.suites.engine_suite import EngineSuite
from tests.suites.engines import SqliteBackend


class TestSqliteEngine(EngineSuite):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> SqliteBackend:
        return SqliteBackend(tmp_path)
