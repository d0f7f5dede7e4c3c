"""Portable archives of a whole server: what is in them, what is noticed, and where they lead."""

import asyncio
import io
import json
import os
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import segno

from pds.blobstore.archives import ArchiveFolder
from pds.blobstore.archives_s3 import ArchiveBucket
from pds.cli import run
from pds.cli.recovery_kit import new_signer, read_signer, write_kit
from pds.errors import RequestError, Unavailable
from pds.protocol import archive as fmt
from pds.protocol.archive import ArchiveReader
from pds.protocol.cid import parse_cid
from pds.protocol.keys import make_signer
from pds.protocol.recovery_key import encode_words
from pds.services.archive_check import PassphraseNeeded, check_archive
from pds.services.archive_keeping import PATIENCE, ArchiveRounds, KeptArchives
from pds.services.archive_settings import ArchiveSettings
from pds.services.archives import Archives
from pds.services.audit import Order
from pds.services.rescue import Newcomer, Sources
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Person, sign_up
from tests.support_s3 import S3Server

PASSPHRASE = "a phrase that nobody guesses"
PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture" * 1000
LOG_WORK = 4


def archives_of(host: Host) -> Archives:
    """The service with little work for a passphrase."""
    services = host.server.services
    made = services.keeping.archives
    return Archives(
        engine=made._engine,
        clock=made._clock,
        keystore=made._keystore,
        accounts=made._accounts,
        blobs=made._blobs,
        preferences=made._preferences,
        plc=made._plc,
        documents=made._documents,
        public_url=made._public_url,
        log_work=LOG_WORK,
    )


def rounds_of(host: Host, work: Path, *, bucket: Any = None, **settings: Any) -> ArchiveRounds:
    """The schedule with settings of the test, and without its rests."""
    made = archives_of(host)
    folder = settings.get("directory")
    return ArchiveRounds(
        engine=made._engine,
        clock=made._clock,
        archives=made,
        folder=None if folder is None else ArchiveFolder(folder),
        bucket=bucket,
        work=work,
        settings=ArchiveSettings(**settings),
        sleep=lambda _s: asyncio.sleep(0),
    )


async def person_with_everything(host: Host) -> tuple[Person, str]:
    """An account with records, a picture in two of them, and preferences."""
    alice = await sign_up(host.client, "alice.test")
    blob = await alice.client.upload(PICTURE, "image/png")
    embed = {"$type": "app.bsky.embed.images", "images": [{"image": blob, "alt": "one"}]}
    for number in range(5):
        await alice.post(f"post {number}", **({"embed": embed} if number < 2 else {}))
    await alice.client.post(
        "app.bsky.actor.putPreferences",
        preferences=[{"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}],
    )
    return alice, blob["ref"]["$link"]


def members(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def write(path: Path, contents: dict[str, bytes]) -> Path:
    """Write an archive as somebody would who changes one."""
    parts = []
    for name, content in contents.items():
        parts += [fmt.tar_header(name, len(content), mtime_s=0), content]
        parts.append(fmt.tar_padding(len(content)))
    path.write_bytes(b"".join(parts) + fmt.TAR_END)
    return path


def resealed(contents: dict[str, bytes], signer: Any, **changes: Any) -> dict[str, bytes]:
    """Give changed members a manifest that fits, signed with another key."""
    manifest = fmt.parse_manifest(contents["manifest.json"])
    rest = {n: c for n, c in contents.items() if n not in (fmt.MANIFEST, fmt.SIGNATURE)}
    stream = io.BytesIO(tar_of(rest))
    reader = ArchiveReader(stream.read)
    while reader.next() is not None:
        pass
    changed = replace(manifest, members=tuple(reader.members.values()), **changes)
    content = fmt.encode_manifest(changed)
    signature = fmt.sign_manifest(content, signer)
    return {**rest, fmt.MANIFEST: content, fmt.SIGNATURE: signature}


def tar_of(contents: dict[str, bytes]) -> bytes:
    parts = [
        fmt.tar_header(name, len(content), mtime_s=0) + content + fmt.tar_padding(len(content))
        for name, content in contents.items()
    ]
    return b"".join(parts) + fmt.TAR_END


async def test_an_archive_holds_what_it_says_and_nothing_secret(host: Host, tmp_path: Path) -> None:
    alice, cid = await person_with_everything(host)
    path = tmp_path / "alice.tar"
    written = await archives_of(host).create(alice.did, path)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (written.size, 0o600)
    found = members(path)
    assert list(found) == [
        "account.json",
        "plc-log.json",
        "repo.car",
        f"blobs/{cid}",
        "manifest.json",
        "manifest.sig",
    ]
    assert found[f"blobs/{cid}"] == PICTURE
    content = path.read_bytes()
    for secret in (b"alice@example.test", b"adultContentPref", alice.password.encode(), b"argon2"):
        assert secret not in content
    report = check_archive(path)
    assert (report.is_sound, report.missing, report.records, report.blobs) == (True, [], 5, 1)
    assert report.manifest is not None
    assert report.manifest.blobs[parse_cid(cid)].mime_type == "image/png"
    assert list(tmp_path.glob(".*")) == []  # No unfinished file is left.
    with pytest.raises(RequestError, match="exists already"):
        await archives_of(host).create(alice.did, path)
    with pytest.raises(RequestError, match="cannot be written"):
        await archives_of(host).create(alice.did, tmp_path / "nowhere" / "alice.tar")
    with pytest.raises(RequestError, match="not found"):
        await archives_of(host).create("did:plc:nobody", tmp_path / "nobody.tar")


async def test_an_encrypted_archive_opens_with_its_passphrase_only(
    host: Host, tmp_path: Path
) -> None:
    alice, _ = await person_with_everything(host)
    path = tmp_path / "alice.tar.age"
    await archives_of(host).create(alice.did, path, passphrase=PASSPHRASE, with_preferences=True)
    assert b"did:plc" not in path.read_bytes()
    report = check_archive(path, passphrase=PASSPHRASE)
    assert (report.is_sound, report.has_preferences, report.is_encrypted) == (True, True, True)
    with pytest.raises(PassphraseNeeded):
        check_archive(path)
    assert "not the right one" in check_archive(path, passphrase="wrong").problems[0]
    content = path.read_bytes()
    for cut in (200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert not check_archive(path, passphrase=PASSPHRASE).is_sound


async def test_every_change_to_an_archive_is_noticed(host: Host, tmp_path: Path) -> None:
    alice, cid = await person_with_everything(host)
    eve = await sign_up(host.client, "eve.test")
    await eve.post("hello")
    for person, name in ((alice, "alice.tar"), (eve, "eve.tar")):
        await archives_of(host).create(person.did, tmp_path / name)
    good, other = members(tmp_path / "alice.tar"), members(tmp_path / "eve.tar")
    thief = make_signer("k256", b"\x44" * 32)
    blob, file = f"blobs/{cid}", tmp_path / "changed.tar"
    flipped = bytearray(good["repo.car"])
    flipped[-10] ^= 1
    log = json.loads(good["plc-log.json"])
    log[0]["operation"]["sig"] = "A" * 86
    changes: list[tuple[dict[str, bytes], str]] = [
        ({**good, "repo.car": bytes(flipped)}, "repo.car"),
        ({**good, "repo.car": good["repo.car"][:-50]}, "repo.car"),
        ({**good, blob: PICTURE + b"x"}, "is damaged"),
        ({**good, "account.json": b'{"did": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}'}, "identity"),
        ({**good, "account.json": b"[]"}, "names no DID"),
        ({**good, "plc-log.json": json.dumps(log).encode()}, "audit log"),
        ({**good, "manifest.json": good["manifest.json"] + b" "}, "does not verify"),
        ({**good, "manifest.sig": other["manifest.sig"]}, "does not verify"),
        ({n: c for n, c in good.items() if n != "manifest.sig"}, "not whole"),
        ({n: c for n, c in good.items() if n != "plc-log.json"}, "which key"),
        ({n: c for n, c in good.items() if n != blob}, f"{blob} is missing"),
        ({**good, "more.json": b"{}"}, "does not belong"),
        (resealed({**good, "repo.car": other["repo.car"]}, thief), "another account"),
        (resealed({**good, "repo.car": b"junk"}, thief), "repo.car"),
        (resealed(good, thief), "not signed with a key of the account"),
        (resealed(good, thief, did=eve.did), "that of another account"),
        (resealed(good, thief, rev="3aaaaaaaaaaaa"), "not the one that the manifest names"),
        (resealed({**good, "blobs/readme.txt": b"hi"}, thief), "does not belong"),
    ]
    for contents, why in changes:
        report = check_archive(write(file, contents))
        assert any(why in problem for problem in report.problems), (why, report.problems)
    assert check_archive(write(file, good)).is_sound
    file.write_bytes(b"not a tar at all" * 100)
    assert not check_archive(file).is_sound


async def test_blobs_that_are_missing_or_damaged_here_are_listed(
    host: Host, tmp_path: Path
) -> None:
    alice, cid = await person_with_everything(host)
    [stored] = (tmp_path / "blobs").rglob(cid)
    stored.write_bytes(b"damaged")
    written = await archives_of(host).create(alice.did, tmp_path / "alice.tar")
    assert [str(found) for found in written.manifest.missing_blobs] == [cid]
    report = check_archive(tmp_path / "alice.tar")
    assert (report.is_sound, [str(found) for found in report.missing]) == (True, [cid])


async def test_a_schedule_writes_what_has_changed_and_keeps_the_newest(
    host: Host, tmp_path: Path
) -> None:
    alice, _ = await person_with_everything(host)
    await sign_up(host.client, "bob.test")
    folder = tmp_path / "archives"
    archives = rounds_of(host, tmp_path, directory=folder, keep=2, passphrase=PASSPHRASE)
    assert await archives.sweep() == {"written": 2, "unchanged": 0, "failed": 0}
    assert await archives.sweep() == {"written": 0, "unchanged": 2, "failed": 0}
    start = alice.did.replace(":", "-")
    for _ in range(3):
        await alice.post("one more")
        assert (await archives.sweep())["written"] == 1
    assert len(list(folder.glob(f"{start}-*.tar.age"))) == 2
    assert len(list(folder.iterdir())) == 3
    newest = max(folder.glob(f"{start}-*"))
    assert check_archive(newest, passphrase=PASSPHRASE).records == 8
    assert await rounds_of(host, tmp_path).sweep() == {"written": 0, "unchanged": 0, "failed": 0}


async def test_one_account_that_cannot_be_written_does_not_keep_the_others(
    host: Host, tmp_path: Path
) -> None:
    alice = await sign_up(host.client, "alice.test")
    await sign_up(host.client, "bob.test")
    del host.plc._logs[alice.did]  # type: ignore[arg-type]
    archives = rounds_of(host, tmp_path, directory=tmp_path / "archives")
    assert await archives.sweep() == {"written": 1, "unchanged": 0, "failed": 1}


class FlakyBucket(ArchiveBucket):
    """A bucket whose uploads can be made to fail; counts what it was asked."""

    fails = False
    uploads = 0

    async def put(self, name: str, file: Path) -> None:
        self.uploads += 1
        if self.fails:
            raise Unavailable("the bucket has enough")
        await super().put(name, file)


@pytest.mark.xdist_group("s3")
async def test_a_bucket_gets_what_it_lacks_and_loses_what_is_old(
    host: Host, s3_server: S3Server, tmp_path: Path
) -> None:
    alice, _ = await person_with_everything(host)
    bucket, work = FlakyBucket(s3_server.settings()), tmp_path / "work"
    alone = rounds_of(host, work, bucket=bucket, s3_bucket="b", passphrase=PASSPHRASE)
    for written in (1, 0):
        assert (await alone.sweep())["written"] == written
    assert (bucket.uploads, list(work.iterdir())) == (1, [])
    for _ in range(3):
        await alice.post("one more")
        assert await alone.sweep() == {"written": 1, "unchanged": 0, "failed": 0}
    kept = KeptArchives([bucket])
    found = await kept.list(alice.did)
    assert [one.did for one in found] == [alice.did, alice.did]  # PDS_ARCHIVE_KEEP is 2.
    assert found == await kept.list()
    assert found[0].rev > found[1].rev
    assert (await kept.read_account(found[0], PASSPHRASE))["handle"] == "alice.test"
    assert await kept.newest("@Alice.test", PASSPHRASE) == await kept.newest(alice.did)
    async with kept.at_hand(found[0].address) as file:
        assert check_archive(file, passphrase=PASSPHRASE).records == 8
    assert not file.exists()
    # A folder as well: both get the next one, and what one of them lacks it gets later.
    folder = tmp_path / "archives"
    both = rounds_of(host, work, bucket=bucket, directory=folder, passphrase=PASSPHRASE)
    await alice.post("and more")
    bucket.fails = True
    assert (await both.sweep())["failed"] == 1
    [here] = folder.iterdir()
    assert await kept.list() == found
    bucket.fails = False
    assert (await both.sweep())["written"] == 1
    [newest, before] = await kept.list()
    assert (newest.stored.name, before) == (here.name, found[0])
    assert (await both.sweep())["unchanged"] == 1
    (folder / f".{here.name}.0a0b0c0d.part").write_bytes(b"half")
    os.utime(folder / f".{here.name}.0a0b0c0d.part", (0, 0))
    await both.sweep()
    assert list(folder.iterdir()) == [here]


@pytest.mark.xdist_group("s3")
async def test_a_bucket_that_is_away_is_given_up_until_the_next_round(
    host: Host, s3_server: S3Server, tmp_path: Path
) -> None:
    people = [await sign_up(host.client, f"person{number}.test") for number in range(5)]
    bucket, folder = FlakyBucket(s3_server.settings()), tmp_path / "archives"
    bucket.fails = True
    alone = rounds_of(host, tmp_path / "work", bucket=bucket)
    both = rounds_of(host, tmp_path / "work", bucket=bucket, directory=folder)
    for rounds in (alone, both):
        bucket.uploads = 0
        with pytest.raises(Unavailable, match="takes no archives: the bucket has enough"):
            await rounds.sweep()
        assert bucket.uploads == PATIENCE < len(people)
    assert len(list(folder.iterdir())) == len(people)  # The folder has them all the same.
    bucket.fails = False
    assert await both.sweep() == {"written": 5, "unchanged": 0, "failed": 0}
    assert [one.stored.name for one in await KeptArchives([bucket]).list()] == sorted(
        path.name for path in folder.iterdir()
    )


async def test_what_is_not_kept_is_not_found(tmp_path: Path) -> None:
    place = ArchiveFolder(tmp_path)
    (tmp_path / "did-plc-aaaaaaaaaaaaaaaaaaaaaaaa-3kaaaaaaaaaaa.tar").write_bytes(b"no archive")
    (tmp_path / "holiday.jpg").write_bytes(b"none either")
    (tmp_path / "did-plc-aaaaaaaaaaaaaaaaaaaaaaaa-zzzzzzzzzzzzz.tar").write_bytes(b"of no rev")
    kept = KeptArchives([place])
    [one] = await kept.list()
    assert (one.did, one.is_encrypted) == ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", False)
    for account, why in (
        ("did:plc:bbbbbbbbbbbbbbbbbbbbbbbb", "no archive of did:plc:bbb"),
        ("did:bad", "not a DID"),
        ("alice.test", "1 could not be opened"),
    ):
        with pytest.raises(RequestError, match=why):
            await kept.newest(account)
    with pytest.raises(RequestError, match="PDS_ARCHIVE_S3_BUCKET"):
        await KeptArchives([]).list()
    with pytest.raises(RequestError, match="in no place of the settings"):
        async with kept.at_hand("s3://other/archives/did-plc-a/did-plc-a-3kaaaaaaaaaaa.tar"):
            pass
    (tmp_path / "place").mkdir()
    old = "did-plc-aaaaaaaaaaaaaaaaaaaaaaaa-3kaaaaaaaaaaa.tar"
    assert await kept.fetch(one, tmp_path / "place" / old) == len(b"no archive")
    with pytest.raises(Unavailable, match="exists already"):
        await kept.fetch(one, tmp_path / "place" / old)


@pytest.fixture
async def two_hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    async with (
        host_in(tmp_path / "one") as one,
        host_in(tmp_path / "two", plc=one.plc) as two,
    ):
        yield one, two


async def test_an_archive_becomes_a_deactivated_account_elsewhere(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """ACC-21, ACC-52: all of it is there, and nothing is announced before it is active."""
    one, two = two_hosts
    alice, _ = await person_with_everything(one)
    path = tmp_path / "alice.tar"
    await archives_of(one).create(alice.did, path, with_preferences=True)
    rescue = two.server.services.keeping.rescue
    newcomer = Newcomer(handle="alice2.test", email="a@example.test", password="a long password")
    order = Order("cli:tests")
    for _ in range(2):  # The same again changes nothing.
        arrived = await rescue.import_archive(newcomer, Sources(archive=path), order)
        assert (arrived.account.status, arrived.missing) == ("deactivated", 0)
    session = await two.client.post(
        "com.atproto.server.createSession", identifier="alice2.test", password="a long password"
    )
    there = two.client.with_token(session["accessJwt"])
    status = await there.get("com.atproto.server.checkAccountStatus")
    assert status["activated"] is False
    assert status["indexedRecords"] == 5
    assert status["importedBlobs"] == status["expectedBlobs"] == 1
    preferences = await there.get("app.bsky.actor.getPreferences")
    assert preferences["preferences"][0]["enabled"] is True
    assert two.server.engine.last_seq == 0 or await events(two, alice.did) == []


async def events(host: Host, did: str) -> list[Any]:
    found, _ = await host.server.services.operator.lists.events(
        did=did, kind=None, cursor=None, limit=10
    )
    return list(found)


async def test_what_is_not_sound_or_not_asked_for_is_not_imported(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    one, two = two_hosts
    alice, _ = await person_with_everything(one)
    path = tmp_path / "alice.tar"
    await archives_of(one).create(alice.did, path)
    rescue, order = two.server.services.keeping.rescue, Order("cli:tests")
    newcomer = Newcomer(handle="alice2.test", email="a@example.test", password="a long password")
    bad = tmp_path / "bad.tar"
    bad.write_bytes(path.read_bytes()[:-2000])
    cases: list[tuple[Newcomer, Sources, str]] = [
        (newcomer, Sources(), "no archive"),
        (newcomer, Sources(archive=bad), "not sound"),
        (newcomer, Sources(archive=tmp_path / "none.tar"), "cannot be read"),
        (replace(newcomer, did="did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"), Sources(archive=path), "anoth"),
        (replace(newcomer, password="short"), Sources(archive=path), "assword"),
        (replace(newcomer, handle="a.b.test"), Sources(archive=path), "andle"),
    ]
    for who, sources, why in cases:
        with pytest.raises(RequestError) as caught:
            await rescue.import_archive(who, sources, order)
        assert why in caught.value.message
    assert await two.server.services.accounts.lookup(alice.did) is None
    with pytest.raises(RequestError, match="not here"):
        await rescue.finish(alice.did, {}, order)


async def test_a_key_that_is_none_of_the_identitys_rescues_nothing(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    one, two = two_hosts
    alice = await sign_up(one.client, "alice.test")
    path = tmp_path / "alice.tar"
    await archives_of(one).create(alice.did, path)
    rescue, order = two.server.services.keeping.rescue, Order("cli:tests")
    newcomer = Newcomer(handle="alice2.test", email="a@example.test", password="a long password")
    stranger = make_signer("k256", b"\x55" * 32).public_key.did_key
    for key, sources, why in (
        (stranger, Sources(archive=path), "never one of its rotation keys"),
        ("did:key:none", Sources(archive=path), "not a did:key"),
        (stranger, Sources(), "neither an archive nor a repo"),
    ):
        with pytest.raises(RequestError) as caught:
            await rescue.prepare(newcomer, sources, owner_key=key, order=order)
        assert why in caught.value.message
    assert await two.server.services.accounts.lookup(alice.did) is None


async def test_verify_says_by_its_exit_code_what_it_found(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, cid = await person_with_everything(host)
    whole, lacking, broken = (tmp_path / f"{name}.tar" for name in ("whole", "lacking", "broken"))
    await archives_of(host).create(alice.did, whole)
    [stored] = (tmp_path / "blobs").rglob(cid)
    stored.unlink()
    await archives_of(host).create(alice.did, lacking)
    broken.write_bytes(whole.read_bytes()[:-3000])
    for path, code, word in ((whole, 0, "complete"), (lacking, 3, cid), (broken, 1, "damaged")):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            found = await asyncio.to_thread(run, ["archive", "verify", str(path)])
        assert (found, word in out.getvalue()) == (code, True), out.getvalue()


async def test_an_archive_and_a_key_make_an_account_at_any_host_by_public_calls(
    two_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """ACC-20, ACC-50: `rescue to` needs no server of its own, and goes on where it was cut off."""
    one, two = two_hosts
    alice, cid = await person_with_everything(one)
    path, kit = tmp_path / "alice.tar", tmp_path / "kit.txt"
    signer = new_signer("p256")
    write_kit(kit, signer, did=alice.did, handle="alice.test", host="one")
    owner = signer.public_key.did_key
    keys = one.server.services.keeping.recovery_keys
    await keys.add(alice.did, owner, order=Order("cli:tests"))
    await archives_of(one).create(alice.did, path, with_preferences=True)
    arguments = [
        "rescue", "to", two.url, "--archive", str(path), "--kit", str(kit),
        "--handle", "alice2.test", "--email", "a@example.test", "--password-stdin",
        "--plc", two.server.config.identity.plc_url,
    ]  # fmt: skip

    async def rescue(password: str = "a long password") -> tuple[int, str]:
        out = io.StringIO()
        real, sys.stdin = sys.stdin, io.StringIO(f"{password}\n")
        try:
            with redirect_stdout(out), redirect_stderr(out):
                code = await asyncio.to_thread(run, arguments)
        finally:
            sys.stdin = real
        return code, out.getvalue()

    code, told = await rescue("short")
    assert (code, "assword" in told) == (1, True), told
    code, told = await rescue()
    assert code == 0, told
    state = one.plc.get_state(alice.did)
    assert state is not None
    server = two.server.services.keeping.recovery_keys._server_key
    assert state.rotation_keys == (owner, server)
    assert state.services["atproto_pds"].endpoint == two.server.config.public_url
    session = await two.client.post(
        "com.atproto.server.createSession", identifier="alice2.test", password="a long password"
    )
    there = two.client.with_token(session["accessJwt"])
    status = await there.get("com.atproto.server.checkAccountStatus")
    assert (status["activated"], status["validDid"]) == (True, True)
    assert (status["indexedRecords"], status["importedBlobs"]) == (5, 1)
    preferences = await there.get("app.bsky.actor.getPreferences")
    assert preferences["preferences"][0]["enabled"] is True
    code, told = await rescue()
    assert (code, "not deactivated" in told) == (1, True), told
    await there.post("com.atproto.server.deactivateAccount", body={})
    code, told = await rescue()  # As after a cut: it goes on with the account that is there.
    assert (code, "going on with it" in told) == (0, True), told
    assert cid.encode() not in told.encode()


def test_a_kit_can_be_read_by_people_programs_and_cameras(tmp_path: Path) -> None:
    kit = tmp_path / "kit.txt"
    signer = new_signer("k256")
    write_kit(kit, signer, did="did:plc:alice", handle="alice.test", host="pds.test")
    assert kit.stat().st_mode & 0o777 == 0o600
    assert read_signer(kit).public_key == signer.public_key
    text = kit.read_text()
    assert signer.public_key.did_key in text
    code = text.partition("QR code:\n\n")[2].rstrip("\n").split("\n")
    width = max(map(len, code))
    rows = []
    for line in code:
        cells = line.ljust(width)
        rows.append([cell in "\u2580\u2588" for cell in cells])
        rows.append([cell in "\u2584\u2588" for cell in cells])
    drawn = [row for row in rows if any(row)]
    wanted = segno.make(encode_words(signer).upper(), error="m", micro=False)
    assert [[bool(cell) for cell in row] for row in wanted.matrix] == [
        row[4 : 4 + len(wanted.matrix)] for row in drawn
    ]
    with pytest.raises(click.ClickException):
        write_kit(kit, signer, did="did:plc:alice", handle="alice.test", host="pds.test")
