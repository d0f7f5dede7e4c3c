"""Rows of scheduled work: when each job is due, which node does it, and what came of it.

A node *takes* a job that is due: the row then holds its name and a lease. Whoever holds the lease
renews it; when it lapses, any other node may take the job. All of it is conditions inside single
UPDATEs, so of several nodes that try at once exactly one succeeds.
"""

from dataclasses import dataclass
from typing import Final

from pds.store.engine import MAX_BULK_ROWS, Txn

JOB_AGE_US: Final = 30 * 86_400_000_000
"""A job overdue by this is one that no version of the program in use still has."""

_COLUMNS: Final = (
    "name, period_us, next_at, lease_node, lease_until, started_at, finished_at, succeeded_at,"
    " result, failures"
)


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job. Instants are unix microseconds; `failures` counts those since the last success."""

    name: str
    period_us: int
    next_at: int
    lease_node: str | None
    lease_until: int | None
    started_at: int | None
    finished_at: int | None
    succeeded_at: int | None
    result: str | None
    failures: int

    def is_leased(self, now_us: int) -> bool:
        """Whether some node is at work on it."""
        return self.lease_until is not None and self.lease_until > now_us


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What came of a run; `failures` is 0 after a success."""

    name: str
    node: str
    finished_at: int
    next_at: int
    result: str
    failures: int


def list_jobs(txn: Txn) -> list[JobRow]:
    """Return all jobs by name."""
    return [JobRow(*row) for row in txn.read(f"SELECT {_COLUMNS} FROM job ORDER BY name")]


def get_job(txn: Txn, name: str) -> JobRow | None:
    """Return one job."""
    row = txn.read_one(f"SELECT {_COLUMNS} FROM job WHERE name = ?", (name,))
    return None if row is None else JobRow(*row)


def put_job(
    txn: Txn, name: str, *, period_us: int, now_us: int, first_at: int, at_start: bool, alone: bool
) -> None:
    """Make the row of a job, or bring it up to date: due between now and one period from now.

    `at_start` makes it due now. With `alone` nobody else uses the database, so a lease that is
    there belongs to a process that is gone.
    """
    latest = now_us if at_start else max(now_us + period_us, first_at)
    txn.write(
        "INSERT INTO job (name, period_us, next_at) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET period_us = excluded.period_us, next_at ="
        " CASE WHEN job.next_at > ? THEN ? WHEN job.next_at < ? THEN ? ELSE job.next_at END",
        (name, period_us, now_us if at_start else first_at, latest, latest, now_us, now_us),
    )
    if alone:
        txn.write("UPDATE job SET lease_node = NULL, lease_until = NULL WHERE name = ?", (name,))


def take_job(
    txn: Txn, name: str, *, node: str, now_us: int, lease_until: int
) -> tuple[int, int] | None:
    """Take a job that is due and held by nobody; return when it was due and its failures so far."""
    rows = txn.write(
        "UPDATE job SET lease_node = ?, lease_until = ?, started_at = ?"
        " WHERE name = ? AND next_at <= ? AND (lease_until IS NULL OR lease_until <= ?)"
        " RETURNING next_at, failures",
        (node, lease_until, now_us, name, now_us, now_us),
    )
    return (int(rows[0][0]), int(rows[0][1])) if rows else None


def renew_job(txn: Txn, name: str, *, node: str, lease_until: int) -> bool:
    """Hold a job for longer; False when it is no longer held by `node`."""
    sql = "UPDATE job SET lease_until = ? WHERE name = ? AND lease_node = ? RETURNING name"
    return bool(txn.write(sql, (lease_until, name, node)))


def release_job(txn: Txn, name: str, *, node: str) -> None:
    """Let go of a job that was not finished: it stays due."""
    txn.write(
        "UPDATE job SET lease_node = NULL, lease_until = NULL WHERE name = ? AND lease_node = ?",
        (name, node),
    )


def finish_job(txn: Txn, run: FinishedRun) -> bool:
    """Note what came of a run and let go; False when the job is no longer held by its node."""
    rows = txn.write(
        "UPDATE job SET lease_node = NULL, lease_until = NULL, finished_at = ?, next_at = ?,"
        " result = ?, failures = ?, succeeded_at = CASE WHEN ? = 0 THEN ? ELSE succeeded_at END"
        " WHERE name = ? AND lease_node = ? RETURNING name",
        (
            run.finished_at,
            run.next_at,
            run.result,
            run.failures,
            run.failures,
            run.finished_at,
            run.name,
            run.node,
        ),
    )
    return bool(rows)


def forget_old_jobs(txn: Txn, now_us: int) -> int:
    """Drop jobs that nobody has run for a month; return how many."""
    rows = txn.read(
        "SELECT name FROM job WHERE next_at < ? AND (lease_until IS NULL OR lease_until < ?)"
        " ORDER BY name LIMIT ?",
        (now_us - JOB_AGE_US, now_us, MAX_BULK_ROWS),
    )
    txn.write_many("DELETE FROM job WHERE name = ?", rows)
    return len(rows)
