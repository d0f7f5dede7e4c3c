"""`pds migrate`: move accounts to this host or away from it; a server may run or not.

The work is done by the server (or in this process while none runs) and goes on when the command
ends: giving the same command again shows how far it is and goes on with what is missing. Every
problem has an exit code of its own, listed in docs/operate/moving.md.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from pds.app.orders import AdminClient, connect_admin
from pds.cli.migrate_bulk import read_rows, run_bulk
from pds.cli.migrate_oauth import needs_sign_in, wait_for_sign_in
from pds.cli.orders import whoami
from pds.cli.secret_input import read_lines, secret_option
from pds.config import load_config
from pds.errors import RequestError
from pds.services.migration_problems import EXIT_CODES, Code

POLL_S: Final = 0.3
PASSWORD_BYTES: Final = 12
BAR_WIDTH: Final = 24
OVER: Final = frozenset({"done", "undone"})
LOGIN_PROBLEMS: Final = frozenset({Code.LOGIN_NEEDED, Code.SIGN_IN_NEEDED})
CODE_PROBLEMS: Final = frozenset({Code.PLC_TOKEN_NEEDED, Code.PLC_TOKEN_REFUSED})

_CONFIG = click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the move as JSON at the end.")
_YES = click.option("--yes", is_flag=True, help="Do not ask before it begins.")


@click.group()
def migrate() -> None:
    """Move whole accounts to this host, or to another."""


@migrate.command("in")
@click.argument("account", required=False)
@click.option("--csv", "table", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="With --csv.")
@click.option("--ask-code", is_flag=True, help="Have the old host mail the code, and end.")
@click.option("--handle", help="Handle of the account here; kept where it can be.")
@click.option("--email", help="Address of the account here; as before when left out.")
@secret_option(
    "--invite-code",
    what="invite code",
    help="One is made when it is needed and left out.",
    is_harmless=True,
)
@secret_option(
    "--service-token",
    what="service token",
    help="Instead of a login at the old host: createAccount for us.",
)
@secret_option(
    "--sign-in-code", what="sign-in code", help="The code that the old host mails at a login."
)
@click.option("--password-stdin", is_flag=True, help="Lines: password there, password here.")
@click.option(
    "--oauth", is_flag=True, help="Sign in at the old host in a browser, not by its password here."
)
@secret_option(
    "--ended-at",
    what="address at which the browser ended",
    help="After a sign-in with --oauth, where the browser could not come back to this server.",
)
@secret_option(
    "--plc-token", what="code from the mail", help="The code that the old host has mailed."
)
@click.option("--operation", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--keep-active", is_flag=True, help="Do not deactivate the account there.")
@click.option("--keep-old-keys", is_flag=True, help="Keep the old host's rotation keys.")
@click.option("--accept-missing-blobs", is_flag=True, help="Go on without what cannot be had.")
@click.option("--dry-run", is_flag=True, help="Show what would move; change nothing.")
@_CONFIG
@_JSON
@_YES
def move_in(account: str | None, table: Path | None, report: Path | None, **options: Any) -> int:
    """Move ACCOUNT (a handle or DID) from its present host to this one.

    Its password there is asked for, used for one login, and kept nowhere. With --csv all accounts
    of a table with the columns account, password or service_token, and if wanted handle, email,
    new_password, invite_code and plc_token.

    With --oauth no password of the old host is needed: a link is shown, its owner signs in there in
    a browser and allows what a move needs, and the move goes on; --password-stdin then has one
    line, the password here.

    Secrets are no arguments: `-` asks for one, or reads a line of standard input; `@FILE` reads a
    file. Lines come in the order of the options, those of --password-stdin at the end.

    Exit codes: 0 done, 1 failed, 2 wrong settings or usage; 10 and more say what is needed next,
    and are listed in docs/operate/moving.md.
    """
    if (account is None) == (table is None):
        raise click.UsageError("give an ACCOUNT, or --csv FILE")
    if table is not None and (options["oauth"] or options["ended_at"]):
        raise click.UsageError("--oauth is for one account: a browser has to be at hand")
    if table is not None:
        report = report or table.with_suffix(".report.csv")
        rows = read_rows(table)
        return _run(
            options,
            lambda admin: run_bulk(admin, rows, report, asks_codes=options["ask_code"]),
        )
    return _run(options, lambda admin: _Talk(admin, options).move_in(str(account)))


@migrate.command("out")
@click.argument("account")
@click.argument("url")
@click.option("--handle", help="Handle at the new host; kept where it can be.")
@click.option("--email", help="Address at the new host; as here when left out.")
@secret_option(
    "--invite-code",
    what="invite code",
    help="Of the new host, if it wants one.",
    is_harmless=True,
)
@secret_option(
    "--sign-in-code", what="sign-in code", help="The code that the new host mails at a login."
)
@click.option("--password-stdin", is_flag=True, help="Lines: password there[, password here].")
@click.option("--operation", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--keep-active", is_flag=True, help="Do not deactivate the account here.")
@click.option("--keep-old-keys", is_flag=True, help="Keep our rotation keys.")
@click.option("--accept-missing-blobs", is_flag=True, help="Go on without what cannot be sent.")
@_CONFIG
@_JSON
@_YES
def move_out(account: str, url: str, **options: Any) -> int:
    """Move ACCOUNT from this host to the one at URL.

    Its owner's password here is the consent; with --yes it is the operator's. Secrets and exit
    codes are as with `pds migrate in`.
    """
    return _run(options, lambda admin: _Talk(admin, options).move_out(account, url))


@migrate.command()
@click.argument("account", required=False)
@click.option("--limit", default=50, show_default=True, help="Moves at most.")
@_CONFIG
@_JSON
def status(account: str | None, limit: int, **options: Any) -> int:
    """Show how far the move of ACCOUNT is, or list all moves."""

    async def show(admin: AdminClient) -> int:
        if account is not None:
            return _show(await admin.call("move.show", {"account": account}), options)
        answer = await admin.call("move.list", {"limit": limit})
        if options["as_json"]:
            click.echo(json.dumps(answer, indent=2))
            return 0
        for move in answer["moves"]:
            problem = (move.get("problem") or {}).get("code", "")
            click.echo(
                f"{move['did']}  {move['direction']:<3}  {move['status']:<7}  {move['step']:<11} "
                f" {move['handle'] or ''}  {problem}".rstrip()
            )
        return 0

    return _run(options, show)


@migrate.command()
@click.argument("account")
@_CONFIG
@_JSON
@_YES
def undo(account: str, **options: Any) -> int:
    """Undo the move of ACCOUNT, which must not be active at its new host yet."""

    async def act(admin: AdminClient) -> int:
        if not options["yes"]:
            await _confirm(f"Undo the move of {account}?")
        return _show(await admin.call("move.undo", {"account": account}), options)

    return _run(options, act)


def _run(options: Mapping[str, Any], act: Any) -> int:
    """Run one conversation with whoever carries out orders; return the exit code."""

    async def converse() -> int:
        async with connect_admin(load_config(file=options["file"]), actor=whoami()) as admin:
            return int(await act(admin))

    try:
        return asyncio.run(converse())
    except RequestError as error:
        click.echo(f"Error: {error.message}", err=True)
        return _exit_code(error.name)


def _exit_code(name: str) -> int:
    try:
        return EXIT_CODES[Code(name)]
    except ValueError:
        return 1


class _Talk:
    """One move as a conversation: what is needed is asked for when it is needed."""

    def __init__(self, admin: AdminClient, options: Mapping[str, Any]) -> None:
        self._admin = admin
        self._options = options
        self._lines = read_lines() if options["password_stdin"] else []
        self._plc_token: str | None = options.get("plc_token")
        self._made_password: str | None = None
        self._order: tuple[str, dict[str, Any]] | None = None
        self._shown = ""

    async def move_in(self, account: str) -> int:
        """Talk a move to its end, or to where somebody else has to act."""
        options = self._options
        fields = {
            "account": account,
            "handle": options["handle"],
            "email": options["email"],
            "inviteCode": options["invite_code"],
            "staysActiveThere": options["keep_active"],
            "keepsOldKeys": options["keep_old_keys"],
            **self._shared_fields(),
        }
        open_move = await self._find_open(account)
        if options["ended_at"] is not None:
            return await self._follow(
                await self._admin.call("move.finish-sign-in", {"url": options["ended_at"]})
            )
        if options["dry_run"]:
            plan = await self._admin.call(
                "move.plan-in", _told({"account": account, "handle": options["handle"]})
            )
            return self._show_plan(plan)
        if open_move is None:
            plan = await self._admin.call(
                "move.plan-in", _told({"account": account, "handle": options["handle"]})
            )
            self._show_plan(plan)
            if not options["yes"]:
                await _confirm("Move this account here?")
        if open_move is None or _needs_login(open_move) or self._lines:
            if options["oauth"]:
                fields["oauth"] = True
            if open_move is None or open_move["step"] == "open" or not options["oauth"]:
                fields |= await self._ask_passwords(str((open_move or plan)["did"]))
        return await self._follow(await self._start("move.start-in", fields))

    async def move_out(self, account: str, url: str) -> int:
        """Talk a move away from here to its end."""
        options = self._options
        fields = {
            "account": account,
            "url": url,
            "handle": options["handle"],
            "email": options["email"],
            "inviteCode": options["invite_code"],
            "staysActiveHere": options["keep_active"],
            "keepsOldKeys": options["keep_old_keys"],
            "yes": options["yes"],
            **self._shared_fields(),
        }
        open_move = await self._find_open(account)
        if open_move is None or _needs_login(open_move) or self._lines:
            fields["password"] = await self._ask("Password of the account at the new host", 0)
        if not options["yes"]:
            fields["ownerPassword"] = await self._ask("Password of the account here", 1)
        return await self._follow(await self._start("move.start-out", fields))

    def _shared_fields(self) -> dict[str, Any]:
        options = self._options
        operation: Path | None = options["operation"]
        return {
            "serviceToken": options.get("service_token"),
            "authFactorToken": options.get("sign_in_code"),
            "acceptsMissing": options["accept_missing_blobs"],
            "operation": None if operation is None else operation.read_text("utf-8"),
        }

    async def _find_open(self, account: str) -> dict[str, Any] | None:
        try:
            move = await self._admin.call("move.show", {"account": account})
        except RequestError:
            return None
        return None if move["status"] in OVER else move

    async def _ask_passwords(self, did: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        lines = self._lines if self._options["oauth"] else self._lines[1:]
        if self._options["service_token"] is None and not self._options["oauth"]:
            fields["password"] = await self._ask(f"Password of {did} at its present host", 0)
        new = lines[0] if lines else ""
        if not new and sys.stdin.isatty():
            new = await asyncio.to_thread(
                click.prompt,
                "Password for it here (empty: one is made)",
                default="",
                hide_input=True,
                confirmation_prompt=True,
                show_default=False,
                err=True,
            )
        if not new:
            new = self._made_password = secrets.token_urlsafe(PASSWORD_BYTES)
        fields["newPassword"] = new
        return fields

    async def _ask(self, text: str, line: int) -> str:
        if len(self._lines) > line:
            return self._lines[line]
        if not sys.stdin.isatty():
            raise RequestError(Code.PASSWORD_NEEDED, f"{text} is needed: use --password-stdin")
        return str(await asyncio.to_thread(click.prompt, text, hide_input=True, err=True))

    async def _start(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._order = (name, fields)
        try:
            return await self._admin.call(name, _told(fields))
        except RequestError as error:
            if error.name != Code.AUTH_FACTOR_NEEDED or not sys.stdin.isatty():
                raise
        fields["authFactorToken"] = await asyncio.to_thread(
            click.prompt, "Sign-in code from the mail", err=True
        )
        return await self._admin.call(name, _told(fields))

    async def _follow(self, move: dict[str, Any]) -> int:
        """Show how the move goes until it stops; give it the code when it needs one."""
        while True:
            self._show_progress(move)
            if move["status"] == "running":
                await asyncio.sleep(POLL_S)
                move = await self._admin.call("move.show", {"account": move["did"]})
                continue
            if needs_sign_in(move) and self._order is not None:
                self._end_line()
                after = await wait_for_sign_in(self._admin, move)
                move = await self._start(*self._order) if after is None else after
                if after is None or not needs_sign_in(move):
                    continue
            problem = move.get("problem") or {}
            if move["status"] == "waiting" and problem.get("code") in CODE_PROBLEMS:
                code = await self._get_code(move, problem)
                if code is not None:
                    move = await self._admin.call(
                        "move.go-on", {"account": move["did"], "plcToken": code}
                    )
                    continue
            self._end_line()
            if self._made_password is not None:
                click.echo(f"Password here: {self._made_password}", err=True)
            return _show(move, self._options)

    async def _get_code(self, move: Mapping[str, Any], problem: Mapping[str, Any]) -> str | None:
        """Return the code from the mail, if somebody is there to read it."""
        if self._plc_token is not None:
            code, self._plc_token = self._plc_token, None
            return code
        if move["direction"] != "in" or not (sys.stdin.isatty() or self._options["ask_code"]):
            return None
        self._end_line()
        click.echo(f"{problem['message']}.", err=True)
        await self._admin.call("move.go-on", {"account": move["did"], "requestsToken": True})
        if not sys.stdin.isatty():
            return None
        answer = await asyncio.to_thread(
            click.prompt, "Code from the mail (empty: later)", default="", show_default=False,
            err=True,
        )  # fmt: skip
        return str(answer).strip() or None

    def _show_progress(self, move: Mapping[str, Any]) -> None:
        text = _progress(move)
        if text == self._shown:
            return
        self._shown = text
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        else:
            click.echo(text, err=True)

    def _end_line(self) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("", err=True)
        self._shown = ""

    def _show_plan(self, plan: Mapping[str, Any]) -> int:
        if self._options["as_json"]:
            if self._options["dry_run"]:
                click.echo(json.dumps(plan, indent=2))
            return 0
        content = plan["content"]
        about = "" if content["isComplete"] else "at least "
        click.echo(f"{plan['did']}  {plan['oldHandle']} -> {plan['handle']}")
        click.echo(f"from      {plan['oldHost']}")
        click.echo(f"to        {plan['newHost']}")
        click.echo(f"records   {about}{content['records']} ({content['repoBytes']:,} bytes)")
        for kind, count in content["recordsByType"].items():
            click.echo(f"          {count:>8}  {kind}")
        click.echo(f"blobs     {about}{content['blobs']} ({content['blobBytes']:,} bytes)")
        for key in plan["rotationKeys"] or []:
            click.echo(f"key       {key}")
        for warning in plan["warnings"]:
            click.echo(f"! {warning}")
        return 0


def _needs_login(move: Mapping[str, Any]) -> bool:
    problem = move.get("problem") or {}
    return move["step"] == "open" or problem.get("code") in LOGIN_PROBLEMS


def _progress(move: Mapping[str, Any]) -> str:
    """One line: the step, a bar while blobs are copied, and what is wrong."""
    progress = move["progress"]
    text = f"[{move['stepNumber']}/{move['stepCount']}] {move['step'].replace('_', ' ')}"
    if move["step"] == "blobs" and progress["blobsExpected"]:
        done, total = progress["blobsCopied"], progress["blobsExpected"]
        filled = BAR_WIDTH * min(done, total) // total
        text += f" {'#' * filled}{'.' * (BAR_WIDTH - filled)} {done}/{total}"
    elif progress["records"]:
        text += f", {progress['records']} records, {progress['blobsCopied']} blobs"
    problem = move.get("problem")
    if problem is not None:
        text += f" - {problem['message']}"
    return text


def _show(move: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Print how a move stands and return the exit code for it."""
    problem = move.get("problem")
    code = 0 if problem is None else _exit_code(problem["code"])
    if move["status"] == "running":
        code = 0
    if options["as_json"]:
        click.echo(json.dumps(move, indent=2))
        return code
    progress = move["progress"]
    click.echo(f"{move['did']}  move {move['direction']}: {move['status']} (step {move['step']})")
    click.echo(
        f"{progress['records']} records, {progress['blobsCopied']} of"
        f" {progress['blobsExpected']} blobs, {progress['preferences'] or 0} preferences"
    )
    for kind, keys in (move.get("rotationKeys") or {}).items():
        for key in keys:
            click.echo(f"rotation key {kind}: {key}")
    for sight in move.get("seenBy") or []:
        click.echo(f"{sight['service']}: {sight['detail']}")
    for warning in move["warnings"]:
        click.echo(f"! {warning}")
    if move.get("document") is not None and move["status"] == "waiting":
        click.echo(json.dumps(move["document"], indent=2))
    if move.get("signIn") is not None:
        click.echo(f"sign in: {move['signIn']['url']}")
    if problem is not None:
        click.echo(f"{problem['message']}.", err=True)
        click.echo(f"Next: {problem['nextStep']}", err=True)
    return code


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, False)}


async def _confirm(text: str) -> None:
    await asyncio.to_thread(click.confirm, text, abort=True, err=True)
