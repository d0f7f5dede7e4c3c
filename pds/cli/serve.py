"""`pds serve`: the server for the public, from settings alone."""

from pathlib import Path

import click

from pds.cli.running import run_on_loop, serve_until_stopped
from pds.config import check_for_serving, load_config
from pds.log import configure_logging, get_logger


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (TOML); the environment wins over it.",
)
def serve(file: Path | None) -> None:
    """Serve accounts, configured by the environment (PDS_HOSTNAME and so on)."""
    config = load_config(file=file)
    check_for_serving(config)
    configure_logging(config.log)
    log = get_logger(__name__)
    for notice in config.notices:
        log.warning("setting.without_effect", notice=notice)
    run_on_loop(serve_until_stopped(config))
