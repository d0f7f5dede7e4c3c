"""`pds convert`: move a host from one kind of storage to another."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pds.app import (
    give_up_conversion,
    open_blobstore,
    opened_conversion,
    plan_database_conversion,
)
from pds.cli.secret_input import read_url
from pds.config import Config, load_config
from pds.errors import ConfigError
from pds.services.blob_conversion import Outcome, convert_blobs, count_blobs
from pds.services.database_conversion import Finished, Report
from pds.services.database_conversion import Progress as Advance


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


@convert.command()
@click.option(
    "--to",
    "target",
    required=True,
    callback=read_url,
    help="Where to move: `sqlite`, or the URL of an empty PostgreSQL database, without a password:"
    " that comes from PGPASSWORD or ~/.pgpass. `-`: asks for the URL, or reads it from standard"
    " input; then it may hold one.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and change nothing.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def database(file: Path | None, target: str, *, dry_run: bool) -> int:
    """Move this host to another database: SQLite to PostgreSQL, or back.

    The server may run. Rows are copied while it goes on; then it refuses writes (503) for as long
    as it takes to compare all rows of both databases one by one. After that the old database takes
    no more writes: restart the server with the new one in its settings. What was cut off, in
    whatever way, is started again with the same command; `pds convert cancel` gives it up.
    """
    config = load_config(file=file)
    if dry_run:
        return _show_plan(config, target)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with (
            opened_conversion(config, target) as conversion,
            _progress(transient=True) as progress,
        ):
            report = conversion.run(_shower(progress))
    except Finished as finished:
        click.echo(f"{finished}.")
        return 0
    _show_report(report)
    setting = "without PDS_DATABASE_URL" if target == "sqlite" else "with that PDS_DATABASE_URL"
    click.echo(f"The old database takes no more writes: restart the server {setting}.")
    return 1 if report.heads.faults else 0


@convert.command()
@click.option(
    "--yes", is_flag=True, help="Also when the host was moved and may have changed there."
)
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def cancel(file: Path | None, *, yes: bool) -> None:
    """Stay with, or go back to, the configured database.

    Ends the pause that a conversion which was killed has left behind. Of a database that was left
    it says what would be lost.
    """
    click.echo(give_up_conversion(load_config(file=file), is_sure=yes))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Have SIGTERM end the pause in order, as Ctrl-C does."""
    raise KeyboardInterrupt


def _shower(progress: Progress) -> Callable[[Advance], None]:
    """Return what shows each step and table as a bar."""
    task = progress.add_task("starting", total=None)
    last = ("", "")

    def show(advance: Advance) -> None:
        nonlocal last
        if (advance.step, advance.table) != last:
            last = (advance.step, advance.table)
            progress.reset(
                task,
                description=f"{advance.step} {advance.table}".strip(),
                total=advance.total or None,
            )
        progress.advance(task, advance.rows)

    return show


def _show_plan(config: Config, target: str) -> int:
    plan, place = plan_database_conversion(config, target)
    table = Table("table", "rows", "there already")
    for name, rows in ((name, rows) for name, rows in plan.rows.items() if rows):
        table.add_row(name, f"{rows:,}", f"{plan.present[name]:,}" if plan.is_resumed else "")
    Console().print(table)
    act = "continued" if plan.is_resumed else "started"
    click.echo(f"{sum(plan.rows.values()):,} rows would be moved to {place}; it would be {act}.")
    return 0


def _show_report(report: Report) -> None:
    table = Table("table", "rows", "bytes", "written in the pause", "SHA-256 of all rows")
    for name, found in ((name, found) for name, found in report.tables.items() if found.rows):
        table.add_row(
            name,
            f"{found.rows:,}",
            f"{found.content_bytes:,}",
            f"{found.changes:,}",
            found.digest,
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    click.echo(
        f"{report.rows:,} rows, {report.content_bytes:,} bytes: the same in both databases, row by"
        f" row. {report.heads.count:,} repos, {len(report.heads.faults)} damaged."
    )
    for fault in report.heads.faults:
        click.echo(f"Damaged before and after: {fault}")
    click.echo(
        f"Copied beside the server in {report.copy_s:.1f} s; no writes for {report.pause_s:.2f} s."
    )


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


def _progress(*, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
    )
