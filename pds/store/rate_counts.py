"""Points that were spent in a window of a limit, by all nodes together.

Owns the table `rate_count` (scratch: losing it lets everybody begin anew). Subjects are digests;
whose they are is not kept. Instants are unix microseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pds.store.engine import MAX_BULK_ROWS, Txn

CHUNKS: Final = (64, 8, 1)
"""Rows of one statement: few sizes, so that few texts are prepared."""


@dataclass(frozen=True, slots=True, order=True)
class RateCount:
    """Points of one subject in one window of one limit."""

    limit_name: str
    subject: bytes
    window_start: int
    points: int
    expires_at: int


def add_rate_counts(txn: Txn, counts: Sequence[RateCount]) -> list[int]:
    """Add points to rows, which must differ, and return what each has now.

    Rows are locked in their order: nodes that add to the same ones hand them in sorted.
    """
    totals: dict[tuple[str, bytes, int], int] = {}
    begin = 0
    for size in CHUNKS:
        while len(counts) - begin >= size:
            chunk = counts[begin : begin + size]
            begin += size
            rows = txn.write(
                "INSERT INTO rate_count (limit_name, subject, window_start, points, expires_at)"
                f" VALUES {', '.join(['(?, ?, ?, ?, ?)'] * size)}"
                " ON CONFLICT (limit_name, subject, window_start)"
                " DO UPDATE SET points = rate_count.points + excluded.points"
                " RETURNING limit_name, subject, window_start, points",
                [
                    value
                    for row in chunk
                    for value in (
                        row.limit_name,
                        row.subject,
                        row.window_start,
                        row.points,
                        row.expires_at,
                    )
                ],
            )
            totals |= {(row[0], bytes(row[1]), int(row[2])): int(row[3]) for row in rows}
    return [totals[row.limit_name, row.subject, row.window_start] for row in counts]


def list_rate_counts(txn: Txn, now_us: int, limit: int) -> list[RateCount]:
    """Return at most `limit` rows of windows that go on, those that end last first."""
    rows = txn.read(
        "SELECT limit_name, subject, window_start, points, expires_at FROM rate_count"
        " WHERE expires_at > ? ORDER BY expires_at DESC, limit_name, subject LIMIT ?",
        (now_us, limit),
    )
    return [RateCount(row[0], bytes(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in rows]


def delete_old_rate_counts(txn: Txn, now_us: int, limit: int = MAX_BULK_ROWS) -> int:
    """Drop at most `limit` rows of windows that are over; return how many there were."""
    rows = txn.read(
        "SELECT limit_name, subject, window_start FROM rate_count WHERE expires_at <= ?"
        " ORDER BY limit_name, subject, window_start LIMIT ?",
        (now_us, limit),
    )
    txn.write_many(
        "DELETE FROM rate_count WHERE limit_name = ? AND subject = ? AND window_start = ?", rows
    )
    return len(rows)
