"""The PostgreSQL engine keeps the contract of every engine, also where other processes read."""

import pytest

from tests.suites.engine_streams import StreamSuite
from tests.suites.engine_suite import EngineSuite
from tests.suites.engines import PostgresBackend
from tests.support_postgres import database_url

__all__ = ["database_url"]


class TestPostgresEngine(EngineSuite):
    @pytest.fixture
    def backend(self, database_url: str) -> PostgresBackend:
        return PostgresBackend(database_url)


class TestStreamsInProcesses(StreamSuite):
    apart = True

    @pytest.fixture
    def backend(self, database_url: str) -> PostgresBackend:
        return PostgresBackend(database_url)
