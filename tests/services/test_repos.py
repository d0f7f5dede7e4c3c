"""Writing and reading repos, on the real engine; every commit is held against a strict relay."""

import asyncio
import json
import random
import threading
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
from tests.services.repo_host import (
    ALICE,
    BOB,
    CATALOG,
    CREATED,
    POST,
    STRANGE,
    RepoHost,
    post,
    refused,
    repo_host,
    rkey_of,
    strange,
    write,
)


@pytest.fixture
async def host(tmp_path: Path):
    async with repo_host(tmp_path) as host:
        await host.add_account()
        yield host


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
    """Cached nodes are immutable and keyed by CID, the head is always read anew."""
    await write(host, *(strange(str(number), n=1) for number in range(100)))
    before = await host.exports.head(ALICE)
    prepared = prepare_writes(
        [strange(str(number), n=2) for number in range(50, 150)],
        catalog=CATALOG,
        validate=None,
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


async def test_one_record_key_may_stand_in_many_collections_and_in_each_once(host):
    """REPO-12, DM-62: the key, also a TID of another century, says nothing of its own."""
    future = encode_tid(4_000_000_000_000_000, 1)
    collections = [STRANGE, STRANGE + "x", STRANGE + ".y", "com.example.a"]
    writes = [RecordWrite("create", name, future, {"in": name}) for name in collections]
    result = await write(host, *writes)
    assert result.rev < future
    stored = await host.verify_stored()
    assert sorted(stored) == sorted(f"{name}/{future}" for name in collections)
    for asked in writes:
        assert (await refused(host, asked)).name == "InvalidRequest"
    await host.add_account(BOB, "bob.test")
    await host.repos.write(host.aids[BOB], writes)
    assert len(await host.verify_stored(BOB)) == 4


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
    for nobody in ("nobody.test", "did:plc:nobodynobodynobodynobody"):
        with pytest.raises(RequestError) as info:
            await repos.check_owner(nobody, alice)
        refusal = (info.value.name, info.value.status, info.value.message)
        assert refusal == ("AccountNotFound", 403, "Account not found")


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


async def test_a_page_is_cut_before_it_is_read(host):
    """C1: whoever asks for 100 records of 1 MB gets 4 MB, and no more is read."""
    for number in range(8):
        await write(host, strange(str(number), text="x" * 900_000))
    page = json.loads(await host.repos.list_records(ALICE, STRANGE, limit=100))
    assert [item["uri"][-1] for item in page["records"]] == ["7", "6", "5", "4"]
    rest = await host.repos.list_records(ALICE, STRANGE, limit=100, cursor=page["cursor"])
    assert [item["uri"][-1] for item in json.loads(rest)["records"]] == ["3", "2", "1", "0"]
    assert json.loads(await host.repos.list_records(ALICE, "com.example.none")) == {"records": []}


async def test_a_record_is_asked_for_by_the_bytes_of_its_cid(host):
    """DM-33: a CID is compared decoded; text that is none is refused, not merely not found."""
    result = await write(host, strange("a", n=1))
    cid = str(result.outcomes[0].cid)
    found = json.loads(await host.repos.get_record(ALICE, STRANGE, "a", cid=cid))
    assert found["cid"] == cid
    for text in (cid.upper(), "zdj7WhuEjrB52m1BisYCtmjH1hSKa7yZ3jEZ9JcXaFRD51wVz", "b", ""):
        with pytest.raises(RequestError, match="InvalidRequest"):
            await host.repos.get_record(ALICE, STRANGE, "a", cid=text)


@pytest.mark.parametrize(
    ("value", "is_heavy"),
    [
        ({"text": "hello", "langs": ["en"]}, False),
        ({"text": "x" * 900_000}, True),
        ({"list": [{"a": n} for n in range(3000)]}, True),
        ({"deep": {"er": {f"k{n}": n for n in range(3000)}}}, True),
    ],
)
async def test_heavy_batches_are_checked_on_a_thread(host, monkeypatch, value, is_heavy):
    """B5: 1 MB of JSON can take 100 ms, which must not be the event loop's."""
    threads = []

    def prepare(*args, **options):
        threads.append(threading.current_thread())
        return prepare_writes(*args, **options)

    monkeypatch.setattr("pds.services.repos.prepare_writes", prepare)
    results = [await write(host, RecordWrite("create", STRANGE, None, value)) for _ in range(2)]
    assert [thread is not threading.main_thread() for thread in threads] == [is_heavy] * 2
    assert rkey_of(results[0]) < rkey_of(results[1])


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
