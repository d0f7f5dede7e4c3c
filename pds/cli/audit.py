"""`pds audit`: what operators and moderators did; a server may run or not."""

import json
from typing import Any

import click

from pds.cli.orders import Answer, Ordering, field, order_options, show_table


@click.command()
@click.option(
    "--subject",
    help="Only acts about this: a DID (with its records and blobs), an at:// URI, an invite code.",
)
@order_options(pages=True)
def audit(subject: str | None, **options: Any) -> None:
    """List what operators and moderators did, the latest first."""
    columns = [(name, field(name)) for name in ("id", "at", "actor", "act", "subject")]
    show = show_table(
        "acts",
        [*columns, ("before", _side("before")), ("after", _side("after")), ("note", field("note"))],
    )
    Ordering(options).give("audit.list", show, subject=subject)


def _side(name: str) -> Any:
    def read(entry: Answer) -> str | None:
        value = entry.get(name)
        return None if value is None else json.dumps(value, ensure_ascii=False)

    return read
