"""`pds mail`: does mail work?"""

import asyncio
import time
from pathlib import Path

import click

from pds.app import send_test_mail
from pds.config import load_config
from pds.errors import ConfigError
from pds.net.mail_errors import MailError
from pds.services.email_addresses import is_email


@click.group()
def mail() -> None:
    """See whether mail leaves this host."""


@mail.command()
@click.argument("address")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False))
def test(address: str, file: Path | None) -> None:
    """Send a test mail to ADDRESS by the settings; a server may run or not."""
    if not is_email(address):
        raise click.UsageError(f"{address} is not an e-mail address")
    config = load_config(file=file)
    if config.mail.route is None:
        raise ConfigError("PDS_EMAIL_SMTP_URL is not set, so no mail is sent")
    click.echo(f"Handing a mail from {config.mail.from_address} to {config.mail.route} ...")
    try:
        asyncio.run(send_test_mail(config, address, now_us=time.time_ns() // 1000))
    except MailError as error:
        if error.detail:
            click.echo(f"It says: {error.detail}", err=True)
        raise
    click.echo("Taken over. If it does not arrive, look at the log of the mail server.")
