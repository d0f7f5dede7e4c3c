"""`pds serve`: the server for the public, from settings alone."""

import asyncio
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from pds.app import Options, RunningServer
from pds.app.workers import WorkerPlace, check_can_share, serve_command, supervise
from pds.cli.running import run_on_loop, serve_until_stopped
from pds.config import Config, check_for_serving, load_config
from pds.log import configure_logging, get_logger


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (TOML); the environment wins over it.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Serve with this many processes on one port (PostgreSQL only); SIGHUP replaces them"
    " one by one.",
)
@click.option("--worker", hidden=True, help="Internal: the place of a worker.")
def serve(file: Path | None, workers: int | None, worker: str | None) -> int:
    """Serve accounts, configured by the environment (PDS_HOSTNAME and so on)."""
    config = load_config(file=file)
    check_for_serving(config)
    configure_logging(config.log)
    if worker is not None:
        _serve_as_worker(config, WorkerPlace.parse(worker))
        return 0
    log = get_logger(__name__)
    for notice in config.notices:
        log.warning("setting.notice", notice=notice)
    if workers is None or (workers == 1 and not config.data.is_shared):
        run_on_loop(serve_until_stopped(config))
        return 0
    check_can_share(config)
    make_command = partial(serve_command, file=None if file is None else str(file))
    return asyncio.run(supervise(make_command, config, workers=workers))


def _serve_as_worker(config: Config, place: WorkerPlace) -> None:
    """Serve on the parent's socket; a worker's metrics have the port after the one before."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # It is for the parent, also from a terminal.
    listener = config.listener
    if listener.metrics_port is not None:
        listener = replace(listener, metrics_port=listener.metrics_port + place.number - 1)
        config = replace(config, listener=listener)
    reports: list[asyncio.Task[None]] = []

    async def ready(server: RunningServer) -> None:
        reports.append(asyncio.create_task(place.report(server)))

    options = Options(shares_metrics_port=True)
    run_on_loop(
        serve_until_stopped(config, sock=place.sock, on_ready=ready, server_options=options)
    )
