"""Ending every way into an account at once (XRPC-26)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.services.app_passwords import AppPasswords
from pds.services.audit import Order
from pds.services.credentials import Credentials
from pds.store.audit import list_audit
from tests.services.account_host import ALICE, PASSWORD, SessionHost, session_host

ADMIN = Order("admin")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


def credentials(host: SessionHost) -> Credentials:
    return Credentials(
        engine=host.engine, clock=host.clock, accounts=host.cache, sessions=host.sessions
    )


async def test_nothing_opens_the_account_any_more(host: SessionHost) -> None:
    aid = await host.add_account()
    app_passwords = AppPasswords(engine=host.engine, clock=host.clock, sessions=host.sessions)
    made = await app_passwords.create(aid, "phone", privileged=False)
    views = [
        await host.sessions.login("alice.pds.test", secret) for secret in (PASSWORD, made.password)
    ]
    await credentials(host).revoke_all("Alice.pds.test", Order("admin", is_rehearsal=True))
    await host.sessions.login("alice.pds.test", PASSWORD)
    await credentials(host).revoke_all("alice.pds.test", ADMIN)
    for view in views:
        assert view.tokens is not None
        with pytest.raises(RequestError, match="ExpiredToken"):
            await host.sessions.authenticate_access(view.tokens.access)
        with pytest.raises(RequestError):
            await host.sessions.refresh(view.tokens.refresh)
    for secret in (PASSWORD, made.password, ""):
        with pytest.raises(RequestError, match="AuthenticationRequired"):
            await host.sessions.login("alice.pds.test", secret)
    [row] = await host.engine.read("test.audit", lambda txn: list_audit(txn, limit=10))
    assert (row.act, row.subject) == ("account.revoke-credentials", ALICE)


async def test_an_unknown_account_is_said(host: SessionHost) -> None:
    with pytest.raises(RequestError, match="NotFound"):
        await credentials(host).revoke_all("nobody.pds.test", ADMIN)
