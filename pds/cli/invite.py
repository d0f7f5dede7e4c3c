"""`pds invite`: make, list and disable invite codes; a server may run or not."""

from typing import Any

import click

from pds.cli.orders import Answer, Ordering, field, order_options, show_fields, show_table


@click.group()
def invite() -> None:
    """Make, list and disable invite codes."""


@invite.command()
@click.option("--count", default=1, show_default=True, help="Codes for each holder.")
@click.option("--uses", default=1, show_default=True, help="Accounts that each code is good for.")
@click.option("--for", "holders", multiple=True, metavar="DID", help="Who holds the codes.")
@order_options(changes=True)
def create(count: int, uses: int, holders: tuple[str, ...], **options: Any) -> None:
    """Make invite codes and print them, one a line."""
    Ordering(options).give(
        "invite.create", _show_codes, count=count, uses=uses, accounts=list(holders)
    )


def _show_codes(answer: Answer) -> None:
    for entry in answer["codes"]:
        for code in entry["codes"]:
            click.echo(code if entry["account"] == "admin" else f"{code}  {entry['account']}")


@invite.command("list")
@click.option("--sort", type=click.Choice(["recent", "usage"]), default="recent", show_default=True)
@order_options(pages=True)
def list_(sort: str, **options: Any) -> None:
    """List invite codes, the newest or the most used first."""
    show = show_table(
        "codes",
        [
            ("code", field("code")),
            ("used", lambda code: f"{len(code['uses'])} of {code['available']}"),
            ("holder", field("forAccount")),
            ("made", field("createdAt")),
            ("disabled", field("disabled")),
        ],
    )
    Ordering(options).give("invite.list", show, sort=sort)


@invite.command()
@click.argument("codes", nargs=-1)
@click.option("--of", "holders", multiple=True, metavar="DID", help="All codes of this holder.")
@order_options(changes=True)
def disable(codes: tuple[str, ...], holders: tuple[str, ...], **options: Any) -> None:
    """Disable codes by themselves or by their holders."""
    if not codes and not holders:
        raise click.UsageError("name codes, or holders with --of")
    Ordering(options).give("invite.disable", show_fields, codes=list(codes), accounts=list(holders))
