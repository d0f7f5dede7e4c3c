"""`pds blob`: the blobs of an account, and their quarantine; a server may run or not.

For the places where blobs are kept see `pds blobs`.
"""

from typing import Any

import click

from pds.cli.orders import Ordering, field, order_options, show_change, show_table


@click.group()
def blob() -> None:
    """Look at the blobs of accounts, and take them down."""


@blob.command("list")
@click.argument("account")
@click.option("--taken-down", is_flag=True, help="Only those in quarantine.")
@order_options(pages=True)
def list_(account: str, *, taken_down: bool, **options: Any) -> None:
    """List the blobs of an account, also temporary ones and those in quarantine."""
    names = ("cid", "mimeType", "size", "createdAt", "temporary", "takedownRef")
    show = show_table("blobs", [(name, field(name)) for name in names])
    Ordering(options).give("blob.list", show, account=account, takenDown=taken_down)


@blob.command()
@click.argument("account")
@order_options(pages=True)
def missing(account: str, **options: Any) -> int:
    """List blobs that records refer to and that are not here. Exit code 1 when there are any."""
    columns = [(name, field(name)) for name in ("cid", "recordUri")]
    show = show_table("blobs", columns)
    answer = Ordering(options).give("blob.missing", show, account=account)
    return 1 if answer["blobs"] else 0


@blob.command()
@click.argument("account")
@click.argument("cid")
@click.option("--ref", help="Reference of the case; the time when left out.")
@order_options(changes=True)
def takedown(account: str, cid: str, ref: str | None, **options: Any) -> None:
    """Put a blob in quarantine: it is not served, not collected, and not taken in again."""
    Ordering(options).give("blob.takedown", show_change, account=account, cid=cid, ref=ref)


@blob.command()
@click.argument("account")
@click.argument("cid")
@order_options(changes=True)
def untakedown(account: str, cid: str, **options: Any) -> None:
    """Let a blob out of quarantine."""
    Ordering(options).give("blob.untakedown", show_change, account=account, cid=cid)
