"""What all commands that give orders share: the options, the way to the server, the output.

Such a command is a few lines: it names the order and its fields, and shows the answer. Where the
order goes is decided by `pds.app.orders`. With `--json` the answer is printed as it is.

Exit codes: 0 done, 1 refused or failed, 2 wrong settings or usage.
"""

import asyncio
import getpass
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pds.app.orders import connect_admin
from pds.config import load_config
from pds.errors import RequestError

F = TypeVar("F", bound=Callable[..., Any])
Answer = dict[str, Any]
Show = Callable[[Answer], None]

NOT_CHANGED: Final = "nothing to change"


def order_options(*, changes: bool = False, pages: bool = False) -> Callable[[F], F]:
    """Add the common options: settings and JSON; dry run and note; limit and cursor."""

    def add(command: F) -> F:
        options = [
            click.option(
                "--config",
                "file",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Settings file (TOML).",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        ]
        if changes:
            options += [
                click.option("--dry-run", is_flag=True, help="Check and show; change nothing."),
                click.option("--note", help="Why, for the audit trail."),
            ]
        if pages:
            options += [
                click.option("--limit", default=50, show_default=True, help="Entries at most."),
                click.option("--cursor", help="Where to go on, from the answer before."),
            ]
        for option in reversed(options):
            command = option(command)
        return command

    return add


class Ordering:
    """One order of one command line: common options taken apart."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._file: Path | None = options.get("file")
        self._as_json: bool = options.get("as_json", False)
        self.is_dry = bool(options.get("dry_run"))
        self._common = {
            name: value
            for name, value in (
                ("dryRun", self.is_dry),
                ("note", options.get("note")),
                ("limit", options.get("limit")),
                ("cursor", options.get("cursor")),
            )
            if _is_told(value)
        }

    def give(self, name: str, show: Show, **fields: Any) -> Answer:
        """Give the order, show the answer and return it.

        Raises: ClickException with the reason of a refusal.
        """
        wanted = {key: value for key, value in fields.items() if _is_told(value)}
        logging.disable(logging.WARNING)  # What a server would note at its start is no answer.
        try:
            answer = asyncio.run(self._give(name, {**wanted, **self._common}))
        except RequestError as error:
            raise click.ClickException(f"{error.message} ({error.name})") from error
        finally:
            logging.disable(logging.NOTSET)
        if self._as_json:
            click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
            return answer
        if self.is_dry:
            click.echo("Dry run: nothing was changed. It would be:")
        show(answer)
        if "cursor" in answer:
            click.echo(f"More: --cursor {answer['cursor']}")
        return answer

    async def _give(self, name: str, fields: Mapping[str, Any]) -> Answer:
        async with connect_admin(load_config(file=self._file), actor=whoami()) as admin:
            return await admin.call(name, fields)


def show_table(key: str, columns: Sequence[tuple[str, Callable[[Answer], object]]]) -> Show:
    """Return what prints the entries under `key` in columns; nothing is cut off, to be copied."""

    def show(answer: Answer) -> None:
        rows = [[title for title, _ in columns]]
        rows += [[_cell(value(entry)) for _, value in columns] for entry in answer[key]]
        widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(cells).rstrip())

    return show


def show_fields(answer: Answer) -> None:
    """Print an answer as lines of names and values."""
    width = max((len(name) for name in answer), default=0)
    for name, value in answer.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        click.echo(f"{name:<{width}}  {text}")


def show_change(answer: Answer) -> None:
    """Print what became of a subject."""
    subject = answer.get("uri") or answer["did"]
    if "cid" in answer:
        subject = f"{subject} {answer['cid']}"
    if not answer.get("changed", True):
        click.echo(f"{subject}: {NOT_CHANGED}, it is {_state(answer['after'])}")
        return
    click.echo(f"{subject}: {_state(answer['before'])} -> {_state(answer['after'])}")


def field(name: str) -> Callable[[Answer], object]:
    """Return what reads one field of an entry."""
    return lambda entry: entry.get(name)


def _is_told(value: object) -> bool:
    """Whether an option was given: not when it is nothing or no; zero is something."""
    return value is not None and value is not False


def _state(state: Mapping[str, Any]) -> str:
    status = state.get("status") or ("takendown" if "takedownRef" in state else "visible")
    ref = state.get("takedownRef")
    return f"{status} ({ref})" if ref else str(status)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return str(value)


def whoami() -> str:
    """Return who gives the orders, for the audit trail."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # No name for this user id, as in some containers.
        return "unknown"
