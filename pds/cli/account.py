"""`pds account`: look at accounts and order what shall become of them; a server may run or not.

ACCOUNT is a DID or a handle. Every change leaves a row in the audit trail: `pds audit`.
"""

import secrets
from typing import Any, Final

import click

from pds.cli.orders import (
    NOT_CHANGED,
    Answer,
    Ordering,
    field,
    order_options,
    show_change,
    show_fields,
    show_table,
)
from pds.cli.secret_input import PASSWORD_STDIN, read_line

OF_SETTINGS: Final = "the AppView of the settings"
STATUSES: Final = ("active", "deactivated", "suspended", "takendown")
PASSWORD_BYTES: Final = 12


@click.group()
def account() -> None:
    """Look at accounts, and change what only operators can."""


@account.command("list")
@click.argument("text", required=False)
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this state.")
@order_options(pages=True)
def list_(text: str | None, status: str | None, **options: Any) -> None:
    """List accounts, all or those with TEXT in DID, handle or address."""
    columns = [(name, field(name)) for name in ("handle", "did", "status", "email", "indexedAt")]
    show = show_table("accounts", columns)
    Ordering(options).give("account.list", show, text=text, status=status)


@account.command()
@click.argument("account")
@order_options()
def show(account: str, **options: Any) -> None:
    """Show one account with its numbers."""
    Ordering(options).give("account.show", show_fields, account=account)


@account.command()
@click.argument("account")
@order_options(pages=True)
def sessions(account: str, **options: Any) -> None:
    """List where an account is signed in: with what, since when, last renewed."""
    names = ("scope", "appPassword", "openedAt", "renewedAt", "expiresAt")
    show = show_table("sessions", [(name, field(name)) for name in names])
    Ordering(options).give("account.sessions", show, account=account)


@account.command()
@click.argument("handle")
@click.argument("email")
@PASSWORD_STDIN
@order_options(changes=True)
def create(handle: str, email: str, *, password_stdin: bool, **options: Any) -> None:
    """Open an account; without a password one is made and shown.

    Where invite codes are required, one is made for it.
    """
    password = read_line("password") if password_stdin else None
    Ordering(options).give(
        "account.create", show_fields, handle=handle, email=email, password=password
    )


def _add_change(name: str, text: str, *, with_ref: bool = False) -> None:
    """Add a command that moves an account to another state."""

    @click.argument("account")
    @order_options(changes=True)
    def change(account: str, **options: Any) -> None:
        ref = options.pop("ref", None)
        Ordering(options).give(f"account.{name}", show_change, account=account, ref=ref)

    command = click.command(name, help=text)(change)
    if with_ref:
        command.params.append(
            click.Option(["--ref"], help="Reference of the case; the time when left out.")
        )
    account.add_command(command)


_add_change("takedown", "Hide an account from everybody, and end its sessions.", with_ref=True)
_add_change("untakedown", "Lift the takedown of an account.")
_add_change("suspend", "Suspend an account for a time, and end its sessions.")
_add_change("unsuspend", "Lift the suspension of an account.")
_add_change("deactivate", "Deactivate an account as its owner could.")
_add_change("activate", "End the deactivation of an account whose identity is here.")


@account.command()
@click.argument("account")
@click.option("--yes", is_flag=True, help="Do not ask.")
@order_options(changes=True)
def delete(account: str, *, yes: bool, **options: Any) -> None:
    """Delete an account for good: records, blobs and keys. Its DID is left as it is."""
    ordering = Ordering(options)
    if not yes and not ordering.is_dry:
        click.confirm(f"Delete {account} for good?", abort=True, err=True)
    ordering.give("account.delete", _show_deleted, account=account)


def _show_deleted(answer: Answer) -> None:
    click.echo(f"{answer['did']}: deleted ({answer['before'].get('handle')})")


@account.command("set-handle")
@click.argument("account")
@click.argument("handle")
@order_options(changes=True)
def set_handle(account: str, handle: str, **options: Any) -> None:
    """Give an account another handle; reserved names are allowed."""
    Ordering(options).give("account.set-handle", show_fields, account=account, handle=handle)


@account.command("set-email")
@click.argument("account")
@click.argument("email")
@order_options(changes=True)
def set_email(account: str, email: str, **options: Any) -> None:
    """Give an account another mail address, which counts as not confirmed."""
    Ordering(options).give("account.set-email", show_fields, account=account, email=email)


@account.command("reset-password")
@click.argument("account")
@PASSWORD_STDIN
@order_options(changes=True)
def reset_password(account: str, *, password_stdin: bool, **options: Any) -> None:
    """Set a new password and end all sessions; without one, one is made and shown."""
    password = read_line("password") if password_stdin else secrets.token_urlsafe(PASSWORD_BYTES)
    ordering = Ordering(options)
    ordering.give("account.set-password", show_fields, account=account, password=password)
    if not password_stdin and not ordering.is_dry:
        click.echo(f"password  {password}", err=bool(options.get("as_json")))


@account.command("end-sessions")
@click.argument("account")
@order_options(changes=True)
def end_sessions(account: str, **options: Any) -> None:
    """Sign an account out everywhere; app passwords stay."""
    Ordering(options).give("account.end-sessions", show_fields, account=account)


@account.command("rotate-key")
@click.argument("account")
@click.option("--key", help="The did:key that was reserved for the DID; a new one when left out.")
@order_options(changes=True)
def rotate_key(account: str, key: str | None, **options: Any) -> None:
    """Give an account another signing key, in its DID document too."""
    Ordering(options).give("account.rotate-key", show_fields, account=account, key=key)


@account.command("set-appview")
@click.argument("account")
@click.argument("appview", required=False)
@order_options(changes=True)
def set_appview(account: str, appview: str | None, **options: Any) -> None:
    """Let an account use another AppView than the one of the settings.

    APPVIEW is a DID, or DID#service, or `none`; left out, the choice is taken back.
    """
    Ordering(options).give("account.set-appview", _show_appview, account=account, appview=appview)


def _show_appview(answer: Answer) -> None:
    before, after = (answer[name]["appview"] or OF_SETTINGS for name in ("before", "after"))
    arrow = f"{before} -> {after}" if answer["changed"] else f"{NOT_CHANGED}, it is {after}"
    click.echo(f"{answer['did']}: {arrow}")


@account.command("disable-invites")
@click.argument("account")
@order_options(changes=True)
def disable_invites(account: str, **options: Any) -> None:
    """Bar an account from inviting; the codes that it holds work no more."""
    Ordering(options).give("account.disable-invites", show_fields, account=account)


@account.command("enable-invites")
@click.argument("account")
@order_options(changes=True)
def enable_invites(account: str, **options: Any) -> None:
    """Let an account invite again."""
    Ordering(options).give("account.enable-invites", show_fields, account=account)
