"""`pds archive`: an account in one file, written, checked, found again, and taken in.

Where a command takes an archive, it takes a file or the `s3://` address of one in the bucket of the
settings. Exit codes of `verify`: 0 sound and complete, 3 sound but with blobs missing, 1 damaged or
no archive, 2 wrong usage.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from pds.app.archive_places import kept_archives
from pds.cli.orders import Answer, Ordering, field, order_options, show_fields, show_table
from pds.cli.secret_input import (
    FILE,
    PASSPHRASE_FILE,
    PASSWORD_STDIN,
    read_passphrase,
    read_password,
)
from pds.config import Config, load_config
from pds.errors import ProtocolError, RequestError
from pds.services.archive_check import ArchiveReport, check_archive, is_encrypted
from pds.services.archive_keeping import IN_BUCKET, KeptArchive, KeptArchives, newest_of_each

EXIT_DAMAGED: Final = 1
EXIT_INCOMPLETE: Final = 3
SHOWN_MISSING: Final = 20

CONFIG: Final = click.option("--config", type=FILE, help="Settings file (TOML).")


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
@click.argument("source", metavar="FILE|S3-ADDRESS")
@PASSPHRASE_FILE
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(source: str, *, passphrase_file: Path | None, config: Path | None, as_json: bool) -> int:
    """Check an archive without a server: every hash, signature and block.

    A file needs no network and no settings; an `s3://` address is fetched with those of the bucket.

    Exit code 0: sound and complete. 3: sound, but blobs are missing. 1: damaged, or not to be read.
    """
    passphrase = passphrase_of(source, passphrase_file, config)
    kept = kept_archives(load_config(file=config)) if source.startswith(IN_BUCKET) else None
    with told():
        report = asyncio.run(_check(source, passphrase, kept))
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _show_report(report)
    if not report.is_sound:
        return EXIT_DAMAGED
    return EXIT_INCOMPLETE if report.missing else 0


async def _check(source: str, passphrase: str | None, kept: KeptArchives | None) -> ArchiveReport:
    if kept is None:
        return check_archive(Path(source), passphrase=passphrase)
    async with kept.at_hand(source) as file:
        return await asyncio.to_thread(check_archive, file, passphrase=passphrase)


@archive.command("import")
@click.argument("source", metavar="FILE|S3-ADDRESS")
@click.option("--handle", required=True, help="Handle that the account shall have here.")
@click.option("--email", required=True, help="Mail address of its holder.")
@PASSWORD_STDIN
@PASSPHRASE_FILE
@order_options()
def import_(
    source: str,
    handle: str,
    email: str,
    *,
    password_stdin: bool,
    passphrase_file: Path | None,
    **options: Any,
) -> None:
    """Open the account of an archive here, deactivated, with all that is in the archive.

    Its identity still names another host: change that there as in a move, or with the owner's
    recovery key (`pds rescue start`), then activate the account. Lines of standard input, if
    options want them there: passphrase, password.
    """
    passphrase = passphrase_of(source, passphrase_file, options["file"])
    Ordering(options).give(
        "archive.import",
        show_fields,
        archive=located(source),
        passphrase=passphrase,
        handle=handle,
        email=email,
        password=read_password(from_stdin=password_stdin),
    )


@archive.command()
@order_options()
def keep(**options: Any) -> int:
    """Write the archives that are due into the bucket and the folder of the settings, now.

    The server does the same on a schedule (PDS_ARCHIVE_INTERVAL_S); this shows at once whether the
    settings work. Exit code 1 when something could not be written; the log says why.
    """
    answer = Ordering(options).give("archive.keep", show_fields)
    return 1 if answer["failed"] else 0


@archive.command("list")
@click.argument("did", required=False)
@click.option(
    "--handles", is_flag=True, help="Look into the newest of each account for its handle."
)
@PASSPHRASE_FILE
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_(
    did: str | None,
    *,
    handles: bool,
    passphrase_file: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """List the archives in the bucket and the folder of the settings, or only those of DID.

    Neither a server nor its database is needed: the settings PDS_ARCHIVE_* on any machine will do.
    """
    settings = load_config(file=config)
    kept = kept_archives(settings)
    with told():
        found = asyncio.run(kept.list(did))
        names: dict[str, str] = {}
        if handles:
            some = any(one.is_encrypted for one in found)
            phrase = _kept_passphrase(settings, passphrase_file) if some else None
            names = asyncio.run(_find_handles(kept, newest_of_each(found), phrase))
    rows = [{**one.to_json(), "handle": names.get(one.did)} for one in found]
    if as_json:
        click.echo(json.dumps({"archives": rows}, indent=2, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"There are no archives in {kept.places}.", err=True)
        return
    columns = ["did", *(["handle"] if handles else []), "changedAt", "bytes", "address"]
    show_table("archives", [(name, field(name)) for name in columns])({"archives": rows})


@archive.command()
@click.argument("account")
@click.option(
    "--to", "target", type=FILE, help="File to write; as it is named there when left out."
)
@PASSPHRASE_FILE
@CONFIG
def fetch(
    account: str, *, target: Path | None, passphrase_file: Path | None, config: Path | None
) -> None:
    """Fetch an archive from the bucket or the folder of the settings: the newest one of ACCOUNT.

    ACCOUNT is a DID, a handle, or an address as `pds archive list` shows them. No server is needed.
    """
    settings = load_config(file=config)
    kept = kept_archives(settings)
    with told():
        if account.startswith(IN_BUCKET):
            one = asyncio.run(kept.find(account))
        else:
            one = asyncio.run(_newest(kept, account, settings, passphrase_file))
        target = target or Path(one.stored.name)
        size = asyncio.run(kept.fetch(one, target))
    click.echo(f"{target}: {size:,} bytes, {one.did} as of rev {one.rev}")
    click.echo(
        "Check it with `pds archive verify`; `pds rescue start` brings the account here.", err=True
    )


async def _newest(
    kept: KeptArchives, account: str, settings: Config, passphrase_file: Path | None
) -> KeptArchive:
    if account.startswith("did:"):
        return await kept.newest(account)
    some = any(one.is_encrypted for one in await kept.list())
    return await kept.newest(account, _kept_passphrase(settings, passphrase_file) if some else None)


async def _find_handles(
    kept: KeptArchives, found: list[KeptArchive], passphrase: str | None
) -> dict[str, str]:
    names = {}
    for one in found:
        try:
            names[one.did] = str((await kept.read_account(one, passphrase)).get("handle") or "")
        except ProtocolError as error:
            names[one.did] = f"({error})"
    return names


def _kept_passphrase(settings: Config, file: Path | None) -> str:
    """Return the passphrase of scheduled archives: given, that of the settings, or asked for."""
    if file is None and settings.archives.passphrase:
        return settings.archives.passphrase
    return read_passphrase(file)


def passphrase_of(source: str, file: Path | None, config: Path | None) -> str | None:
    """Return the passphrase of an archive, None for one that is not encrypted.

    `source` is a file or an `s3://` address; those in the bucket have the passphrase of the
    settings, unless another is given. Raises: ClickException.
    """
    if source.startswith(IN_BUCKET):
        is_open = not source.endswith(".age")
        return None if is_open else _kept_passphrase(load_config(file=config), file)
    try:
        if not is_encrypted(Path(source)):
            return None
    except OSError as error:
        raise click.ClickException(
            f"{source} cannot be read: {error.strerror}. `pds archive list` shows what the bucket"
            " and the folder of the settings hold"
        ) from error
    return read_passphrase(file)


def located(source: str) -> str:
    """Make a path one that the server understands; addresses and URLs stay."""
    return source if "://" in source else str(Path(source).absolute())


@contextmanager
def told() -> Iterator[None]:
    """Say what services refuse, or find wrong, as a message of the command."""
    try:
        yield
    except RequestError as error:
        raise click.ClickException(error.message) from error
    except ProtocolError as error:
        raise click.ClickException(str(error)) from error


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
