"""Many moves at once, from a table; what came of each is in a report that is always up to date.

The same table may be given again: accounts that have moved are left alone, others go on. So a first
run copies everything, and a second one, with the codes filled in, switches. How fast accounts are
switched is the server's to say (PDS_MIGRATION_SWITCHES_PER_HOUR).
"""

import asyncio
import csv
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from pds.app.orders import AdminClient
from pds.errors import RequestError
from pds.services.migration_problems import EXIT_CODES, Code

POLL_S: Final = 1.0
PASSWORD_BYTES: Final = 12
COLUMNS: Final = (
    "account",
    "password",
    "service_token",
    "handle",
    "email",
    "new_password",
    "invite_code",
    "plc_token",
)
REPORTED: Final = (
    "account",
    "did",
    "status",
    "step",
    "code",
    "message",
    "next_step",
    "records",
    "blobs",
    "blobs_gone",
    "warnings",
    "new_password",
)
WORDS: Final = ("message", "next_step", "warnings")
"""Columns in which words of other hosts may stand."""
_FIELDS: Final = {
    "account": "account",
    "password": "password",
    "service_token": "serviceToken",
    "handle": "handle",
    "email": "email",
    "new_password": "newPassword",
    "invite_code": "inviteCode",
}


@dataclass(slots=True)
class BulkRow:
    """One line of the table and what came of it."""

    given: dict[str, str]
    outcome: dict[str, Any] = field(default_factory=dict)
    is_running: bool = False

    @property
    def account(self) -> str:
        """Whose account."""
        return self.given["account"]


def read_rows(file: Path) -> list[BulkRow]:
    """Read the table. Raises: UsageError for unknown columns and lines without account."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        names = tuple(reader.fieldnames or ())
        unknown = set(names) - set(COLUMNS)
        if "account" not in names or unknown:
            raise click.UsageError(
                f"{file} needs a first line with column names out of: {', '.join(COLUMNS)}"
            )
        rows = []
        for line in reader:
            given = {name: (line.get(name) or "").strip() for name in names}
            if not given["account"]:
                raise click.UsageError(f"{file}: line {reader.line_num} has no account")
            rows.append(BulkRow({name: text for name, text in given.items() if text}))
        return rows


async def run_bulk(
    admin: AdminClient, rows: Sequence[BulkRow], report: Path, *, asks_codes: bool
) -> int:
    """Start or go on with all moves and follow them; return the exit code.

    0 when all are done; that of `plc_token_needed` when codes are all that is missing; else 1.
    """
    for row in rows:
        await _start(admin, row, asks_codes=asks_codes)
        _write(report, rows)
        _say(row)
    while any(row.is_running for row in rows):
        await asyncio.sleep(POLL_S)
        for row in rows:
            if row.is_running:
                await _look(admin, row, asks_codes=asks_codes)
                if not row.is_running:
                    _say(row)
        _write(report, rows)
    click.echo(f"{sum(_is_done(row) for row in rows)} of {len(rows)} moved; see {report}")
    if all(_is_done(row) for row in rows):
        return 0
    codes = {row.outcome.get("code") for row in rows if not _is_done(row)}
    return EXIT_CODES[Code.PLC_TOKEN_NEEDED] if codes == {Code.PLC_TOKEN_NEEDED.value} else 1


async def _start(admin: AdminClient, row: BulkRow, *, asks_codes: bool) -> None:
    given = row.given
    try:
        known = await _find(admin, row.account)
        if known is not None and known["status"] == "done":
            _take(row, known)
            return
        fields = {_FIELDS[name]: text for name, text in given.items() if name in _FIELDS}
        is_staged = known is not None and known["status"] != "undone" and known["step"] != "open"
        if is_staged and (known or {}).get("problem", {}).get("code") != Code.LOGIN_NEEDED:
            for name in ("password", "serviceToken", "newPassword"):
                fields.pop(name, None)  # What is needed once has been given.
        elif "newPassword" not in fields:
            fields["newPassword"] = secrets.token_urlsafe(PASSWORD_BYTES)
            row.outcome["new_password"] = fields["newPassword"]
        move = await admin.call("move.start-in", fields)
        if given.get("plc_token") and move["step"] == "approve" and move["status"] != "running":
            move = await admin.call(
                "move.go-on", {"account": move["did"], "plcToken": given["plc_token"]}
            )
        _take(row, move)
    except RequestError as error:
        row.outcome |= {"status": "failed", "code": error.name, "message": error.message}
        row.is_running = False
        return
    if not row.is_running:
        await _ask_code(admin, row, asks_codes=asks_codes)


async def _look(admin: AdminClient, row: BulkRow, *, asks_codes: bool) -> None:
    move = await admin.call("move.show", {"account": row.outcome["did"]})
    token = row.given.get("plc_token")
    is_waiting = move["status"] == "waiting" and move["step"] == "approve"
    if is_waiting and token and (move.get("problem") or {}).get("code") == Code.PLC_TOKEN_NEEDED:
        row.given.pop("plc_token")
        move = await admin.call("move.go-on", {"account": move["did"], "plcToken": token})
    _take(row, move)
    if not row.is_running:
        await _ask_code(admin, row, asks_codes=asks_codes)


async def _ask_code(admin: AdminClient, row: BulkRow, *, asks_codes: bool) -> None:
    if asks_codes and row.outcome.get("code") == Code.PLC_TOKEN_NEEDED:
        try:
            await admin.call("move.go-on", {"account": row.outcome["did"], "requestsToken": True})
        except RequestError as error:
            row.outcome["message"] = error.message


async def _find(admin: AdminClient, account: str) -> dict[str, Any] | None:
    try:
        return await admin.call("move.show", {"account": account})
    except RequestError as error:
        if error.name == "NotFound":
            return None
        raise


def _take(row: BulkRow, move: dict[str, Any]) -> None:
    problem, progress = move.get("problem") or {}, move["progress"]
    row.is_running = move["status"] == "running"
    row.outcome |= {
        "did": move["did"],
        "status": move["status"],
        "step": move["step"],
        "code": problem.get("code", ""),
        "message": problem.get("message", ""),
        "next_step": problem.get("nextStep", ""),
        "records": progress["records"],
        "blobs": progress["blobsCopied"],
        "blobs_gone": progress["blobsGone"],
        "warnings": " | ".join(move["warnings"]),
    }


def _is_done(row: BulkRow) -> bool:
    return row.outcome.get("status") == "done"


def _say(row: BulkRow) -> None:
    outcome = row.outcome
    text = f"{row.account}: {outcome.get('status')} {outcome.get('code', '')}".rstrip()
    click.echo(text, err=True)


def as_cell(text: str) -> str:
    """Return a text that no program for tables takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _write(report: Path, rows: Sequence[BulkRow]) -> None:
    """Write the report anew; only its owner may read it: it may hold passwords that were made."""
    unfinished = report.with_name(report.name + ".new")
    unfinished.unlink(missing_ok=True)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, REPORTED, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            told = {name: as_cell(row.outcome.get(name, "")) for name in WORDS}
            writer.writerow({"account": row.account, **row.outcome, **told})
    unfinished.replace(report)
