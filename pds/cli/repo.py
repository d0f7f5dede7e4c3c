"""`pds repo`: a look at single repos, and their repair."""

import asyncio
from pathlib import Path
from typing import Any

import click

from pds.app import repair_repo_rev
from pds.cli.orders import Ordering, order_options, show_fields
from pds.config import load_config
from pds.errors import RequestError


@click.group()
def repo() -> None:
    """Look at single repos, and repair them."""


@repo.command()
@click.argument("account")
@order_options()
def show(account: str, **options: Any) -> None:
    """Show the head of a repo and what is in it; a server may run or not."""
    Ordering(options).give("repo.show", show_fields, account=account)


@repo.command("repair-rev")
@click.argument("account")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def repair_rev(account: str, file: Path | None) -> None:
    """Sign the head of ACCOUNT (a DID or handle) again, when its rev lies in the future.

    Run it while the server is stopped, after the clock was put right.
    """
    try:
        done = asyncio.run(repair_repo_rev(load_config(file=file), account))
    except RequestError as error:
        raise click.ClickException(error.message) from error
    click.echo(f"{done.did}: rev {done.old_rev} is now {done.new_rev}, and readers will be told.")
