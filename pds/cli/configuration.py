"""`pds config`: look at settings without starting anything."""

from pathlib import Path

import click

from pds.config import check_for_serving, load_config, reference_table


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command()
def reference() -> None:
    """Print every setting with its default, as Markdown."""
    click.echo(reference_table(), nl=False)


@config.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def check(file: Path | None) -> None:
    """Check the settings of the environment, without starting the server."""
    loaded = load_config(file=file)
    check_for_serving(loaded)
    for notice in loaded.notices:
        click.echo(f"note: {notice}")
    click.echo(f"The settings are good: {loaded.public_url} ({loaded.service_did})")
