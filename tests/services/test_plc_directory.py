"""The embedded PLC directory: judgement, order, persistence (ID-55..ID-59)."""

import json
from pathlib import Path

import pytest

from pds.errors import ConfigError
from pds.protocol.plc import PlcError, make_tombstone, make_update, sign_operation
from pds.protocol.plc_log import PlcRateLimited, verify_audit_log
from pds.services.plc_directory import PlcDirectory
from tests.identity.people import make_person

ALICE = make_person("alice")
BOB = make_person("bob")
NOW = 1_790_000_000_123_456


def update(name: str):  # type: ignore[no-untyped-def]
    fields = make_update(ALICE.genesis, also_known_as=[f"at://{name}.example.com"])
    return sign_operation(fields, ALICE.rotation)


def test_operations_are_judged_and_their_times_increase_with_a_standing_clock() -> None:
    directory = PlcDirectory(now_us=lambda: NOW)
    directory.submit(ALICE.did, ALICE.genesis.to_json())
    directory.submit(ALICE.did, update("b").to_json())
    with pytest.raises(PlcError):
        directory.submit(ALICE.did, update("c").to_json())
    with pytest.raises(PlcError):
        directory.submit(BOB.did, ALICE.genesis.to_json())
    for did in ("did:web:example.com", "did:plc:short", "alice"):
        with pytest.raises(PlcError):
            directory.submit(did, ALICE.genesis.to_json())
    log = directory.get_log(ALICE.did)
    assert log is not None
    assert [entry.created_at_us for entry in log.entries] == [NOW - 456, NOW - 456 + 1000]
    assert verify_audit_log(ALICE.did, [entry.to_json(ALICE.did) for entry in log.entries]) == log
    assert len(directory) == 1
    assert directory.get_state(BOB.did) is None


def test_rate_limits_are_those_of_the_public_directory() -> None:
    directory = PlcDirectory(now_us=lambda: NOW)
    directory.submit(ALICE.did, ALICE.genesis.to_json())
    last = ALICE.genesis
    for at in range(9):
        fields = make_update(last, also_known_as=[f"at://n{at}.example.com"])
        last = directory.submit(ALICE.did, sign_operation(fields, ALICE.rotation).to_json())
    with pytest.raises(PlcRateLimited):
        directory.submit(ALICE.did, sign_operation(make_update(last), ALICE.rotation).to_json())


def test_the_file_brings_everything_back(tmp_path: Path) -> None:
    file = tmp_path / "plc.jsonl"
    first = PlcDirectory(now_us=lambda: NOW, file=file)
    first.submit(ALICE.did, ALICE.genesis.to_json())
    first.submit(BOB.did, BOB.genesis.to_json())
    tombstone = sign_operation(make_tombstone(BOB.genesis), BOB.rotation)
    first.submit(BOB.did, tombstone.to_json())
    second = PlcDirectory(now_us=lambda: NOW, file=file)
    assert second.get_log(ALICE.did) == first.get_log(ALICE.did)
    assert second.get_log(BOB.did) == first.get_log(BOB.did)
    assert second.export(count=10, after_seq=0) == first.export(count=10, after_seq=0)
    second.submit(ALICE.did, update("b").to_json())
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize("damage", ["signature", "json", "shape"])
def test_a_damaged_file_is_an_error_that_names_the_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "plc.jsonl"
    PlcDirectory(now_us=lambda: NOW, file=file).submit(ALICE.did, ALICE.genesis.to_json())
    entry = json.loads(file.read_text())
    entry["operation"]["sig"] = "A" * 86
    broken = {"signature": json.dumps(entry), "json": "{", "shape": '{"did": 5}'}[damage]
    file.write_text(file.read_text() + broken + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        PlcDirectory(now_us=lambda: NOW, file=file)


def test_export_pages_by_position_and_by_time() -> None:
    times = iter(range(NOW, NOW + 10_000_000, 1_000_000))
    directory = PlcDirectory(now_us=lambda: next(times))
    directory.submit(ALICE.did, ALICE.genesis.to_json())
    directory.submit(BOB.did, BOB.genesis.to_json())
    directory.submit(ALICE.did, update("b").to_json())
    assert [seq for seq, _ in directory.export(count=2, after_seq=0)] == [1, 2]
    assert [entry["did"] for _, entry in directory.export(count=9, after_seq=1)] == [
        BOB.did,
        ALICE.did,
    ]
    assert directory.seq_at(NOW + 1_000_000) == 2
    assert directory.seq_at(0) == 0
