"""First reads that go together, and writes that go ahead, on PostgreSQL: nobody sees a difference.

Jobs that name what they read first take one round trip together, and the database works on what a
job wrote while the next one runs.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Conflict, StoreError
from pds.store.base import ThreadedEngine
from pds.store.engine import FirstRead, Row, Txn
from pds.store.postgres_link import Link
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import (
    GET,
    UPSERT,
    Gate,
    Refused,
    count,
    get,
    put,
    put_with_event,
    settle,
)
from tests.suites.engines import Backend, PostgresBackend, SqliteBackend
from tests.support_postgres import database_url

__all__ = ["database_url"]

Job = tuple[int, FirstRead | None, Callable[[Txn], Any]]
"""The account, what is read first, and what is done."""


@pytest.fixture
def backend(database_url: str) -> PostgresBackend:
    return PostgresBackend(database_url)


def first(name: str) -> FirstRead:
    return FirstRead(GET, (name,))


async def run_group(engine: ThreadedEngine, jobs: Sequence[Job]) -> list[Any]:
    """Run jobs in one group, as far as the time of a group allows."""
    gate = Gate()
    held = await gate.hold(engine)
    tasks = [
        asyncio.create_task(engine.transact("job", fn, accounts=(aid,), first_read=read))
        for aid, read, fn in jobs
    ]
    await asyncio.sleep(0)
    gate.opened.set()
    await held
    return await settle(*tasks)


async def run_once(backend: Backend, *jobs: Job) -> list[Any]:
    """Run one group on a new engine, and prove the log."""
    log = WriteLog()
    engine = backend.engine(FakeClock(), recorder=log)
    await engine.start()
    answers = await run_group(engine, jobs)
    await engine.close()
    assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []
    return answers


def swap(name: str, value: bytes = b"new") -> Callable[[Txn], Any]:
    """A job that reads a fact, changes it, and reads it again."""

    def job(txn: Txn) -> Any:
        before = get(txn, name)
        txn.write(UPSERT, (name, value))
        return before, get(txn, name)

    return job


async def test_each_job_gets_what_it_would_have_read(backend: PostgresBackend) -> None:
    answers = await run_once(
        backend,
        (1, None, lambda txn: put(txn, "a")),
        (1, first("a"), swap("a", b"2")),
        (2, first("b"), swap("b")),
        (1, first("a"), swap("a", b"3")),
        (3, None, count),
    )
    assert answers == ["a", (b"v", b"2"), (None, b"new"), (b"2", b"3"), 2]


async def test_jobs_of_one_account_see_each_other(backend: PostgresBackend) -> None:
    answers = await run_once(
        backend,
        (1, first("a"), swap("a", b"1")),
        (2, first("b"), swap("b", b"2")),
        (1, first("a"), swap("a", b"3")),
        (4, first("d"), swap("d", b"4")),
    )
    assert answers == [(None, b"1"), (None, b"2"), (b"1", b"3"), (None, b"4")]


async def test_a_job_that_writes_first_sees_its_write(backend: PostgresBackend) -> None:
    def job(name: str) -> Callable[[Txn], Any]:
        return lambda txn: (put(txn, name), get(txn, name))

    answers = await run_once(backend, *((n, first(f"f{n}"), job(f"f{n}")) for n in range(1, 4)))
    assert answers == [(f"f{n}", b"v") for n in range(1, 4)]


async def test_a_job_may_read_something_else_than_it_said(backend: PostgresBackend) -> None:
    answers = await run_once(
        backend,
        (1, first("a"), lambda txn: put(txn, "a")),
        (2, first("b"), lambda txn: (count(txn), get(txn, "b"))),
        (3, first("c"), lambda txn: None),
        (4, first("d"), lambda txn: get(txn, "a")),
    )
    assert answers == ["a", (1, None), None, b"v"]


async def test_a_write_that_fails_after_it_was_sent_fails_its_job_only(
    backend: PostgresBackend,
) -> None:
    """The jobs behind it are not run again: what they read did not depend on it."""
    runs: list[str] = []

    def job(name: str) -> Callable[[Txn], Any]:
        def run(txn: Txn) -> str:
            runs.append(name)
            assert get(txn, name) is None
            put_with_event(txn, name)
            if name == "c":
                put(txn, "c")
            return name

        return run

    names = "abcde"
    answers = await run_once(
        backend, *((n, first(name), job(name)) for n, name in enumerate(names))
    )
    assert isinstance(answers[2], Conflict)
    assert [answers[n] for n in (0, 1, 3, 4)] == ["a", "b", "d", "e"]
    assert runs == list(names)
    assert [row[0] for row in backend.dump()["fact"]] == ["a", "b", "d", "e"]
    assert len(backend.dump()["event"]) == 4


async def test_a_first_read_that_fails_fails_its_job_only(backend: PostgresBackend) -> None:
    bad = FirstRead("SELECT 1 / CAST(? AS bigint)", (0,))

    def fails(txn: Txn) -> list[Row]:
        return txn.read(bad.sql, bad.params)

    answers = await run_once(
        backend, (1, first("a"), swap("a")), (2, bad, fails), (3, first("c"), swap("c"))
    )
    assert type(answers[1]) is StoreError
    assert (answers[0], answers[2]) == ((None, b"new"), (None, b"new"))


async def test_a_connection_that_is_lost_in_a_group_loses_nothing(backend: PostgresBackend) -> None:
    """What was sent ahead is undone by the server; every job is run again."""
    engine = backend.engine(FakeClock())
    await engine.start()
    kills = 1

    def job(name: str) -> Callable[[Txn], Any]:
        def run(txn: Txn) -> str:
            nonlocal kills
            assert get(txn, name) is None
            if name == "c" and kills:
                kills -= 1
                pid = engine._writer_link.link._raw.info.backend_pid
                with closing(Link(backend.url, {})) as link:
                    link.open()
                    link.execute("SELECT pg_terminate_backend(CAST(? AS int))", (pid,))
            return put(txn, name)

        return run

    answers = await run_group(
        engine, [(n, first(name), job(name)) for n, name in enumerate("abcde")]
    )
    await engine.close()
    assert kills == 0
    assert answers == list("abcde")
    assert [row[0] for row in backend.dump()["fact"]] == list("abcde")


async def test_a_group_takes_three_round_trips(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure on which the speed rests: reads together, the numbers, the commit."""
    engine = backend.engine(FakeClock())
    await engine.start()
    trips = 0
    original = Link.run

    def counted(self: Link, messages: Any) -> list[Row]:
        nonlocal trips
        trips += self is engine._writer_link.link
        return original(self, messages)

    monkeypatch.setattr(Link, "run", counted)

    def job(name: str) -> Callable[[Txn], Any]:
        def run(txn: Txn) -> None:
            get(txn, name)
            txn.write_many(UPSERT, [(name, b"1"), (name + "2", b"1")])
            put_with_event(txn, name + "3")

        return run

    groups = engine.health().groups
    await asyncio.gather(
        *(
            engine.transact("job", job(f"n{n}"), accounts=(n,), first_read=first(f"n{n}"))
            for n in range(30)
        )
    )
    assert trips == 3 * (engine.health().groups - groups)
    await engine.close()


def random_job(chance: random.Random) -> Job:
    """A job that keeps to the facts of its account, as first reads ask it to."""
    aid = chance.randrange(1, 6)
    name = f"{aid}{chance.choice('ab')}"
    kinds = ["upsert", "upsert", "event", "put", "delete", "read", "fail"]
    steps = [(chance.choice(kinds), f"{aid}{chance.choice('abc')}") for _ in range(4)]

    def job(txn: Txn) -> list[Any]:
        seen: list[Any] = [get(txn, name)]
        for kind, fact in steps:
            if kind == "upsert":
                txn.write(UPSERT, (fact, b"%d" % len(seen)))
            elif kind == "event":
                put_with_event(txn, fact + str(len(seen)))
            elif kind == "put":
                put(txn, fact)
                seen.append(None)
            elif kind == "delete":
                txn.write("DELETE FROM fact WHERE name = ?", (fact,))
            elif kind == "read":
                seen.append(get(txn, fact))
            elif get(txn, fact) is not None:
                raise Refused
        return seen

    return aid, first(name) if chance.random() < 0.9 else None, job


async def test_any_group_does_the_same_on_both_databases(
    tmp_path: Path, backend: PostgresBackend
) -> None:
    """Random groups, one after the other: the same answers, failures, rows and events."""
    chance = random.Random("first reads")
    groups = [[random_job(chance) for _ in range(chance.randrange(1, 9))] for _ in range(60)]
    found = []
    backends: list[Backend] = [SqliteBackend(tmp_path), backend]
    for kind in backends:
        log = WriteLog()
        engine = kind.engine(FakeClock(), recorder=log)
        await engine.start()
        answers = [await run_group(engine, group) for group in groups]
        await engine.close()
        rows = kind.dump()
        assert compare(rows, kind.dump_replayed(log.groups)) == []
        found.append(
            (
                [["failed" if isinstance(a, Exception) else a for a in group] for group in answers],
                {table: rows[table] for table in ("fact", "event", "seq")},
            )
        )
    assert found[0] == found[1]
    failures = {type(a) for group in answers for a in group if isinstance(a, Exception)}
    assert failures == {Conflict, Refused}
