"""A COMMIT whose outcome stays unknown for long: told later, logged in order, made up for."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pds.errors import Unavailable
from pds.services.account_cache import AccountCache
from pds.services.firehose import Firehose
from pds.store.accounts import insert_account
from pds.store.base import QueueLimits
from pds.store.engine import CommittedEvent, CommittedGroup, Txn
from pds.store.postgres import PostgresEngine
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.fakes.tcp_proxy import Cut, TcpProxy
from tests.suites.engine_jobs import count, put, put_with_event, queue_jobs, settle
from tests.suites.engine_jobs import wait_until_writable as until_writable
from tests.suites.engines import PostgresBackend
from tests.support_postgres import (
    DURABLE,
    OwnServer,
    database_url,
    make_database,
    private_server,
)

__all__ = ["database_url"]


@contextmanager
def proxied(url: str) -> Iterator[TcpProxy]:
    target = conninfo_to_dict(url)
    proxy = TcpProxy(str(target["host"]), int(target.get("port") or 5432))
    try:
        yield proxy
    finally:
        proxy.close()


def make_engine(url: str, proxy: TcpProxy, **options: Any) -> PostgresEngine:
    """An engine behind the proxy that soon gives up looking for an outcome."""
    backend = PostgresBackend(make_conninfo(url, host="127.0.0.1", port=proxy.port))
    settings = backend.settings(
        settle_s=0.2, reconnect_s=0.2, limits=QueueLimits(reopen_interval_s=0.02)
    )
    return PostgresEngine(settings, FakeClock(), **options)


def follow(engine: PostgresEngine) -> tuple[Firehose, list[CommittedEvent]]:
    """The firehose on this engine, and the events that its hooks get."""
    firehose = Firehose(engine=engine, wall=FakeClock())
    seen: list[CommittedEvent] = []
    engine.add_event_hook(seen.extend)
    firehose.start()
    return firehose, seen


async def reach(firehose: Firehose, seq: int) -> None:
    async with asyncio.timeout(60):
        while firehose.head_seq < seq:
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server that keeps what it committed when it is killed."""
    server = private_server(DURABLE)
    yield server
    server.remove()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
async def test_a_group_whose_outcome_is_found_late_is_in_the_log_and_told(
    server: OwnServer, cut: Cut, restarts: bool
) -> None:
    """After the answer `Unavailable` the database says what is true, and all else follows it."""
    url = make_database(server.url)
    log, hooks = WriteLog(), list[str]()

    def job(txn: Txn, name: str) -> None:
        put_with_event(txn, name)
        txn.on_commit(lambda: hooks.append(name))

    with proxied(url) as proxy:
        engine = make_engine(url, proxy, recorder=log)
        await engine.start()
        firehose, seen = follow(engine)
        await settle(*await queue_jobs(engine, lambda txn: job(txn, "a")))
        proxy.arm(cut, refuses_after=True)
        doubted = await settle(
            *await queue_jobs(engine, *(lambda txn, n=n: job(txn, n) for n in "bc"))
        )
        assert all(isinstance(answer, Unavailable) for answer in doubted)
        assert (hooks, len(log.groups)) == (["a"], 1)
        if restarts:
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            await asyncio.to_thread(server.start)
        proxy.allow()
        await until_writable(engine)
        await settle(*await queue_jobs(engine, lambda txn: job(txn, "d")))
        await reach(firehose, engine.last_seq)
        # With the cut before the COMMIT, one or both of the doubted jobs may not have been in
        # the group that was cut: what counts is that everybody agrees with the database.
        names = await engine.read(
            "names", lambda txn: [row[0] for row in txn.read("SELECT name FROM fact")]
        )
        assert {"a", "d"} <= set(names)
        if cut is Cut.AFTER:
            assert len(names) >= 3
        else:
            assert names == ["a", "d"]
        assert sorted(hooks) == sorted(names)
        assert [event.frame[:1].decode() for event in seen] == hooks
        assert [event.seq for event in seen] == sorted(event.seq for event in seen)
        await firehose.close()
        await engine.close()
        backend = PostgresBackend(url)
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


async def test_account_caches_forget_when_the_outcome_is_found(database_url: str) -> None:
    with proxied(database_url) as proxy:
        engine = make_engine(database_url, proxy)
        await engine.start()
        cache = AccountCache(engine)

        def add(txn: Txn) -> int:
            return insert_account(
                txn, did="did:plc:a", handle="a.test", email=None, password_hash=None, now_us=0
            )

        def hide(txn: Txn, aid: int) -> None:
            txn.write("UPDATE account SET takedown_ref = 'x' WHERE aid = ?", (aid,))
            cache.forget_after(txn, aid)

        aid = await engine.transact("add", add)
        assert (await cache.get("did:plc:a")).takedown_ref is None
        proxy.arm(Cut.AFTER, refuses_after=True)
        with pytest.raises(Unavailable):
            await engine.transact("hide", hide, aid, accounts=(aid,))
        assert cache.peek(aid) is not None
        proxy.allow()
        await until_writable(engine)
        assert cache.peek(aid) is None
        assert (await cache.get("did:plc:a")).takedown_ref == "x"
        await engine.close()


async def test_what_is_found_while_closing_is_in_the_log_too(database_url: str) -> None:
    log = WriteLog()
    with proxied(database_url) as proxy:
        engine = make_engine(database_url, proxy, recorder=log)
        await engine.start()
        proxy.arm(Cut.AFTER, refuses_after=True)
        with pytest.raises(Unavailable):
            await engine.transact("put", put, "a")
        proxy.allow()
        await engine.close()
        backend = PostgresBackend(database_url)
        assert backend.dump()["fact"] == [("a", b"v")]
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


async def test_a_group_found_late_is_made_durable_before_writes_resume(database_url: str) -> None:
    """Replication must not lack it: until it has it, nothing else is written."""
    groups: list[int] = []
    fails = False

    def make_durable(group: CommittedGroup) -> None:
        if fails:
            raise OSError("the standby does not answer")
        groups.append(len(group.events))

    with proxied(database_url) as proxy:
        engine = make_engine(database_url, proxy, make_durable=make_durable)
        await engine.start()
        proxy.arm(Cut.AFTER, refuses_after=True)
        with pytest.raises(Unavailable):
            await engine.transact("put", put_with_event, "a")
        fails = True
        proxy.allow()
        async with asyncio.timeout(60):
            while "standby" not in " ".join(engine.health().problems):
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await engine.transact("count", count)
        fails = False
        await until_writable(engine)
        assert groups[0] == 1
        await engine.close()
