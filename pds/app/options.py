"""What a development server or a test adds to the settings."""

import socket
from dataclasses import dataclass

from pds.services.mail import MemoryMailbox
from pds.services.plc_directory import PlcDirectory


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
