"""`pds blobs`: look at the places where blobs are kept; a server may run meanwhile."""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pds.app import open_blobstore, probe_bucket
from pds.blobstore.copying import CopyState, check_copy
from pds.blobstore.replicated import ReplicatedBlobStore, Scrubbed
from pds.config import Config, load_config

CONFIG = click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def blobs() -> None:
    """Look at the places where blobs are kept."""


@blobs.command()
@click.option("--store", default=1, show_default=True, help="Number of the blob store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@CONFIG
def probe(file: Path | None, store: int, *, as_json: bool) -> int:
    """Find out which features of S3 the provider of a bucket really has.

    Writes a few objects (10 MB) beside the blobs and removes them. Exit code 1 when something is
    missing that blobs cannot be kept without.
    """
    config = load_config(file=file)
    messages = Console(stderr=True)
    with messages.status("asking the provider") as status:
        found = asyncio.run(
            probe_bucket(config, store, lambda name: status.update(f"trying: {name}"))
        )
    is_good = all(feature.is_there for feature in found if feature.is_needed)
    if as_json:
        features = [asdict(feature) for feature in found]
        click.echo(json.dumps({"is_good": is_good, "features": features}, indent=2))
        return 0 if is_good else 1
    table = Table("feature", "", "needed", "what was seen", highlight=False)
    for feature in found:
        answer = "yes" if feature.is_there else "[bold red]no" if feature.is_needed else "no"
        table.add_row(feature.name, answer, "yes" if feature.is_needed else "", feature.detail)
    Console(highlight=False).print(table)
    click.echo("Good for blobs." if is_good else "Not good for blobs.")
    return 0 if is_good else 1


@blobs.command()
@click.option("--quick", is_flag=True, help="Compare lists only; read what differs.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each problem.")
@CONFIG
def scrub(file: Path | None, *, quick: bool, as_json: bool) -> int:
    """Read every copy of every blob, and heal those that are missing or damaged.

    Healing needs a second place for blobs. Exit code 1 when something is left that is not sound.
    """
    return asyncio.run(_scrub(load_config(file=file), quick=quick, as_json=as_json))


async def _scrub(config: Config, *, quick: bool, as_json: bool) -> int:
    counts: Counter[str] = Counter()
    silent: set[str] = set()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    async with AsyncExitStack() as stack:
        store = await open_blobstore(config, stack, is_alone=False)
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task("scrubbing")

        def note(found: Scrubbed) -> None:
            counts["blobs"] += 1
            counts["healed"] += bool(found.healed)
            counts["unsound"] += not found.is_sound
            if found.healed or not found.is_sound:
                _show(found, progress.console, as_json=as_json)
            done = f"{counts['blobs']} blobs, {counts['healed']} healed"
            progress.update(task, description=f"{done}, {counts['unsound']} not sound")

        if isinstance(store, ReplicatedBlobStore):
            async for found in store.scrub(verify=not quick, unreachable=silent):
                note(found)
        else:
            async for key, _ in store.list():
                state = CopyState.GOOD if quick else await check_copy(store, key)
                if state is not CopyState.MISSING:  # deleted since it was listed
                    note(Scrubbed(key, (state,), ()))
    click.echo(
        f"{counts['blobs']} blobs, {counts['healed']} healed, {counts['unsound']} not sound"
        + "".join(f"; {name} did not answer" for name in sorted(silent)),
        err=as_json,
    )
    return 1 if counts["unsound"] or silent else 0


def _show(found: Scrubbed, messages: Console, *, as_json: bool) -> None:
    states = [state.value for state in found.states]
    if as_json:
        line = {
            "aid": found.key.aid,
            "cid": str(found.key.cid),
            "states": states,
            "healed": [number + 1 for number in found.healed],
        }
        click.echo(json.dumps(line))
        return
    end = "healed" if found.is_sound else "LOST" if found.is_lost else "not healed"
    messages.print(f"{found.key.aid} {found.key.cid}: {', '.join(states)}: {end}", highlight=False)
