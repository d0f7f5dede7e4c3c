"""`pds hostname`: give this host another name, and tell every identity.

Exit codes of `move`: 0 every identity that names this host names it by its new name; 1 some were
refused, or a handle could not be had; 3 the directory did not answer for so long that some are
left, run it again; 4 only owners can do what is left. 130 interrupted: run it again to go on.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pds.app.orders import AdminClient, connect_admin
from pds.cli.orders import Answer, Ordering, field, order_options, show_table, whoami
from pds.config import load_config
from pds.errors import RemoteError, RequestError
from pds.services.hostname_change import Outcome

EXIT_REFUSED: Final = 1
EXIT_LATER: Final = 3
EXIT_OWNERS: Final = 4
PATIENCE_S: Final = 600
RETRY_PAUSE_S: Final = 15.0
PER_ORDER: Final = 100

Sleep = Callable[[float], Awaitable[object]]


@click.group()
def hostname() -> None:
    """Give this host another name."""


@hostname.command()
@order_options()
def check(**options: Any) -> int:
    """Look whether this server is reached under its new and its former names."""
    columns = [("url", field("url")), ("reached", _reached), ("why", field("problem"))]
    answer = Ordering(options).give("hostname.check", show_table("names", columns))
    return EXIT_REFUSED if any(name["problem"] for name in answer["names"]) else 0


def _reached(name: Answer) -> str:
    return "no" if name["problem"] else "yes"


@hostname.command()
@click.option("--handles", is_flag=True, help="Take handles to the new domain, too.")
@click.option("--account", "accounts", multiple=True, help="Only this DID; more than once.")
@click.option("--no-check", is_flag=True, help="Do not look first whether both names work.")
@click.option(
    "--patience",
    default=PATIENCE_S,
    show_default=True,
    help="Seconds without any progress after which to give up for now.",
)
@order_options(changes=True)
def move(accounts: tuple[str, ...], **options: Any) -> int:
    """Tell all identities that name this host by a former name the new one.

    Set PDS_HOSTNAME and PDS_FORMER_HOSTNAMES and start the server first. Nobody is moved twice:
    what was interrupted is finished by running it again.
    """
    logging.disable(logging.WARNING)  # What a server would note at its start is no answer.
    try:
        return asyncio.run(_move(accounts, options))
    except RequestError as error:
        raise click.ClickException(f"{error.message} ({error.name})") from error
    finally:
        logging.disable(logging.NOTSET)


async def _move(accounts: tuple[str, ...], options: Mapping[str, Any]) -> int:
    file: Path | None = options["file"]
    is_dry: bool = options["dry_run"]
    async with connect_admin(load_config(file=file), actor=whoami()) as admin:
        if not options["no_check"] and not is_dry:
            await _check_names(admin)
        if not is_dry:
            # Relays should follow the new name before identities point to it.
            await admin.call("event.request-crawl", {"note": options["note"]})
        fields = {"handles": options["handles"], "dryRun": is_dry, "note": options["note"]}
        mover = Mover(admin, fields, patience_s=options["patience"])
        with ExitStack() as stack:
            mover.show_on(stack.enter_context(_progress()))
            await mover.run(accounts)
        report = mover.report()
        if not is_dry:
            relays = await admin.call("event.request-crawl", {"note": options["note"]})
            report["relays"] = relays["relays"]
    if options["as_json"]:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _show(report, is_dry=is_dry)
    return exit_code(report)


async def _check_names(admin: AdminClient) -> None:
    answer = await admin.call("hostname.check", {})
    problems = [f"{name['url']}: {name['problem']}" for name in answer["names"] if name["problem"]]
    if problems:
        raise click.ClickException(
            "not every name leads to this server: " + "; ".join(problems) + ". Nothing was changed;"
            " --no-check moves all the same"
        )


class Mover:
    """Gives the orders until all accounts are done, and keeps what came of each."""

    def __init__(
        self,
        admin: AdminClient,
        fields: Mapping[str, Any],
        *,
        patience_s: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._admin = admin
        self._fields = dict(fields)
        self._patience_s = patience_s
        self._sleep = sleep
        self._waited_s = 0.0
        self._progress: Progress | None = None
        self.names: dict[str, Any] = {}
        self.found: dict[str, Answer] = {}

    def show_on(self, progress: Progress) -> None:
        """Show how far it is."""
        self._progress = progress
        progress.add_task("identities", total=None)

    async def run(self, dids: tuple[str, ...] = ()) -> None:
        """Go through the accounts, then again through those that could not be done yet.

        Raises: RequestError, RemoteError.
        """
        if dids:
            await self._go_through(list(dids))
        else:
            await self._go_through_all()
        while (later := self._later()) and await self._wait(RETRY_PAUSE_S):
            await self._go_through(later)

    async def _go_through_all(self) -> None:
        cursor: str | None = "0"
        while cursor is not None:
            answer = await self._order(cursor=cursor, limit=PER_ORDER)
            cursor = answer.get("cursor")
            if not await self._pause(answer):
                return

    async def _go_through(self, dids: list[str]) -> None:
        left = dids
        while left:
            answer = await self._order(accounts=left[:PER_ORDER])
            done = {entry["did"] for entry in answer["accounts"]}
            if "cursor" in answer:
                left = [did for did in left if did not in done]
            else:  # All of them; who is not in the answer is not here any more.
                left = left[PER_ORDER:]
            if not await self._pause(answer):
                return

    async def _order(self, **fields: Any) -> Answer:
        """Give one order; a server that is being started again is waited for."""
        while True:
            try:
                answer = await self._admin.call("hostname.move", {**self._fields, **fields})
                break
            except RemoteError:
                if not await self._wait(RETRY_PAUSE_S):
                    raise
        self.names = {"from": answer["from"], "to": answer["to"], "total": answer["total"]}
        for entry in answer["accounts"]:
            if entry["outcome"] != Outcome.LATER:
                self._waited_s = 0.0
            self.found[entry["did"]] = entry
        self._advance()
        return answer

    async def _pause(self, answer: Answer) -> bool:
        """Wait as long as the server wants; False when that has been too long in vain."""
        pause_s = answer["pauseMs"] / 1000
        if answer["stuck"]:
            return await self._wait(pause_s)
        if pause_s:
            await self._sleep(pause_s)
        return True

    async def _wait(self, pause_s: float) -> bool:
        if self._waited_s + pause_s > self._patience_s:
            self._waited_s = self._patience_s
            return False
        self._waited_s += pause_s
        await self._sleep(pause_s)
        return True

    def _later(self) -> list[str]:
        return [did for did, entry in self.found.items() if entry["outcome"] == Outcome.LATER]

    def _advance(self) -> None:
        if self._progress is not None:
            task = self._progress.task_ids[0]
            total = max(self.names["total"], len(self.found))
            done = len(self.found) - len(self._later())
            self._progress.update(task, completed=done, total=total)

    def report(self) -> dict[str, Any]:
        """Return what came of all."""
        entries = list(self.found.values())
        counts = {
            outcome.value: sum(entry["outcome"] == outcome for entry in entries)
            for outcome in Outcome
        }
        left = self._waited_s >= self._patience_s
        return {**self.names, "counts": counts, "gaveUp": left, "accounts": entries}


def exit_code(report: Mapping[str, Any]) -> int:
    """Return the code for a report; see the module."""
    counts = report["counts"]
    if report["gaveUp"] or counts[Outcome.LATER]:
        return EXIT_LATER
    if counts[Outcome.REFUSED] or any("conflict" in entry for entry in report["accounts"]):
        return EXIT_REFUSED
    return EXIT_OWNERS if counts[Outcome.OWNER] else 0


def _show(report: Mapping[str, Any], *, is_dry: bool) -> None:
    """Print what people have to know: each change in a rehearsal, else only what is left."""
    if is_dry:
        click.echo("Dry run: nothing was changed. It would be:")
    for entry in report["accounts"]:
        line = _line(entry, report["to"], is_dry=is_dry)
        if line is not None:
            click.echo(f"{entry['did']} ({entry.get('handle', 'no handle')}): {line}")
    counts = report["counts"]
    told = (f"{count} {name}" for name, count in counts.items() if count)
    click.echo(f"{report['to']}: {', '.join(told) or 'no accounts'}")
    if report["gaveUp"]:
        click.echo("The PLC directory or the server did not answer: run it again to go on")
    for relay in report.get("relays", ()):
        if not relay["accepted"]:
            click.echo(f"{relay['url']} did not take the new name: {relay['error']}")


def _line(entry: Answer, url: str, *, is_dry: bool) -> str | None:
    texts = [entry[name] for name in ("todo", "reason") if name in entry]
    if "conflict" in entry:
        texts.append(f"keeps its handle: {entry['conflict']}")
    match entry["outcome"]:
        case Outcome.MOVED if is_dry:
            handle = f", handle {entry['newHandle']}" if "newHandle" in entry else ""
            return "; ".join([f"to {url}{handle}", *texts])
        case Outcome.MOVED | Outcome.CURRENT:
            return "; ".join(texts) or None
        case Outcome.ELSEWHERE:
            return "; ".join(texts) if is_dry else None
        case outcome:
            return f"{outcome}: {'; '.join(texts)}"


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
