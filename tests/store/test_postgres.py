"""What only several writers of one database, and a network before it, can do to an engine."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pds.errors import ConfigError, StoreError, Unavailable
from pds.store import postgres
from pds.store.clock import ClockInDoubt
from pds.store.engine import (
    CommittedEvent,
    ForeignCommits,
    HealthStatus,
    Interrupted,
    Txn,
    Write,
)
from pds.store.migrate import SCHEMA_VERSION, Migration, SchemaTooNew, load_migrations
from pds.store.nodes import forget_old_nodes
from pds.store.postgres import PostgresEngine, try_migrations
from pds.store.postgres_link import check_url
from pds.store.postgres_listen import MAX_PAYLOAD, decode_payloads, encode_payload
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import NOON_US, FakeClock
from tests.fakes.tcp_proxy import Cut, TcpProxy
from tests.suites.engine_jobs import Gate, count, get, put, put_with_event, queue_jobs, settle
from tests.suites.engine_streams import read_for_ever, write_pieces
from tests.suites.engines import PostgresBackend
from tests.support_postgres import database_url, make_database, private_server

__all__ = ["database_url"]


@pytest.fixture
def backend(database_url: str) -> PostgresBackend:
    return PostgresBackend(database_url)


@pytest.fixture
def proxy(database_url: str) -> Iterator[TcpProxy]:
    target = conninfo_to_dict(database_url)
    proxy = TcpProxy(str(target["host"]), int(target.get("port") or 5432))
    yield proxy
    proxy.close()


@asynccontextmanager
async def started(backend: PostgresBackend, **settings: Any) -> AsyncIterator[PostgresEngine]:
    engine = PostgresEngine(backend.settings(**settings), FakeClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("cut", Cut)
async def test_a_commit_whose_answer_is_lost_happens_once(
    backend: PostgresBackend, proxy: TcpProxy, cut: Cut
) -> None:
    """Every job of the group is answered with success, and its rows and events are there once."""
    through = PostgresBackend(make_conninfo(backend.url, host="127.0.0.1", port=proxy.port))
    log = WriteLog()
    engine = through.engine(FakeClock(), recorder=log)
    seen: list[CommittedEvent] = []
    hooks: list[str] = []
    engine.add_event_hook(seen.extend)
    await engine.start()

    def job(txn: Txn, name: str) -> str:
        put_with_event(txn, name)
        txn.on_commit(lambda: hooks.append(name))
        return name

    gate = Gate()
    held = await gate.hold(engine)
    jobs = [lambda txn, name=name: job(txn, name) for name in "abc"]
    tasks = await queue_jobs(engine, *jobs)
    gate.opened.set()
    await held
    # The gate's own COMMIT went through unharmed or was settled; the next one is the group's.
    proxy.arm(cut)
    assert await settle(*tasks) == ["a", "b", "c"]
    more = await settle(*await queue_jobs(engine, lambda txn: job(txn, "d")))
    assert more == ["d"]
    assert proxy.cuts == 1
    assert hooks == ["a", "b", "c", "d"]
    assert [event.frame[:1] for event in seen] == [b"a", b"b", b"c", b"d"]
    assert await engine.read("count", count) == 4
    assert engine.health().status is HealthStatus.OK
    await engine.close()
    assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


async def test_a_connection_lost_inside_a_job_is_no_failure(backend: PostgresBackend) -> None:
    async with started(backend) as engine:
        lost: list[int] = []

        def job(txn: Txn) -> str:
            put(txn, "a")
            if not lost:
                (pid,) = txn.read("SELECT pg_backend_pid()")[0]
                lost.append(pid)
                with psycopg.connect(backend.url, autocommit=True) as other:
                    other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            return put(txn, "b")

        assert await engine.transact("job", job) == "b"
        assert lost
        assert await engine.read("count", count) == 2


async def test_a_connection_lost_while_idle_fails_no_read(backend: PostgresBackend) -> None:
    async with started(backend) as engine:
        await engine.transact("put", put, "a", b"1")
        assert await engine.read("warm", get, "a") == b"1"
        with psycopg.connect(backend.url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for _ in range(4):
            assert await engine.read("again", get, "a") == b"1"
        assert await engine.transact("put", put, "b") == "b"


async def test_a_deadlock_is_run_again(backend: PostgresBackend) -> None:
    """Two nodes that lock accounts late and in different order both get their way."""
    async with started(backend) as one, started(backend) as two:

        def add(txn: Txn) -> None:
            for aid in (1, 2):
                txn.write(
                    "INSERT INTO account (aid, did, created_at) VALUES (?, ?, ?)",
                    (aid, f"did:plc:{aid}", 0),
                )

        await one.transact("add", add)
        met = threading.Barrier(2)
        runs: list[int] = []

        def job(txn: Txn, first: int, second: int) -> None:
            runs.append(first)
            txn.lock_accounts((first,))
            count(txn)  # the lock is asked for with what is read behind it
            if len(runs) <= 2:
                met.wait(60)
            txn.lock_accounts((second,))
            put(txn, f"f{first}")

        await asyncio.gather(
            one.transact("one", job, 1, 2, accounts=(8,)),
            two.transact("two", job, 2, 1, accounts=(9,)),
        )
        assert sorted(runs[:2]) == [1, 2]
        assert len(runs) >= 3
        assert await two.read("count", count) == 2


async def test_jobs_on_one_account_take_turns_over_nodes(backend: PostgresBackend) -> None:
    """A read followed by a write is one step, with and without a named account."""
    async with started(backend) as one, started(backend) as two:
        await one.transact(
            "add",
            lambda txn: txn.write(
                "INSERT INTO account (aid, did, created_at) VALUES (1, 'did:plc:1', 0)"
            ),
        )

        def more(txn: Txn, name: str) -> None:
            value = int(get(txn, name) or b"0") + 1
            txn.write(
                "INSERT INTO fact (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, b"%d" % value),
            )
            txn.emit("commit", 1, lambda seq, _at: b"%d" % seq)

        await asyncio.gather(
            *(
                engine.transact("more", more, name, accounts=accounts)
                for engine in (one, two)
                for name, accounts in (("named", (1,)), ("nameless", ()))
                for _ in range(40)
            )
        )
        assert await one.read("get", get, "named") == b"80"
        assert await one.read("get", get, "nameless") == b"80"
        events = await two.read(
            "events", lambda txn: txn.read("SELECT seq, frame FROM event ORDER BY seq")
        )
        assert [frame for _, frame in events] == [b"%d" % seq for seq, _ in events]
        assert [seq for seq, _ in events] == list(range(NOON_US, NOON_US + 160))


async def until_listening(backend: PostgresBackend, count: int) -> None:
    """Wait until so many nodes listen and have had their first look."""
    async with asyncio.timeout(60):
        with psycopg.connect(backend.url, autocommit=True) as other:
            while other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'SELECT last_seq%extract%' AND state LIKE 'idle%'"
            ).fetchone() != (count,):
                await asyncio.sleep(0.02)


async def test_other_nodes_hear_of_numbers_and_accounts(backend: PostgresBackend) -> None:
    async with started(backend) as one, started(backend, poll_s=30.0) as two:
        heard: asyncio.Queue[ForeignCommits] = asyncio.Queue()
        own: list[ForeignCommits] = []
        two.add_foreign_hook(heard.put_nowait)
        one.add_foreign_hook(own.append)

        def job(txn: Txn) -> None:
            put_with_event(txn, "a")
            txn.announce(7)
            txn.announce(3)

        await until_listening(backend, 2)
        await one.transact("job", job)
        async with asyncio.timeout(60):
            assert await heard.get() == ForeignCommits(NOON_US, (3, 7))
        assert two.last_seq == NOON_US
        assert own == []


async def test_a_number_that_nobody_was_told_of_is_found(backend: PostgresBackend) -> None:
    """The poll is the floor under lost notifications."""
    async with started(backend) as engine:
        heard: asyncio.Queue[ForeignCommits] = asyncio.Queue()
        engine.add_foreign_hook(heard.put_nowait)
        with psycopg.connect(backend.url, autocommit=True) as other:
            other.execute("UPDATE seq SET last_seq = 5000")
        async with asyncio.timeout(60):
            assert await heard.get() == ForeignCommits(5000, ())
        assert engine.last_seq == 5000


async def test_after_a_lost_connection_everything_may_have_changed(
    backend: PostgresBackend,
) -> None:
    async with started(backend) as engine:
        heard: asyncio.Queue[ForeignCommits] = asyncio.Queue()
        engine.add_foreign_hook(heard.put_nowait)
        await until_listening(backend, 1)
        with psycopg.connect(backend.url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'SELECT last_seq%extract%'"
            )
        async with asyncio.timeout(60):
            assert await heard.get() == ForeignCommits(0, None)


def test_a_payload_says_who_and_what_or_that_it_may_be_anything() -> None:
    payload = encode_payload("me", 12, [3, 4])
    assert decode_payloads([payload], "me") is None
    assert decode_payloads([payload], "other") == ForeignCommits(12, (3, 4))
    both = [payload, encode_payload("third", 9, [4, 5])]
    assert decode_payloads(both, "other") == ForeignCommits(12, (3, 4, 5))
    long = encode_payload("me", 12, range(10**6, 10**6 + 2000))
    assert len(long) <= MAX_PAYLOAD
    assert decode_payloads([long], "other") == ForeignCommits(12, None)
    assert decode_payloads(["strange words"], "other") == ForeignCommits(0, None)
    assert decode_payloads(["", payload], "other") == ForeignCommits(12, None)


async def test_a_clock_far_from_the_database_stops_writes(backend: PostgresBackend) -> None:
    """The clock of the tests is years away from the server's."""
    async with started(backend, max_skew_s=2.0) as engine:
        with pytest.raises(ClockInDoubt, match="differ by"):
            await engine.transact("put", put, "a")
        assert await engine.read("count", count) == 0
        assert engine.health().status is HealthStatus.FAILED
    async with started(backend, max_skew_s=10.0**9) as engine:
        assert await engine.transact("put", put, "a") == "a"


async def test_a_long_read_is_ended_and_the_next_one_works(backend: PostgresBackend) -> None:
    async with started(backend, max_read_s=0.2) as engine:
        with pytest.raises(Unavailable):
            await engine.read("long", lambda txn: txn.read("SELECT pg_sleep(20)"))
        assert await engine.read("count", count) == 0


async def test_nodes_may_start_at_once_on_an_empty_database(backend: PostgresBackend) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [PostgresEngine(backend.settings(), FakeClock()) for _ in range(4)]
        for engine in engines:
            stack.push_async_callback(engine.close)
        await asyncio.gather(*(engine.start() for engine in engines))
        for number, engine in enumerate(engines):
            await engine.transact("put", put, f"f{number}")
        assert await engines[0].read("count", count) == 4


async def test_a_restart_of_the_database_delays_writes_and_fails_none() -> None:
    server = private_server()
    try:
        backend = PostgresBackend(make_database(server.url))
        async with started(backend, reconnect_s=60.0) as engine:
            await engine.transact("put", put_with_event, "before")
            await asyncio.to_thread(server.stop, signal.SIGINT)
            tasks = await queue_jobs(
                engine, *[lambda txn, n=n: put_with_event(txn, f"f{n}") for n in range(5)]
            )
            with pytest.raises(Unavailable):
                await engine.read("count", count)
            await asyncio.to_thread(server.start)
            assert await settle(*tasks) == [None] * 5
            assert await engine.read("count", count) == 6
    finally:
        server.remove()


async def test_an_unreachable_database_is_unavailable() -> None:
    server = private_server()
    backend = PostgresBackend(make_database(server.url))
    try:
        async with started(backend, reconnect_s=0.2) as engine:
            await asyncio.to_thread(server.stop)
            with pytest.raises(Unavailable):
                await engine.transact("put", put, "a")
            assert engine.health().status is HealthStatus.FAILED
            with pytest.raises(Unavailable):
                await PostgresEngine(backend.settings(reconnect_s=0.1), FakeClock()).start()
    finally:
        server.remove()


async def test_a_job_that_is_always_interrupted_fails_in_the_end(backend: PostgresBackend) -> None:
    runs: list[int] = []

    def job(_txn: Txn) -> None:
        runs.append(1)
        raise Interrupted("again")

    async with started(backend) as engine:
        with pytest.raises(Interrupted):
            await engine.transact("job", job)
        assert 3 <= len(runs) <= 10
        assert await engine.transact("put", put, "a") == "a"


async def test_a_database_that_is_too_new_is_refused(backend: PostgresBackend) -> None:
    async with started(backend):
        pass
    with psycopg.connect(backend.url) as other:
        other.execute("UPDATE migration SET compat = 999")
    with pytest.raises(SchemaTooNew):
        await PostgresEngine(backend.settings(), FakeClock()).start()


async def test_a_text_with_nul_is_found_nowhere_and_stored_nowhere(
    backend: PostgresBackend,
) -> None:
    async with started(backend) as engine:
        assert await engine.read("get", get, "\0") is None
        with pytest.raises(StoreError):
            await engine.transact("put", put, "a\0")


async def test_errors_do_not_quote_rows(backend: PostgresBackend) -> None:
    async with started(backend) as engine:
        await engine.transact("put", put, "a-private-name")
        with pytest.raises(StoreError) as info:
            await engine.transact("put", put, "a-private-name")
        assert "private" not in str(info.value)


async def test_rows_of_nodes_that_are_gone_are_dropped(backend: PostgresBackend) -> None:
    async with started(backend) as engine:
        await engine.transact("put", put, "a")
    async with started(backend) as engine:
        nodes = "SELECT COUNT(*) FROM commit_group"
        await engine.transact("put", put, "b")
        assert await engine.read("nodes", lambda txn: txn.read(nodes)) == [(2,)]
        with psycopg.connect(backend.url) as other:
            other.execute("UPDATE commit_group SET begun_at = 0 WHERE node <> %s", (engine._node,))
        assert await engine.transact("forget", forget_old_nodes, 1_000_000) == 0
        assert await engine.transact("forget", forget_old_nodes, 90_000_000_000) == 1
        assert await engine.read("nodes", lambda txn: txn.read(nodes)) == [(1,)]


def test_a_url_keeps_what_it_says_and_its_password_is_not_quoted() -> None:
    filled = conninfo_to_dict(check_url("postgresql://u:secret@h1,h2/d?connect_timeout=9"))
    assert (filled["connect_timeout"], filled["host"]) == ("9", "h1,h2")
    assert filled["target_session_attrs"] == "read-write"
    with pytest.raises(ConfigError) as info:
        check_url("postgresql://u:secret@h?nonsense=1")
    assert "secret" not in str(info.value)


async def test_a_dry_run_of_migrations_leaves_nothing_behind(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name[:4] for name in try_migrations(backend.url, now_us=1)][:1] == ["0001"]
    with psycopg.connect(backend.url) as other:
        assert other.execute("SELECT to_regclass('migration')").fetchall() == [(None,)]
    async with started(backend) as engine:
        await engine.transact("put", put, "a")
        assert try_migrations(backend.url, now_us=1) == []
        more = Migration(SCHEMA_VERSION + 1, "next_more", "ALTER TABLE fact ADD more {blob};")
        broken = Migration(SCHEMA_VERSION + 2, "next_broken", "ALTER TABLE missing ADD a {blob};")
        monkeypatch.setattr(postgres, "load_migrations", lambda: (*load_migrations(), more))
        assert try_migrations(backend.url, now_us=1) == ["next_more"]
        monkeypatch.setattr(postgres, "load_migrations", lambda: (*load_migrations(), more, broken))
        with pytest.raises(StoreError):
            try_migrations(backend.url, now_us=1)
        assert await engine.transact("put", put, "b") == "b"
    assert all(len(row) == 2 for row in backend.dump()["fact"])


async def test_a_process_that_reads_outlives_a_lost_connection_and_keeps_to_the_limit(
    backend: PostgresBackend,
) -> None:
    async with started(backend, read_processes=1, max_read_s=2.0) as engine:
        pieces: list[bytes] = []

        async def stream(fn: Any, *args: Any) -> bytes:
            pieces.clear()
            await engine.stream("stream", pieces.append, fn, *args, apart=True)
            return b"".join(pieces)

        async with asyncio.timeout(60):
            while not pieces:  # Until the process has begun, which may take longer than a read may.
                with contextlib.suppress(Unavailable):
                    assert await stream(write_pieces, [3]) == b"aaa"
        with pytest.raises(Unavailable):
            await stream(read_for_ever)
        await engine.transact("put", put, "a")
        with psycopg.connect(backend.url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await stream(write_fact, "a") == b"v"
        assert len(engine._read_processes.pids) == 1


def write_fact(txn: Txn, write: Write, name: str) -> None:
    """Write the value of a fact."""
    write(get(txn, name) or b"")
