"""Work on many rows: in jobs of a bounded size, until nothing is left."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.services.sweeping import finish_in_steps, sweep_rows
from pds.store.engine import MAX_BULK_ROWS, Engine, Txn
from pds.store.identity_cache import delete_old_identities, save_identity
from tests.fakes.clock import FakeClock
from tests.suites.engines import open_engine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_engine(tmp_path, FakeClock()) as engine:
        yield engine


def fill(txn: Txn, count: int) -> None:
    for number in range(count):
        save_identity(txn, f"did:web:{number:05}.example", b"{}", number)


@pytest.mark.parametrize("count", [0, 1, MAX_BULK_ROWS, MAX_BULK_ROWS + 1])
async def test_all_rows_go_in_jobs_of_a_bounded_size(engine: Engine, count: int) -> None:
    await engine.transact("t", fill, count)
    sizes: list[int] = []

    def delete(txn: Txn, before_us: int) -> int:
        deleted = delete_old_identities(txn, before_us)
        sizes.append(deleted)
        return deleted

    assert await sweep_rows(engine, "t", delete, MAX_BULK_ROWS * 2) == count
    assert max(sizes) <= MAX_BULK_ROWS
    assert sum(sizes) == count
    assert len(sizes) == count // MAX_BULK_ROWS + 1


async def test_steps_are_taken_until_one_says_that_it_was_the_last(engine: Engine) -> None:
    await engine.transact("t", fill, 5)

    def step(txn: Txn, limit: int) -> bool:
        return delete_old_identities(txn, 100, limit=limit) == 0

    await finish_in_steps(engine, "t", step, 2)
    assert await engine.transact("t", delete_old_identities, 100) == 0
