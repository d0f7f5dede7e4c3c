"""Taking over a host of the reference PDS: every part of it, and what is wrong with one.

Spec: (ACC-30, ACC-33, ACC-35, ACC-44, SYNC-10, SYNC-17, XRPC-25)
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pds.blobstore.base import BlobKey
from pds.blobstore.memory import MemoryBlobStore
from pds.blobstore.reference import FolderBlobs
from pds.errors import ConfigError, RequestError, Unavailable
from pds.protocol.cid import Cid
from pds.protocol.frames import decode_frame
from pds.protocol.jwt import sign_hs256
from pds.services.reference_import import (
    AlreadyTaken,
    ImportReport,
    NotEmptyHost,
    ReferenceImport,
    SourceChanged,
    check_reference,
)
from pds.services.reference_import_account import Outcome
from pds.store.accounts import Account, AccountStatus, get_account_by_did
from pds.store.app_passwords import list_app_passwords
from pds.store.blobs import get_blob, list_missing_blobs
from pds.store.engine import Engine, Txn
from pds.store.events import delete_events_before, get_event_page, get_missed_through
from pds.store.invites import count_invite_uses, is_invite_code_usable
from pds.store.keystore import Keystore
from pds.store.moderation import list_record_takedowns
from pds.store.preferences import list_preferences
from pds.store.repos import get_account_repo
from pds.store.takeover import check_takeover, count_others
from tests.services.account_host import SECRET, SERVICE_DID, START_US, SessionHost, session_host
from tests.services.reference_folder import (
    DAY_US,
    PICTURE,
    POST,
    ReferenceFolder,
    SourceAccount,
    blob_record,
    digests,
    opened,
    whole_host,
)
from tests.suites.engines import open_engine

WINDOW_S = 3 * 86_400.0
KEYSTORE = Keystore(bytes(range(32)))


class Failing:
    """An engine that fails before its nth transaction, and so after the one before: a crash."""

    def __init__(self, engine: Engine, at: int) -> None:
        self._engine, self._left = engine, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def transact(self, label: str, fn: Any, *args: Any, **more: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise Unavailable("the power went out")
        return await self._engine.transact(label, fn, *args, **more)


async def take(
    source: ReferenceFolder,
    engine: Engine,
    blobs: MemoryBlobStore,
    scratch: Path,
    *,
    without: tuple[str, ...] = (),
) -> ImportReport:
    async with opened(source.folder, scratch) as host:
        importing = ReferenceImport(
            host,
            FolderBlobs(source.folder / "blocks"),
            engine=engine,
            keystore=KEYSTORE,
            blobstore=blobs,
            service_did=SERVICE_DID,
            window_s=WINDOW_S,
            now_us=lambda: START_US,
            without=without,
        )
        return await importing.run(lambda _: None)


async def account_of(engine: Engine, did: str) -> Account:
    account = await engine.read("test.account", get_account_by_did, did)
    assert account is not None
    return account


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SessionHost]:
    async with session_host(tmp_path / "ours") as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> ReferenceFolder:
    made = whole_host(tmp_path / "old")
    made.close()
    return made


async def test_everything_of_a_host_is_taken_over(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    blobs, before = MemoryBlobStore(), digests(source.folder)
    report = await take(source, host.engine, blobs, tmp_path / "scratch")
    assert digests(source.folder) == before
    assert [one.outcome for one in report.accounts] == [Outcome.IMPORTED] * 3
    assert (report.invites, report.reserved_keys) == (1, 1)
    for did, one in source.stores.items():
        account = await account_of(host.engine, did)
        found = await host.engine.read("test.repo", get_account_repo, account.aid)
        assert found is not None
        assert found.repo is not None
        assert found.repo.head == one.head
        signer = await host.engine.read("test.key", KEYSTORE.signer, account.key_id or 0)
        assert signer.public_key == one.signer.public_key
    alice, bob, carol = [await account_of(host.engine, did) for did in source.stores]
    assert (alice.handle, alice.email) == ("alice.pds.test", "alice@mail.test")
    assert alice.email_confirmed_at is not None
    assert bob.status is AccountStatus.DEACTIVATED
    # The old server would never have done it, so there is time to notice.
    assert bob.delete_after == START_US + 30 * DAY_US
    assert report.accounts[1].notes == ["it will be deleted after 2025-11-08T08:53:20.000Z"]
    assert carol.takedown_ref == "case 2"
    preferences = await host.engine.read("test.preferences", list_preferences, alice.aid)
    assert [one.type for one in preferences] == ["a.b.c#z", "a.b.c#a"]
    (hidden,) = await host.engine.read("test.hidden", list_record_takedowns, bob.aid)
    assert (hidden.path, hidden.takedown_ref) == (f"{POST}/hidden", "case 1")
    assert not await host.engine.read("test.usable", is_invite_code_usable, "code-2")
    assert await host.engine.read("test.usable", is_invite_code_usable, "code-1")
    assert await host.engine.read("test.uses", count_invite_uses, "code-1") == 2


async def test_blobs_keep_their_states(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    """XRPC-82, XRPC-86, ACC-44: kept, temporary, in quarantine; and what nobody refers to."""
    blobs = MemoryBlobStore()
    await take(source, host.engine, blobs, tmp_path / "scratch")
    alice, _, carol = [await account_of(host.engine, did) for did in source.stores]
    states = {}
    for account, content in (
        (alice, PICTURE),
        (alice, b"uploaded only"),
        (alice, b"left over"),
        (carol, b"not to be seen"),
    ):
        cid = Cid.of_raw(content)
        blob = await host.engine.read("test.blob", get_blob, account.aid, cid)
        assert blob is not None
        assert blobs.blobs[BlobKey(account.aid, cid)][0] == content
        states[content] = (blob.is_temporary, blob.takedown_ref)
    assert states == {
        PICTURE: (False, None),
        b"uploaded only": (True, None),
        b"left over": (True, None),
        b"not to be seen": (False, "case 3"),
    }


async def test_old_passwords_and_tokens_go_on(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    """ACC-30, ACC-33, ACC-35, XRPC-25"""
    await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")
    did = next(iter(source.stores))
    aid = (await account_of(host.engine, did)).aid
    assert (await host.sessions.login(did, "password")).did == did
    for name, scope in (
        ("phone", "com.atproto.appPass"),
        ("desk", "com.atproto.appPassPrivileged"),
    ):
        for _ in range(2):
            view = await host.sessions.login(did, f"AAAA-bbbb-cccc-{name} ")
            assert view.tokens is not None
            principal = await host.sessions.authenticate_access(view.tokens.access)
            assert principal.scope == scope
    kept = await host.engine.read("test.passwords", list_app_passwords, aid)
    assert [len(one.hash) for one in kept] == [32, 32]
    with pytest.raises(RequestError, match="Invalid identifier"):
        await host.sessions.login(did, "aaaa-bbbb-cccc-dddd")

    def token(kind: str, scope: str, **more: str) -> str:
        now_s = START_US // 1_000_000
        claims = {"scope": scope, "aud": SERVICE_DID, "sub": did, "iat": now_s, "exp": now_s + 99}
        return sign_hs256({"typ": kind}, {**claims, **more}, SECRET.encode())

    def refresh_token(token_id: str) -> str:
        return token("refresh+jwt", "com.atproto.refresh", jti=token_id)

    for token_id in ("old+/=", "next", "of phone"):
        assert (await host.sessions.refresh(refresh_token(token_id))).did == did
    for token_id in ("of nothing", "expired", "never made"):
        with pytest.raises(RequestError, match="revoked"):
            await host.sessions.refresh(refresh_token(token_id))
    with pytest.raises(RequestError) as refused:
        await host.sessions.authenticate_access(token("at+jwt", "com.atproto.access"))
    assert refused.value.name == "ExpiredToken"
    with pytest.raises(RequestError) as refused:
        forged = sign_hs256({"typ": "at+jwt"}, {"sub": did}, b"another secret of somebody")
        await host.sessions.authenticate_access(forged)
    assert refused.value.name == "InvalidToken"
    await host.sessions.logout(refresh_token("next"))
    with pytest.raises(RequestError, match="revoked"):
        await host.sessions.refresh(refresh_token("old+/="))
    assert (await host.sessions.refresh(refresh_token("of phone"))).did == did


async def test_events_keep_their_numbers(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    """SYNC-10, SYNC-11, SYNC-17: the old numbers, then ours; what is too old is said to be gone."""
    report = await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")
    assert report.events is not None
    last = report.events.last_seq
    page = await host.engine.read("test.page", get_event_page, 0, 100, 10**7)
    frames = [decode_frame(event.frame) for event in page.events]
    assert [frame.payload["seq"] for frame in frames] == [event.seq for event in page.events]
    assert (page.events[0].seq, page.events[-1].seq) == (2, last)
    assert frames[-1].payload["status"] == "deleted"
    # Carol is taken down and Bob deactivated: their content is withheld.
    assert [frame.type for frame in frames].count("#commit") == 3
    assert host.engine.last_seq == START_US

    def missed(now_us: int) -> Any:
        return host.engine.read("test.missed", get_missed_through, now_us - int(WINDOW_S * 10**6))

    assert await missed(START_US) == 1
    assert await missed(START_US + DAY_US) == 1
    assert await missed(START_US + 4 * DAY_US) == last
    for now_us, count in ((START_US + DAY_US, 0), (START_US + 4 * DAY_US, last - 1)):
        before = now_us - int(WINDOW_S * 10**6)
        assert await host.engine.transact("test.sweep", delete_events_before, before) == count


async def test_it_goes_on_after_any_failure(source: ReferenceFolder, tmp_path: Path) -> None:
    """Cut off before each transaction, and run again: the same rows as in one run."""
    number, is_whole = 0, False
    while not is_whole:
        number += 1
        blobs = MemoryBlobStore()
        async with open_engine(tmp_path / f"ours {number}") as engine:
            failing: Any = Failing(engine, number)
            try:
                await take(source, failing, blobs, tmp_path / "scratch")
                is_whole = True
            except Unavailable:
                report = await take(source, engine, blobs, tmp_path / "scratch")
                assert report.events is not None
            await check_rows(engine, blobs)
    assert number > 15


async def check_rows(engine: Engine, blobs: MemoryBlobStore) -> None:
    def look(txn: Txn) -> dict[str, int]:
        counts = {}
        for table in ("account", "event", "session", "app_password", "blob", "invite_use"):
            counts[table] = txn.read(f"SELECT count(*) FROM {table}")[0][0]
        counts["live"] = txn.read("SELECT count(*) FROM account a JOIN record r"
                                  " ON r.repo_id = a.repo_id")[0][0]  # fmt: skip
        counts["journal"] = txn.read("SELECT count(*) FROM journal")[0][0]
        return counts

    assert await engine.read("test.look", look) == {
        "account": 3,
        "event": 18,
        "session": 3,
        "app_password": 2,
        "blob": 4,
        "invite_use": 2,
        "live": 6,
        "journal": 0,
    }
    assert len(blobs.blobs) == 4


def damage_block(account: SourceAccount) -> None:
    account.store.execute("UPDATE repo_block SET content = X'A0' WHERE cid IN"
                          " (SELECT cid FROM record LIMIT 1)")  # fmt: skip


def drop_node(account: SourceAccount) -> None:
    assert account.head is not None
    account.store.execute("DELETE FROM repo_block WHERE cid = ?", (str(account.head.data),))


def change_key(account: SourceAccount) -> None:
    (account.folder / "key").write_bytes(b"\x07" * 32)


def cut_key(account: SourceAccount) -> None:
    (account.folder / "key").write_bytes(b"\x07" * 31)


def move_head(account: SourceAccount) -> None:
    account.store.execute("UPDATE repo_root SET rev = '3kkkkkkkkkkkk'")


def change_index(account: SourceAccount) -> None:
    account.store.execute("UPDATE record SET cid = 'bafy' WHERE rkey = 'first'")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_block, "do not match their CID"),
        (drop_node, "is missing"),
        (change_key, "signature does not verify"),
        (cut_key, "31 bytes"),
        (move_head, "the store says rev"),
        (change_index, "another one in the index"),
    ],
)
async def test_an_account_with_a_fault_is_reported_and_nothing_is_complete(
    harm: Any, message: str, tmp_path: Path, host: SessionHost
) -> None:
    source = whole_host(tmp_path / "old")
    alice = next(iter(source.stores.values()))
    harm(alice)
    source.close()
    async with opened(source.folder, tmp_path / "scratch") as old:
        report = await check_reference(old, FolderBlobs(tmp_path / "blocks"), tell=lambda _: None)
    assert [one.did for one in report.failed] == [alice.did]
    report = await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")
    (failed,) = report.failed
    assert message in (failed.error or "")
    assert report.events is None
    with pytest.raises(ConfigError, match="not taken over all"):
        await host.engine.read("test.state", check_takeover)
    assert await host.engine.read("test.gone", get_account_by_did, alice.did) is None
    report = await take(
        source, host.engine, MemoryBlobStore(), tmp_path / "scratch", without=(alice.did,)
    )
    assert [one.outcome for one in report.accounts] == [
        Outcome.LEFT_OUT,
        Outcome.PRESENT,
        Outcome.PRESENT,
    ]
    assert report.events is not None
    await host.engine.read("test.state", check_takeover)


async def test_a_blob_that_is_missing_or_damaged_is_told_and_may_come_later(
    tmp_path: Path, host: SessionHost
) -> None:
    """XRPC-86"""
    source = ReferenceFolder(tmp_path / "old", START_US)
    alice = source.add_account("alice")
    gone = source.add_blob(alice, b"gone")
    bad = source.add_blob(alice, b"good", stored=b"evil")
    source.write(alice, a=blob_record(gone, 4), b=blob_record(bad, 4))
    source.close()
    (source.folder / "blocks" / alice.did / str(gone)).unlink()
    blobs = MemoryBlobStore()
    report = await take(source, host.engine, blobs, tmp_path / "scratch")
    (told,) = report.accounts
    assert (told.missing_blobs, told.damaged_blobs) == ([str(gone)], [str(bad)])
    assert blobs.blobs == {}
    account = await account_of(host.engine, alice.did)

    def missing(txn: Txn) -> set[str]:
        assert account.repo_id is not None
        found = list_missing_blobs(txn, account.aid, account.repo_id, after=None, limit=9)
        return {str(one.cid) for one in found}

    assert await host.engine.read("test.missing", missing) == {str(gone), str(bad)}


async def test_only_an_empty_host_takes_over_and_only_once(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    await host.add_account()
    with pytest.raises(NotEmptyHost, match="only an empty one"):
        await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")
    assert await host.engine.read("test.others", count_others) == 1


async def test_a_second_run_has_nothing_to_do(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")
    with pytest.raises(AlreadyTaken):
        await take(source, host.engine, MemoryBlobStore(), tmp_path / "scratch")


async def test_a_source_that_changes_meanwhile_is_noticed(
    source: ReferenceFolder, host: SessionHost, tmp_path: Path
) -> None:
    blobs = MemoryBlobStore()
    stage = blobs.stage

    def touch(chunks: AsyncIterator[bytes]) -> Any:
        with (source.folder / "account.sqlite").open("ab") as file:
            file.write(b"more")
        return stage(chunks)

    blobs.stage = touch  # type: ignore[method-assign]
    with pytest.raises(SourceChanged):
        await take(source, host.engine, blobs, tmp_path / "scratch")
