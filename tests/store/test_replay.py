"""The proof of the write log can fail."""

from pathlib import Path

from pds.store.engine import Statement
from pds.store.replay import WriteLog, compare
from tests.fakes.clock import FakeClock
from tests.suites.engine_jobs import PUT, put_with_event
from tests.suites.engines import SqliteBackend, open_engine


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


async def test_a_test_engine_proves_its_log_at_the_end(tmp_path: Path) -> None:
    async with open_engine(tmp_path) as engine:
        await engine.transact("put", put_with_event, "a")
        assert engine.last_seq > 0
    assert (tmp_path / "store" / "replay-1.sqlite").exists()
