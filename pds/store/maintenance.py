"""The maintenance thread of the SQLite engine.

* copies the log into the database when it has grown (PASSIVE, which blocks nobody), then has the
  writer copy the little that was written meanwhile, between two groups: the log is used again from
  its start only when all of it was copied, which this thread alone never sees under constant load;
* when nothing was written for a while, empties the log (TRUNCATE) and gives free pages back;
* ends reads that are too old, for they keep the log from being reused;
* notes sizes and warnings for the health report.

What operators order by commands while no server runs is in `app/maintenance`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pds.store.engine import MAX_READ_S

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MaintenanceSettings:
    """When the thread does what."""

    interval_s: float = 1.0
    checkpoint_pages: int = 4000
    idle_s: float = 5.0
    max_read_s: float = MAX_READ_S
    log_warning_bytes: int = 256 << 20
    free_warning_bytes: int = 256 << 20
    vacuum_from_pages: int = 4096
    vacuum_step_pages: int = 256


class MaintenanceConnection(Protocol):
    """What the thread needs of its connection."""

    def checkpoint(self, *, truncate: bool = False) -> bool:
        """Copy the log into the database; whether all of it was copied."""

    def pragma(self, name: str, value: int | None = None) -> int:
        """Return a number that a PRAGMA answers."""

    def set_busy_timeout(self, milliseconds: int) -> None:
        """Set how long a lock is waited for."""

    def close(self) -> None:
        """Close the connection."""


class Maintenance:
    """The thread and what it knows."""

    def __init__(self, path: Path, settings: MaintenanceSettings) -> None:
        self._path = path
        self._log_path = Path(f"{path}-wal")
        self._settings = settings
        self._wake = threading.Event()
        self._ending = False
        self._last_commit = time.monotonic()
        self._log_pages = 0
        self._copied_pages = 0
        self._emptied = False
        self._trouble: str | None = None
        self._end_old_reads: Callable[[float], int] = _none_ended
        self._finish_log: Callable[[], None] = _nothing
        self.connection: MaintenanceConnection | None = None
        self.warnings: tuple[str, ...] = ()
        self.log_bytes = 0
        self.database_bytes = 0
        self._thread = threading.Thread(target=self._run, name="store-maintenance", daemon=True)

    def start(self, end_old_reads: Callable[[float], int], finish_log: Callable[[], None]) -> None:
        """Start the thread. `finish_log` asks the writer to copy what is left of the log."""
        self._end_old_reads = end_old_reads
        self._finish_log = finish_log
        self._look()
        self._thread.start()

    def join(self) -> None:
        """End the thread and close its connection."""
        self._ending = True
        self._wake.set()
        self._thread.join()
        if self.connection is not None:
            self.connection.close()

    def note_commit(self, log_pages: int) -> None:
        """Take note of a commit; called on the writer thread."""
        self._last_commit = time.monotonic()
        self._emptied = False
        if log_pages < self._log_pages:
            self._copied_pages = 0
        self._log_pages = log_pages
        if log_pages - self._copied_pages >= self._settings.checkpoint_pages:
            self._wake.set()

    def _run(self) -> None:
        if self.connection is None:
            return
        self.connection.set_busy_timeout(0)
        while not self._ending:
            self._wake.wait(self._settings.interval_s)
            self._wake.clear()
            try:
                self._end_old_reads(self._settings.max_read_s)
                self._keep_log_short(self.connection)
                self._trouble = None
            except Exception as error:  # shown in the health report; the next round tries again
                self._trouble = f"maintenance fails: {error}"
                _log.warning("store.maintenance_failed", extra={"reason": str(error)})
            self._look()

    def _keep_log_short(self, connection: MaintenanceConnection) -> None:
        if self._log_pages - self._copied_pages >= self._settings.checkpoint_pages:
            pages = self._log_pages
            connection.checkpoint()
            self._finish_log()
            self._copied_pages = pages
        idle_s = time.monotonic() - self._last_commit
        if idle_s >= self._settings.idle_s and not self._emptied and not self._ending:
            commit = self._last_commit
            self._give_back(connection)
            self._emptied = connection.checkpoint(truncate=True) and commit == self._last_commit

    def _give_back(self, connection: MaintenanceConnection) -> None:
        """Return free pages to the file system while nothing else is written."""
        commit = self._last_commit
        while connection.pragma("freelist_count") > self._settings.vacuum_from_pages:
            connection.pragma(f"incremental_vacuum({self._settings.vacuum_step_pages})")
            if self._last_commit != commit or self._ending:
                return

    def _look(self) -> None:
        """Note sizes and warnings."""
        warnings = [self._trouble] if self._trouble is not None else []
        try:
            self.database_bytes = self._path.stat().st_size
            self.log_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
            disk = os.statvfs(self._path.parent)
        except OSError as error:
            self.warnings = (*warnings, f"the data folder cannot be looked at: {error.strerror}")
            return
        if self.log_bytes > self._settings.log_warning_bytes:
            warnings.append(f"the write-ahead log has {self.log_bytes >> 20} MB")
        free = disk.f_bavail * disk.f_frsize
        if free < self._settings.free_warning_bytes:
            warnings.append(f"the disk has {free >> 20} MB left")
        self.warnings = tuple(warnings)


def _none_ended(_limit_s: float) -> int:
    return 0


def _nothing() -> None:
    """Do nothing."""
