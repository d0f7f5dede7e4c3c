"""The command `pds`.

What went wrong is said in one or two lines with what to do next; a traceback means that it is our
fault. Exit codes: 0 done, 1 failed, 2 wrong settings or usage, 130 interrupted.
"""

import sys
from typing import Final

import click

import pds
from pds.cli import (
    account,
    archive,
    audit,
    blob,
    blobs,
    clock,
    configuration,
    convert,
    dev,
    event,
    hostname,
    import_reference,
    invite,
    jobs,
    key,
    mail,
    migrate,
    record,
    repo,
    rescue,
    routes,
    serve,
)
from pds.errors import ConfigError, RemoteError, StoreError

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
EXIT_INTERRUPTED: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pds.__version__, prog_name="Freehold")
def commands() -> None:
    """Freehold, a personal data server for the AT Protocol network."""


@commands.command()
def version() -> None:
    """Print the version."""
    click.echo(pds.__version__)


commands.add_command(account.account)
commands.add_command(archive.archive)
commands.add_command(audit.audit)
commands.add_command(blob.blob)
commands.add_command(blobs.blobs)
commands.add_command(clock.clock)
commands.add_command(configuration.config)
commands.add_command(convert.convert)
commands.add_command(dev.dev)
commands.add_command(event.event)
commands.add_command(hostname.hostname)
commands.add_command(import_reference.import_reference)
commands.add_command(invite.invite)
commands.add_command(jobs.jobs)
commands.add_command(key.key)
commands.add_command(mail.mail)
commands.add_command(migrate.migrate)
commands.add_command(record.record)
commands.add_command(repo.repo)
commands.add_command(rescue.rescue)
commands.add_command(routes.routes)
commands.add_command(serve.serve)


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
