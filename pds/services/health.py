"""Whether this server does its work: the database answers, and writes are not stopped."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from pds.errors import StoreError
from pds.store.engine import Engine, HealthStatus, Txn

PROBE_TIMEOUT_S: Final = 5.0
REMEMBER_S: Final = 1.0

Probe = Callable[[], Awaitable[None]]
"""Raises when the thing it asks about does not work."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`problem` is None when all is well; it holds no detail that a stranger should not see."""

    version: str
    problem: str | None = None

    @property
    def is_well(self) -> bool:
        """Whether requests should be sent here."""
        return self.problem is None


class Health:
    """Asks the parts of the server how they are."""

    def __init__(
        self,
        *,
        engine: Engine,
        version: str,
        blobs: Probe | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._version = version
        self._blobs = blobs
        self._monotonic = monotonic
        self._well = HealthReport(version)
        self._well_until_s = float("-inf")

    async def check(self) -> HealthReport:
        """Return how things are; good news is up to a second old, bad news is new.

        So a crowd that asks costs no more than one who does.
        """
        if self._monotonic() < self._well_until_s and not self._has_failed():
            return self._well
        report = await self._ask_all()
        self._well_until_s = self._monotonic() + REMEMBER_S if report.is_well else float("-inf")
        return report

    async def _ask_all(self) -> HealthReport:
        """Ask the database one question, within five seconds, and the blob store another."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._engine.read("health", _ask)
        except (StoreError, TimeoutError):
            return HealthReport(self._version, "Database unavailable")
        if self._has_failed():
            return HealthReport(self._version, "Writes are refused")
        if self._blobs is not None:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._blobs()
            except (StoreError, OSError, TimeoutError):
                return HealthReport(self._version, "Blob store unavailable")
        return self._well

    def _has_failed(self) -> bool:
        return self._engine.health().status is HealthStatus.FAILED


def _ask(txn: Txn) -> None:
    txn.read_one("SELECT last_seq FROM seq WHERE id = 1")
