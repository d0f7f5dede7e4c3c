"""The files and settings of a reference PDS: what is read, and what is refused.

Spec: (ACC-30)
"""

import subprocess
import sys
from pathlib import Path

import obstore
import pytest

from pds.app.reference_import import check_same_host
from pds.blobstore.reference import Place, SourceBlobMissing, SourceBlobs
from pds.blobstore.reference_s3 import BucketBlobs
from pds.blobstore.s3 import open_bucket
from pds.config import load_config
from pds.errors import ConfigError
from pds.services.reference_import_settings import parse_env, read_reference_settings
from pds.store.reference_files import NotReference, SourceInUse
from tests.services.account_host import START_US
from tests.services.reference_folder import ReferenceFolder, digests, opened, whole_host
from tests.support_s3 import S3Server


async def test_a_file_that_is_in_use_is_refused_and_a_log_is_read_from_a_copy(
    tmp_path: Path,
) -> None:
    source = whole_host(tmp_path / "old")
    for one in source.stores.values():
        one.store.commit()
    source.accounts.commit()
    folder = source.folder
    script = (
        "import sqlite3, sys\n"
        f"c = sqlite3.connect({str(folder / 'sequencer.sqlite')!r})\n"
        "c.execute('SELECT count(*) FROM repo_seq').fetchall()\n"
        "print('open', flush=True); sys.stdin.read()\n"
        "import os; os._exit(0)\n"
    )
    source.close()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(SourceInUse, match="a server is running"):
            async with opened(folder, tmp_path / "scratch"):
                pass
    finally:
        process.communicate()
    killed = (
        "import sqlite3, os\n"
        f"c = sqlite3.connect({str(folder / 'account.sqlite')!r})\n"
        "c.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "c.execute(\"UPDATE account SET email = 'new@mail.test' WHERE email LIKE 'alice%'\")\n"
        "c.commit(); os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", killed], check=True)
    before = digests(folder)
    assert (folder / "account.sqlite-wal").stat().st_size
    async with opened(folder, tmp_path / "scratch") as host:
        assert next(host.list_accounts()).email == "new@mail.test"
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DROP TABLE actor", "no actor"),
        ("DROP TABLE kysely_migration", "not the account database"),
        ("DELETE FROM kysely_migration WHERE name > '002'", "too old"),
        ("INSERT INTO kysely_migration VALUES ('008', '')", "newer reference PDS"),
    ],
)
async def test_other_layouts_are_refused(sql: str, message: str, tmp_path: Path) -> None:
    source = ReferenceFolder(tmp_path / "old", START_US)
    source.accounts.execute(sql)
    source.close()
    with pytest.raises(NotReference, match=message):
        async with opened(source.folder, tmp_path / "scratch"):
            pass


async def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    source = ReferenceFolder(tmp_path / "old", START_US)
    source.close()
    (source.folder / "actors").rmdir()
    with pytest.raises(NotReference, match="repos of the accounts are missing"):
        async with opened(source.folder, tmp_path / "scratch"):
            pass
    (source.folder / "account.sqlite").unlink()
    with pytest.raises(NotReference, match="is this the right folder"):
        async with opened(source.folder, tmp_path / "scratch"):
            pass
    with pytest.raises(ConfigError, match="is not a folder"):
        read_reference_settings(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--env"):
        read_reference_settings(tmp_path)


def test_the_settings_must_be_those_of_the_same_host(tmp_path: Path) -> None:
    source = ReferenceFolder(tmp_path / "old", START_US)
    source.write_env(PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX="AB" * 32, PDS_JWT_SECRET="x" * 20)
    source.close()
    settings = read_reference_settings(source.folder)
    assert settings.blobs == source.folder / "blocks"
    same = {
        "PDS_HOSTNAME": "pds.test",
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "ab" * 32,
        "PDS_JWT_SECRET": "x" * 20,
        "PDS_DEV_MODE": "true",
    }
    assert check_same_host(load_config(same), settings) == []
    (note,) = check_same_host(load_config({**same, "PDS_JWT_SECRET": "y" * 20}), settings)
    assert "sign in again" in note
    for name, value, message in (
        ("PDS_HOSTNAME", "other.test", "must stay the same"),
        ("PDS_SERVICE_DID", "did:web:other.test", "set PDS_SERVICE_DID"),
        ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", "ac" * 32, "could not be changed"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_same_host(load_config({**same, name: value}), settings)


def test_an_env_file_is_read_as_shells_do() -> None:
    text = "# a comment\nexport A=1\nB = 'two words'\nC=\"x\" \nD=\nE=five # said so\nnot a line\n"
    assert parse_env(text) == {"A": "1", "B": "two words", "C": "x", "E": "five"}


@pytest.mark.xdist_group("s3")
async def test_blobs_are_read_from_the_bucket_of_the_reference(s3_server: S3Server) -> None:
    settings = s3_server.settings()
    bucket = open_bucket(settings)
    did = "did:plc:alice"
    large = bytes(range(256)) * 8000
    for folder, name, content in (
        ("blocks", "kept", large),
        ("tmp", "random", b"temporary"),
        ("quarantine", "hidden", b"in quarantine"),
    ):
        await obstore.put_async(bucket, f"{folder}/{did}/{name}", content)
    source: SourceBlobs = BucketBlobs(settings)
    for area, name, content in (
        ("kept", "kept", large),
        ("temporary", "random", b"temporary"),
        ("quarantine", "hidden", b"in quarantine"),
    ):
        place = Place(area, name)
        assert await source.has(did, place)
        assert b"".join([chunk async for chunk in source.open(did, place)]) == content
    nowhere = Place("kept", "nothing")
    assert not await source.has(did, nowhere)
    with pytest.raises(SourceBlobMissing):
        await anext(aiter(source.open(did, nowhere)))
