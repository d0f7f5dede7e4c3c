"""What a development server or a test adds to the settings."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from pds.services.jobs import Sleep
from pds.services.mail import MemoryMailbox
from pds.services.plc_directory import PlcDirectory
from pds.store.clock import US_PER_S, Reading, read_clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSource:
    """Where a server has the time from, and how its scheduled work waits.

    A test puts its own here, and lets a day pass in seconds. Limits on single requests and
    connections, and the leases of jobs, go by the machine's own time: they are about machines.
    """

    read: Callable[[], Reading] = read_clocks
    sleep: Sleep = asyncio.sleep

    def now_us(self) -> int:
        """Return the wall clock in unix microseconds, unchecked."""
        return self.read().wall_us

    def now_s(self) -> float:
        """Return the wall clock in unix seconds, unchecked."""
        return self.read().wall_us / US_PER_S

    def boot_s(self) -> float:
        """Return the clock that nobody sets, in seconds."""
        return self.read().boot_us / US_PER_S


@dataclass(frozen=True, slots=True)
class EmbeddedPlc:
    """A PLC directory beside the server, and the bound socket that it is served on."""

    directory: PlcDirectory
    socket: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Extras; a server for the public has none.

    `mailbox` keeps mail and shows it as a page. With `check_outputs` every answer is held against
    the lexicon. A worker's successor may bind the port for metrics before the worker is gone
    (`shares_metrics_port`).
    """

    mailbox: MemoryMailbox | None = None
    plc: EmbeddedPlc | None = None
    check_outputs: bool = False
    shares_metrics_port: bool = False
    time: TimeSource = field(default_factory=TimeSource)
