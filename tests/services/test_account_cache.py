"""The memory of accounts: bounded, fresh, and never older than a change that was answered."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.services.account_cache import AccountCache, AidCache
from pds.store.accounts import update_handle
from tests.services.account_host import ALICE, SessionHost, session_host


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path) as host:
        yield host


def test_least_recently_used_entries_go_first() -> None:
    cache: AidCache[str, int] = AidCache(capacity=2)
    cache.put("a", 1, 10, ticket=0)
    cache.put("b", 2, 20, ticket=0)
    assert cache.get("a") == 10
    cache.put("c", 3, 30, ticket=0)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (10, None, 30, 2)


def test_entries_age() -> None:
    time = Time()
    cache: AidCache[str, int] = AidCache(ttl_s=30, monotonic=time)
    cache.put("a", 1, 10, ticket=0)
    time.now_s = 30
    assert cache.get("a") == 10
    time.now_s = 30.1
    assert cache.get("a") is None
    assert len(cache) == 0


def test_forgetting_an_account_drops_all_that_hangs_on_it() -> None:
    cache: AidCache[str, int] = AidCache()
    for key, aid in (("a", 1), ("b", 1), ("c", 2)):
        cache.put(key, aid, aid, ticket=0)
    cache.forget(1)
    assert [cache.get(key) for key in "abc"] == [None, None, 2]
    cache.forget_key("c")
    assert cache.get("c") is None


def test_value_read_before_a_change_is_not_kept() -> None:
    cache: AidCache[str, int] = AidCache()
    ticket = cache.ticket
    cache.forget(7)
    cache.put("a", 1, 10, ticket=ticket)
    assert cache.get("a") is None


async def test_account_is_read_once_under_all_its_names(host: SessionHost) -> None:
    aid = await host.add_account()
    assert await host.cache.get("alice.pds.test") is not None
    for found in (
        host.cache.peek(aid),
        await host.cache.get(ALICE),
        await host.cache.get_by_aid(aid),
        await host.cache.get("alice.pds.test"),
    ):
        assert found is not None
        assert found.did == ALICE
    assert host.reads == ["account.get"]


async def test_absence_is_not_remembered(host: SessionHost) -> None:
    assert await host.cache.get(ALICE) is None
    assert await host.cache.get_by_aid(1) is None
    await host.add_account()
    assert await host.cache.get(ALICE) is not None


async def test_change_is_seen_when_it_is_answered(host: SessionHost) -> None:
    aid = await host.add_account()
    await host.cache.get("alice.pds.test")
    await host.change(update_handle, aid, "ally.pds.test")
    assert await host.cache.get("alice.pds.test") is None
    changed = await host.cache.get(ALICE)
    assert changed is not None
    assert changed.handle == "ally.pds.test"


async def test_snapshot_taken_before_a_change_does_not_outlive_it(host: SessionHost) -> None:
    """A read that comes back after the change was answered must not be remembered."""
    aid = await host.add_account()
    cache = AccountCache(host.engine)
    ticket = cache.ticket
    old = await host.engine.read("test", lambda txn: txn.read_one("SELECT handle FROM account"))
    assert old is not None
    account = await host.cache.get(ALICE)
    cache.forget(aid)
    cache.remember(account, ticket=ticket)
    assert cache.peek(aid) is None
