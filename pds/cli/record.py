"""`pds record`: take down single records, and see which are; a server may run or not.

URI is `at://` with a DID or handle, a collection and a key.
"""

from typing import Any

import click

from pds.cli.orders import Ordering, field, order_options, show_change, show_fields, show_table


@click.group()
def record() -> None:
    """Take down single records."""


@record.command()
@click.argument("uri")
@order_options()
def show(uri: str, **options: Any) -> None:
    """Show whether a record is taken down."""
    Ordering(options).give("record.show", show_fields, uri=uri)


@record.command("list-hidden")
@click.argument("account")
@order_options(pages=True)
def list_hidden(account: str, **options: Any) -> None:
    """List the records of an account that are taken down."""
    columns = [(name, field(name)) for name in ("uri", "takedownRef", "takenDownAt")]
    Ordering(options).give("record.list-hidden", show_table("records", columns), account=account)


@record.command()
@click.argument("uri")
@click.option("--ref", help="Reference of the case; the time when left out.")
@click.option("--cid", help="The version that was judged; needed when the record is gone.")
@order_options(changes=True)
def takedown(uri: str, ref: str | None, cid: str | None, **options: Any) -> None:
    """Hide a record from everybody but its owner."""
    Ordering(options).give("record.takedown", show_change, uri=uri, ref=ref, cid=cid)


@record.command()
@click.argument("uri")
@order_options(changes=True)
def untakedown(uri: str, **options: Any) -> None:
    """Show a record again."""
    Ordering(options).give("record.untakedown", show_change, uri=uri)
