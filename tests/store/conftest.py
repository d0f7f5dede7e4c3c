"""Fixtures for the tests of durable rows."""

from tests.suites.engines import recording_engine

__all__ = ["recording_engine"]
