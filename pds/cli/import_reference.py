"""`pds import-reference`: take over a host from the reference PDS, in place."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pds.app.reference_import import check_reference_host, opened_reference_import
from pds.cli.orders import field, show_table
from pds.config import Config, load_config
from pds.services.reference_import import AlreadyTaken, ImportReport, Tell
from pds.services.reference_import import Progress as Advance
from pds.services.reference_import_account import AccountReport, Outcome

SHOWN_BLOBS: Final = 5


@click.command("import-reference")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--env",
    "env_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings of the reference PDS; DIRECTORY/pds.env when not given.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, and change nothing.")
@click.option(
    "--without",
    multiple=True,
    metavar="DID",
    help="Leave an account out; may be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def import_reference(
    directory: Path,
    env_file: Path | None,
    without: tuple[str, ...],
    file: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take over a host from a stopped reference PDS whose data is in DIRECTORY.

    This host must be empty and have the same PDS_HOSTNAME and secrets, and a data folder of its
    own; no server may run on either side. Accounts come with their passwords, app passwords,
    sessions, keys, records, blobs, preferences, invite codes and takedowns; the firehose goes on
    after the last number. Nothing is written to DIRECTORY, and no identity is changed.

    Each account is verified. One in which something is wrong is reported, and nothing is complete
    until it is repaired or left out. What was cut off is started again with the same command.

    Exit codes: 0 complete (or, with --dry-run, nothing wrong), 1 failed, 2 wrong settings.
    """
    config = load_config(file=file)
    signal.signal(signal.SIGTERM, _interrupt)
    with _progress(is_quiet=as_json) as progress:
        tell = _shower(progress)
        if dry_run:
            report, notes = asyncio.run(
                check_reference_host(
                    config, directory, env_file=env_file, without=without, tell=tell
                )
            )
        else:
            try:
                report, notes = asyncio.run(_import(config, directory, env_file, without, tell))
            except AlreadyTaken as done:
                click.echo(f"{done}.", err=as_json)
                return 0
    report.notes[:0] = notes
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _show(report, is_dry=dry_run)
    return 1 if report.failed else 0


async def _import(
    config: Config, directory: Path, env_file: Path | None, without: tuple[str, ...], tell: Tell
) -> tuple[ImportReport, list[str]]:
    async with opened_reference_import(config, directory, env_file=env_file, without=without) as (
        importing,
        notes,
    ):
        return await importing.run(tell), notes


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Have SIGTERM end the run in order, as Ctrl-C does."""
    raise KeyboardInterrupt


def _progress(*, is_quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=is_quiet,
    )


def _shower(progress: Progress) -> Callable[[Advance], None]:
    """Return what shows each step as a bar, and beside it how far the account is."""
    task = progress.add_task("starting", total=None, detail="")
    last = ""
    parts = {"records": 0, "blobs": 0}

    def show(advance: Advance) -> None:
        nonlocal last
        if advance.step != last:
            last = advance.step
            progress.reset(task, description=str(advance.step), total=advance.total or None)
        if advance.detail:
            parts[advance.detail] += advance.parts
        told = f"{parts['records']:,} records, {parts['blobs']:,} blobs {advance.account}"
        progress.update(task, advance=advance.count, detail=told)

    return show


_SHOW_ACCOUNTS: Final = show_table(
    "accounts",
    [
        ("account", lambda one: one["handle"] or one["did"]),
        ("", field("outcome")),
        ("state", field("status")),
        ("records", field("records")),
        ("blobs", field("blobs")),
        ("app passwords", field("app_passwords")),
        ("sessions", field("sessions")),
        ("rev", field("rev")),
    ],
)


def _show(report: ImportReport, *, is_dry: bool) -> None:
    _SHOW_ACCOUNTS(report.to_json())
    for one in report.accounts:
        for line in _remarks(one):
            click.echo(f"{one.handle or one.did}: {line}")
    for note in report.notes:
        click.echo(f"Note: {note}.")
    if report.oauth_sessions:
        click.echo(
            f"Note: {report.oauth_sessions} sessions of OAuth clients do not go on: these sign in"
            " again."
        )
    _show_end(report, is_dry=is_dry)


def _remarks(one: AccountReport) -> list[str]:
    lines = list(one.notes)
    for what, cids in (("missing", one.missing_blobs), ("damaged", one.damaged_blobs)):
        if cids:
            more = "" if len(cids) <= SHOWN_BLOBS else f" and {len(cids) - SHOWN_BLOBS} more"
            lines.append(f"{len(cids)} blobs are {what}: {', '.join(cids[:SHOWN_BLOBS])}{more}")
    if one.error is not None:
        lines.append(f"FAILED: {one.error}")
    return lines


def _show_end(report: ImportReport, *, is_dry: bool) -> None:
    if report.failed:
        click.echo(
            f"{len(report.failed)} of {len(report.accounts)} accounts failed. Nothing is complete:"
            " repair them and run this again, or leave them out with --without DID."
        )
    elif is_dry:
        click.echo(f"{len(report.accounts)} accounts are fine; nothing was changed.")
    elif report.events is not None:
        done = report.count(Outcome.IMPORTED) + report.count(Outcome.PRESENT)
        click.echo(
            f"{done} accounts, {report.invites} invite codes and {report.events.events} events were"
            f" taken over; the last event was {report.events.last_seq}."
        )
        if report.events.skipped:
            click.echo(
                f"{report.events.skipped} events have a form that is no longer allowed: readers"
                " that have not seen them will fetch those repos anew."
            )
        click.echo("Start the server here now, and never the old one again.")
