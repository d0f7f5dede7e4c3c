"""Statements that wait for others on PostgreSQL: whose failure it is, and what is sent again."""

import asyncio
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Conflict, Paused, StoreError
from pds.store import postgres_link, postgres_writer
from pds.store.base import ThreadedEngine
from pds.store.convert_mark import WRITE_MARK, Mark, Stage, encode_mark
from pds.store.engine import Row, Txn
from pds.store.postgres_link import Link, Message, encode_message
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import (
    PUT,
    UPSERT,
    Gate,
    Refused,
    count,
    get,
    put,
    put_with_event,
    queue_jobs,
    settle,
)
from tests.suites.engines import Backend, PostgresBackend, SqliteBackend
from tests.support_postgres import database_url

__all__ = ["database_url"]

Job = Callable[[Txn], Any]


@pytest.fixture
def backend(database_url: str) -> PostgresBackend:
    return PostgresBackend(database_url)


def put_a(txn: Txn) -> None:
    put(txn, "a")


def event_b(txn: Txn) -> None:
    put_with_event(txn, "b")


def idle(txn: Txn) -> None:
    """Do nothing."""


async def run_together(backend: Backend, *jobs: Job, fresh: bool = True) -> list[Any]:
    """Run jobs in one group, as far as the time of a group allows; prove the log."""
    log = WriteLog()
    engine = backend.engine(FakeClock(), recorder=log)
    await engine.start()
    answers = await run_group(engine, *jobs)
    await engine.close()
    if fresh:
        assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []
    return answers


async def run_group(engine: ThreadedEngine, *jobs: Job) -> list[Any]:
    gate = Gate()
    held = await gate.hold(engine)
    tasks = await queue_jobs(engine, *jobs)
    gate.opened.set()
    await held
    return await settle(*tasks)


def names(backend: Backend) -> list[str]:
    return sorted(row[0] for row in backend.dump()["fact"])


async def test_a_write_that_fails_behind_its_job_fails_this_job_only(
    backend: PostgresBackend,
) -> None:
    """The next job's first read finds out; it and those before are as if nothing had been."""
    hooks: list[str] = []

    def conflicts(txn: Txn) -> str:
        put_with_event(txn, "lost")
        txn.on_commit(lambda: hooks.append("lost"))
        put(txn, "a")
        return "never"

    def reads(txn: Txn) -> tuple[int, bytes | None]:
        put(txn, "c")
        return count(txn), get(txn, "lost")

    answers = await run_together(
        backend,
        lambda txn: put(txn, "a"),
        lambda txn: put_with_event(txn, "b"),
        conflicts,
        reads,
        lambda txn: put_with_event(txn, "d"),
    )
    assert isinstance(answers[2], Conflict)
    assert [*answers[:2], *answers[3:]] == ["a", None, (3, None), None]
    assert names(backend) == ["a", "b", "c", "d"]
    assert [row[4][:1] for row in sorted(backend.dump()["event"])] == [b"b", b"d"]
    assert hooks == []


@pytest.mark.parametrize("writes", [put, put_with_event])
async def test_the_last_write_of_a_lone_job_may_fail(
    backend: PostgresBackend, writes: Callable[[Txn, str], Any]
) -> None:
    log = WriteLog()
    engine = backend.engine(FakeClock(), recorder=log)
    await engine.start()
    await engine.transact("put", put, "a")

    def job(txn: Txn) -> None:
        writes(txn, "b")
        put(txn, "a")

    for bulk in (False, True):
        with pytest.raises(Conflict):
            await engine.transact("job", job, bulk=bulk)
    assert await engine.transact("put", put, "c") == "c"
    await engine.close()
    assert names(backend) == ["a", "c"]
    assert compare(backend.dump(), backend.dump_replayed(log.groups)) == []


async def test_a_group_of_which_all_jobs_fail_late_leaves_nothing(
    backend: PostgresBackend,
) -> None:
    def twice(txn: Txn) -> None:
        put_with_event(txn, "x")
        put(txn, "x")

    answers = await run_together(backend, twice, twice, twice)
    assert [type(answer) for answer in answers] == [Conflict] * 3
    assert names(backend) == []
    assert backend.dump()["event"] == []


async def test_a_statement_that_fails_in_its_job_raises_there(backend: PostgresBackend) -> None:
    """A read sees its own job's writes, and their failure."""
    seen: list[str] = []

    def job(txn: Txn) -> None:
        put(txn, "b")
        put(txn, "a")
        try:
            count(txn)
        except Conflict:
            seen.append("conflict")
        with pytest.raises(StoreError):
            put(txn, "c")

    answers = await run_together(
        backend, lambda txn: put(txn, "a"), job, lambda txn: put(txn, "d"), count
    )
    assert isinstance(answers[1], Conflict)
    assert answers[2:] == ["d", 2]
    assert seen[0] == "conflict"


@pytest.mark.parametrize("jobs", [[count], [put_a], [event_b], [count, put_a, event_b], [idle]])
async def test_what_forbids_a_transaction_is_told_to_all_its_jobs(
    backend: PostgresBackend, jobs: list[Job]
) -> None:
    """It shows with the first answer, before anything is committed."""
    engine = backend.engine(FakeClock())
    await engine.start()
    mark = Mark(Stage.PAUSED, "id", "elsewhere", 1)
    await engine.transact("mark", lambda txn: txn.write(WRITE_MARK, (encode_mark(mark),)))
    gate = Gate()
    answers = await asyncio.wait_for(settle(*await queue_jobs(engine, *jobs)), 60)
    assert [type(answer) for answer in answers] == [Paused] * len(jobs)
    with pytest.raises(Paused):
        gate.opened.set()
        await engine.transact("gate", gate.job, bulk=True)
    with closing(Link(backend.url, {})) as link:
        link.open()
        link.execute("DELETE FROM conversion")
    assert await settle(*await queue_jobs(engine, *jobs))
    assert await engine.read("count", count) == sum(job in (put_a, event_b) for job in jobs)
    await engine.close()


async def test_much_is_sent_before_it_is_asked_for(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded; a job of many rows is undone whole, wherever it fails."""
    monkeypatch.setattr(postgres_writer, "MAX_WAITING_BYTES", 2000)
    rows = [(f"f{n}", bytes(300)) for n in range(60)]

    def fails(txn: Txn) -> None:
        txn.write_many(PUT, [(f"g{n}", bytes(300)) for n in range(30)])
        put(txn, "f0")

    answers = await run_together(
        backend, lambda txn: txn.write_many(PUT, rows), fails, lambda txn: put(txn, "a"), count
    )
    assert isinstance(answers[1], Conflict)
    assert (answers[0], answers[2], answers[3]) == (None, "a", 61)


Step = tuple[str, str]


def make_job(steps: list[Step]) -> Job:
    """A job that does some steps and answers what it read."""

    def job(txn: Txn) -> list[Any]:
        read: list[Any] = []
        for step, name in steps:
            if step == "put":
                put(txn, name)
            elif step == "event":
                put_with_event(txn, name)
            elif step == "upsert":
                txn.write(UPSERT, (name, name.encode()))
            elif step == "delete":
                txn.write("DELETE FROM fact WHERE name = ?", (name,))
            elif step == "take":
                read.append(txn.write("DELETE FROM fact WHERE name = ? RETURNING name", (name,)))
            elif step == "many":
                txn.write_many(UPSERT, [(name, b"1"), (name + "2", b"2")])
            elif step == "read":
                read.append(get(txn, name))
            elif step == "id":
                read.append(txn.next_id(name))
            elif step == "lock":
                txn.lock_accounts((1, 2))
            else:
                raise Refused
        return read

    return job


STEPS = ["put"] * 3 + ["event", "upsert", "delete", "take", "many", "read", "read", "id", "lock"]


def make_steps(chance: random.Random) -> list[list[Step]]:
    """What the jobs of a group do; many are in each other's way."""
    jobs = []
    for _ in range(chance.randrange(1, 8)):
        kinds = [*STEPS, "fail"] if chance.random() < 0.3 else STEPS
        steps = range(chance.randrange(6))
        jobs.append([(chance.choice(kinds), chance.choice("abcdef")) for _ in steps])
    return jobs


async def test_any_group_does_the_same_on_both_databases(
    tmp_path: Path, backend: PostgresBackend
) -> None:
    """Random groups, one after the other: the same answers, failures, rows and events.

    A job that raises of its own after a write that was to fail may not have heard of that.
    """
    chance = random.Random("groups")
    groups = [make_steps(chance) for _ in range(60)]
    found = []
    backends: list[Backend] = [SqliteBackend(tmp_path), backend]
    for kind in backends:
        log = WriteLog()
        engine = kind.engine(FakeClock(), recorder=log)
        await engine.start()
        answers = [await run_group(engine, *map(make_job, group)) for group in groups]
        await engine.close()
        rows = kind.dump()
        assert compare(rows, kind.dump_replayed(log.groups)) == []
        found.append(
            (
                [["failed" if isinstance(a, Exception) else a for a in group] for group in answers],
                {table: rows[table] for table in ("fact", "counter", "event", "seq")},
            )
        )
    for group, ours, theirs in zip(groups, found[0][0], found[1][0], strict=True):
        assert ours == theirs, group
    assert found[0][1] == found[1][1]
    failures = {type(a) for group in answers for a in group if isinstance(a, Exception)}
    assert failures == {Conflict, Refused}


# --- the connection ---------------------------------------------------------------------------


@pytest.fixture
def link(database_url: str):
    link = Link(database_url, {})
    link.open()
    link.execute("CREATE TABLE fact (name TEXT PRIMARY KEY, value BYTEA)")
    yield link
    link.close()


def test_a_batch_ends_with_its_first_failure(link: Link) -> None:
    first, same, other = (encode_message(PUT, (name, b"")) for name in "aab")
    with pytest.raises(Conflict):
        link.run((Message("BEGIN"), first, same, other))
    assert link.failed_at == 2
    assert link.in_transaction
    link.rollback()
    assert link.execute("SELECT COUNT(*) FROM fact") == [(0,)]


def test_answers_and_questions_larger_than_all_buffers_do_not_block(link: Link) -> None:
    """The server stops reading when nobody takes what it answers."""
    size = 4_000_000
    messages = [
        encode_message("SELECT CAST(? AS bytea)", (bytes([number]) * size,)) for number in range(8)
    ]
    assert link.run(messages) == [(bytes([7]) * size,)]
    assert link.rows_of(3) == [(bytes([3]) * size,)]


def test_what_is_prepared_is_bounded(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_link, "PREPARED_TEXTS", 5)
    prepared = "SELECT COUNT(*) FROM pg_prepared_statements"
    for _ in range(3):
        for number in range(20):
            assert link.execute(f"SELECT {number} + ?", (1,)) == [(number + 1,)]
        rows: list[Row] = link.execute(prepared)
        assert 0 <= rows[0][0] <= 5


def test_a_text_that_cannot_be_prepared_is_not_taken_for_prepared(link: Link) -> None:
    for _ in range(4):
        with pytest.raises(StoreError, match="UndefinedTable"):
            link.execute("SELECT * FROM missing WHERE a = ?", (1,))
    link.execute("CREATE TABLE missing (a BIGINT)")
    assert link.execute("SELECT * FROM missing WHERE a = ?", (1,)) == []
    link.execute("BEGIN")
    with pytest.raises(StoreError):
        link.run((Message("SELECT 1/0"), Message("SELECT 2"), Message("SELECT 2")))
    link.rollback()
    assert link.execute("SELECT 2") == [(2,)]


def test_the_answer_to_what_was_only_sent_is_skipped(link: Link) -> None:
    link.execute("BEGIN")
    link.send(Message("ROLLBACK"))
    assert not link.in_transaction
    assert link.execute("SELECT 5") == [(5,)]
    link.send(Message("SELECT 1/0"))
    assert link.execute("SELECT 6") == [(6,)]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5, "a\0"])
def test_what_cannot_be_a_parameter_is_refused(value: Any) -> None:
    with pytest.raises(StoreError):
        encode_message(PUT, (value, b""))


async def test_one_create_takes_few_round_trips(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure on which the speed rests: alone two plus its reads, in a group its reads."""
    engine = backend.engine(FakeClock())
    await engine.start()
    trips = 0
    original = Link.run

    def counted(self: Link, messages: Any) -> list[Row]:
        nonlocal trips
        trips += self is engine._writer_link.link
        return original(self, messages)

    monkeypatch.setattr(Link, "run", counted)

    def job(txn: Txn, name: str) -> None:
        get(txn, name)
        txn.write_many(UPSERT, [(name, b"1"), (name + "2", b"1")])
        put_with_event(txn, name + "3")
        txn.write("UPDATE fact SET value = ? WHERE name = ?", (b"2", name))

    await engine.transact("alone", job, "a", accounts=(1,))
    assert trips == 3
    trips, groups = 0, engine.health().groups
    await asyncio.gather(
        *(engine.transact("together", job, f"n{n}", accounts=(n,)) for n in range(30))
    )
    assert trips == 30 + 2 * (engine.health().groups - groups)
    await engine.close()
