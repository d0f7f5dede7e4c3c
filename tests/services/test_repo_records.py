"""What records may hold: data model, schemas, blobs, and one like per subject."""

from pathlib import Path

import pytest

from pds.errors import RequestError
from pds.protocol.cid import Cid
from pds.services.records_prepare import RecordWrite
from tests.services.repo_host import (
    ALICE,
    BOB,
    CREATED,
    LIKE,
    POST,
    STRANGE,
    RepoHost,
    like,
    post,
    refused,
    repo_host,
    rkey_of,
    strange,
    write,
)

PROFILE = "app.bsky.actor.profile"


@pytest.fixture
async def host(tmp_path: Path):
    async with repo_host(tmp_path) as host:
        await host.add_account()
        yield host


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


async def test_more_duplicates_than_fit_into_a_commit_are_replaced_by_and_by(host):
    """XRPC-95, REPO-80: the next like of such a subject must not be refused for ever."""
    uri = f"at://{BOB}/{POST}/3kaaaaaaaaaaa"
    for _ in range(2):
        await write(host, *(like(uri) for _ in range(120)))
    for left in (141, 42, 1):
        await write(host, like(uri), replace_duplicates=True)
        assert len(await host.verify_stored()) == left
    host.verify_events()


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
