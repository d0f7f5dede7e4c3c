"""`pds clock`: what to do when the server does not believe the clock."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click

from pds.app import accept_clock
from pds.config import load_config


@click.group()
def clock() -> None:
    """Decide about a clock that the server does not believe."""


@clock.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept(file: Path | None, *, yes: bool) -> None:
    """Say that this machine's clock is right; run it while the server is stopped."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"The clock says {now}. Event numbers and revisions never go back after it.")
    if not yes:
        click.confirm("Is that right?", abort=True)
    asyncio.run(accept_clock(load_config(file=file)))
    click.echo("Accepted. The next start within a day believes the clock.")
