"""Secrets that commands need: asked for at a terminal, a line of standard input, or a file.

A secret is never an argument: whoever may list processes reads arguments, and shells keep them. An
option for a secret takes `-` (asks, or reads one line of standard input) or `@FILE`; anything else
is refused with that advice, exit code 2. Several lines of standard input come in the order in which
the options stand on the command line; then those that the command asks for by itself, in the order
that its help names. Only what is harmless to others (an invite code) may also be an argument.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import click

F = TypeVar("F", bound=Callable[..., Any])

ASK: Final = "-"
FROM_FILE: Final = "@"
FILE: Final = click.Path(path_type=Path, dir_okay=False)
PASSPHRASE_FILE: Final = click.option(
    "--passphrase-file",
    type=FILE,
    help="File with the passphrase, `-` for a line of standard input; asked for when left out.",
)
PASSWORD_STDIN: Final = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input."
)


def secret_option(
    name: str, *, what: str, help: str, is_harmless: bool = False
) -> Callable[[F], F]:
    """Return an option for a secret; the command gets the secret itself."""
    metavar = "-|@FILE|TEXT" if is_harmless else "-|@FILE"

    def read(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
        if value is None or ctx.resilient_parsing:
            return None
        if value == ASK:
            return read_line(what)
        if value.startswith(FROM_FILE):
            return read_secret_file(Path(value.removeprefix(FROM_FILE)), what)
        if is_harmless:
            return value
        raise click.UsageError(
            f"{name} takes no secret as an argument: others on this machine can read arguments, and"
            f" shells keep them. Give `{name} -` (asks for it, or reads a line of standard input)"
            f" or `{name} @FILE`."
        )

    return click.option(name, metavar=metavar, callback=read, help=help)


def ask_secret(what: str, *, is_new: bool = False, otherwise: str | None = None) -> str:
    """Ask at the terminal; `otherwise` is what to do without one.

    Raises: UsageError when there is no terminal.
    """
    if not _is_terminal():
        raise click.UsageError(
            f"there is no terminal to ask for {_the(what)}"
            + (f": {otherwise}" if otherwise else "")
        )
    prompt = what[:1].upper() + what[1:]
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=is_new, err=True))


def read_line(what: str) -> str:
    """Return the next line of standard input; at a terminal it is asked for, and not seen.

    Raises: UsageError when there is none.
    """
    if _is_terminal():
        return ask_secret(what)
    text = sys.stdin.readline().rstrip("\r\n")
    if not text:
        raise click.UsageError(
            f"there is no {what} on standard input: give it as a line of its own"
        )
    return text


def read_lines() -> list[str]:
    """Return what is left of standard input, line by line; a terminal is asked when it is time."""
    if _is_terminal():
        return []
    return [line.rstrip("\r\n") for line in sys.stdin]


def read_secret_file(file: Path, what: str) -> str:
    """Return the one line of a file. Raises: ClickException, UsageError."""
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read: {_reason(error)}") from error
    if not text:
        raise click.UsageError(f"there is no {what} in {file}")
    return text


def read_passphrase(file: Path | None, *, is_new: bool = False) -> str:
    """Return a passphrase from a file (`-` is a line of standard input), or ask for it."""
    if file is None:
        return ask_secret("passphrase", is_new=is_new, otherwise="use --passphrase-file FILE")
    return read_line("passphrase") if str(file) == ASK else read_secret_file(file, "passphrase")


def read_password(*, from_stdin: bool) -> str:
    """Return the password that an account shall have."""
    if from_stdin:
        return read_line("password")
    return ask_secret("password for the account", is_new=True, otherwise="use --password-stdin")


def read_url(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Take a URL that may hold a password: then not from an argument. A callback for options."""
    if value == ASK:
        return read_line("URL")
    parts = urlsplit(value)
    if parts.password or "password" in parse_qs(parts.query):
        raise click.UsageError(
            "a URL with a password is no argument: others on this machine can read arguments. Leave"
            " the password out (PGPASSWORD or ~/.pgpass may have it), or give `-` and then the URL"
            " as a line of standard input."
        )
    return value


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _the(what: str) -> str:
    return what if what.startswith("the ") else f"the {what}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
