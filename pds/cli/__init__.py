"""The command `pds`.

What went wrong is said in one or two lines with what to do next; a traceback means that it is our
fault. Exit codes: 0 done, 1 failed, 2 wrong settings or usage, 130 interrupted.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Final

import click

import pds
from pds.errors import ConfigError, RemoteError, StoreError

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
EXIT_INTERRUPTED: Final = 130


MODULES: Final = {
    "account": "account",
    "archive": "archive",
    "audit": "audit",
    "blob": "blob",
    "blobs": "blobs",
    "clock": "clock",
    "config": "configuration",
    "convert": "convert",
    "dev": "dev",
    "event": "event",
    "hostname": "hostname",
    "import-reference": "import_reference",
    "invite": "invite",
    "jobs": "jobs",
    "key": "key",
    "mail": "mail",
    "migrate": "migrate",
    "record": "record",
    "repo": "repo",
    "rescue": "rescue",
    "routes": "routes",
    "serve": "serve",
}
"""Where each command is: `name` is the function `name` of that module."""


class Commands(click.Group):
    """Imports a command when it is asked for: a server has no use for all the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None if there is none of this name."""
        if cmd_name in MODULES and cmd_name not in self.commands:
            module = _import(cmd_name)
            command: click.Command = getattr(module, cmd_name.replace("-", "_"))
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pds.__version__, prog_name="Freehold")
def commands() -> None:
    """Freehold, a personal data server for the AT Protocol network."""


@commands.command()
def version() -> None:
    """Print the version."""
    click.echo(pds.__version__)


def _import(name: str) -> ModuleType:
    return import_module(f"pds.cli.{MODULES[name]}")


def import_command(arguments: list[str]) -> None:
    """Import the command that a command line begins with, before it is run."""
    if arguments and arguments[0] in MODULES:
        _import(arguments[0])


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    try:
        result = commands.main(arguments, prog_name="pds", standalone_mode=False)
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ConfigError as error:
        click.echo(f"pds: {error}", err=True)
        return EXIT_SETTINGS
    except (StoreError, RemoteError, OSError) as error:
        click.echo(f"pds: {error}", err=True)
        return EXIT_FAILED
    return result if isinstance(result, int) else 0
