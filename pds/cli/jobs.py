"""`pds jobs`: what is timed, when it ran last, what came of it; a server may run meanwhile."""

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pds.app import read_beside
from pds.config import load_config
from pds.store.clock import US_PER_S
from pds.store.jobs import JobRow, list_jobs

UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def jobs(file: Path | None, *, as_json: bool) -> int:
    """Show the scheduled work of the host: last run, result, next run, and which node is at it.

    What each node does for itself, such as checking its clock, is not listed. Exit code 1 when the
    last run of a job failed.
    """
    rows = read_beside(load_config(file=file), list_jobs)
    now_us = time.time_ns() // 1000
    if as_json:
        click.echo(json.dumps([_to_json(row, now_us) for row in rows], indent=2))
    else:
        _print_table(rows, now_us)
    return 1 if any(row.failures for row in rows) else 0


def _to_json(row: JobRow, now_us: int) -> dict[str, object]:
    instants = ("next_at", "lease_until", "started_at", "finished_at", "succeeded_at")
    fields = asdict(row)
    return {
        **{name: value for name, value in fields.items() if name not in instants},
        **{name: _timestamp(fields[name]) for name in instants},
        "is_running": row.is_leased(now_us),
    }


def _timestamp(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_table(rows: list[JobRow], now_us: int) -> None:
    table = Table("job", "every", "last run", "took", "result", "next run", "node")
    for row in rows:
        is_running = row.is_leased(now_us)
        took = "" if is_running else _took(row)
        table.add_row(
            row.name,
            show_span(row.period_us),
            _ago(row.started_at, now_us),
            took,
            f"[bold red]{escape(row.result or '')}" if row.failures else escape(row.result or ""),
            "running" if is_running else _ahead(row.next_at, now_us),
            escape(row.lease_node or "") if is_running else "",
        )
    Console(highlight=False).print(table)


def _took(row: JobRow) -> str:
    if row.started_at is None or row.finished_at is None or row.finished_at < row.started_at:
        return ""
    return f"{(row.finished_at - row.started_at) / US_PER_S:.1f} s"


def _ago(at_us: int | None, now_us: int) -> str:
    return "never" if at_us is None else f"{show_span(now_us - at_us)} ago"


def _ahead(at_us: int, now_us: int) -> str:
    return f"in {show_span(at_us - now_us)}" if at_us > now_us else "due"


def show_span(span_us: int) -> str:
    """A span of time in its two largest units: `6 h`, `1 d 3 h`, `0 s`."""
    left_s = max(0, round(span_us / US_PER_S))
    parts: list[str] = []
    for unit, size_s in UNITS:
        count, left_s = divmod(left_s, size_s)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
