"""A whole server over real HTTP on loopback, with its own PLC directory and mailbox."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest

from pds.app import EmbeddedPlc, Options, RunningServer, running_server
from pds.app.options import TimeSource
from pds.cli.dev import dev_config
from pds.config import Config
from pds.services.mail import MemoryMailbox
from pds.services.plc_directory import PlcDirectory
from tests.support_client import Client
from tests.support_postgres import database_of, is_chosen


@dataclass
class Host:
    """A running server and what surrounds it."""

    server: RunningServer
    plc: PlcDirectory
    mailbox: MemoryMailbox
    client: Client
    admin_password: str = field(repr=False, default="")

    @property
    def url(self) -> str:
        return self.server.url


def bound_socket() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def host_in(
    folder: Path,
    *,
    plc: PlcDirectory | None = None,
    change: Callable[[Config], Config] = lambda c: c,
    with_mailbox: bool = True,
    now: TimeSource | None = None,
) -> AsyncIterator[Host]:
    """Run a server on `folder`; entering again on the same folder is a restart.

    Without the mailbox mail goes where the settings say. `now` is another time than the machine's.
    """
    now = now or TimeSource()
    if plc is None:  # One without identities is no less one.
        plc = PlcDirectory(now_us=now.now_us, file=folder / "plc.jsonl")
    sock, plc_sock = bound_socket(), bound_socket()
    config = change(_config(folder, sock, plc_sock))
    mailbox = MemoryMailbox()
    options = Options(
        mailbox=mailbox if with_mailbox else None,
        plc=EmbeddedPlc(plc, plc_sock),
        check_outputs=True,
        time=now,
    )
    async with (
        running_server(config, sock=sock, options=options) as server,
        aiohttp.ClientSession() as http,
    ):
        url = f"http://127.0.0.1:{config.listener.port}"
        yield Host(server, plc, mailbox, Client(http, url), config.secrets.admin_password or "")


def _config(folder: Path, sock: socket.socket, plc_sock: socket.socket) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    config = dev_config(folder, port=sock.getsockname()[1], plc_port=plc_sock.getsockname()[1])
    if is_chosen():
        config = replace(config, data=replace(config.data, database_url=database_of(folder)))
    return replace(config, listener=replace(config.listener, shutdown_timeout_s=2.0))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with host_in(tmp_path) as running:
        yield running


@pytest.fixture
def server(host: Host) -> RunningServer:
    return host.server


@pytest.fixture
def client(host: Host) -> Client:
    return host.client
