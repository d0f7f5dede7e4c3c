"""`pds event`: what went out on the firehose, and asking relays to come.

A server may run or not.
"""

from typing import Any, Final

import click

from pds.cli.orders import Answer, Ordering, field, order_options, show_table

KINDS: Final = ("commit", "sync", "identity", "account")


@click.group()
def event() -> None:
    """Look at the firehose, and ask relays to read it."""


@event.command("list")
@click.option("--account", help="Only of this account (DID or handle).")
@click.option("--kind", type=click.Choice(KINDS), help="Only of this kind.")
@order_options(pages=True)
def list_(account: str | None, kind: str | None, **options: Any) -> None:
    """List events, the latest first, those that are no longer sent too."""
    columns = [(name, field(name)) for name in ("seq", "at", "kind", "did")]
    show = show_table("events", [*columns, ("what", _what)])
    Ordering(options).give("event.list", show, account=account, kind=kind)


def _what(entry: Answer) -> str:
    match entry["kind"]:
        case "commit":
            return f"{entry.get('rev')}: {', '.join(entry.get('ops', [])) or 'no change'}"
        case "account":
            return "active" if entry.get("active") else str(entry.get("status"))
        case "identity":
            return str(entry.get("handle", ""))
        case _:
            return str(entry.get("rev", ""))


@event.command("request-crawl")
@order_options(changes=True)
def request_crawl(**options: Any) -> int:
    """Ask all configured relays to read this host now. Exit code 1 when one refuses."""
    columns = [("relay", field("url")), ("accepted", field("accepted")), ("why", field("error"))]
    ordering = Ordering(options)
    answer = ordering.give("event.request-crawl", show_table("relays", columns))
    refused = [relay for relay in answer["relays"] if not relay["accepted"]]
    return 1 if refused and not ordering.is_dry else 0
