"""Rows of shared limits: added up, listed while their window goes on, dropped afterwards."""

from pds.store.base import ThreadedEngine
from pds.store.rate_counts import (
    RateCount,
    add_rate_counts,
    delete_old_rate_counts,
    list_rate_counts,
)

HOUR_US = 3_600_000_000


def row(number: int, points: int = 1, *, ends_at: int = HOUR_US) -> RateCount:
    return RateCount("writes", number.to_bytes(4, "big"), 0, points, ends_at)


async def test_points_are_added_up_whatever_the_size_of_the_batch(
    recording_engine: ThreadedEngine,
) -> None:
    """Statements hold 64, 8 or 1 rows: 141 is all of them."""
    engine = recording_engine
    rows = [row(number, number) for number in range(141)]
    assert await engine.transact("t", add_rate_counts, rows) == list(range(141))
    again = [row(number, -1) for number in range(141)]
    assert await engine.transact("t", add_rate_counts, again) == list(range(-1, 140))
    assert await engine.transact("t", add_rate_counts, []) == []


async def test_rows_are_listed_until_their_window_ends_and_then_dropped(
    recording_engine: ThreadedEngine,
) -> None:
    engine = recording_engine
    rows = [row(1, 5), row(2, 6, ends_at=2 * HOUR_US), row(3, 7, ends_at=3 * HOUR_US)]
    await engine.transact("t", add_rate_counts, rows)
    assert await engine.read("t", list_rate_counts, HOUR_US, 9) == [rows[2], rows[1]]
    assert await engine.read("t", list_rate_counts, 0, 2) == [rows[2], rows[1]]
    assert await engine.transact("t", delete_old_rate_counts, 2 * HOUR_US, 1) == 1
    assert await engine.transact("t", delete_old_rate_counts, 2 * HOUR_US, 9) == 1
    assert await engine.transact("t", delete_old_rate_counts, 2 * HOUR_US, 9) == 0
    assert await engine.read("t", list_rate_counts, 0, 9) == [rows[2]]
