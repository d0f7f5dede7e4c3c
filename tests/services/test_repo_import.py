"""Importing a repo: all of it becomes live at once, or nothing has happened."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pds.blobstore.memory import MemoryBlobStore
from pds.errors import RequestError, Unavailable, Unreachable
from pds.protocol.car import encode_car_header, read_car
from pds.protocol.cid import Cid
from pds.protocol.keys import make_signer, parse_did_key
from pds.protocol.repo_verify import BlockMap, verify_repo
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from pds.services.blobs import Blobs, BlobSettings
from pds.services.import_check import CheckedRepo, CheckJob, check_import
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.repo_import import ImportSettings, RepoImports
from pds.services.repos import RecordWrite
from pds.store.accounts import Account
from pds.store.repo_staging import LEASE_US, begin_staging
from pds.store.repos import get_account_repo
from tests.independent import check_export
from tests.services.life_host import LifeHost, Told, life_host
from tests.support_repo import ForeignRepo, make_repo

OLD = make_signer("k256", bytes(31) + b"\x07")
OLDER = make_signer("p256", bytes(31) + b"\x08")
STRANGER = make_signer("k256", bytes(31) + b"\x09")
POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
PICTURE = b"\x89PNG a picture"
TABLES = ("repo", "record", "node", "blob_ref", "backlink", "journal")


def post(number: int, **more: Any) -> dict[str, Any]:
    return {"$type": POST, "text": f"number {number}", **more}


def like(uri: str) -> dict[str, Any]:
    created = "2026-01-01T00:00:00.000Z"
    return {
        "$type": LIKE,
        "subject": {"uri": uri, "cid": str(Cid.of_data(b""))},
        "createdAt": created,
    }


RECORDS = {
    **{f"{POST}/{number:04}": post(number) for number in range(900)},
    f"{POST}/picture": post(
        1,
        embed={
            "$type": "blob",
            "ref": Cid.of_raw(PICTURE),
            "mimeType": "image/png",
            "size": len(PICTURE),
        },
    ),
    f"{LIKE}/1": like("at://did:web:a.test/app.bsky.feed.post/1"),
}


class History:
    """The keys that the directory knows of an account, oldest first."""

    def __init__(self) -> None:
        self.keys = [OLDER.public_key.did_key, OLD.public_key.did_key]
        self.is_reachable = True

    async def get_audit_log(self, did: Did) -> Any:
        if not self.is_reachable:
            raise Unreachable("nobody answers")
        states = [SimpleNamespace(verification_methods={"atproto": key}) for key in self.keys]
        ended = SimpleNamespace(operation=SimpleNamespace(state=None))
        entries = [SimpleNamespace(operation=SimpleNamespace(state=state)) for state in states]
        return SimpleNamespace(active=(*entries, ended))


class Checks:
    """Checks in this process; the test may hold one up."""

    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, job: CheckJob) -> CheckedRepo:
        self.count += 1
        self.started.set()
        await self.may_go_on.wait()
        return await asyncio.to_thread(check_import, job)


class Moving:
    """A host, an account that moves in, and what it moves in with."""

    def __init__(self, host: LifeHost, folder: Path, account: Account) -> None:
        self.host = host
        self.folder = folder
        self.account = account
        self.history = History()
        self.checks = Checks()
        self.imports = self.make()
        self.blobs = Blobs(
            engine=host.engine,
            clock=host.clock,
            store=MemoryBlobStore(),
            settings=BlobSettings(),
        )

    def make(self, **settings: Any) -> RepoImports:
        return RepoImports(
            engine=self.host.engine,
            clock=self.host.clock,
            clock_id=9,
            keystore=self.host.keystore,
            cache=self.host.cache,
            plc=self.history,
            documents=self.host.identities,
            settings=ImportSettings(folder=self.folder / "uploads", **settings),
            check=self.checks,
        )

    @property
    def principal(self) -> Principal:
        return Principal(PrincipalKind.SESSION, self.account.did, self.account.aid, Scope.ACCESS)

    def repo(
        self, records: dict[str, Any] = RECORDS, *, signer: Any = OLD, ago_s: int = 60
    ) -> ForeignRepo:
        rev = encode_tid(self.host.clock.now_us() - ago_s * 1_000_000, 1)
        return make_repo(self.account.did, signer, records, rev=rev)

    async def take(self, car: bytes, *, imports: RepoImports | None = None) -> None:
        await (imports or self.imports).import_repo(self.principal, pieces(car))

    async def refused(self, car: bytes, **options: Any) -> RequestError:
        """Check that a CAR is refused, and that nothing at all is stored."""
        before = await self.rows()
        with pytest.raises(RequestError) as info:
            await self.take(car, **options)
        assert await self.rows() == before
        assert self.imports.files.used_bytes == 0
        return info.value

    async def rows(self) -> dict[str, list[tuple]]:
        order = {"repo": "repo_id", "journal": "journal_id"}
        return {
            table: sorted(await self.host.rows_of(f"SELECT * FROM {table}"), key=repr)
            for table in (*TABLES, "account", "event", *order)
        }

    async def live(self) -> Any:
        return await self.host.engine.read("test", get_account_repo, self.account.aid)

    async def export(self) -> bytes:
        async with self.host.exports.repo(self.account.did, principal=self.principal) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def our_key(self) -> str:
        key_id = (await self.live()).key_id
        return await self.host.engine.read("test", self.host.keystore.did_key, key_id)

    async def verify(self) -> dict[str, str]:
        """Hold the export against a stranger's eyes; return path to CID."""
        content = await self.export()
        key = await self.our_key()
        found = check_export(content, did=self.account.did, did_key=key)
        roots, blocks = read_car(content)
        list(verify_repo(roots[0], BlockMap(blocks), key=parse_did_key(key)))
        live = await self.live()
        assert len(found) == live.repo.record_count
        counted = await self.host.rows_of(
            "SELECT count(*) FROM node WHERE repo_id = ?", live.repo.repo_id
        )
        assert counted == [(live.repo.node_count,)]
        return {path: str(Cid(cid)) for path, cid in found.items()}


async def pieces(content: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def texts(repo: ForeignRepo) -> dict[str, str]:
    return {path: str(cid) for path, cid in repo.records.items()}


@pytest.fixture
async def moving(tmp_path: Path) -> AsyncIterator[Moving]:
    async with life_host(tmp_path) as host:
        account = await host.open("alice", is_active=False)
        yield Moving(host, tmp_path, account)


async def test_an_imported_repo_is_live_under_our_signature(moving: Moving) -> None:
    """(REPO-3, REPO-92, ACC-41, ACC-54)"""
    before = await moving.live()
    repo = moving.repo()
    heard = len(moving.host.heard)
    await moving.take(repo.car(order=lambda item: item[0]))
    assert await moving.verify() == texts(repo)
    live = await moving.live()
    assert live.repo.head.data == repo.data
    assert live.repo.head.rev > max(repo.rev, before.repo.head.rev)
    assert len(moving.host.heard) == heard  # Nothing is announced before the activation.
    await moving.host.collect_garbage()
    assert [row[0] for row in await moving.host.rows_of("SELECT repo_id FROM repo")] == [
        live.repo.repo_id
    ]
    assert await moving.host.rows_of("SELECT * FROM journal") == []


async def test_the_account_works_on_after_the_activation(moving: Moving) -> None:
    """(ACC-40, ACC-41, SYNC-42, XRPC-95)"""
    repo = moving.repo()
    await moving.take(repo.car())
    await moving.host.life.activate(moving.account.aid)
    assert moving.host.kinds(moving.account.did)[-3:] == ["#account", "#identity", "#sync"]
    uri = "at://did:web:a.test/app.bsky.feed.post/1"
    moving.host.clock.advance(1)
    await moving.host.repos.write(
        moving.account.aid,
        [RecordWrite("create", LIKE, None, like(uri))],
        replace_duplicates=True,
    )
    found = await moving.verify()
    likes = [path for path in found if path.startswith(LIKE)]
    assert len(likes) == 1
    assert likes != [f"{LIKE}/1"]


async def test_the_same_car_again_changes_nothing(moving: Moving) -> None:
    """(REPO-93)"""
    repo = moving.repo()
    await moving.take(repo.car())
    before = await moving.rows()
    moving.host.clock.advance(100)
    await moving.take(repo.car())
    assert await moving.rows() == before
    await moving.take(await moving.export())  # Our own export, signed with our own key.
    assert await moving.rows() == before


async def test_a_newer_export_replaces_the_one_before(moving: Moving) -> None:
    """(REPO-3, REPO-93)"""
    await moving.take(moving.repo().car())
    first = (await moving.live()).repo.head
    moving.host.clock.advance(60)
    newer = moving.repo({**RECORDS, f"{POST}/new": post(5), f"{POST}/0001": post(6)}, ago_s=30)
    await moving.take(newer.car())
    assert await moving.verify() == texts(newer)
    assert (await moving.live()).repo.head.rev > first.rev


async def test_what_is_newer_alone_is_enough_to_catch_up(moving: Moving) -> None:
    """(REPO-45, REPO-92)"""
    old = moving.repo()
    await moving.take(old.car())
    moving.host.clock.advance(60)
    records = {**RECORDS, f"{POST}/new": post(5)}
    del records[f"{POST}/0007"]
    newer = moving.repo(records, ago_s=30)
    await moving.take(newer.car(without=old.blocks))
    assert await moving.verify() == texts(newer)
    third = moving.repo(records | {f"{POST}/x": post(1)}, ago_s=20)
    gap = next(cid for cid in third.blocks if cid not in newer.blocks and cid != third.root)
    error = await moving.refused(third.car(without=[gap, *newer.blocks]))
    assert f"{gap} is missing" in error.message


async def test_blobs_that_came_first_are_kept_and_others_are_missed(moving: Moving) -> None:
    """(XRPC-82, XRPC-86, ACC-51)"""
    aid = moving.account.aid
    await moving.blobs.upload(aid, pieces(PICTURE), declared_type="image/png")
    other = Cid.of_raw(b"another")
    ref = {"$type": "blob", "ref": other, "mimeType": "image/png", "size": 7}
    await moving.take(moving.repo({**RECORDS, f"{POST}/other": post(1, embed=ref)}).car())
    moving.host.clock.advance(2 * 86_400)
    await moving.blobs.collect()
    report = await moving.host.reports.get(aid)
    assert (report.expected_blobs, report.stored_blobs) == (2, 1)
    assert (report.records, report.blocks) == (len(RECORDS) + 1, len(await moving_blocks(moving)))
    missing, _ = await moving.blobs.list_missing(aid)
    assert [(uri, blob.cid) for uri, blob in missing] == [
        (f"at://{moving.account.did}/{POST}/other", other)
    ]
    await moving.blobs.upload(aid, pieces(b"another"), declared_type="image/png")
    moving.host.clock.advance(2 * 86_400)
    await moving.blobs.collect()
    assert await moving.blobs.list_missing(aid) == ([], None)


async def moving_blocks(moving: Moving) -> dict[Cid, bytes]:
    return read_car(await moving.export())[1]


async def test_a_key_from_the_history_is_good(moving: Moving) -> None:
    repo = moving.repo(signer=OLDER)
    await moving.take(repo.car())
    assert await moving.verify() == texts(repo)


async def test_a_did_web_has_the_key_of_its_document(tmp_path: Path) -> None:
    async with life_host(tmp_path) as host:
        account = await host.open("web", did="did:web:alice.example", is_active=False)
        moving = Moving(host, tmp_path, account)
        host.identities.told[account.did] = Told("https://old.test", OLD.public_key.did_key)
        assert "not signed" in (await moving.refused(moving.repo(signer=OLDER).car())).message
        repo = moving.repo()
        await moving.take(repo.car())
        assert await moving.verify() == texts(repo)


async def test_what_is_wrong_is_refused_and_nothing_is_stored(moving: Moving) -> None:
    """(REPO-90, REPO-92); every other kind of wrong is in test_import_check."""
    await moving.take(moving.repo({f"{POST}/mine": post(1)}).car())
    bob = make_repo("did:plc:bobbbbbbbbbbbbbbbbbbbbbb", OLD, RECORDS, rev=moving.repo().rev)
    assert "another account" in (await moving.refused(bob.car())).message
    assert "not signed" in (await moving.refused(moving.repo(signer=STRANGER).car())).message
    future = moving.repo(ago_s=-600)
    assert "future" in (await moving.refused(future.car())).message
    assert "middle" in (await moving.refused(future.car()[:-10])).message
    incomplete = moving.repo().car(without=[moving.repo().records[f"{POST}/0005"]])
    assert "missing" in (await moving.refused(incomplete)).message
    assert "root" in (await moving.refused(encode_car_header(()))).message


async def test_only_a_deactivated_account_takes_a_repo(moving: Moving) -> None:
    """(ACC-5, ACC-52)"""
    car = moving.repo().car()
    aid = moving.account.aid
    assert "accepting" in (await moving.refused(car, imports=moving.make(accepting=False))).message
    await moving.host.life.activate(aid)
    assert "deactivated" in (await moving.refused(car)).message
    await moving.host.life.deactivate(aid)
    await moving.host.set_suspended(aid, is_suspended=True)
    assert (await moving.refused(car)).status == 401
    await moving.host.set_suspended(aid, is_suspended=False)
    await moving.host.set_takedown(aid, "mod")
    assert (await moving.refused(car)).status == 401
    await moving.host.delete_now(aid)
    assert (await moving.refused(car)).name == "AccountNotFound"
    assert moving.checks.count == 0


async def test_an_identity_that_cannot_be_asked_is_not_a_refusal(moving: Moving) -> None:
    moving.history.is_reachable = False
    before = await moving.rows()
    with pytest.raises(Unreachable):
        await moving.take(moving.repo().car())
    assert await moving.rows() == before


async def test_of_two_imports_at_once_one_wins(moving: Moving) -> None:
    moving.checks.may_go_on.clear()
    first = moving.repo()
    winner = asyncio.create_task(moving.take(first.car()))
    await moving.checks.started.wait()
    with pytest.raises(RequestError) as info:
        await moving.take(moving.repo({f"{POST}/b": post(2)}).car())
    error = info.value
    assert "under way" in error.message
    moving.checks.may_go_on.set()
    await winner
    assert await moving.verify() == texts(first)


async def test_of_two_imports_at_two_nodes_one_wins(moving: Moving) -> None:
    """What one node knows in memory the other sees in the database."""
    moving.checks.may_go_on.clear()
    other = moving.make(is_alone=False)
    mine = moving.make(is_alone=False)
    first, second = moving.repo(), moving.repo({f"{POST}/b": post(2)})
    tasks = [
        asyncio.create_task(moving.take(first.car(), imports=mine)),
        asyncio.create_task(moving.take(second.car(), imports=other)),
    ]
    while moving.checks.count < 2:
        await asyncio.sleep(0)
    moving.checks.may_go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for error in outcomes if isinstance(error, RequestError)]
    assert [error.name for error in errors] == ["InvalidRequest"]
    won = (first, second)[outcomes.index(None)]
    assert await moving.verify() == texts(won)
    await moving.host.collect_garbage()
    assert len(await moving.host.rows_of("SELECT repo_id FROM repo")) == 1
    assert await moving.host.rows_of("SELECT * FROM journal") == []


async def test_an_account_that_changes_meanwhile_keeps_what_it_has(moving: Moving) -> None:
    """(ACC-52)"""
    before = (await moving.live()).repo
    moving.checks.may_go_on.clear()
    task = asyncio.create_task(moving.take(moving.repo().car()))
    await moving.checks.started.wait()
    await moving.host.life.activate(moving.account.aid)
    moving.checks.may_go_on.set()
    with pytest.raises(RequestError, match="changed"):
        await task
    live = await moving.live()
    assert live.repo.repo_id == before.repo_id
    assert await moving.verify() == {}


@pytest.mark.parametrize("is_alone", [True, False])
async def test_what_a_crash_leaves_is_taken_over_or_collected(
    moving: Moving, is_alone: bool
) -> None:
    """(promise A8)"""
    host, aid = moving.host, moving.account.aid
    before = await moving.rows()

    async def crash() -> None:
        head = (await moving.live()).repo
        await host.engine.transact(
            "test.begin",
            lambda txn: begin_staging(
                txn, aid, head.head, head.commit_block, now_us=host.clock.now_us(), is_alone=True
            ),
        )

    await crash()
    restarted = moving.make(is_alone=is_alone)
    if not is_alone:
        assert await restarted.recover() == 0
        with pytest.raises(RequestError, match="under way"):
            await moving.take(moving.repo().car(), imports=restarted)
        host.clock.advance(LEASE_US // 1_000_000 + 1)
    assert await restarted.recover() == 1
    await host.collect_garbage()
    assert await moving.rows() == before
    await crash()
    if not is_alone:
        host.clock.advance(LEASE_US // 1_000_000 + 1)
    repo = moving.repo()
    await moving.take(repo.car(), imports=restarted)
    assert await moving.verify() == texts(repo)
    await host.collect_garbage()
    assert len(await host.rows_of("SELECT repo_id FROM repo")) == 1


@pytest.mark.parametrize("label", ["repo.import_begin", "repo.import", "repo.import_end"])
async def test_a_failure_on_the_way_leaves_nothing(
    moving: Moving, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = moving.host.engine
    transact = engine.transact
    before = await moving.rows()

    async def failing(name: str, *args: Any, **options: Any) -> Any:
        if name == label:
            raise Unavailable("the disk is full")
        return await transact(name, *args, **options)

    monkeypatch.setattr(engine, "transact", failing)
    with pytest.raises(Unavailable):
        await moving.take(moving.repo().car())
    monkeypatch.undo()
    await moving.host.collect_garbage()
    assert await moving.rows() == before
    await moving.take(moving.repo().car())


async def test_a_client_that_leaves_while_it_sends_leaves_nothing(moving: Moving) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield moving.repo().car()[:5000]
        raise RequestError("InvalidRequest", "The request body ended early or was malformed")

    before = await moving.rows()
    with pytest.raises(RequestError, match="ended early"):
        await moving.imports.import_repo(moving.principal, broken())
    assert await moving.rows() == before
    await moving.take(moving.repo().car())


async def test_a_cancelled_import_leaves_nothing(moving: Moving) -> None:
    before = await moving.rows()
    moving.checks.may_go_on.clear()
    task = asyncio.create_task(moving.take(moving.repo().car()))
    await moving.checks.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await moving.host.collect_garbage()
    assert await moving.rows() == before


async def test_the_disk_has_a_budget(moving: Moving) -> None:
    error = await moving.refused(moving.repo().car(), imports=moving.make(budget_bytes=50_000))
    assert (error.name, error.status) == ("NotEnoughResources", 503)


async def test_blocks_are_counted(moving: Moving) -> None:
    error = await moving.refused(moving.repo().car(), imports=moving.make(max_blocks=900))
    assert "too many blocks" in error.message
