"""`pds key`: rotation keys that people keep themselves, above the one of this server.

The private key is made by this command, on the machine where it runs, and goes into the kit only;
the server is told its did:key. ACCOUNT is a DID or a handle.
"""

from pathlib import Path
from typing import Any

import click

from pds.cli.orders import Answer, Ordering, order_options, show_table
from pds.cli.recovery_kit import new_signer, write_kit
from pds.errors import RemoteError
from pds.protocol.keys import Curve


@click.group()
def key() -> None:
    """Recovery keys that account holders keep themselves."""


@key.command("list")
@click.argument("account")
@order_options()
def list_(account: str, **options: Any) -> None:
    """List the rotation keys of ACCOUNT; each can undo what those below it do."""
    Ordering(options).give("key.list", _show_keys, account=account)


@key.command()
@click.argument("account")
@click.option(
    "--kit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write the kit to; recovery-key-HANDLE.txt when left out.",
)
@click.option("--curve", type=click.Choice(("k256", "p256")), default="k256", show_default=True)
@click.option("--replace", "replaces", help="did:key of the key that this one shall replace.")
@order_options(changes=True)
def create(
    account: str, kit: Path | None, curve: Curve, replaces: str | None, **options: Any
) -> None:
    """Make a recovery key for ACCOUNT and put it above all other keys of the identity.

    The kit, a page with the key in words and as a QR code, is written before the identity is
    changed. Print it, keep it, delete the file: the key is nowhere else.
    """
    quiet = Ordering({**options, "as_json": False, "dry_run": False})
    shown = quiet.give("account.show", _show_nothing, account=account)
    did, handle = str(shown["did"]), str(shown.get("handle") or shown["did"])
    target = kit or Path(f"recovery-key-{handle}.txt")
    signer = new_signer(curve)
    ordering = Ordering(options)
    fields = {"account": did, "key": signer.public_key.did_key, "replaces": replaces}
    if ordering.is_dry:
        ordering.give("key.add", _show_keys, **fields)
        return
    write_kit(target, signer, did=did, handle=handle, host=str(shown.get("host") or "this server"))
    try:
        ordering.give("key.add", _show_keys, **fields)
    except click.ClickException as error:
        if "UpstreamFailure" not in error.message:  # Then it may still become valid.
            target.unlink()
        raise
    except RemoteError:
        click.echo(f"Keep {target} until `pds key list` tells whether the key counts.", err=True)
        raise
    click.echo(f"The kit is in {target}: print it, keep it safe, and delete the file.", err=True)


@key.command()
@click.argument("account")
@click.argument("did_key")
@order_options(changes=True)
def remove(account: str, did_key: str, **options: Any) -> None:
    """Take the recovery key DID_KEY out of the identity of ACCOUNT.

    Its holder can take that back for 72 hours, as the key stands above the server's.
    """
    Ordering(options).give("key.remove", _show_keys, account=account, key=did_key)


def _show_keys(answer: Answer) -> None:
    show_table("rotationKeys", [("key", lambda e: e["key"]), ("whose", lambda e: e["role"])])(
        answer
    )


def _show_nothing(_answer: Answer) -> None:
    """The answer is only needed for what comes next."""
