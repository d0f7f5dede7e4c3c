"""What a group asks of a database with several writers: locks up front, in order."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pds.store.engine import MAX_GROUP_S, Txn
from pds.store.group import GroupResult, GroupRunner, Job
from pds.store.sqlite import SqliteWriteConnection, migrate_connection
from pds.store.statements import StatementCheck
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import count, put


class LockingConnection(SqliteWriteConnection):
    """Says that there are other writers, and notes what is locked."""

    locked: list[list[int]]

    @property
    def locks_accounts(self) -> bool:
        return True

    def begin(self, accounts: Sequence[int] = ()) -> None:
        self.locked.append(list(accounts))
        super().begin(accounts)


class Queue:
    """Jobs that wait."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = deque(jobs)

    def take(self) -> Job | None:
        return self.jobs.popleft() if self.jobs else None

    def give_back(self, job: Job) -> None:
        self.jobs.appendleft(job)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[LockingConnection]:
    connection = LockingConnection(
        tmp_path / "a.sqlite", cache_bytes=1 << 20, on_log=lambda _pages: None
    )
    migrate_connection(connection, now_us=0)
    connection.load_seq()
    connection.locked = []
    yield connection
    connection.close()


def run_all(connection: LockingConnection, queue: Queue) -> list[list[str]]:
    """Run groups until nothing waits; return the labels of each."""
    runner = GroupRunner(connection, FakeClock(), StatementCheck())
    groups: list[GroupResult] = []
    while queue.jobs:
        groups += runner.run(queue)
    assert all(job.error is None for group in groups for job in group.jobs)
    return [[job.label for job in group.jobs] for group in groups]


def job(label: str, *accounts: int, bulk: bool = False) -> Job:
    return Job(label, put, (label,), accounts, bulk)


def test_the_accounts_of_all_jobs_are_locked_at_once_in_order(
    connection: LockingConnection,
) -> None:
    queue = Queue(job("a", 9, 2), job("b", 5), job("c", 2, 7))
    assert run_all(connection, queue) == [["a", "b", "c"]]
    assert connection.locked == [[2, 5, 7, 9]]


def test_a_job_whose_accounts_are_not_known_runs_alone(connection: LockingConnection) -> None:
    queue = Queue(job("a", 1), job("b"), job("c"), job("d", 1), job("e", 2))
    assert run_all(connection, queue) == [["a"], ["b"], ["c"], ["d", "e"]]
    assert connection.locked == [[1], [], [], [1, 2]]


def test_a_bulk_job_runs_alone(connection: LockingConnection) -> None:
    queue = Queue(job("a", 1, bulk=True), job("b", 1))
    assert run_all(connection, queue) == [["a"], ["b"]]


def test_jobs_that_no_time_is_left_for_go_back_in_their_order(
    connection: LockingConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def slow(txn: Txn) -> None:
        nonlocal now
        count(txn)
        now += MAX_GROUP_S

    monkeypatch.setattr("pds.store.group.time.monotonic", lambda: now)
    queue = Queue(job("a", 1), Job("slow", slow, (), (2,)), job("b", 3), job("c", 4))
    assert run_all(connection, queue) == [["a", "slow"], ["b", "c"]]


def test_jobs_behind_one_that_ends_the_transaction_are_not_lost(
    connection: LockingConnection,
) -> None:
    def end_it(txn: Txn) -> None:
        connection.rollback()
        txn.read("SELECT nothing FROM nowhere")

    queue = Queue(job("a", 1), Job("bad", end_it, (), (2,)), job("b", 3))
    runner = GroupRunner(connection, FakeClock(), StatementCheck())
    answered = [job for _ in range(2) for group in runner.run(queue) for job in group.jobs]
    assert [(job.label, job.error is None) for job in answered] == [
        ("a", True),
        ("bad", False),
        ("b", True),
    ]
    assert connection.execute("SELECT name FROM fact ORDER BY name") == [("a",), ("b",)]
