"""The proof of the write log can fail."""

import asyncio
from pathlib import Path

import pytest

from pds.store.engine import Statement, Txn
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import PUT, put_with_event
from tests.suites.engines import Backend, PostgresBackend, SqliteBackend, open_engine
from tests.support_postgres import database_url

__all__ = ["database_url"]


async def test_a_log_that_lacks_or_changes_a_write_is_noticed(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    log = WriteLog()
    engine = backend.engine(FakeClock(), recorder=log)
    await engine.start()
    for name in "abc":
        await engine.transact("put", put_with_event, name)
    await engine.close()
    groups = log.groups
    assert len(groups) == 3
    assert compare(backend.dump(), backend.dump_replayed(groups)) == []
    lacking = compare(backend.dump(), backend.dump_replayed(groups[:-1]))
    assert [text.split(":")[0] for text in lacking] == ["event", "fact", "seq"]
    extra = (Statement(PUT, (("more", b""),)),)
    assert (
        "extra [('more', b'')]"
        in compare(backend.dump(), backend.dump_replayed([*groups, extra]))[0]
    )


class Forgetful(WriteLog):
    """A log that kept nothing."""

    @property
    def groups(self) -> list[tuple[Statement, ...]]:
        return []


async def test_a_test_engine_proves_its_log_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_engine(tmp_path / "whole") as engine:
        await engine.transact("put", put_with_event, "a")
        assert engine.last_seq > 0
    monkeypatch.setattr("tests.suites.engines.WriteLog", Forgetful)
    with pytest.raises(AssertionError):
        async with open_engine(tmp_path / "lacking") as engine:
            await engine.transact("put", put_with_event, "a")


async def test_the_log_of_one_database_gives_the_same_rows_in_the_other(
    tmp_path: Path, database_url: str
) -> None:
    """Rows of every kind: text beyond ASCII, bytes, nulls, large numbers, deletions, events."""
    backends: list[Backend] = [SqliteBackend(tmp_path), PostgresBackend(database_url)]
    for ours, other in (backends, reversed(backends)):
        log = WriteLog()
        engine = ours.engine(FakeClock(), recorder=log)
        await engine.start()
        await asyncio.gather(
            *(
                engine.transact("put", put_with_event, f"f{n} \u00e9", accounts=(n,))
                for n in range(40)
            )
        )
        await engine.transact(
            "delete", lambda txn: txn.write("DELETE FROM fact WHERE name < ?", ("f2",))
        )
        await engine.transact("account", _insert_account)
        await engine.raise_seq(FakeClock().now_us() + 10**9)
        await engine.close()
        rows = ours.dump()
        assert len(rows["event"]) == 40
        assert compare(rows, other.dump_replayed(log.groups)) == []


def _insert_account(txn: Txn) -> None:
    txn.write(
        "INSERT INTO account (aid, did, handle, created_at) VALUES (?, ?, NULL, ?)",
        (txn.next_id("account"), "did:plc:\U0001f98b", -(2**63)),
    )
