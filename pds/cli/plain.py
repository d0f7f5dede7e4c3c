"""Writes what may hold words of strangers to a terminal, which obeys some characters."""

from typing import Final

import click

_KEPT: Final = frozenset("\n")


def plain(text: str) -> str:
    """Return a text without characters that steer terminals or turn the direction of a line."""
    return "".join(char if char.isprintable() or char in _KEPT else "?" for char in text)


def say(text: str, *, err: bool = False) -> None:
    """Print a text, to standard error with `err`, as it may be shown."""
    click.echo(plain(text), err=err)
