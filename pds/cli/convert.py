"""`pds convert`: move a host from one kind of storage to another."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pds.app import open_blobstore
from pds.config import Config, load_config
from pds.errors import ConfigError
from pds.services.blob_conversion import Outcome, convert_blobs, count_blobs


@click.group()
def convert() -> None:
    """Move to another kind of storage."""


@convert.command()
@click.option(
    "--to", "target", type=int, required=True, help="Number of the blob store to fill: 1, 2 or 3."
)
@click.option(
    "--trust-size", is_flag=True, help="Do not read again what is there with the right size."
)
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def blobs(file: Path | None, target: int, *, trust_size: bool) -> int:
    """Bring all blobs to one of the configured blob stores, each verified there.

    The server may run, and goes on taking uploads. Set the new place as PDS_BLOBSTORE_2_*, restart
    the server (from now on it writes to both and reads from either), run `pds convert blobs --to
    2`, then make the new place the only one and restart again. What was cut off is started again.
    """
    return asyncio.run(_convert(load_config(file=file), target, trust_size=trust_size))


async def _convert(config: Config, number: int, *, trust_size: bool) -> int:
    others = sorted(set(config.blob_places) - {number})
    if not others:
        raise ConfigError(
            "there is only one blob store: set the place to move to as PDS_BLOBSTORE_2_S3_BUCKET"
            " (with its address and key) or PDS_BLOBSTORE_2_DISK_LOCATION"
        )
    counts: Counter[Outcome] = Counter()
    size = 0
    async with AsyncExitStack() as stack:
        target = await open_blobstore(config, stack, numbers=[number], is_alone=False)
        source = await open_blobstore(config, stack, numbers=others, is_alone=False)
        progress = stack.enter_context(_progress())
        task = progress.add_task("counting", total=None)
        total, _ = await count_blobs(source)
        progress.update(task, description="converting", total=total)
        async for done in convert_blobs(source, target, trust_size=trust_size):
            counts[done.outcome] += 1
            size += done.size if done.outcome is Outcome.COPIED else 0
            if done.outcome is Outcome.DAMAGED:
                text = f"account {done.key.aid}: blob {done.key.cid} is damaged, and not moved"
                progress.console.print(text, highlight=False)
            if done.number == 1:
                progress.advance(task)
    summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome)
    click.echo(f"{summary}; {size:,} bytes copied from {source.properties.name}")
    click.echo(f"{target.properties.name} has every blob that could be read, verified.")
    return 1 if counts[Outcome.DAMAGED] else 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
