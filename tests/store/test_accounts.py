"""Account, session, app password and journal rows."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Conflict
from pds.protocol.syntax import Did, Handle
from pds.store import accounts, app_passwords, journal, sessions
from pds.store.accounts import Account, AccountStatus
from pds.store.engine import Engine, Txn
from tests.services.account_host import SettableClock
from tests.suites.engines import open_engine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_engine(tmp_path, SettableClock()) as engine:
        yield engine


def insert(txn: Txn, name: str, **changes: Any) -> int:
    fields: dict[str, Any] = {
        "did": Did(f"did:web:{name}.test"),
        "handle": Handle(f"{name}.test"),
        "email": f"{name}@mail.test",
        "password_hash": "hash",
        "now_us": 5,
        **changes,
    }
    return accounts.insert_account(txn, **fields)


async def add(engine: Engine, name: str, **changes: Any) -> int:
    return await engine.transact("test", lambda txn: insert(txn, name, **changes))


async def test_account_is_found_by_each_of_its_names(engine: Engine) -> None:
    aid = await add(engine, "alice")
    await add(engine, "bob")

    def find(txn: Txn) -> list[Account | None]:
        return [
            accounts.get_account_by_aid(txn, aid),
            accounts.get_account_by_did(txn, "did:web:alice.test"),
            accounts.get_account_by_handle(txn, "alice.test"),
            accounts.get_account_by_email(txn, "alice@mail.test"),
            accounts.get_account(txn, "did:web:alice.test"),
            accounts.get_account(txn, "alice.test"),
        ]

    found = await engine.read("test", find)
    assert {account.aid for account in found if account} == {aid}
    assert None not in found
    account = found[0]
    assert account is not None
    assert (account.created_at, account.invites_disabled, account.repo_id) == (5, False, None)
    assert await engine.read("test", accounts.get_account, "nobody.test") is None
    assert await engine.read("test", accounts.count_accounts) == 2


@pytest.mark.parametrize("column", ["did", "handle", "email"])
async def test_did_handle_and_email_are_unique(engine: Engine, column: str) -> None:
    """ACC-2."""
    await add(engine, "alice")
    same = {"did": "did:web:alice.test", "handle": "alice.test", "email": "alice@mail.test"}
    with pytest.raises(Conflict):
        await add(engine, "bob", **{column: same[column]})
    assert await engine.read("test", accounts.count_accounts) == 1


async def test_accounts_without_handle_or_email_do_not_collide(engine: Engine) -> None:
    for name in ("alice", "bob"):
        await add(engine, name, handle=None, email=None)
    assert await engine.read("test", accounts.count_accounts) == 2


async def test_state_is_takedown_then_suspension_then_deactivation(engine: Engine) -> None:
    """ACC-3, SYNC-83."""
    aid = await add(engine, "alice")

    async def status() -> AccountStatus:
        account = await engine.read("test", accounts.get_account_by_aid, aid)
        assert account is not None
        assert account.is_active == (account.status is AccountStatus.ACTIVE)
        return account.status

    def set_deactivation(txn: Txn, at: int | None) -> None:
        accounts.update_deactivation(txn, aid, deactivated_at=at, delete_after=None)

    assert await status() is AccountStatus.ACTIVE
    await engine.transact("test", set_deactivation, 1)
    assert await status() is AccountStatus.DEACTIVATED
    await engine.transact("test", accounts.update_suspension, aid, 1)
    assert await status() is AccountStatus.SUSPENDED
    await engine.transact("test", accounts.update_takedown, aid, "")
    assert await status() is AccountStatus.TAKENDOWN
    await engine.transact("test", accounts.update_takedown, aid, None)
    await engine.transact("test", accounts.update_suspension, aid, None)
    assert await status() is AccountStatus.DEACTIVATED
    await engine.transact("test", set_deactivation, None)
    assert await status() is AccountStatus.ACTIVE


async def test_updates_touch_one_account(engine: Engine) -> None:
    aid, other = await add(engine, "alice"), await add(engine, "bob")
    before = await engine.read("test", accounts.get_account_by_aid, other)

    def update(txn: Txn) -> None:
        accounts.update_key(txn, aid, 11)
        accounts.update_repo(txn, aid, 12)
        accounts.update_handle(txn, aid, None)
        accounts.update_email(txn, aid, "new@mail.test", confirmed_at=13)
        accounts.update_password_hash(txn, aid, "new hash")

    await engine.transact("test", update)
    account = await engine.read("test", accounts.get_account_by_aid, aid)
    assert account is not None
    assert (account.key_id, account.repo_id, account.handle) == (11, 12, None)
    assert (account.email, account.email_confirmed_at) == ("new@mail.test", 13)
    assert account.password_hash == "new hash"
    assert await engine.read("test", accounts.get_account_by_aid, other) == before
    await engine.transact("test", accounts.delete_account, aid)
    assert [a.aid for a in await engine.read("test", accounts.list_accounts)] == [other]


async def test_accounts_are_listed_in_order_of_creation(engine: Engine) -> None:
    aids = [await add(engine, name) for name in ("zoe", "bob", "alice")]

    def page(txn: Txn, after: int) -> list[int]:
        return [account.aid for account in accounts.list_accounts(txn, after_aid=after, limit=2)]

    assert await engine.read("test", page, 0) == aids[:2]
    assert await engine.read("test", page, aids[1]) == aids[2:]


async def test_session_lives_while_one_row_of_it_does(engine: Engine) -> None:
    """XRPC-25."""

    def job(txn: Txn) -> list[int | None]:
        for token_id, expires_at in (("a", 10), ("b", 20)):
            sessions.insert_session(
                txn,
                sessions.Session(token_id, "s", 7, "scope", None, None, 1, expires_at),
            )
        return [sessions.get_session_owner(txn, "s", now_us) for now_us in (9, 19, 20)] + [
            sessions.get_session_owner(txn, "other", 1)
        ]

    assert await engine.transact("test", job) == [7, 7, None, None]


async def test_sweep_takes_the_oldest_up_to_its_limit(engine: Engine) -> None:
    def job(txn: Txn) -> tuple[int, int, list[Any]]:
        for number in range(5):
            sessions.insert_session(
                txn, sessions.Session(f"t{number}", "s", 7, "scope", None, None, 1, number)
            )
        first = sessions.delete_expired_sessions(txn, 3, limit=2)
        second = sessions.delete_expired_sessions(txn, 3, limit=500)
        return first, second, txn.read("SELECT token_id FROM session ORDER BY token_id")

    assert await engine.transact("test", job) == (2, 2, [("t4",)])


async def test_app_password_names_are_unique_within_an_account(engine: Engine) -> None:
    """ACC-33."""

    def add_one(txn: Txn, aid: int, name: str) -> int:
        return app_passwords.insert_app_password(
            txn, aid=aid, name=name, hash=b"h", privileged=True, now_us=1
        )

    first = await engine.transact("test", add_one, 1, "phone")
    await engine.transact("test", add_one, 2, "phone")
    with pytest.raises(Conflict):
        await engine.transact("test", add_one, 1, "phone")
    [row] = await engine.read("test", app_passwords.list_app_passwords, 1)
    assert (row.app_password_id, row.hash, row.privileged) == (first, b"h", True)


async def test_journal_row_reserves_its_subject(engine: Engine) -> None:
    """ACC-12."""

    def reserve(txn: Txn, kind: str, subject: str) -> int:
        return journal.insert_journal(txn, kind=kind, subject=subject, state=b"s", now_us=1)

    journal_id = await engine.transact("test", reserve, "a", "x")
    await engine.transact("test", reserve, "b", "x")
    with pytest.raises(Conflict):
        await engine.transact("test", reserve, "a", "x")

    def update(txn: Txn) -> None:
        journal.update_journal(txn, journal_id, state=b"t", attempts=3, now_us=9)

    await engine.transact("test", update)
    row = await engine.read("test", journal.get_journal, "a", "x")
    assert row == journal.JournalRow(journal_id, "a", "x", b"t", 1, 9, 3)
    assert await engine.read("test", journal.get_journal_by_id, journal_id) == row
    await engine.transact("test", journal.delete_journal, journal_id)
    assert await engine.read("test", journal.get_journal_by_id, journal_id) is None
    assert await engine.read("test", journal.list_journal, "a") == []
