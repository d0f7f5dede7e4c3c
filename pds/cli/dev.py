"""`pds dev`: everything on this machine, nothing configured, nothing on the network.

The server with SQLite and disk blobs in a folder, a PLC directory beside it that judges as the
public one does, a mailbox page, and two accounts with sample records. The secrets of the folder lie
in it, so a folder that was kept works again.
"""

import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from pds.app import EmbeddedPlc, Options, RunningServer
from pds.cli.running import run_on_loop, serve_until_stopped
from pds.cli.samples import SAMPLE_PASSWORDS, make_samples
from pds.config import Config, load_config
from pds.errors import ConfigError
from pds.log import configure_logging
from pds.services.mail import MemoryMailbox
from pds.services.plc_directory import PlcDirectory

DEFAULT_PORT: Final = 2583
SETTINGS_FILE: Final = "dev.toml"
PLC_FILE: Final = "plc.jsonl"


@click.command()
@click.option(
    "--port", default=DEFAULT_PORT, show_default=True, help="Port of the server; 0 picks."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to use, and to keep; a scratch folder by default.",
)
@click.option("--keep", is_flag=True, help="Keep the scratch folder at the end.")
@click.option("--verbose", is_flag=True, help="Show a line for every request.")
def dev(port: int, data: Path | None, *, keep: bool, verbose: bool) -> None:
    """Run a server for development: no configuration, no network."""
    with _folder(data, keep=keep) as folder:
        server_socket = _bind(port)
        plc_socket = _bind(0)
        config = dev_config(
            folder,
            port=server_socket.getsockname()[1],
            plc_port=plc_socket.getsockname()[1],
            verbose=verbose,
        )
        configure_logging(config.log)
        plc = PlcDirectory(now_us=_now_us, file=folder / PLC_FILE)
        options = Options(
            mailbox=MemoryMailbox(), plc=EmbeddedPlc(plc, plc_socket), check_outputs=True
        )

        async def ready(server: RunningServer) -> None:
            await make_samples(server.services)
            _show(config, folder)

        run_on_loop(
            serve_until_stopped(config, sock=server_socket, on_ready=ready, server_options=options)
        )


def dev_config(folder: Path, *, port: int, plc_port: int, verbose: bool = False) -> Config:
    """The settings of a development server in `folder`, independent of the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS_FILE
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(
            "# Made by `pds dev`. These secrets belong to the data in this folder.\n"
            f'jwt_secret = "{secrets.token_hex(32)}"\n'
            f'admin_password = "{secrets.token_hex(8)}"\n'
            f'plc_rotation_key_k256_private_key_hex = "{secrets.token_hex(32)}"\n'
        )
    return load_config(
        {
            "PDS_HOSTNAME": "localhost",
            "PDS_PORT": str(port),
            "PDS_DATA_DIRECTORY": str(folder),
            "PDS_DID_PLC_URL": f"http://127.0.0.1:{plc_port}",
            "PDS_DEV_MODE": "true",
            "PDS_INVITE_REQUIRED": "false",
            "PDS_LEXICON_RESOLUTION": "off",  # Nothing is asked of the network.
            "PDS_RATE_LIMITS_ENABLED": "false",  # Everybody here has one address.
            "LOG_LEVEL": "info" if verbose else "warning",
            "PDS_LOG_FORM": "text",
        },
        file=file,
    )


@contextmanager
def _folder(data: Path | None, *, keep: bool) -> Iterator[Path]:
    if data is not None:
        yield data
        return
    if keep:
        yield Path(tempfile.mkdtemp(prefix="freehold-"))
        return
    with tempfile.TemporaryDirectory(prefix="freehold-") as name:
        yield Path(name)


def _bind(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port {port} is taken ({error.strerror}); choose another with --port"
        ) from error
    return sock


def _now_us() -> int:
    return time.time_ns() // 1000


def _show(config: Config, folder: Path) -> None:
    from rich.console import Console  # Not above: `pds serve` starts sooner without it.
    from rich.table import Table

    addresses = Table.grid(padding=(0, 3))
    for label, text in (
        ("server", config.public_url),
        ("mailbox", f"{config.public_url}/mailbox"),
        ("PLC directory", config.identity.plc_url),
        ("data", str(folder)),
        ("admin", f"admin / {config.secrets.admin_password}"),
    ):
        addresses.add_row(label, text)
    accounts = Table.grid(padding=(0, 3))
    for handle, password in SAMPLE_PASSWORDS.items():
        accounts.add_row("account", handle, password)
    console = Console(highlight=False, soft_wrap=True)
    console.print("Freehold is running, for this machine only.\n")
    console.print(addresses)
    console.print()
    console.print(accounts)
    console.print("\nCtrl-C stops it.")
