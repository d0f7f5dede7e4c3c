"""`pds rescue`: an account comes here without its old host, or an identity is taken back.

Both need a rotation key of the owner's in the end (see `pds key create`). It is read by this
command from the kit or as words, signs one operation in this process, and goes nowhere.
"""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from pds.app.archive_places import kept_archives
from pds.app.elsewhere import rescue_elsewhere
from pds.cli.archive import CONFIG, located, passphrase_of, told
from pds.cli.orders import Answer, Ordering, order_options, show_fields
from pds.cli.recovery_kit import read_signer
from pds.cli.secret_input import (
    FILE,
    PASSPHRASE_FILE,
    PASSWORD_STDIN,
    read_password,
    secret_option,
)
from pds.config import load_config
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.keys import Signer
from pds.protocol.plc import sign_operation
from pds.services.archive_keeping import IN_BUCKET, KeptArchives
from pds.services.migration_problems import MoveProblem
from pds.services.rescue_elsewhere import Outcome, Wish, check_host_url

PUBLIC_PLC: Final = "https://plc.directory"

KIT = click.option(
    "--kit",
    type=FILE,
    help="Kit of the recovery key; its words are asked for (or read from standard input) when left"
    " out.",
)


@click.group()
def rescue() -> None:
    """Accounts whose host is dead or hostile, and identities that somebody else has changed."""


@rescue.command()
@click.argument("did", required=False)
@click.option("--archive", metavar="FILE|S3-ADDRESS", help="Archive of the account.")
@click.option("--repo", metavar="FILE|URL", help="CAR of the repo, instead of an archive.")
@click.option("--blobs", metavar="FOLDER|URL", help="The blobs: files, or a PDS that has them.")
@click.option("--from", "source", metavar="URL", help="URL of a PDS to take repo and blobs from.")
@click.option("--handle", required=True, help="Handle that the account shall have here.")
@click.option("--email", required=True, help="Mail address of its holder.")
@PASSWORD_STDIN
@click.option("--keep-key", "keep", multiple=True, help="did:key of a further key of the owner's.")
@click.option("--yes", is_flag=True, help="Do not ask before the identity is changed.")
@KIT
@PASSPHRASE_FILE
@order_options()
def start(
    did: str | None,
    *,
    archive: str | None,
    repo: str | None,
    blobs: str | None,
    source: str | None,
    handle: str,
    email: str,
    password_stdin: bool,
    keep: tuple[str, ...],
    yes: bool,
    kit: Path | None,
    passphrase_file: Path | None,
    **options: Any,
) -> None:
    """Bring an account here with the owner's recovery key; its old host is not asked.

    The account comes from an archive, or from a CAR and a folder of blobs, or from another PDS;
    with the DID alone, from its newest archive in the bucket (or folder) of the settings. All of it
    is verified against the PLC log of the identity. Then the identity is changed so that it names
    this host, keys of the old host go out of it, and the account is active. Run it again when
    something was in the way.

    Asked for, or lines of standard input, in this order: passphrase (--passphrase-file -), password
    (--password-stdin), words of the key (without --kit).

    Exit codes: 0 active, 1 refused or failed, 2 wrong settings or usage, 130 interrupted or not
    confirmed.
    """
    if source is not None:
        repo = repo or f"{source.rstrip('/')}/xrpc/com.atproto.sync.getRepo?did={did}"
        blobs = blobs or source
    if did is None and archive is None:
        raise click.UsageError(
            "name an --archive (a file or an s3:// address), or the DID of the account: alone if"
            " its archive is in the bucket of the settings, else with --repo or --from"
        )
    if archive is None and repo is None:
        archive = _newest_archive(str(did), options["file"])
    passphrase = None
    if archive is not None:
        passphrase = passphrase_of(archive, passphrase_file, options["file"])
    password = read_password(from_stdin=password_stdin)
    signer = read_signer(kit)
    prepared = Ordering({**options, "as_json": False}).give(
        "rescue.prepare",
        _show_prepared,
        did=did,
        archive=None if archive is None else located(archive),
        passphrase=passphrase,
        repo=None if repo is None else located(repo),
        blobs=None if blobs is None else located(blobs),
        handle=handle,
        email=email,
        password=password,
        key=signer.public_key.did_key,
        furtherKeys=list(keep) or None,
    )
    if not yes:
        click.confirm("Change the identity now?", default=True, abort=True, err=True)
    Ordering(options).give(
        "rescue.finish",
        show_fields,
        did=prepared["did"],
        operation=_sign(prepared["operation"], signer),
    )


@rescue.command("to")
@click.argument("url")
@click.option("--archive", metavar="FILE|S3-ADDRESS", required=True, help="Archive of the account.")
@click.option("--handle", required=True, help="Handle that the account shall have there.")
@click.option("--email", required=True, help="Mail address for the account there.")
@secret_option(
    "--invite-code",
    what="invite code",
    help="Invite code, where the host asks for one.",
    is_harmless=True,
)
@PASSWORD_STDIN
@click.option("--keep-key", "keep", multiple=True, help="did:key of a further key of the owner's.")
@click.option("--plc", default=PUBLIC_PLC, show_default=True, help="URL of the PLC directory.")
@KIT
@PASSPHRASE_FILE
@CONFIG
def to_(
    url: str,
    *,
    archive: str,
    handle: str,
    email: str,
    invite_code: str | None,
    password_stdin: bool,
    keep: tuple[str, ...],
    plc: str,
    kit: Path | None,
    passphrase_file: Path | None,
    config: Path | None,
) -> None:
    """Bring the account of an archive to the standard PDS at URL, with the owner's recovery key.

    Neither a server of ours nor the old host is needed: this runs on any machine. Only public calls
    are used, so any host that follows the AT Protocol will do. Run it again when something was in
    the way.

    Asked for, or lines of standard input, in this order: passphrase (--passphrase-file -), password
    (--password-stdin), words of the key (without --kit).
    """
    kept = kept_archives(load_config(file=config)) if archive.startswith(IN_BUCKET) else None
    try:
        with told():
            wish = Wish(
                archive=Path(archive),
                passphrase=passphrase_of(archive, passphrase_file, config),
                url=check_host_url(url),
                handle=handle,
                email=email,
                password=read_password(from_stdin=password_stdin),
                invite_code=invite_code,
                further_keys=keep,
            )
            done = asyncio.run(_carry(wish, read_signer(kit), plc, archive, kept))
    except MoveProblem as error:
        raise click.ClickException(error.message) from error
    except XrpcRejected as error:
        raise click.ClickException(f"The host refused: {error.message or error.error}") from error
    for key in done.dropped_keys:
        click.echo(f"The rotation key {key} is gone.", err=True)
    if done.missing:
        click.echo(f"{done.missing} blobs are missing there; they can come later.", err=True)
    click.echo(f"{done.did} is active at {done.url}.")


async def _carry(
    wish: Wish, owner: Signer, plc: str, archive: str, kept: KeptArchives | None
) -> Outcome:
    async with (
        rescue_elsewhere(plc, owner, lambda text: click.echo(text, err=True)) as way,
        nullcontext(wish.archive) if kept is None else kept.at_hand(archive) as file,
    ):
        return await way.run(replace(wish, archive=file))


@rescue.command()
@click.argument("account")
@order_options()
def look(account: str, **options: Any) -> None:
    """Look at the PLC log of ACCOUNT now, and show operations of others in the last 72 hours."""
    Ordering(options).give("rescue.look", _show_foreign, account=account)


@rescue.command()
@click.argument("account")
@click.option("--operation", help="CID of the operation; the oldest foreign one when left out.")
@click.option("--with-key", is_flag=True, help="Sign with the owner's recovery key, not ours.")
@click.option("--yes", is_flag=True, help="Do not ask before the identity is changed.")
@KIT
@order_options(changes=True)
def countermand(
    account: str,
    operation: str | None,
    *,
    with_key: bool,
    yes: bool,
    kit: Path | None,
    **options: Any,
) -> None:
    """Take back what somebody else has done to the identity of ACCOUNT in the last 72 hours.

    The server signs, if its key stands above the one that was used; otherwise the owner's recovery
    key has to. Everything that came after that operation is undone with it.
    """
    ordering = Ordering(options)
    quiet = Ordering({**options, "as_json": False, "dry_run": False})
    if operation is None:
        quiet.give("rescue.look", lambda _answer: None, account=account)
    plan = quiet.give("rescue.plan-countermand", _show_plan, account=account, operation=operation)
    needs_owner = plan["obstacle"] is not None
    if needs_owner and not plan["signWith"]:
        raise click.ClickException(
            f"Nobody can take it back: {plan['signedBy']}, which signed it, was the first rotation"
            " key. Only its holder has a say now."
        )
    signed = None
    if with_key or kit is not None or (needs_owner and not ordering.is_dry):
        click.echo("The owner's recovery key is needed.", err=True)
        signed = _sign(plan["operation"], read_signer(kit))
    elif needs_owner:
        return
    if not yes and not ordering.is_dry:
        click.confirm("Take it back now?", default=True, abort=True, err=True)
    ordering.give(
        "rescue.countermand",
        _show_done,
        account=account,
        operation=plan["undone"][0],
        signed=signed,
    )


def _sign(fields: dict[str, Any], signer: Signer) -> dict[str, Any]:
    return sign_operation(fields, signer).to_json()


def _newest_archive(did: str, config: Path | None) -> str:
    with told():
        kept = asyncio.run(kept_archives(load_config(file=config)).newest(did))
    click.echo(f"From {kept.address}.", err=True)
    return kept.address


def _show_prepared(answer: Answer) -> None:
    click.echo(f"{answer['did']} is here as @{answer['handle']}, not active yet.", err=True)
    if answer["missingBlobs"]:
        click.echo(f"{answer['missingBlobs']} blobs are missing; they can come later.", err=True)
    for cid in answer["undone"]:
        click.echo(f"This undoes the operation {cid}.", err=True)
    for key in answer["droppedKeys"]:
        click.echo(f"This removes the rotation key {key}.", err=True)


def _show_plan(answer: Answer) -> None:
    click.echo(f"Signed with {answer['signedBy']}; can be taken back until {answer['deadline']}.")
    for cid in answer["undone"]:
        click.echo(f"would undo  {cid}")
    if answer["obstacle"] is not None:
        click.echo(f"This server cannot: {answer['obstacle']}.")
        for key in answer["signWith"]:
            click.echo(f"can         {key}")


def _show_done(answer: Answer) -> None:
    click.echo(f"{answer['did']}: {len(answer['undone'])} operations taken back.")


def _show_foreign(answer: Answer) -> None:
    for found in answer["operations"]:
        click.echo(
            f"{found['operation']}  {found['acceptedAt']}  signed with {found['signer']},"
            f" can be taken back until {found['deadline']}"
        )
    if not answer["operations"]:
        click.echo(f"{answer['did']}: nothing of others in the last 72 hours.")
