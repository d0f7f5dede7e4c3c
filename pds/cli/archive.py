"""`pds archive`: an account in one file, written, checked, and taken in again.

Exit codes of `verify`: 0 sound and complete, 3 sound but with blobs missing, 1 damaged or no
archive, 2 wrong usage.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import click

from pds.cli.orders import Answer, Ordering, order_options, show_fields
from pds.errors import ProtocolError
from pds.services.archive_check import ArchiveReport, check_archive, is_encrypted

EXIT_DAMAGED: Final = 1
EXIT_INCOMPLETE: Final = 3
SHOWN_MISSING: Final = 20

FILE = click.Path(path_type=Path, dir_okay=False)
PASSPHRASE_FILE = click.option(
    "--passphrase-file", type=FILE, help="File with the passphrase; asked for when left out."
)


@click.group()
def archive() -> None:
    """Accounts in one file each: for safekeeping, and for other hosts."""


@archive.command()
@click.argument("account")
@click.option("--output", type=FILE, help="File to write; DID.tar or DID.tar.age when left out.")
@click.option("--encrypt", is_flag=True, help="Encrypt to a passphrase (the format of `age`).")
@click.option("--with-preferences", is_flag=True, help="Put private preferences in, too.")
@PASSPHRASE_FILE
@order_options()
def create(
    account: str,
    output: Path | None,
    *,
    encrypt: bool,
    with_preferences: bool,
    passphrase_file: Path | None,
    **options: Any,
) -> None:
    """Write the archive of ACCOUNT: repo, blobs, and the log of its identity.

    Nothing private is in it unless preferences are asked for, and never anything secret. The file
    is written by the server, on its machine.
    """
    passphrase = None
    if encrypt or passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file, is_new=True)
    if output is None:
        shown = Ordering({**options, "as_json": False}).give(
            "account.show", lambda _answer: None, account=account
        )
        output = Path(str(shown["did"]).replace(":", "-") + (".tar.age" if passphrase else ".tar"))
    Ordering(options).give(
        "archive.create",
        _show_written,
        account=account,
        path=str(output.absolute()),
        passphrase=passphrase,
        preferences=with_preferences,
    )


@archive.command()
@click.argument("file", type=FILE)
@PASSPHRASE_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(file: Path, *, passphrase_file: Path | None, as_json: bool) -> int:
    """Check an archive without a network or a server: every hash, signature and block.

    Exit code 0: sound and complete. 3: sound, but blobs are missing. 1: damaged.
    """
    try:
        passphrase = passphrase_of(file, passphrase_file)
        report = check_archive(file, passphrase=passphrase)
    except ProtocolError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _show_report(report)
    if not report.is_sound:
        return EXIT_DAMAGED
    return EXIT_INCOMPLETE if report.missing else 0


@archive.command("import")
@click.argument("source", metavar="FILE", type=FILE)
@click.option("--handle", required=True, help="Handle that the account shall have here.")
@click.option("--email", required=True, help="Mail address of its holder.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@PASSPHRASE_FILE
@order_options()
def import_(
    source: Path,
    handle: str,
    email: str,
    *,
    password_stdin: bool,
    passphrase_file: Path | None,
    **options: Any,
) -> None:
    """Open the account of an archive here, deactivated, with all that is in the archive.

    Its identity still names another host: change that there as in a move, or with the owner's
    recovery key (`pds rescue start`), then activate the account.
    """
    passphrase = passphrase_of(source, passphrase_file)
    Ordering(options).give(
        "archive.import",
        show_fields,
        archive=str(source.absolute()),
        passphrase=passphrase,
        handle=handle,
        email=email,
        password=read_password(from_stdin=password_stdin),
    )


def passphrase_of(file: Path, passphrase_file: Path | None) -> str | None:
    """Return the passphrase of an archive, None for one that is not encrypted."""
    try:
        if not is_encrypted(file):
            return None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from error
    return read_passphrase(passphrase_file)


def read_passphrase(file: Path | None, *, is_new: bool = False) -> str:
    """Return a passphrase from a file, or ask for it."""
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{file} cannot be read: {error}") from error
        if not text:
            raise click.UsageError(f"there is no passphrase in {file}")
        return text
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True))


def read_password(*, from_stdin: bool) -> str:
    """Return the password that an account shall have."""
    if not from_stdin:
        return str(
            click.prompt(
                "Password for the account", hide_input=True, confirmation_prompt=True, err=True
            )
        )
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise click.UsageError("there is no password on standard input")
    return password


def _show_written(answer: Answer) -> None:
    click.echo(
        f"{answer['path']}: {answer['bytes']:,} bytes, rev {answer['rev']},"
        f" {answer['blobs']} blobs, {answer['missingBlobs']} missing"
        + (", encrypted" if answer["encrypted"] else "")
    )


def _show_report(report: ArchiveReport) -> None:
    manifest = report.manifest
    if manifest is not None:
        click.echo(f"account   {manifest.did} (@{manifest.handle})")
        click.echo(f"from      {manifest.host}, {manifest.created_at}")
        click.echo(f"repo      rev {manifest.rev}, {report.records:,} records")
    click.echo(f"blobs     {report.blobs:,}, {report.blob_bytes:,} bytes")
    for note in report.notes:
        click.echo(f"note      {note}")
    for cid in report.missing[:SHOWN_MISSING]:
        click.echo(f"missing   {cid}")
    if len(report.missing) > SHOWN_MISSING:
        click.echo(f"missing   and {len(report.missing) - SHOWN_MISSING} more")
    for problem in report.problems:
        click.echo(f"WRONG     {problem}")
    state = "sound and complete" if not report.missing else "sound, with blobs missing"
    click.echo(f"The archive is {state if report.is_sound else 'damaged'}.")
