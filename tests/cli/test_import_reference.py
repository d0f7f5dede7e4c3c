"""`pds import-reference` from the command line: dry run, run, run again, and refusals.

Spec: (ACC-30)
"""

import json
import time
from pathlib import Path

import pytest

from pds.cli import run
from tests.services.reference_folder import digests, whole_host


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = whole_host(tmp_path / "old", time.time_ns() // 1000)
    source.close()
    for name, value in {
        "PDS_HOSTNAME": "pds.test",
        "PDS_DEV_MODE": "true",
        "PDS_DATA_DIRECTORY": str(tmp_path / "new"),
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "ab" * 32,
        "PDS_JWT_SECRET": "a secret that is long enough",
    }.items():
        monkeypatch.setenv(name, value)
    return source.folder


def test_a_host_is_looked_at_taken_over_and_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(folder)
    assert run(["import-reference", str(folder), "--dry-run"]) == 0
    assert "3 accounts are fine; nothing was changed." in capsys.readouterr().out
    assert not list(tmp_path.glob("new/*"))
    assert run(["import-reference", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "3 accounts, 1 invite codes and 18 events were taken over" in shown
    assert "alice.pds.test" in shown
    assert "everybody must sign in again" in shown
    assert run(["import-reference", str(folder)]) == 0
    assert "already" in capsys.readouterr().out
    assert digests(folder) == before
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert not any(name.startswith("reference-import") for name in left)


def test_a_fault_is_reported_with_its_account(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(iter(sorted(folder.glob("actors/*/did:plc:bob*/key"))))
    key.write_bytes(b"short")
    assert run(["import-reference", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "bob.pds.test: FAILED: the signing key has 5 bytes, not 32" in shown
    assert "Nothing is complete" in shown
    did = key.parent.name
    assert run(["import-reference", str(folder), "--json", "--without", did]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["isComplete"]
    assert [one["outcome"] for one in report["accounts"]] == ["present", "left out", "present"]


def test_wrong_settings_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, message in (
        ("PDS_HOSTNAME", "other.test", "must stay the same"),
        ("PDS_DATA_DIRECTORY", str(folder / "new"), "choose another folder"),
        ("PDS_BLOBSTORE_DISK_LOCATION", str(folder / "blocks"), "choose another folder"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert run(["import-reference", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert run(["import-reference", str(folder / "actors")]) == 2
    assert "--env" in capsys.readouterr().err
