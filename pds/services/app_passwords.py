"""App passwords: secrets for clients that should not know the main password.

A session opened with one has a narrower scope (ACC-34) and ends when it is revoked. The secret is
shown once, when it is made. How it is hashed stands in `passwords`, how it is tried in `sessions`.
"""

from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.services.passwords import generate_app_password, hash_app_password
from pds.services.sessions import Sessions
from pds.store.app_passwords import (
    AppPassword,
    delete_app_password,
    get_app_password_by_name,
    insert_app_password,
    list_app_passwords,
)
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn

MAX_APP_PASSWORDS: Final = 100
"""Per account: each is tried at a login, and nobody has so many clients."""
MAX_NAME_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class NewAppPassword:
    """A new app password with its secret, to be shown once."""

    name: str
    password: str
    privileged: bool
    created_at: int


class AppPasswords:
    """Makes, lists and revokes the app passwords of accounts."""

    def __init__(self, *, engine: Engine, clock: Clock, sessions: Sessions) -> None:
        self._engine = engine
        self._clock = clock
        self._sessions = sessions

    async def create(self, aid: int, name: str, *, privileged: bool) -> NewAppPassword:
        """Make an app password under a name that is free in this account (ACC-33)."""
        name = name.strip()
        if not name or len(name) > MAX_NAME_CHARS:
            raise RequestError("InvalidRequest", f"Name must have 1 to {MAX_NAME_CHARS} characters")
        new = NewAppPassword(name, generate_app_password(), privileged, self._clock.now_us())
        await self._engine.transact("app_password.create", _create, aid, new, accounts=(aid,))
        return new

    async def list(self, aid: int) -> list[AppPassword]:
        """Return the app passwords of an account, without their secrets."""
        return await self._engine.read("app_password.list", list_app_passwords, aid)

    async def revoke(self, aid: int, name: str) -> None:
        """Revoke an app password and end its sessions; an unknown name is no error (XRPC-26)."""
        await self._engine.transact(
            "app_password.revoke", self._revoke, aid, name.strip(), accounts=(aid,)
        )

    def _revoke(self, txn: Txn, aid: int, name: str) -> None:
        app_password = get_app_password_by_name(txn, aid, name)
        if app_password is None:
            return
        delete_app_password(txn, app_password.app_password_id)
        self._sessions.end_app_password_sessions(txn, aid, app_password.app_password_id)


def _create(txn: Txn, aid: int, new: NewAppPassword) -> None:
    if get_app_password_by_name(txn, aid, new.name) is not None:
        raise RequestError("InvalidRequest", "An app password of this name exists already")
    if len(list_app_passwords(txn, aid)) >= MAX_APP_PASSWORDS:
        raise RequestError("InvalidRequest", "Too many app passwords")
    insert_app_password(
        txn,
        aid=aid,
        name=new.name,
        hash=hash_app_password(new.password),
        privileged=new.privileged,
        now_us=new.created_at,
    )
