"""`pds routes`: which function answers which method."""

import click

from pds.app import METHOD_TABLES


@click.command()
def routes() -> None:
    """List every XRPC method with the function that answers it."""
    rows = sorted(
        (entry.nsid, entry.auth.name.lower(), _place(entry.handler))
        for table in METHOD_TABLES
        for entry in table
    )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for nsid, auth, place in rows:
        click.echo(f"{nsid:<{widths[0]}}  {auth:<{widths[1]}}  {place}")


def _place(handler: object) -> str:
    module = getattr(handler, "__module__", "").replace(".", "/")
    return f"{module}.py:{getattr(handler, '__name__', '')}"
