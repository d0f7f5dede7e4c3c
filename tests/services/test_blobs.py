"""Blobs from upload to collection, over the real engine (XRPC-80 to XRPC-87)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pds.blobstore.base import CHUNK_BYTES, BlobKey
from pds.blobstore.disk import DiskBlobStore
from pds.blobstore.memory import MemoryBlobStore
from pds.errors import Corrupt, RequestError, Unavailable
from pds.protocol.cid import Cid, parse_cid
from pds.services.blobs import (
    CHECKED_BYTES,
    MIN_TEMPORARY_S,
    ORPHAN_AGE_US,
    Blobs,
    BlobSettings,
)
from pds.services.principal import ADMIN
from pds.services.repos import RecordWrite
from pds.store.blobs import count_blobs
from tests.services.repo_host import ALICE, BOB, repo_host

STRANGE = "com.example.strange"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
LARGE = bytes(range(256)) * (CHECKED_BYTES // 256 + 100)
DAY_S = 86_400


class HeldEngine:
    """Passes everything on, but keeps the transaction of an upload waiting before it starts."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def transact(self, label, fn, *args, **options):
        async def run():
            if label == "blob.upload":
                self.reached.set()
                await self.go_on.wait()
            return await self._engine.transact(label, fn, *args, **options)

        # Like the engine: what was handed in happens, whoever waits for it.
        return await asyncio.shield(asyncio.ensure_future(run()))


class Store(MemoryBlobStore):
    """A store whose steps can be held and whose deletes can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.hold_delete: asyncio.Event | None = None
        self.in_delete = asyncio.Event()
        self.undeletable: set[BlobKey] = set()

    async def delete(self, key: BlobKey) -> bool:
        if key in self.undeletable:
            raise Unavailable("this one will not go")

        async def run() -> bool:
            self.in_delete.set()
            if self.hold_delete is not None:
                await self.hold_delete.wait()
            return await MemoryBlobStore.delete(self, key)

        # Like a thread: what has begun is done, whoever waits for it.
        return await asyncio.shield(asyncio.ensure_future(run()))


@pytest.fixture
async def host(tmp_path):
    async with repo_host(tmp_path) as host:
        host.store = Store()
        host.blobs = Blobs(
            engine=host.engine, clock=host.clock, store=host.store, settings=BlobSettings()
        )
        await host.add_account()
        yield host


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 50_000):
        yield content[at : at + 50_000]


def key_of(host, content: bytes) -> BlobKey:
    return BlobKey(host.aids[ALICE], Cid.of_raw(content))


async def upload(host, content: bytes, declared: str | None = "text/plain", **options):
    return await host.blobs.upload(
        host.aids[ALICE], pieces(content), declared_type=declared, **options
    )


async def hold(host, rkey: str, *blobs) -> None:
    host.clock.advance(1)
    write = RecordWrite("put", STRANGE, rkey, {"blobs": list(blobs)})
    await host.repos.write(host.aids[ALICE], [write])


async def drop(host, rkey: str) -> None:
    host.clock.advance(1)
    await host.repos.write(host.aids[ALICE], [RecordWrite("delete", STRANGE, rkey)])


async def forget_row(host, content: bytes) -> None:
    """Make a record's blob missing, as after an import."""
    key = key_of(host, content)
    await host.engine.transact(
        "test.forget",
        lambda txn: txn.write("DELETE FROM blob WHERE aid = ? AND cid = ?", tuple(key)),
    )
    await host.store.delete(key)


async def take_down(host, content: bytes) -> None:
    key = key_of(host, content)
    await host.engine.transact(
        "test.take_down",
        lambda txn: txn.write(
            "UPDATE blob SET takedown_ref = 'x' WHERE aid = ? AND cid = ?", tuple(key)
        ),
    )


async def fetch(host, content: bytes, **options) -> bytes:
    blob = await host.blobs.open(ALICE, str(Cid.of_raw(content)), **options)
    read = [chunk async for chunk in host.blobs.read(blob, 0, blob.size)]
    assert blob.content in (None, b"".join(read))
    return b"".join(read)


async def refused(call) -> tuple[str, int]:
    with pytest.raises(RequestError) as caught:
        await call
    return caught.value.name, caught.value.status


# --- upload -----------------------------------------------------------------------------------


async def test_upload_answers_with_a_reference_and_the_sniffed_type(host):
    assert await upload(host, PNG, "text/plain") == {
        "$type": "blob",
        "ref": {"$link": str(Cid.of_raw(PNG))},
        "mimeType": "image/png",
        "size": len(PNG),
    }
    assert (await upload(host, b"plain", "Text/Plain; charset=utf-8"))["mimeType"] == "text/plain"
    assert (await upload(host, b"what", None))["mimeType"] == "application/octet-stream"
    assert (await upload(host, b""))["size"] == 0


async def test_length_other_than_announced_is_refused_and_leaves_nothing(host):
    for length in (0, 4, 6):
        assert await refused(upload(host, b"12345", declared_size=length)) == (
            "InvalidRequest",
            400,
        )
    assert host.store.blobs == {}
    assert await host.rows("SELECT * FROM blob") == []
    assert (await upload(host, b"12345", declared_size=5))["size"] == 5


async def test_refusal_by_the_stream_passes_through_and_leaves_nothing(host):
    async def too_long() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise RequestError("PayloadTooLarge", "too large", 413)

    call = host.blobs.upload(host.aids[ALICE], too_long(), declared_type=None)
    assert await refused(call) == ("PayloadTooLarge", 413)
    assert host.store.blobs == {}


async def test_bytes_are_stored_before_their_row(host):
    """A row without bytes is a lie; bytes without a row are only rubbish."""
    host.store.is_down = True
    with pytest.raises(Unavailable):
        await upload(host, b"x")
    host.store.is_down = False
    assert await host.rows("SELECT * FROM blob") == []


@pytest.mark.parametrize("column", ["takedown_ref", "suspended_at"])
async def test_upload_of_an_account_that_went_or_was_taken_down_is_refused(host, column):
    """(ACC-44) Also one that was on its way when the operator closed the account."""
    await host.update_account(**{column: "x" if column == "takedown_ref" else 1})
    assert await refused(upload(host, b"x")) == ("AccountTakedown", 401)
    call = host.blobs.upload(999, pieces(b"x"), declared_type=None)
    assert await refused(call) == ("AccountNotFound", 403)
    assert await host.rows("SELECT * FROM blob") == []


async def test_deactivated_account_may_upload_as_migration_needs_it(host):
    await host.update_account(deactivated_at=1)
    await upload(host, b"x")


async def test_upload_again_gives_the_same_reference_and_keeps_the_blob_permanent(host):
    first = await upload(host, b"x", "image/x-one")
    assert await upload(host, b"x", "image/x-two") == first
    await hold(host, "a", first)
    assert await upload(host, b"x", "image/x-two") == first
    assert await fetch(host, b"x") == b"x"


async def test_taken_down_blob_cannot_be_uploaded_again(host):
    await hold(host, "a", await upload(host, b"x"))
    await take_down(host, b"x")
    assert await refused(upload(host, b"x")) == ("InvalidRequest", 400)
    assert await refused(fetch(host, b"x")) == ("BlobNotFound", 400)
    await drop(host, "a")
    assert await refused(upload(host, b"x")) == ("InvalidRequest", 400)


async def test_upload_of_what_a_record_waits_for_is_permanent_at_once(host):
    """XRPC-86: until then the blob is listed as missing, and the record is served all the same."""
    await hold(host, "a", await upload(host, b"late"))
    await forget_row(host, b"late")
    found, cursor = await host.blobs.list_missing(host.aids[ALICE])
    assert [(uri, blob.cid) for uri, blob in found] == [
        (f"at://{ALICE}/{STRANGE}/a", Cid.of_raw(b"late"))
    ]
    assert cursor is None
    assert str(Cid.of_raw(b"late")).encode() in await host.repos.get_record(ALICE, STRANGE, "a")
    await upload(host, b"late")
    assert await fetch(host, b"late") == b"late"
    assert await host.blobs.list_missing(host.aids[ALICE]) == ([], None)


async def test_temporary_blob_that_a_record_came_to_need_turns_permanent_on_upload(host):
    await hold(host, "a", await upload(host, b"x"))
    await host.engine.transact(
        "test.temporary", lambda txn: txn.write("UPDATE blob SET stored_at = NULL")
    )
    await upload(host, b"x")
    assert await fetch(host, b"x") == b"x"


async def test_uploading_again_repairs_damaged_bytes(host):
    for content in (b"small", LARGE):
        await hold(host, f"r{len(content)}", await upload(host, content))
        key = key_of(host, content)
        host.store.blobs[key] = (b"X" + content[1:], 0)
        with pytest.raises(Corrupt):
            await fetch(host, content)
        await upload(host, content)
        assert await fetch(host, content) == content


# --- download ---------------------------------------------------------------------------------


async def test_temporary_unknown_and_foreign_blobs_are_not_found(host):
    await host.add_account(BOB, "bob.test")
    blob = await upload(host, b"x")
    assert await refused(fetch(host, b"x")) == ("BlobNotFound", 400)
    await hold(host, "a", blob)
    assert await fetch(host, b"x") == b"x"
    assert await refused(fetch(host, b"other")) == ("BlobNotFound", 400)
    call = host.blobs.open(BOB, str(Cid.of_raw(b"x")))
    assert await refused(call) == ("BlobNotFound", 400)
    call = host.blobs.open("did:plc:nobody", str(Cid.of_raw(b"x")))
    assert await refused(call) == ("RepoNotFound", 400)
    assert await refused(host.blobs.open(ALICE, "../../etc/passwd")) == ("InvalidRequest", 400)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("takedown_ref", "RepoTakendown"),
        ("suspended_at", "RepoSuspended"),
        ("deactivated_at", "RepoDeactivated"),
    ],
)
async def test_blobs_of_inactive_accounts_are_for_the_owner_and_the_operator(host, column, name):
    await hold(host, "a", await upload(host, b"x"))
    await host.update_account(**{column: 1 if column.endswith("_at") else "x"})
    assert await refused(fetch(host, b"x")) == (name, 400)
    assert await refused(host.blobs.list_stored(ALICE)) == (name, 400)
    for principal in (host.principal(), ADMIN):
        assert await fetch(host, b"x", principal=principal) == b"x"
        cids, _ = await host.blobs.list_stored(ALICE, principal=principal)
        assert cids == [Cid.of_raw(b"x")]


async def test_large_blobs_are_streamed_in_parts(host):
    await hold(host, "a", await upload(host, LARGE))
    blob = await host.blobs.open(ALICE, str(Cid.of_raw(LARGE)))
    assert blob.content is None
    part = [chunk async for chunk in host.blobs.read(blob, 1000, 500_000)]
    assert b"".join(part) == LARGE[1000:501_000]
    assert await fetch(host, LARGE) == LARGE


async def test_damaged_large_blob_is_never_handed_out_whole_and_then_refused(host):
    await hold(host, "a", await upload(host, LARGE))
    host.store.blobs[key_of(host, LARGE)] = (LARGE[:-1] + b"X", 0)
    blob = await host.blobs.open(ALICE, str(Cid.of_raw(LARGE)))
    received = b""
    with pytest.raises(Corrupt):
        async for chunk in host.blobs.read(blob, 0, blob.size):
            received += chunk
    assert len(received) < blob.size
    with pytest.raises(Corrupt):
        await host.blobs.open(ALICE, str(Cid.of_raw(LARGE)))


async def test_cut_and_lost_bytes_are_noticed(host):
    for content in (b"small", LARGE):
        await hold(host, f"r{len(content)}", await upload(host, content))
        key = key_of(host, content)
        host.store.blobs[key] = (content[:-1], 0)
        with pytest.raises(Corrupt):
            await fetch(host, content)
        await upload(host, content)
        del host.store.blobs[key]
        assert await refused(fetch(host, content)) == ("BlobNotFound", 400)


async def test_scrub_names_what_is_damaged_and_nothing_else(host):
    for number, content in enumerate((b"one", b"two", LARGE)):
        await hold(host, f"r{number}", await upload(host, content))
    host.store.blobs[key_of(host, b"two")] = (b"tow", 0)
    found = {key.cid: is_sound async for key, is_sound in host.blobs.scrub()}
    assert found == {
        Cid.of_raw(b"one"): True,
        Cid.of_raw(b"two"): False,
        Cid.of_raw(LARGE): True,
    }


async def test_scrub_passes_over_what_is_deleted_meanwhile(host):
    await upload(host, b"one")
    await upload(host, b"two")
    seen = []
    async for key, is_sound in host.blobs.scrub():
        seen.append((key, is_sound))
        host.store.blobs.clear()
    assert [is_sound for _, is_sound in seen] == [True]


# --- lists ------------------------------------------------------------------------------------


async def test_list_pages_through_every_blob_once_in_order(host):
    contents = [b"%d" % number for number in range(7)]
    for number, content in enumerate(contents):
        await hold(host, f"r{number}", await upload(host, content))
    await hold(host, "again", await upload(host, contents[0]))
    await upload(host, b"temporary")
    found, cursor = [], None
    while True:
        page, cursor = await host.blobs.list_stored(ALICE, cursor=cursor, limit=3)
        found += page
        if cursor is None:
            break
        assert len(page) == 3
    assert found == sorted(Cid.of_raw(content) for content in contents)
    assert await host.blobs.list_stored(ALICE, limit=7) == (found, None)


async def test_list_since_a_revision_holds_only_what_is_newer(host):
    await hold(host, "a", await upload(host, b"old"))
    rev = (await host.rows("SELECT rev FROM repo"))[0][0]
    await hold(host, "b", await upload(host, b"new"))
    assert await host.blobs.list_stored(ALICE, since=rev) == ([Cid.of_raw(b"new")], None)


async def test_bad_cursors_and_revisions_are_refused(host):
    for options in ({"cursor": "x"}, {"since": "x"}, {"cursor": ""}):
        assert await refused(host.blobs.list_stored(ALICE, **options)) == ("InvalidRequest", 400)
    call = host.blobs.list_missing(host.aids[ALICE], cursor="x")
    assert await refused(call) == ("InvalidRequest", 400)


async def test_missing_list_pages_and_counts(host):
    contents = [b"%d" % number for number in range(5)]
    for number, content in enumerate(contents):
        await hold(host, f"r{number}", await upload(host, content))
    for content in contents[:4]:
        await forget_row(host, content)
    found, cursor = [], None
    while True:
        page, cursor = await host.blobs.list_missing(host.aids[ALICE], cursor=cursor, limit=3)
        found += [blob.cid for _, blob in page]
        if cursor is None:
            break
    assert found == sorted(Cid.of_raw(content) for content in contents[:4])
    [(repo_id,)] = await host.rows("SELECT repo_id FROM account")
    assert await host.engine.read("test", count_blobs, host.aids[ALICE], repo_id) == (5, 1)


async def test_account_without_a_repo_has_no_blobs(host):
    await host.update_account(repo_id=None)
    assert await host.blobs.list_missing(host.aids[ALICE]) == ([], None)
    assert await host.blobs.list_missing(999) == ([], None)


# --- collection -------------------------------------------------------------------------------


async def test_temporary_blobs_go_after_their_time_and_never_within_an_hour(host):
    eager = Blobs(
        engine=host.engine,
        clock=host.clock,
        store=host.store,
        settings=BlobSettings(temporary_s=1),
    )
    await upload(host, b"x")
    host.clock.advance(MIN_TEMPORARY_S - 1)
    assert await eager.collect() == 0
    host.clock.advance(2)
    assert await host.blobs.collect() == 0  # a day by default
    assert await eager.collect() == 1
    assert host.store.blobs == {}
    assert await host.rows("SELECT * FROM blob") == []
    assert await host.rows("SELECT * FROM blob_garbage") == []


async def test_uploading_a_temporary_blob_again_starts_its_time_anew(host):
    blob = await upload(host, b"x")
    host.clock.advance(DAY_S - 10)
    await upload(host, b"x")
    host.clock.advance(20)
    assert await host.blobs.collect() == 0
    await hold(host, "a", blob)
    host.clock.advance(10 * DAY_S)
    assert await host.blobs.collect() == 0
    assert await fetch(host, b"x") == b"x"


async def test_bytes_go_with_the_last_reference_and_other_accounts_keep_theirs(host):
    await host.add_account(BOB, "bob.test")
    blob = await upload(host, b"x")
    await host.blobs.upload(host.aids[BOB], pieces(b"x"), declared_type=None)
    await hold(host, "a", blob)
    await hold(host, "b", blob)
    await drop(host, "a")
    assert await host.blobs.collect() == 0
    await drop(host, "b")
    assert await refused(fetch(host, b"x")) == ("BlobNotFound", 400)
    assert await host.blobs.collect() == 1
    assert list(host.store.blobs) == [BlobKey(host.aids[BOB], Cid.of_raw(b"x"))]


async def test_upload_between_dereference_and_collection_keeps_its_bytes(host):
    blob = await upload(host, b"x")
    await hold(host, "a", blob)
    await drop(host, "a")
    await hold(host, "b", await upload(host, b"x"))
    assert await host.blobs.collect() == 0
    assert await fetch(host, b"x") == b"x"


async def test_upload_while_the_same_bytes_are_being_deleted_keeps_its_bytes(host):
    await hold(host, "a", await upload(host, b"x"))
    await drop(host, "a")
    host.store.hold_delete = asyncio.Event()
    collecting = asyncio.create_task(host.blobs.collect())
    await host.store.in_delete.wait()
    uploading = asyncio.create_task(upload(host, b"x"))
    for _ in range(20):
        await asyncio.sleep(0)
    host.store.hold_delete.set()
    await collecting
    await hold(host, "b", await uploading)
    assert await fetch(host, b"x") == b"x"
    assert await host.blobs.collect() == 0


async def test_a_deletion_whose_caller_went_away_is_finished_before_the_next_upload(host):
    await hold(host, "a", await upload(host, b"x"))
    await drop(host, "a")
    host.store.hold_delete = asyncio.Event()
    collecting = asyncio.create_task(host.blobs.collect())
    await host.store.in_delete.wait()
    collecting.cancel()
    uploading = asyncio.create_task(upload(host, b"x"))
    for _ in range(5):
        await host.rows("SELECT 1")
        await host.engine.transact("test.wait", lambda txn: None)
    assert not uploading.done()
    host.store.hold_delete.set()
    await asyncio.gather(collecting, return_exceptions=True)
    await hold(host, "b", await uploading)
    assert await fetch(host, b"x") == b"x"


async def test_row_of_a_cancelled_upload_finds_its_bytes(host):
    """The transaction was handed in: no collection may come between it and the bytes."""
    await hold(host, "a", await upload(host, b"x"))
    await drop(host, "a")
    engine = HeldEngine(host.engine)
    blobs = Blobs(engine=engine, clock=host.clock, store=host.store, settings=BlobSettings())
    uploading = asyncio.create_task(
        blobs.upload(host.aids[ALICE], pieces(b"x"), declared_type=None)
    )
    await engine.reached.wait()
    uploading.cancel()
    collecting = asyncio.create_task(blobs.collect())
    # Long enough for a collection that waits for nobody.
    await host.rows("SELECT 1")
    await host.engine.transact("test.wait", lambda txn: None, bulk=True)
    await host.rows("SELECT 1")
    engine.go_on.set()
    await asyncio.gather(uploading, collecting, return_exceptions=True)
    assert uploading.cancelled()
    assert await host.rows("SELECT cid FROM blob") == [(Cid.of_raw(b"x"),)]
    assert list(host.store.blobs) == [key_of(host, b"x")]


async def test_upload_cancelled_at_any_moment_never_leaves_a_row_without_bytes(tmp_path):
    async with repo_host(tmp_path) as host:
        host.store = DiskBlobStore(tmp_path / "blobs", min_free_bytes=0)
        await host.store.start()
        host.blobs = Blobs(
            engine=host.engine, clock=host.clock, store=host.store, settings=BlobSettings()
        )
        await host.add_account()
        content = b"y" * (CHUNK_BYTES + 1)
        rows = 0
        for turns in range(60):
            task = asyncio.create_task(upload(host, content + b"%d" % turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            found = await host.rows("SELECT aid, cid FROM blob")
            rows = len(found)
            for aid, cid in found:
                assert await host.store.stat(BlobKey(aid, Cid(cid))) is not None
        assert rows < 60
        await host.store.close()


async def test_blob_that_cannot_be_deleted_waits_and_holds_up_no_other(host):
    for content in (b"one", b"two", b"three"):
        await hold(host, "a", await upload(host, content))
    await drop(host, "a")
    host.store.undeletable = {key_of(host, b"one")}
    assert await host.blobs.collect() == 2
    assert list(host.store.blobs) == [key_of(host, b"one")]
    host.store.undeletable = set()
    assert await host.blobs.collect() == 1


async def test_orphans_are_swept_when_they_are_old_and_have_no_row(host):
    await upload(host, b"kept")
    for content in (b"orphan", b"fresh"):
        async with host.store.stage(pieces(content)) as staged:
            await staged.store(host.aids[ALICE])
    now_us = host.clock.now_us()
    ages = {b"kept": 2 * ORPHAN_AGE_US, b"orphan": 2 * ORPHAN_AGE_US, b"fresh": 0}
    for content, age_us in ages.items():
        key = key_of(host, content)
        host.store.blobs[key] = (host.store.blobs[key][0], now_us - age_us)
    assert await host.blobs.sweep_orphans() == 1
    assert set(host.store.blobs) == {key_of(host, b"kept"), key_of(host, b"fresh")}


async def test_many_uploads_of_the_same_bytes_at_once_are_one_blob(host):
    answers = await asyncio.gather(*(upload(host, b"same") for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert await host.rows("SELECT count(*) FROM blob") == [(1,)]
    assert parse_cid(answers[0]["ref"]["$link"]) == Cid.of_raw(b"same")
    assert host.blobs._locks == {}
