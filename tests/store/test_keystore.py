"""Private keys at rest: what is stored, what is refused, what an erased key takes with it."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pds.errors import ConfigError, Corrupt
from pds.protocol.keys import Curve, generate_secret, make_signer, parse_did_key
from pds.store.engine import Txn
from pds.store.keystore import (
    KEY_ENTROPY_BYTES,
    KeyMissing,
    Keystore,
    WrongMasterKey,
    load_master_key,
    parse_master_key,
)
from pds.store.sqlite import SqliteEngine

MASTER = bytes(range(32))
CURVES: tuple[Curve, ...] = ("k256", "p256")


@pytest.fixture
def entropy() -> Iterator[bytes]:
    """Different bytes at each use of `next`."""
    return (bytes([n]) * KEY_ENTROPY_BYTES for n in range(1, 250))


def secret(number: int, curve: Curve = "k256") -> bytes:
    return generate_secret(curve, bytes([number]) * 48)


async def create(
    engine: SqliteEngine, keystore: Keystore, aid: int, entropy: bytes, *, curve: Curve = "k256"
) -> tuple[int, str]:
    return await engine.transact(
        "create",
        lambda txn: keystore.create_signing_key(
            txn, aid, curve=curve, secret=secret(aid, curve), entropy=entropy, now_us=1
        ),
    )


@pytest.mark.parametrize("curve", CURVES)
async def test_a_stored_key_signs_also_with_another_keystore(
    recording_engine: SqliteEngine, entropy: Iterator[bytes], curve: Curve
) -> None:
    key_id, did_key = await create(
        recording_engine, Keystore(MASTER), 1, next(entropy), curve=curve
    )
    assert did_key == make_signer(curve, secret(1, curve)).public_key.did_key
    keystore = Keystore(MASTER)
    for _ in range(2):
        signer = await recording_engine.read("sign", keystore.signer, key_id)
        assert parse_did_key(did_key).verify(signer.sign(b"message"), b"message")
    assert await recording_engine.read("key", keystore.did_key, key_id) == did_key


async def test_the_secret_is_nowhere_in_the_rows_or_the_log(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    fresh = next(entropy)
    await create(recording_engine, Keystore(MASTER), 1, fresh)

    def all_bytes(txn: Txn) -> bytes:
        rows = [
            *txn.read("SELECT wrapped FROM data_key"),
            *txn.read("SELECT secret FROM signing_key"),
        ]
        return b"".join(row[0] for row in rows)

    stored = await recording_engine.read("rows", all_bytes)
    assert secret(1) not in stored
    assert fresh[:32] not in stored
    assert MASTER not in stored


async def test_an_account_has_one_data_key_for_all_its_keys(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    keystore = Keystore(MASTER)
    ids = [(await create(recording_engine, keystore, aid, next(entropy)))[0] for aid in (1, 1, 2)]
    assert len(set(ids)) == 3
    rows = await recording_engine.read(
        "rows", lambda txn: txn.read("SELECT key_id, data_key_id FROM signing_key ORDER BY key_id")
    )
    assert [data_key_id for _, data_key_id in rows] == [1, 1, 2]


async def test_another_master_key_opens_nothing(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    key_id, _ = await create(recording_engine, Keystore(MASTER), 1, next(entropy))
    with pytest.raises(Corrupt):
        await recording_engine.read("sign", Keystore(bytes(32)).signer, key_id)


@pytest.mark.parametrize(
    "change",
    [
        (
            "UPDATE signing_key SET secret = (SELECT secret FROM signing_key WHERE key_id = 2)"
            " WHERE key_id = 1"
        ),
        "UPDATE signing_key SET aid = 2, data_key_id = 2 WHERE key_id = 1",
        (
            "UPDATE data_key SET wrapped = (SELECT wrapped FROM data_key WHERE data_key_id = 2)"
            " WHERE data_key_id = 1"
        ),
        (
            "UPDATE signing_key SET did_key = (SELECT did_key FROM signing_key WHERE key_id = 2)"
            " WHERE key_id = 1"
        ),
        (
            "UPDATE signing_key SET secret ="
            " (SELECT wrapped FROM data_key WHERE data_key_id = 1) WHERE key_id = 1"
        ),
    ],
)
async def test_rows_that_were_swapped_or_changed_are_refused(
    recording_engine: SqliteEngine, entropy: Iterator[bytes], change: str
) -> None:
    keystore = Keystore(MASTER)
    for aid in (1, 2):
        await create(recording_engine, keystore, aid, next(entropy))
    await recording_engine.transact("change", lambda txn: txn.write(change))
    with pytest.raises(Corrupt):
        await recording_engine.read("sign", keystore.signer, 1)


async def test_erasing_an_account_takes_its_keys_also_from_memory(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    keystore = Keystore(MASTER)
    lost, _ = await create(recording_engine, keystore, 1, next(entropy))
    kept, _ = await create(recording_engine, keystore, 2, next(entropy))
    for key_id in (lost, kept):
        await recording_engine.read("sign", keystore.signer, key_id)
    await recording_engine.transact("erase", keystore.erase_account, 1)
    with pytest.raises(KeyMissing):
        await recording_engine.read("sign", keystore.signer, lost)
    await recording_engine.read("sign", keystore.signer, kept)


async def test_without_its_data_key_an_old_copy_of_the_row_is_worthless(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    keystore = Keystore(MASTER)
    key_id, _ = await create(recording_engine, keystore, 1, next(entropy))
    await recording_engine.transact(
        "erase", lambda txn: txn.write("DELETE FROM data_key WHERE aid = ?", (1,))
    )
    with pytest.raises(KeyMissing):
        await recording_engine.read("sign", keystore.signer, key_id)
    await create(recording_engine, keystore, 1, next(entropy))  # a new data key does not help
    with pytest.raises((KeyMissing, Corrupt)):
        await recording_engine.read("sign", keystore.signer, key_id)


async def test_one_key_can_be_deleted(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    keystore = Keystore(MASTER)
    first, _ = await create(recording_engine, keystore, 1, next(entropy))
    second, _ = await create(recording_engine, keystore, 1, next(entropy))
    for key_id in (first, second):
        await recording_engine.read("sign", keystore.signer, key_id)
    await recording_engine.transact("delete", keystore.delete_signing_key, first)
    with pytest.raises(KeyMissing):
        await recording_engine.read("sign", keystore.signer, first)
    with pytest.raises(KeyMissing):
        await recording_engine.read("key", keystore.did_key, first)
    await recording_engine.read("sign", keystore.signer, second)


async def test_a_key_of_a_job_that_failed_does_not_stay_in_memory(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    """Its number is given out again, perhaps to another account."""
    keystore = Keystore(MASTER)

    def create_sign_and_fail(txn: Txn, fresh: bytes) -> None:
        key_id, _ = keystore.create_signing_key(
            txn, 1, curve="k256", secret=secret(1), entropy=fresh, now_us=1
        )
        keystore.signer(txn, key_id)
        raise KeyError(key_id)

    with pytest.raises(KeyError) as failure:
        await recording_engine.transact("fail", create_sign_and_fail, next(entropy))
    key_id, did_key = await create(recording_engine, keystore, 2, next(entropy))
    assert key_id == failure.value.args[0]
    signer = await recording_engine.transact("sign", keystore.signer, key_id)
    assert signer.public_key.did_key == did_key
    assert await recording_engine.read("sign", keystore.signer, key_id) is signer


async def test_the_signers_in_memory_are_bounded(
    recording_engine: SqliteEngine, entropy: Iterator[bytes]
) -> None:
    keystore = Keystore(MASTER, max_signers=3)
    ids = [(await create(recording_engine, keystore, aid, next(entropy)))[0] for aid in range(1, 6)]
    signers = [await recording_engine.read("sign", keystore.signer, key_id) for key_id in ids]
    again = [await recording_engine.read("sign", keystore.signer, key_id) for key_id in ids[2:]]
    assert all(first is second for first, second in zip(signers[2:], again, strict=True))
    assert await recording_engine.read("sign", keystore.signer, ids[0]) is not signers[0]


async def test_the_database_knows_its_master_key(recording_engine: SqliteEngine) -> None:
    for _ in range(2):
        await recording_engine.transact("check", Keystore(MASTER).check_master_key)
    other = Keystore(bytes(32))
    with pytest.raises(WrongMasterKey, match=other.key_fingerprint()):
        await recording_engine.transact("check", other.check_master_key)


def test_a_journal_secret_opens_for_its_subject_only() -> None:
    keystore = Keystore(MASTER)
    sealed = keystore.seal("create did:plc:a", b"secret", nonce=bytes(12))
    assert b"secret" not in sealed
    assert Keystore(MASTER).open("create did:plc:a", sealed) == b"secret"
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for subject, text in (("create did:plc:b", sealed), ("create did:plc:a", changed), ("", b"")):
        with pytest.raises(Corrupt):
            keystore.open(subject, text)
    with pytest.raises(Corrupt):
        Keystore(bytes(32)).open("create did:plc:a", sealed)


def test_entropy_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="nonce"):
        Keystore(MASTER).seal("x", b"y", nonce=bytes(8))
    with pytest.raises(ConfigError):
        Keystore(bytes(16))


async def test_too_little_entropy_for_a_key_is_refused(recording_engine: SqliteEngine) -> None:
    with pytest.raises(ValueError, match="entropy"):
        await create(recording_engine, Keystore(MASTER), 1, bytes(32))


def test_the_fingerprint_names_the_key_and_shows_nothing_of_it() -> None:
    fingerprint = Keystore(MASTER).key_fingerprint()
    assert (
        fingerprint == Keystore(MASTER).key_fingerprint() != Keystore(bytes(32)).key_fingerprint()
    )
    assert len(fingerprint) == 16
    assert fingerprint not in MASTER.hex()
    assert MASTER.hex() not in repr(Keystore(MASTER))


def test_the_master_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    with pytest.raises(ConfigError, match="missing"):
        load_master_key(path)
    assert load_master_key(path, entropy=MASTER) == MASTER
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_master_key(path) == MASTER
    assert load_master_key(path, entropy=bytes(32)) == MASTER  # never replaced
    assert [entry.name for entry in path.parent.iterdir()] == ["master.key"]


def test_a_half_written_master_key_of_a_crash_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.with_name("master.key.new").write_text("00ff")
    assert load_master_key(path, entropy=MASTER) == MASTER


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"00" * 31, b"00" * 33, b"\xff" * 64])
def test_a_bad_master_key_file_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as failure:
        load_master_key(path, entropy=MASTER)
    assert "zz" not in str(failure.value)
    assert path.read_bytes() == content


def test_a_master_key_from_the_environment_is_hex() -> None:
    assert parse_master_key(f" {MASTER.hex().upper()}\n") == MASTER


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        load_master_key(tmp_path / "file" / "master.key", entropy=MASTER)
