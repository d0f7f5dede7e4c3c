"""Read-after-write on a real database: what counts as unseen, and how answers change.

The whole way over HTTP is in tests/xrpc/test_app_bsky.py. Spec: (XRPC-64, B5)
"""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from pds.protocol.cid import Cid
from pds.protocol.syntax import Did, Tid
from pds.protocol.tid import encode_tid
from pds.services.local_records import LocalAuthor, LocalPost, LocalReader, LocalRecord
from pds.services.local_views import ImageUrls, ViewMaker, fits_filter, quoted_uri, self_labels
from pds.services.principal import Principal
from pds.services.proxy import ProxyTarget
from pds.services.proxy_answers import ProxiedAnswer, UpstreamError
from pds.services.quoted_views import QuotedViews
from pds.services.read_after_write import LAG_HEADER, MAX_BYTES, ReadAfterWrite, ViewAnswer, is_json
from pds.services.read_after_write_patches import PATCHES, Local, add_reply
from pds.services.repos import RecordWrite
from pds.store.engine import Txn
from pds.store.moderation import put_record_takedown
from tests.services.repo_host import ALICE, CATALOG, POST, RepoHost, post, repo_host, rkey_of, write
from tests.services.test_proxy import FakeAnswer

TARGET = ProxyTarget(Did("did:web:appview.example"), "bsky_appview", "https://a.example", True)
TIMELINE = "app.bsky.feed.getTimeline"
AUTHOR_FEED = "app.bsky.feed.getAuthorFeed"
PROFILE = "app.bsky.actor.profile"
CID = "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum"
BLOB_CID = "bafkreiftrdw3dgnrd44ohliul7daotoccfan2b4kqjze2tuqsb7llojjaq"
BLOB = {"$type": "blob", "ref": {"$link": BLOB_CID}, "mimeType": "image/png", "size": 1}
URLS = ImageUrls(public_url="https://pds.example")
EMPTY = {"feed": []}


class Stage:
    """Alice's repo, and what an AppView might say."""

    def __init__(self, host: RepoHost) -> None:
        self.host = host
        self.reader = LocalReader(CATALOG)
        assert host.accounts is not None
        quoted = QuotedViews(
            engine=host.engine,
            reader=self.reader,
            proxy=None,  # type: ignore[arg-type]  # Nothing here quotes what lives elsewhere.
            urls=URLS,
        )
        self.service = ReadAfterWrite(
            engine=host.engine,
            wall=host.clock,
            accounts=host.accounts,
            catalog=CATALOG,
            reader=self.reader,
            quoted=quoted,
            urls=URLS,
        )

    @property
    def alice(self) -> Principal:
        return self.host.principal()

    async def rev(self) -> str:
        rows = await self.host.rows("SELECT rev FROM repo")
        return str(rows[0][0])

    async def patch(
        self,
        rev: str | None,
        body: Any = EMPTY,
        nsid: str = TIMELINE,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ViewAnswer | None:
        given = {"content-type": kind, **(headers or {})}
        given |= {} if rev is None else {"atproto-repo-rev": rev}
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        upstream = FakeAnswer(status, CIMultiDict(given), [content])
        answer = ProxiedAnswer(upstream, CIMultiDict(given), has_body=True)
        return await self.service.patch(self.alice, nsid, params, answer, TARGET)

    async def texts(self, rev: str, body: Any = EMPTY, **options: Any) -> list[str]:
        answer = await self.patch(rev, body, **options)
        assert answer is not None
        feed = orjson.loads(answer.body)["feed"]
        return [item["post"]["record"].get("text", "?") for item in feed]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with repo_host(tmp_path) as host:
        await host.add_account()
        yield Stage(host)


def author(**profile: Any) -> LocalAuthor:
    record = local(f"at://{ALICE}/{PROFILE}/self", profile) if profile else None
    return LocalAuthor(1, ALICE, "alice.test", 1, record)


def local(uri: str, value: dict[str, Any], at_us: int = 1_767_000_000_000_000) -> LocalRecord:
    return LocalRecord(uri, CID, encode_tid(at_us, 1), at_us, value)


def local_post(text: str = "t", rkey: str = "3kaaaaaaaaa2a", **fields: Any) -> LocalPost:
    value = {"text": text, "createdAt": "2026-01-01T00:00:00.000Z", **fields}
    return LocalPost(author(), local(f"at://{ALICE}/{POST}/{rkey}", value))


def shown(text: str, at: str, **more: Any) -> dict[str, Any]:
    return {
        "post": {
            "uri": f"at://did:web:else.example/{POST}/{text}",
            "cid": CID,
            "author": {"did": "did:web:else.example", "handle": "else.example"},
            "record": {"text": text},
            "indexedAt": at,
        },
        **more,
    }


# What counts as unseen


async def test_what_an_appview_has_seen_is_never_touched(stage: Stage) -> None:
    await write(stage.host, post("seen"))
    head = await stage.rev()
    for rev in (head, encode_tid(2**52, 0), None, "", "no rev", "2222222222222"):
        assert await stage.patch(rev, b"not even read") is None, rev


async def test_answers_that_are_no_json_or_no_success_are_left_alone(stage: Stage) -> None:
    rev = await stage.rev()
    await write(stage.host, post("new"))
    assert await stage.patch(rev, b"x", kind="text/html") is None
    assert await stage.patch(rev, b"x", status=206) is None
    for more in ({"content-encoding": "br"}, {"content-length": "5000000"}):
        assert await stage.patch(rev, b"x", headers=more) is None
    with pytest.raises(UpstreamError):  # It did not say how large it is.
        await stage.patch(rev, b" " * (MAX_BYTES + 1))
    for kind, expected in (
        (None, True),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/LD+JSON", True),
        ("application/jsonx", False),
        ("text/json", False),
    ):
        assert is_json(kind) is expected, kind


async def test_an_account_that_moved_here_is_not_patched_with_its_past(stage: Stage) -> None:
    before = encode_tid(stage.host.clock.now_us() - 3_600_000_000, 1)
    await write(stage.host, post("imported"))
    assert await stage.patch(before) is None


async def test_looking_for_something_newer_costs_one_statement(stage: Stage) -> None:
    await write(stage.host, post("seen"))
    rev = Tid(await stage.rev())
    statements: list[str] = []

    class Counting:
        def __init__(self, txn: Txn) -> None:
            self.txn = txn

        def read_one(self, sql: str, params: Any = ()) -> Any:
            statements.append(sql)
            return self.txn.read_one(sql, params)

    def look(txn: Txn) -> object:
        return stage.reader.read_unseen(Counting(txn), 1, rev)  # type: ignore[arg-type]

    assert await stage.host.engine.read("test", look) is None
    assert len(statements) == 1


async def test_records_that_break_their_lexicon_or_are_hidden_are_left_out(stage: Stage) -> None:
    rev = await stage.rev()
    await write(stage.host, post("good"))
    hidden = await write(stage.host, post("hidden"))
    bad = RecordWrite("create", POST, "3kaaaaaaaaa2a", {"text": 5, "createdAt": "never"})
    await write(stage.host, bad, validate=False)
    path = f"{POST}/{rkey_of(hidden)}"

    def hide(txn: Txn) -> None:
        put_record_takedown(txn, 1, path, cid=Cid.of_data(b"x"), takedown_ref="1", now_us=1)

    await stage.host.engine.transact("test", hide)
    assert await stage.texts(rev) == ["good"]


async def test_only_other_records_are_nothing_of_interest(stage: Stage) -> None:
    rev = await stage.rev()
    await write(stage.host, RecordWrite("create", "com.example.thing", None, {"a": 1}))
    assert await stage.patch(rev, b"never read") is None
    await write(stage.host, post("new"))
    for nsid, params in (
        ("app.bsky.actor.getProfile", {}),
        ("app.bsky.actor.getProfiles", {}),
        ("app.bsky.feed.getActorLikes", {}),
        (TIMELINE, {"cursor": "x"}),
        (AUTHOR_FEED, {"actor": "bob.test"}),
    ):
        assert await stage.patch(rev, b"never read", nsid, **params) is None, nsid


async def test_the_lag_is_that_of_the_oldest(stage: Stage) -> None:
    rev = await stage.rev()
    await write(stage.host, post("one"))
    stage.host.clock.advance(5)
    await write(stage.host, post("two"))
    answer = await stage.patch(rev)
    assert answer is not None
    oldest = stage.host.clock.now_us() - 6_000_000
    assert int(answer.headers[LAG_HEADER]) == (stage.host.clock.now_us() - oldest) // 1000


async def test_large_answers_are_changed_too(stage: Stage) -> None:
    """Beyond 64 KB on a thread."""
    rev = await stage.rev()
    await write(stage.host, post("new"))
    feed = {"feed": [shown("x" * 9000 + str(i), "2020-01-01T00:00:00.000Z") for i in range(9)]}
    for item in feed["feed"]:
        item["post"]["uri"] = f"at://did:web:else.example/{POST}/3kaaaaaaaaa2a"
    assert (await stage.texts(rev, feed))[0] == "new"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[1]",
        b'{"feed":null}',
        b'{"feed":[{}]}',
        b'{"feed":[]} x',
        b'{"feed":[{"post":{"uri":"at://x"}}]}',
        b"[" * 5000,
        b'{"feed":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
async def test_what_is_not_as_the_lexicon_says_goes_out_as_it_came(
    stage: Stage, body: bytes
) -> None:
    rev = await stage.rev()
    await write(stage.host, post("new"))
    answer = await stage.patch(rev, body)
    assert answer is not None
    assert (answer.body, answer.headers.get(LAG_HEADER)) == (body, None)


async def test_a_record_that_is_nested_without_end_goes_out_as_it_came(stage: Stage) -> None:
    """Promise C1: a stranger's record can be read, and cannot be written again."""
    rev = await stage.rev()
    await write(stage.host, post("new"))
    item = shown("old", "2020-01-01T00:00:00.000Z")
    body = orjson.dumps({"feed": [item]}).replace(
        b'"text":"old"', b'"text":"old","more":' + b"[" * 300 + b"]" * 300
    )
    answer = await stage.patch(rev, body)
    assert answer is not None
    assert answer.body == body


# How answers change


def changed(value: Any, *posts: LocalPost, nsid: str = TIMELINE, **profile: Any) -> Any:
    maker = ViewMaker(URLS, {}, is_unseen=True)
    return PATCHES[nsid].change(value, Local(author(**profile), bool(profile), posts, maker))


def order(value: Any) -> list[str]:
    return [item["post"]["record"]["text"] for item in value["feed"]]


def test_new_posts_come_by_their_time_and_pins_stay_on_top() -> None:
    pin = shown("pin", "2020-01-01T00:00:00Z", reason={"$type": "app.bsky.feed.defs#reasonPin"})
    feed = {
        "feed": [
            pin,
            shown("future", "2030-01-01T00:00:00.000Z"),
            shown("offset", "2026-01-01T00:00:00+01:00"),
            shown("odd", "2026-01-01T00:00:00.1234567Z"),
            shown("leap", "2016-12-31T23:59:60Z"),
        ]
    }
    new = local_post("new")
    placed = order(changed(feed, new))
    assert placed[:2] == ["pin", "future"]
    assert sorted(placed) == sorted(["pin", "future", "offset", "odd", "leap", "new"])
    late = LocalPost(author(), local("at://x", {"text": "old"}, at_us=1))
    assert order(changed({"feed": [pin]}, late)) == ["pin", "old"]


def test_fields_that_a_profile_no_longer_has_are_taken_away() -> None:
    view = {
        "did": ALICE,
        "handle": "alice.test",
        "displayName": "a",
        "avatar": "https://cdn/a",
        "banner": "https://cdn/b",
        "description": "d",
        "website": "https://w",
        "labels": [],
    }
    nsid = "app.bsky.actor.getProfile"
    patched = changed(view, nsid=nsid, displayName="b", banner=BLOB)
    assert patched == {
        "did": ALICE,
        "handle": "alice.test",
        "displayName": "b",
        "banner": URLS.blob(ALICE, BLOB_CID),
        "labels": [],
    }
    other = {**view, "did": "did:web:else.example"}
    assert changed(other, nsid=nsid, displayName="b") == other


def test_the_author_is_shown_anew_in_feeds_and_threads() -> None:
    item = shown("mine", "2020-01-01T00:00:00Z")
    item["post"]["author"] = {"did": ALICE, "handle": "alice.test", "displayName": "old"}
    other = shown("theirs", "2020-01-01T00:00:00Z")
    feed = changed({"feed": [item, other]}, displayName="new")
    assert feed["feed"][0]["post"]["author"]["displayName"] == "new"
    assert feed["feed"][1] == other
    kind = {"$type": "app.bsky.feed.defs#threadViewPost"}
    gone = {"$type": "app.bsky.feed.defs#notFoundPost", "uri": "at://x/y/z", "notFound": True}
    thread = {"thread": {**kind, **other, "replies": [{**kind, **item}, gone]}}
    nsid = "app.bsky.feed.getPostThread"
    replies = changed(thread, nsid=nsid, displayName="new")["thread"]["replies"]
    assert replies[0]["post"]["author"]["displayName"] == "new"
    assert replies[1] == gone
    assert changed({"thread": gone}, nsid=nsid, displayName="new") == {"thread": gone}


def test_a_reply_is_added_once_and_where_it_belongs() -> None:
    kind = {"$type": "app.bsky.feed.defs#threadViewPost"}
    root = shown("root", "2020-01-01T00:00:00Z")
    ref = {"uri": root["post"]["uri"], "cid": CID}
    reply = local_post("reply", reply={"root": ref, "parent": ref})
    maker = ViewMaker(URLS, {})
    once = add_reply({**kind, **root}, reply, maker)
    assert [view["post"]["uri"] for view in once["replies"]] == [reply.record.uri]
    assert add_reply(once, reply, maker) == once
    far = {"uri": "at://did:web:far.example/a.b.c/d", "cid": CID}
    lost = local_post("lost", "3kaaaaaaaaa3a", reply={"root": ref, "parent": far})
    assert add_reply(once, lost, maker) == once
    deep: Any = {**kind, **shown("leaf", "2020-01-01T00:00:00Z")}
    for _ in range(2000):
        deep = {**kind, **root, "replies": [deep]}
    assert add_reply(deep["replies"][0], lost, maker)["replies"]


# Views


def test_pictures_are_linked_as_the_pattern_says() -> None:
    assert URLS.image("avatar", ALICE, "c") == (
        f"https://pds.example/xrpc/com.atproto.sync.getBlob?did={ALICE}&cid=c"
    )
    urls = ImageUrls(public_url="x", pattern="https://cdn.example/img/%s/plain/%s/%s@jpeg")
    assert urls.image("banner", "did:web:a", "c") == (
        "https://cdn.example/img/banner/plain/did:web:a/c@jpeg"
    )


def test_every_kind_of_embed_has_its_view() -> None:
    ratio = {"width": 1, "height": 2}
    picture = {"image": BLOB, "alt": "a", "aspectRatio": ratio}
    kind = "app.bsky.embed."
    gallery = {
        "$type": f"{kind}gallery",
        "items": [{"$type": f"{kind}gallery#image", **picture}, {"$type": f"{kind}gallery#new"}],
    }
    video = {"$type": f"{kind}video", "video": BLOB, "alt": "v", "aspectRatio": ratio}
    strong = {"uri": f"at://{ALICE}/{POST}/3kaaaaaaaaa2a", "cid": CID}
    quote = {"$type": f"{kind}record", "record": strong}
    unknown = {"$type": "com.example.embed"}
    maker = ViewMaker(URLS, {strong["uri"]: {"quoted": True}})
    url = URLS.blob(ALICE, BLOB_CID)
    view = maker.embed(local_post(embed=gallery))
    item = {"thumbnail": url, "fullsize": url, "alt": "a", "aspectRatio": ratio}
    assert view == {
        "$type": f"{kind}gallery#view",
        "items": [{"$type": f"{kind}gallery#viewImage", **item}],
    }
    assert maker.embed(local_post(embed=video)) is None
    players = ViewMaker(URLS, {}, has_videos=True)
    assert players.embed(local_post(embed=video)) == {
        "$type": f"{kind}video#view",
        "cid": BLOB_CID,
        "playlist": url,
        "alt": "v",
        "aspectRatio": ratio,
    }
    assert maker.embed(local_post(embed=unknown)) is None
    assert maker.embed(local_post()) is None
    both = {"$type": f"{kind}recordWithMedia", "record": quote, "media": unknown}
    assert maker.embed(local_post(embed=both)) == {
        "$type": f"{kind}record#view",
        "record": {"quoted": True},
    }
    assert [quoted_uri(local_post(embed=e)) for e in (quote, both, video)] == [
        strong["uri"],
        strong["uri"],
        None,
    ]
    assert maker.quoted_post(local_post(embed=gallery))["embeds"] == [view]


def test_self_labels_are_shown() -> None:
    kind = "com.atproto.label.defs#selfLabels"
    labels = {"$type": kind, "values": [{"val": "porn"}]}
    made = self_labels(ALICE, local_post(labels=labels).record)
    assert made is not None
    assert made[0]["val"] == "porn"  # type: ignore[call-overload, index]
    for none in ({"$type": kind, "values": []}, {"$type": "com.example.other"}):
        assert self_labels(ALICE, local_post(labels=none).record) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("posts_with_replies", "plain own other picture video"),
        ("posts_no_replies", "plain picture video"),
        ("posts_with_media", "picture video"),
        ("posts_with_video", "video"),
        ("posts_and_author_threads", "plain own picture video"),
        ("posts_of_tomorrow", "plain own other picture video"),
    ],
)
def test_author_feeds_are_filtered(name: str, expected: str) -> None:
    mine = {"uri": f"at://{ALICE}/{POST}/3kaaaaaaaaa2a", "cid": CID}
    theirs = {"uri": f"at://did:web:else.example/{POST}/3kaaaaaaaaa2a", "cid": CID}
    images = {"$type": "app.bsky.embed.images", "images": []}
    quote = {"$type": "app.bsky.embed.record", "record": mine}
    both = {"$type": "app.bsky.embed.recordWithMedia", "record": quote, "media": images}
    posts = [
        local_post("plain", embed=quote),
        local_post("own", reply={"root": mine, "parent": mine}),
        local_post("other", reply={"root": mine, "parent": theirs}),
        local_post("picture", embed=both),
        local_post("video", embed={"$type": "app.bsky.embed.video", "video": BLOB}),
    ]
    fitting = [entry.record.value["text"] for entry in posts if fits_filter(entry, name)]
    assert " ".join(fitting) == expected
