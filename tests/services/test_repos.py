"""Writing and reading repos, on the real engine; every commit is held against a strict relay."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from pds.errors import Corrupt, NotResolvable, RequestError
from pds.protocol.cid import Cid
from pds.protocol.mst.tree import NodeCache
from pds.protocol.repo import UNSET
from pds.protocol.tid import decode_tid, encode_tid
from pds.services.principal import ADMIN
from pds.services.records_prepare import RecordWrite, prepare_writes
from pds.services.repo_txn import Moment, commit_writes, emit_account, restate_head
from pds.services.repos import RepoUnknown
from pds.store.repos import get_account_repo
from tests.services.repo_host import ALICE, BOB, CATALOG, LIKE, POST, RepoHost, repo_host

PROFILE = "app.bsky.actor.profile"
STRANGE = "com.example.unknown"
CREATED = "2026-01-01T00:00:00.000Z"


@pytest.fixture
async def host(tmp_path: Path):
    async with repo_host(tmp_path) as host:
        await host.add_account()
        yield host


def post(text: str = "hello", rkey: str | None = None, action="create", **fields) -> RecordWrite:
    swap = fields.pop("swap", UNSET)
    value = {"text": text, "createdAt": CREATED} | fields
    return RecordWrite(action, POST, rkey, value, swap)


def strange(rkey: str, action="put", **value) -> RecordWrite:
    return RecordWrite(action, STRANGE, rkey, value)


def like(uri: str, rkey: str | None = None, cid: str | None = None) -> RecordWrite:
    cid = cid or str(Cid.of_data(b"x"))
    value = {"subject": {"uri": uri, "cid": cid}, "createdAt": CREATED}
    return RecordWrite("create", LIKE, rkey, value)


async def write(host: RepoHost, *writes: RecordWrite, **options):
    host.clock.advance(1)
    return await host.repos.write(host.aids[ALICE], writes, **options)


async def refused(host: RepoHost, *writes: RecordWrite, **options) -> RequestError:
    """Check that a batch is refused and that nothing at all changed; return the refusal."""
    before = (await host.exports.head(ALICE), len(host.events))
    with pytest.raises(RequestError) as info:
        await write(host, *writes, **options)
    assert (await host.exports.head(ALICE), len(host.events)) == before
    return info.value


def rkey_of(result, at: int = 0) -> str:
    return result.outcomes[at].uri.rsplit("/", 1)[1]


# --- writing ----------------------------------------------------------------------------------


async def test_a_created_record_is_stored_announced_and_readable(host):
    """XRPC-95, SYNC-30."""
    result = await write(host, post("first"))
    answer = json.loads(await host.repos.get_record(ALICE, POST, rkey_of(result)))
    outcome = result.outcomes[0]
    assert answer["value"] == {"$type": POST, "text": "first", "createdAt": CREATED}
    assert (answer["uri"], answer["cid"]) == (outcome.uri, str(outcome.cid))
    assert outcome.validation_status == "valid"
    assert await host.exports.head(ALICE) == (result.commit, result.rev)
    head = host.verify_events()
    assert (head.commit, head.rev) == (result.commit, result.rev)
    assert list(await host.verify_stored()) == [f"{POST}/{rkey_of(result)}"]


async def test_revs_grow_and_follow_the_clock(host):
    """REPO-3."""
    revs = [(await write(host, post())).rev for _ in range(3)]
    assert revs == sorted(set(revs))
    assert decode_tid(revs[-1])[0] == host.clock.now_us()
    host.clock.advance(-3600)
    later = (await write(host, post())).rev
    assert later > revs[-1]
    assert decode_tid(later)[0] == decode_tid(revs[-1])[0] + 1
    host.verify_events()


async def test_random_histories_verify_like_on_a_relay(host):
    """REPO-30, REPO-60..REPO-70, SYNC-52."""
    rng = random.Random(5)
    expected: dict[str, int] = {}
    for _ in range(60):
        batch, changed = [], dict(expected)
        for _ in range(rng.choice([1, 1, 2, 8])):
            rkey, number = str(rng.randrange(40)), rng.randrange(3)
            if rng.random() < 0.35 and rkey in changed:
                batch.append(RecordWrite("delete", STRANGE, rkey))
                del changed[rkey]
            else:
                batch.append(strange(rkey, n=number))
                changed[rkey] = number
        result = await write(host, *batch)
        assert (result.commit is None) == (changed == expected)
        expected = changed
    assert host.verify_events().commit == (await host.exports.head(ALICE))[0]
    stored = await host.verify_stored()
    assert stored.keys() == {f"{STRANGE}/{rkey}" for rkey in expected}


async def test_writers_at_the_same_time_make_one_chain(host):
    """SYNC-44: also within one group of the engine."""
    await asyncio.gather(*(write(host, post(str(number))) for number in range(40)))
    assert host.verify_events().commit == (await host.exports.head(ALICE))[0]
    assert len(await host.verify_stored()) == 40


async def test_a_commit_that_is_rolled_back_leaves_nothing_to_undo(host):
    """DESIGN 5: cached nodes are immutable and keyed by CID, the head is always read anew."""
    await write(host, *(strange(str(number), n=1) for number in range(100)))
    before = await host.exports.head(ALICE)
    prepared = prepare_writes(
        [strange(str(number), n=2) for number in range(50, 150)],
        catalog=CATALOG,
        validate=None,
        next_rkey=lambda: encode_tid(1, 1),
    )

    def job(txn):
        account = get_account_repo(txn, host.aids[ALICE])
        signer = host.keystore.signer(txn, account.key_id)
        moment = Moment(host.clock.now_us(), 1)
        commit_writes(
            txn, account, account.repo, prepared, signer, moment=moment, cache=host.repos.cache
        )
        raise KeyError("too late")

    with pytest.raises(KeyError):
        await host.engine.transact("test.fail", job)
    assert await host.exports.head(ALICE) == before
    await write(host, *(strange(str(number), n=2) for number in range(90, 120)))
    assert len(await host.verify_stored()) == 120
    host.verify_events()


async def test_a_cold_cache_gives_the_same_commits(host):
    await write(host, *(strange(str(number), n=1) for number in range(200)))
    host.repos.cache = NodeCache(4)
    for number in range(20):
        await write(host, strange(str(number * 9), n=2), strange(f"x{number}", n=3))
    assert len(host.repos.cache) <= 4
    await host.verify_stored()
    host.verify_events()


async def test_a_damaged_node_refuses_the_write_and_harms_nothing(host):
    """Promise A7."""
    await write(host, *(strange(str(number), n=1) for number in range(200)))
    host.repos.cache = NodeCache()
    head = await host.exports.head(ALICE)

    def damage(txn):
        txn.write("UPDATE node SET bytes = ?", (b"damaged",))

    await host.engine.transact("test.damage", damage)
    with pytest.raises(Corrupt):
        await write(host, strange("new", n=1))
    assert await host.exports.head(ALICE) == head
    with pytest.raises(Corrupt):
        await host.exports.record_proof(ALICE, STRANGE, "1")


async def test_repos_of_two_accounts_do_not_mix(host):
    await host.add_account(BOB, "bob.test")
    await write(host, post())
    await host.repos.write(host.aids[BOB], [post("bob")])
    assert len(await host.verify_stored(ALICE)) == len(await host.verify_stored(BOB)) == 1
    host.verify_events(BOB)


async def test_a_batch_is_all_or_nothing(host):
    """LEX-66, XRPC-95."""
    await refused(host, post("good"), post("bad", createdAt="yesterday"))
    await refused(host, strange("a", n=1), strange("b", "update", n=1))
    error = await refused(host, *(strange(str(number), n=1) for number in range(201)))
    assert (error.name, error.status) == ("InvalidRequest", 400)


async def test_results_come_in_the_order_of_the_writes(host):
    """XRPC-95."""
    await write(host, strange("old", n=1))
    result = await write(
        host, strange("b", n=1), RecordWrite("delete", STRANGE, "old"), strange("a", n=2)
    )
    assert [rkey_of(result, at) for at in range(3)] == ["b", "old", "a"]
    assert [outcome.cid is None for outcome in result.outcomes] == [False, True, False]


async def test_creating_an_existing_record_is_refused(host):
    """XRPC-95."""
    await write(host, strange("a", "create", n=1))
    error = await refused(host, strange("a", "create", n=2))
    assert (error.name, error.status) == ("InvalidRequest", 400)
    assert "already exists" in error.message


async def test_putting_the_same_content_makes_no_commit(host):
    """XRPC-95, REPO-68."""
    first = await write(host, strange("a", n=1))
    again = await write(host, strange("a", n=1))
    assert (again.commit, again.rev) == (None, None)
    assert again.outcomes == first.outcomes
    assert len(host.frames()) == 2


async def test_deleting_what_is_not_there_is_no_error(host):
    """XRPC-95."""
    result = await host.repos.delete(host.aids[ALICE], RecordWrite("delete", POST, "3kaaaaaaaaaaa"))
    assert result.commit is None
    error = await refused(host, RecordWrite("delete", POST, "3kaaaaaaaaaaa"))
    assert error.name == "InvalidRequest"


async def test_swaps_are_held_against_the_transaction(host):
    """XRPC-95: InvalidSwap."""
    first = await write(host, strange("a", n=1))
    cid, other = first.outcomes[0].cid, Cid.of_data(b"other")

    def put(swap, rkey="a", n=2):
        return RecordWrite("put", STRANGE, rkey, {"n": n}, swap)

    for bad in (put(other), put(None), put(other, "new")):
        assert (await refused(host, bad)).name == "InvalidSwap"
    assert (await refused(host, put(UNSET), swap_commit=other)).name == "InvalidSwap"
    deletion = RecordWrite("delete", STRANGE, "a", swap=other)
    with pytest.raises(RequestError, match="InvalidSwap"):
        await host.repos.delete(host.aids[ALICE], deletion)
    second = await write(host, put(cid), swap_commit=first.commit)
    assert second.commit is not None
    assert (await write(host, put(None, "new"))).commit is not None


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("deactivated_at", "AccountDeactivated"),
        ("suspended_at", "AccountTakedown"),
        ("takedown_ref", "AccountTakedown"),
    ],
)
async def test_only_active_accounts_write(host, column, name):
    """SYNC-32, XRPC-24."""
    await host.update_account(**{column: "ref" if column == "takedown_ref" else 1})
    error = await refused_write(host)
    assert (error.name, error.status) == (name, 401)


async def refused_write(host: RepoHost) -> RequestError:
    events = len(host.events)
    with pytest.raises(RequestError) as info:
        await write(host, post())
    assert len(host.events) == events
    return info.value


async def test_a_commit_over_the_size_limit_changes_nothing(host):
    """REPO-81, XRPC-95."""
    large = [strange(str(number), text=str(number) * 700_000) for number in range(3)]
    error = await refused(host, *large)
    assert (error.name, error.status) == ("InvalidRequest", 400)


async def test_the_caller_must_own_the_repo(host):
    """XRPC-95."""
    await host.add_account(BOB, "bob.test")
    repos, alice = host.repos, host.principal()
    assert await repos.check_owner(ALICE, alice) == host.aids[ALICE]
    assert await repos.check_owner("Alice.test", alice) == host.aids[ALICE]
    for other in (BOB, "bob.test"):
        with pytest.raises(RequestError) as info:
            await repos.check_owner(other, alice)
        assert (info.value.name, info.value.status) == ("AuthenticationRequired", 401)
    with pytest.raises(RepoUnknown):
        await repos.check_owner("nobody.test", alice)


async def test_a_restated_head_is_announced_and_keeps_the_tree(host):
    """REPO-4, REPO-7."""
    await write(host, post())

    def job(txn):
        account = get_account_repo(txn, host.aids[ALICE])
        signer = host.keystore.signer(txn, account.key_id)
        restate_head(
            txn,
            account,
            account.repo,
            signer,
            moment=Moment(host.clock.now_us(), 1),
            cache=host.repos.cache,
        )

    await host.engine.transact("test.restate", job)
    assert host.verify_events().commit == (await host.exports.head(ALICE))[0]
    await host.verify_stored()


def test_an_inactive_account_event_names_its_status():
    """SYNC-35."""
    for active, status in ((True, "deactivated"), (False, None)):
        with pytest.raises(ValueError):
            emit_account(None, 1, ALICE, active=active, status=status)


# --- records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write_", "options"),
    [
        (RecordWrite("create", POST, None, "text"), {}),
        (RecordWrite("create", POST, None, None), {}),
        (RecordWrite("create", "nocollection", None, {}), {}),
        (RecordWrite("create", STRANGE, "a/b", {}), {}),
        (RecordWrite("create", STRANGE, "..", {}), {}),
        (RecordWrite("create", STRANGE, "a", {"$type": POST}), {}),
        (RecordWrite("create", STRANGE, "a", {"$type": ""}), {}),
        (RecordWrite("create", STRANGE, "a", {"f": 1.5}), {}),
        (RecordWrite("create", STRANGE, "a", {"l": {"$link": "x"}}), {}),
        (RecordWrite("create", STRANGE, "a", {"b": {"$type": "blob", "ref": 1}}), {}),
        (
            RecordWrite(
                "create",
                STRANGE,
                "a",
                {"deep": [{"cid": str(Cid.of_raw(b"x")), "mimeType": "image/png"}]},
            ),
            {},
        ),
        (RecordWrite("create", STRANGE, "a", {"text": "x" * 1_000_000}), {}),
    ],
)
@pytest.mark.parametrize("validate", [None, False])
async def test_no_mode_lets_bad_data_in(host, write_, options, validate):
    """LEX-60, DM-1, DM-7, DM-20, DM-40, DM-42, DM-63."""
    error = await refused(host, write_, validate=validate, **options)
    assert (error.name, error.status) == ("InvalidRequest", 400)


async def test_the_three_modes_of_validation(host):
    """LEX-61, LEX-62, LEX-63."""
    wrong = RecordWrite("create", POST, None, {"text": 1, "createdAt": CREATED})
    for validate in (None, True):
        assert "text" in (await refused(host, wrong, validate=validate)).message
    assert (await write(host, wrong, validate=False)).outcomes[0].validation_status is None
    assert (await write(host, post(), validate=True)).outcomes[0].validation_status == "valid"
    assert (await write(host, strange("a", n=1))).outcomes[0].validation_status == "unknown"
    assert "Unknown lexicon" in (await refused(host, strange("b", n=1), validate=True)).message


async def test_a_record_key_must_fit_the_schema(host):
    """DM-63, LEX-60."""
    await refused(host, post(rkey="not-a-tid"))
    profile = RecordWrite("put", PROFILE, "self", {"displayName": "Alice"})
    assert (await write(host, profile)).outcomes[0].validation_status == "valid"
    await refused(host, RecordWrite("put", PROFILE, "other", {"displayName": "Alice"}))
    await write(host, post(rkey="not-a-tid"), validate=False)


async def test_record_keys_made_here_are_distinct_tids(host):
    """DM-61."""
    result = await host.repos.write(host.aids[ALICE], [post(str(n)) for n in range(50)])
    keys = [rkey_of(result, at) for at in range(50)]
    assert keys == sorted(set(keys))


async def test_a_published_schema_is_checked(host):
    """LEX-67."""
    collection = "com.atproto.lexicon.schema"
    defs = {"main": {"type": "record", "key": "tid", "record": {"type": "object"}}}

    def schema(rkey="com.example.thing", **fields):
        value = {"lexicon": 1, "id": "com.example.thing", "defs": defs} | fields
        return RecordWrite("put", collection, rkey, value)

    await refused(host, schema(rkey="com.example.other"))
    await refused(host, schema(defs={"main": {"type": "nonsense"}}))
    await refused(host, schema(lexicon=2))
    await write(host, schema(lexicon=2), validate=False)
    assert (await write(host, schema())).commit is not None


# --- blobs ------------------------------------------------------------------------------------


def holding(rkey: str, *blobs, action="put") -> RecordWrite:
    return RecordWrite(action, STRANGE, rkey, {"blobs": list(blobs)})


async def stored(host: RepoHost) -> tuple[list[str], list[str]]:
    """Return the CIDs that may be fetched and those whose bytes are to be deleted."""
    held = await host.rows("SELECT cid FROM blob WHERE stored_at IS NOT NULL")
    garbage = await host.rows("SELECT cid FROM blob_garbage")
    return ([str(Cid(cid)) for (cid,) in held], [str(Cid(cid)) for (cid,) in garbage])


def cid_of(blob) -> str:
    return blob["ref"]["$link"]


async def test_a_blob_lives_as_long_as_a_record_refers_to_it(host):
    """XRPC-82, XRPC-84, XRPC-85."""
    one, two = await host.upload(b"one"), await host.upload(b"two")
    assert await stored(host) == ([], [])
    await write(host, holding("a", one), holding("b", one))
    assert await stored(host) == ([cid_of(one)], [])
    await write(host, RecordWrite("delete", STRANGE, "a"))
    assert await stored(host) == ([cid_of(one)], [])
    await write(host, holding("b", two))
    assert await stored(host) == ([cid_of(two)], [cid_of(one)])
    await write(host, RecordWrite("delete", STRANGE, "b"))
    assert (await stored(host))[0] == []
    assert await host.rows("SELECT path FROM blob_ref") == []


async def test_a_blob_may_move_between_records_in_one_batch(host):
    """XRPC-85: claimed before it is let go."""
    blob = await host.upload(b"one")
    await write(host, holding("a", blob))
    await write(host, RecordWrite("delete", STRANGE, "a"), holding("b", blob))
    assert await stored(host) == ([cid_of(blob)], [])
    await write(host, holding("b"), holding("c", blob, blob))
    assert await stored(host) == ([cid_of(blob)], [])
    assert await host.rows("SELECT path FROM blob_ref") == [(f"{STRANGE}/c",)]


async def test_only_what_a_batch_leaves_behind_claims_blobs(host):
    """REPO-69."""
    one, two = await host.upload(b"one"), await host.upload(b"two")
    await write(
        host,
        holding("a", one, action="create"),
        holding("a", two, action="update"),
        holding("b", one, action="create"),
        RecordWrite("delete", STRANGE, "b"),
    )
    assert await stored(host) == ([cid_of(two)], [])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ref": {"$link": str(Cid.of_raw(b"other"))}}, "BlobNotFound"),
        ({"mimeType": "text/plain"}, "InvalidMimeType"),
        ({"size": 4}, "InvalidSize"),
    ],
)
async def test_a_lying_blob_reference_refuses_the_batch(host, changes, name):
    """XRPC-84."""
    blob = await host.upload(b"one")
    error = await refused(host, strange("x", n=1), holding("a", blob | changes))
    assert (error.name, error.status) == (name, 400)
    assert await stored(host) == ([], [])


async def test_blobs_of_other_accounts_cannot_be_claimed(host):
    """XRPC-85."""
    await host.add_account(BOB, "bob.test")
    blob = await host.upload(b"one")
    with pytest.raises(RequestError, match="BlobNotFound"):
        await host.repos.write(host.aids[BOB], [holding("a", blob)])


# --- duplicates -------------------------------------------------------------------------------


async def test_a_second_like_replaces_the_first_in_one_commit(host):
    """XRPC-95, LEX-62."""
    uri, other = f"at://{BOB}/{POST}/3kaaaaaaaaaaa", f"at://{BOB}/{POST}/3kaaaaaaaaaab"
    first = await write(host, like(uri), replace_duplicates=True)
    kept = await write(host, like(other), replace_duplicates=True)
    second = await write(host, like(uri), replace_duplicates=True)
    stored = await host.verify_stored()
    assert {path.split("/")[1] for path in stored} == {rkey_of(kept), rkey_of(second)}
    ops = host.frames()[-1].payload["ops"]
    assert [(op["action"], op["path"].split("/")[1]) for op in ops] == [
        ("delete", rkey_of(first)),
        ("create", rkey_of(second)),
    ]
    host.verify_events()
    third = await write(host, like(uri), replace_duplicates=True, validate=False)
    assert third.commit is not None
    assert len(await host.verify_stored()) == 3


async def test_backlinks_follow_the_records(host):
    uri, other = f"at://{BOB}/{POST}/3kaaaaaaaaaaa", f"at://{BOB}/{POST}/3kaaaaaaaaaab"
    result = await write(host, like(uri))
    changed = like(other, rkey_of(result))
    await write(host, RecordWrite("put", LIKE, changed.rkey, changed.value))
    follow = {"subject": BOB, "createdAt": CREATED}
    await write(host, RecordWrite("create", "app.bsky.graph.follow", None, follow))
    rows = await host.rows("SELECT collection, subject FROM backlink ORDER BY collection")
    assert rows == [(LIKE, other), ("app.bsky.graph.follow", BOB)]
    await write(host, RecordWrite("delete", LIKE, rkey_of(result)))
    assert await host.rows("SELECT subject FROM backlink") == [(BOB,)]


# --- reading ----------------------------------------------------------------------------------


async def test_the_text_of_record_not_found_is_the_one_that_clients_match(host):
    """XRPC-95."""
    await write(host, strange("a", n=1))
    wrong_cid = str(Cid.of_data(b"x"))
    for rkey, cid in (("missing", None), ("a", wrong_cid)):
        with pytest.raises(RequestError) as info:
            await host.repos.get_record("alice.test", STRANGE, rkey, cid=cid)
        assert (info.value.name, info.value.status) == ("RecordNotFound", 400)
        assert info.value.message == f"Could not locate record: at://{ALICE}/{STRANGE}/{rkey}"
    with pytest.raises(RepoUnknown):
        await host.repos.get_record(BOB, STRANGE, "a")
    for collection, rkey in (("x", "a"), (STRANGE, "a/b")):
        with pytest.raises(RequestError, match="InvalidRequest"):
            await host.repos.get_record(ALICE, collection, rkey)


async def test_a_page_goes_on_where_the_one_before_ended(host):
    """XRPC-13, XRPC-95, SYNC-73."""
    keys = [f"k{number:03}" for number in range(130)]
    await write(host, *(strange(key, n=1) for key in keys))
    await write(host, RecordWrite("create", STRANGE + "x", "other", {}))
    for reverse in (False, True):
        expected = keys if reverse else keys[::-1]
        for limit in (1, 7, 100):
            seen: list[str] = []
            cursor = None
            while True:
                page = json.loads(
                    await host.repos.list_records(
                        ALICE, STRANGE, limit=limit, cursor=cursor, reverse=reverse
                    )
                )
                seen += [item["uri"].rsplit("/", 1)[1] for item in page["records"]]
                cursor = page.get("cursor")
                if cursor is None or (limit == 1 and len(seen) == 3):
                    break
                assert len(page["records"]) == limit
            assert seen == expected[: len(seen)]
            assert limit == 1 or len(seen) == len(keys)
    with pytest.raises(RequestError, match="cursor"):
        await host.repos.list_records(ALICE, STRANGE, cursor="a/b")


async def test_a_page_of_large_records_ends_early_but_loses_none(host):
    for number in range(6):
        await write(host, strange(str(number), text="x" * 900_000))
    seen, cursor = [], None
    pages = 0
    while True:
        page = json.loads(await host.repos.list_records(ALICE, STRANGE, limit=2, cursor=cursor))
        seen += [item["uri"][-1] for item in page["records"]]
        pages += 1
        cursor = page.get("cursor")
        if cursor is None:
            break
    assert (seen, pages) == (["5", "4", "3", "2", "1", "0"], 3)


async def test_a_described_repo(host):
    """XRPC-95."""
    await write(host, post(), strange("a", n=1))
    found = await host.repos.describe("ALICE.test")
    assert (found.did, found.handle, found.handle_is_correct) == (ALICE, "alice.test", True)
    assert found.collections == (POST, STRANGE)
    assert found.did_document["id"] == ALICE
    await host.update_account(handle="renamed.test")
    assert not (await host.repos.describe(ALICE)).handle_is_correct
    host.documents.by_did.clear()
    with pytest.raises(RequestError) as info:
        await host.repos.describe(ALICE)
    assert isinstance(info.value.__cause__, NotResolvable)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("deactivated_at", "RepoDeactivated"),
        ("suspended_at", "RepoSuspended"),
        ("takedown_ref", "RepoTakendown"),
    ],
)
async def test_records_of_inactive_accounts_are_hidden(host, column, name):
    """SYNC-70, SYNC-80, SYNC-84."""
    result = await write(host, post())
    await host.update_account(**{column: "ref" if column == "takedown_ref" else 1})
    rkey = rkey_of(result)
    for read in (
        lambda who: host.repos.get_record(ALICE, POST, rkey, principal=who),
        lambda who: host.repos.list_records(ALICE, POST, principal=who),
        lambda who: host.repos.describe(ALICE, principal=who),
    ):
        with pytest.raises(RequestError) as info:
            await read(None)
        assert (info.value.name, info.value.status) == (name, 400)
        await read(host.principal())
        await read(ADMIN)
