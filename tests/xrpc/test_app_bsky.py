"""The app.bsky methods over real HTTP: an AppView's answers, brought up to date.

What is made without one is in tests/scenarios/test_independence.py.
Spec: (XRPC-60, XRPC-61, XRPC-64, XRPC-65, XRPC-67, XRPC-68)
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from pds.protocol.keys import make_signer
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Did, Nsid
from pds.services.app_views import FEED_TTL_S
from tests.fakes.appview import APPVIEW_DID, running_appview
from tests.support_appview import (
    AUTHOR_FEED,
    LIKES,
    MODERATOR,
    PNG,
    PROFILE,
    PROFILES,
    THREAD,
    TIMELINE,
    Stage,
    give_document,
    put_profile,
    ref,
    reply_to,
    set_stage,
    uris,
)
from tests.support_client import Client, XrpcError

MODERATOR_SIGNER = make_signer("k256", b"\x61" * 32)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield await set_stage(stack, tmp_path, with_appview=True)


# Read-after-write


async def test_nothing_newer_leaves_every_answer_as_it_came(stage: Stage) -> None:
    post = await stage.alice.post("seen")
    await put_profile(stage.alice, displayName="Alice")
    await stage.index()
    requests: dict[str, Any] = {
        PROFILE: {"actor": "alice.test"},
        PROFILES: [("actors", stage.alice.did), ("actors", stage.bob.did)],
        AUTHOR_FEED: {"actor": stage.alice.did},
        LIKES: {"actor": stage.alice.did},
        THREAD: {"uri": post["uri"]},
        TIMELINE: {},
    }
    for mood in ("good", "gzip"):
        stage.appview.mood = mood
        for nsid, params in requests.items():
            status, _, headers = await stage.ask(nsid, params=params)
            assert status == 200, nsid
            assert "Atproto-Upstream-Lag" not in headers
            assert headers["Atproto-Repo-Rev"] == stage.appview.revs[stage.alice.did]
            assert headers.get("Content-Encoding") == ("gzip" if mood == "gzip" else None)
    tokens = {(call.iss, call.aud, call.lxm == call.nsid) for call in stage.appview.asked}
    assert tokens == {(stage.alice.did, APPVIEW_DID, True)}


async def test_a_new_profile_is_seen_by_its_owner_at_once(stage: Stage) -> None:
    await stage.alice.post("hello")
    await put_profile(stage.alice, displayName="Old")
    await stage.index()
    avatar = await stage.alice.client.upload(PNG, "image/png")
    await put_profile(
        stage.alice, displayName="New", description="me", pronouns="they", avatar=avatar
    )
    cid = avatar["ref"]["$link"]
    status, view, headers = await stage.ask(PROFILE, params={"actor": "alice.test"})
    assert status == 200
    assert (view["displayName"], view["description"], view["followersCount"]) == ("New", "me", 5)
    assert view["avatar"] == (
        f"{stage.host.server.config.public_url}/xrpc/com.atproto.sync.getBlob"
        f"?did={stage.alice.did}&cid={cid}"
    )
    assert 0 <= int(headers["Atproto-Upstream-Lag"]) < 60_000
    assert headers["Atproto-Content-Labelers"] == "did:web:labels.example"
    assert headers["Cache-Control"] == "private"
    profiles = await stage.view(PROFILES, actors=[stage.bob.did, stage.alice.did])
    assert [view.get("displayName") for view in profiles["profiles"]] == [None, "New"]
    for nsid in (AUTHOR_FEED, LIKES, TIMELINE):
        feed = await stage.view(nsid, **({} if nsid == TIMELINE else {"actor": "alice.test"}))
        assert feed["feed"][0]["post"]["author"]["displayName"] == "New", nsid
    # What others see of it is the AppView's business, and so is what is seen of others.
    seen = await stage.view(PROFILE, stage.bob, actor="alice.test")
    assert seen["displayName"] == "Old"
    assert "displayName" not in await stage.view(PROFILE, actor="bob.test")


async def test_new_posts_stand_in_the_own_feed_and_the_timeline(stage: Stage) -> None:
    old = await stage.alice.post("old")
    await stage.index()
    blob = await stage.alice.client.upload(PNG, "image/png")
    picture = {"image": blob, "alt": "a", "aspectRatio": {"width": 2, "height": 1}}
    images = {"$type": "app.bsky.embed.images", "images": [picture]}
    card = {"uri": "https://example.com", "title": "t", "description": "d", "thumb": blob}
    external = {"$type": "app.bsky.embed.external", "external": card}
    quote = {"$type": "app.bsky.embed.record", "record": ref(old)}
    both = {"$type": "app.bsky.embed.recordWithMedia", "record": quote, "media": images}
    labels = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "nudity"}]}
    made = [
        await stage.alice.post("first", embed=images, labels=labels),
        await stage.alice.post("second", embed=external),
        await stage.alice.post("third", embed=quote),
        await stage.alice.post("fourth", embed=both, **reply_to(old)),
    ]
    feed = await stage.view(AUTHOR_FEED, actor=stage.alice.did)
    expected = [entry["uri"] for entry in reversed(made)]
    assert uris(feed) == [*expected, old["uri"]]
    posts = {item["post"]["record"]["text"]: item["post"] for item in feed["feed"]}
    thumb = posts["first"]["embed"]["images"][0]["thumb"]
    assert thumb.endswith(f"&cid={blob['ref']['$link']}")
    assert posts["first"]["labels"][0]["val"] == "nudity"
    assert posts["first"]["likeCount"] == 0
    assert posts["second"]["embed"]["external"]["thumb"] == thumb
    assert posts["third"]["embed"]["record"]["uri"] == old["uri"]
    assert posts["fourth"]["embed"]["record"]["record"]["value"]["text"] == "old"
    assert posts["fourth"]["embed"]["media"]["images"][0]["alt"] == "a"
    assert uris(await stage.view(TIMELINE)) == [*expected, old["uri"]]
    # Not on later pages, not under a filter that it does not fit, not in other people's feeds.
    assert uris(await stage.view(AUTHOR_FEED, actor="alice.test", cursor="x")) == [old["uri"]]
    no_replies = await stage.view(AUTHOR_FEED, actor="alice.test", filter="posts_no_replies")
    assert uris(no_replies) == [*expected[1:], old["uri"]]
    media = await stage.view(AUTHOR_FEED, actor="alice.test", filter="posts_with_media")
    assert uris(media) == [expected[0], expected[3], old["uri"]]
    assert uris(await stage.view(AUTHOR_FEED, actor="bob.test")) == []
    assert uris(await stage.view(AUTHOR_FEED, stage.bob, actor="alice.test")) == [old["uri"]]
    # An AppView that has caught up is not patched any more.
    await stage.index()
    assert uris(await stage.view(AUTHOR_FEED, actor=stage.alice.did)) == [*expected, old["uri"]]


async def test_the_first_post_ever_stands_in_an_empty_feed(stage: Stage) -> None:
    await stage.index()
    made = await stage.alice.post("first")
    assert uris(await stage.view(AUTHOR_FEED, actor="ALICE.test")) == [made["uri"]]


async def test_at_most_ten_new_posts_are_added_the_newest(stage: Stage) -> None:
    await stage.index()
    made = [(await stage.alice.post(f"post {i}"))["uri"] for i in range(12)]
    assert uris(await stage.view(TIMELINE)) == made[:1:-1]


async def test_quotes_of_others_are_asked_of_the_appview(stage: Stage) -> None:
    await stage.index()
    stranger = "did:web:stranger.example"
    uri = f"at://{stranger}/app.bsky.feed.post/3kaaaaaaaaa2a"
    cid = "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum"
    quote = {"$type": "app.bsky.embed.record", "record": {"uri": uri, "cid": cid}}
    await stage.alice.post("quoting", embed=quote)
    missing = (await stage.view(TIMELINE))["feed"][0]["post"]["embed"]["record"]
    assert missing == {
        "$type": "app.bsky.embed.record#viewNotFound",
        "uri": uri,
        "notFound": True,
    }
    stage.appview.posts[uri] = {
        "uri": uri,
        "cid": cid,
        "author": {"did": stranger, "handle": "stranger.example"},
        "record": {"text": "far away"},
        "indexedAt": "2020-01-01T00:00:00.000Z",
    }
    shown = (await stage.view(TIMELINE))["feed"][0]["post"]["embed"]["record"]
    assert shown["$type"] == "app.bsky.embed.record#viewRecord"
    assert shown["value"]["text"] == "far away"
    # Rubbish in place of the quoted post: the answer goes out unpatched.
    stage.appview.posts[uri]["author"] = {"did": 5}
    stage.appview.posts[uri]["indexedAt"] = "2000-01-01T00:00:00.000Z"
    status, body, headers = await stage.ask(AUTHOR_FEED, params={"actor": stage.alice.did})
    assert (status, body["feed"]) == (200, [])
    assert "Atproto-Upstream-Lag" not in headers


async def test_new_replies_stand_in_their_thread(stage: Stage) -> None:
    root = await stage.bob.post("root")
    seen = await stage.alice.post("seen", **reply_to(root))
    await stage.index()
    new = await stage.alice.post("new", **reply_to(seen, root))
    newer = await stage.alice.post("newer", **reply_to(new, root))
    await stage.alice.post("elsewhere")
    thread = (await stage.view(THREAD, uri=root["uri"]))["thread"]
    below = thread["replies"][0].get("replies", [])
    assert [view["post"]["uri"] for view in below] == [new["uri"]]
    assert [view["post"]["uri"] for view in below[0]["replies"]] == [newer["uri"]]
    # Seen from a reply, and by somebody else.
    middle = (await stage.view(THREAD, uri=seen["uri"]))["thread"]
    assert middle["replies"][0]["post"]["uri"] == new["uri"]
    assert middle["parent"]["post"]["uri"] == root["uri"]
    other = (await stage.view(THREAD, stage.bob, uri=seen["uri"]))["thread"]
    assert other["replies"] == []


async def test_an_own_post_that_the_appview_cannot_find_is_shown(stage: Stage) -> None:
    root = await stage.bob.post("root")
    seen = await stage.alice.post("seen", **reply_to(root))
    await stage.index()
    stage.appview.posts.pop(seen["uri"])
    # It knows of that one and hides it: that stands.
    assert await stage.refused(THREAD, uri=seen["uri"]) == (400, "NotFound")
    new = await stage.alice.post("new", **reply_to(root))
    newer = await stage.alice.post("newer", **reply_to(new, root))
    status, body, headers = await stage.ask(
        THREAD, params={"uri": newer["uri"].replace(stage.alice.did, "alice.test")}
    )
    assert status == 200, body
    assert body["thread"]["post"]["uri"] == newer["uri"]
    assert body["thread"]["parent"]["post"]["uri"] == new["uri"]
    assert body["thread"]["parent"]["parent"]["post"]["record"]["text"] == "root"
    assert int(headers["Atproto-Upstream-Lag"]) >= 0
    short = await stage.view(THREAD, uri=newer["uri"], parentHeight=0)
    assert "parent" not in short["thread"]
    assert await stage.refused(THREAD, stage.bob, uri=new["uri"]) == (400, "NotFound")
    stage.appview.send_rev = False
    assert await stage.refused(THREAD, uri=new["uri"]) == (400, "NotFound")


# An AppView that misbehaves


async def test_answers_of_another_shape_are_passed_on_as_they_are(stage: Stage) -> None:
    await stage.index()
    await stage.alice.post("new")
    await put_profile(stage.alice, displayName="New")
    client = stage.alice.client
    headers = {"Authorization": f"Bearer {client.token}"}
    for mood, expected in (
        ("no json", b'{"feed": ['),
        ("html", b"<html>"),
        ("wrong shape", b'{"feed":[{"post":{"uri":5}}],"did":7}'),
        ("list", b"[]"),
    ):
        stage.appview.mood = mood
        for nsid in (TIMELINE, PROFILE):
            url = f"{client.url}/xrpc/{nsid}?actor={stage.alice.did}"
            async with client.http.get(url, headers=headers) as answer:
                assert (answer.status, await answer.read()) == (200, expected)
                assert "Atproto-Upstream-Lag" not in answer.headers


# Feeds, push notifications, preferences


async def test_a_feed_gets_a_token_for_its_generator(stage: Stage) -> None:
    await stage.alice.post("in the feed")
    await stage.index()
    feed = "at://did:web:feeds.example/app.bsky.feed.generator/cats"
    generator = "did:web:generator.example"
    stage.appview.feeds[feed] = generator
    stage.appview.audiences.add(generator)
    nsid = "app.bsky.feed.getFeed"
    for _ in range(2):
        assert len((await stage.view(nsid, feed=feed))["feed"]) == 1
    call = stage.appview.calls(nsid)[0]
    assert (call.aud, call.lxm, call.iss) == (
        generator,
        "app.bsky.feed.getFeedSkeleton",
        stage.alice.did,
    )
    lookups = stage.appview.calls("com.atproto.repo.getRecord")
    assert len(lookups) == 1
    assert "authorization" not in lookups[0].headers
    views: Any = stage.host.server.services.app_views
    views._monotonic = lambda: time.monotonic() + FEED_TTL_S
    await stage.view(nsid, feed=feed)
    assert len(stage.appview.calls("com.atproto.repo.getRecord")) == 2
    assert await stage.refused(nsid, feed=feed + "x") == (400, "UnknownFeed")
    assert await stage.refused(nsid, feed="at://did:web:feeds.example") == (400, "UnknownFeed")
    stage.appview.feeds[feed + "y"] = "no did"
    assert await stage.refused(nsid, feed=feed + "y") == (400, "UnknownFeed")
    stage.appview.mood = "error"
    assert await stage.refused(nsid, feed=feed) == (502, "UpstreamFailure")
    assert await stage.refused(nsid, feed=feed + "z") == (502, "UpstreamFailure")


async def test_push_registrations_go_to_the_service_that_they_name(stage: Stage) -> None:
    await stage.index()
    body = {"serviceDid": APPVIEW_DID, "token": "t", "platform": "ios", "appId": "app"}
    other = Did("did:web:notify.example")
    for name in ("registerPush", "unregisterPush"):
        nsid = f"app.bsky.notification.{name}"
        status, answer, _ = await stage.ask(nsid, verb="POST", json=body)
        assert (status, answer) == (200, None)
        call = stage.appview.calls(nsid)[0]
        assert orjson.loads(call.body) == body
        assert (call.aud, call.lxm) == (APPVIEW_DID, nsid)
        status, answer, _ = await stage.ask(nsid, verb="POST", json={**body, "serviceDid": other})
        assert (status, answer["error"]) == (400, "InvalidRequest")
    async with running_appview() as notifier:
        notifier.did = other
        for kind, expected in (("Other", 400), ("BskyNotificationService", 200)):
            endpoint = {"id": "#bsky_notif", "type": kind, "serviceEndpoint": notifier.url}
            give_document(stage, other, {"id": other, "service": [endpoint]})
            status, _, _ = await stage.ask(nsid, verb="POST", json={**body, "serviceDid": other})
            assert status == expected
        assert notifier.asked[0].aud == other
        notifier.mood = "error"
        status, answer, _ = await stage.ask(nsid, verb="POST", json={**body, "serviceDid": other})
        assert (status, answer["error"]) == (502, "UpstreamFailure")


async def test_preferences_stay_here_unless_another_appview_is_named(stage: Stage) -> None:
    get, put = "app.bsky.actor.getPreferences", "app.bsky.actor.putPreferences"
    await stage.index()
    item = {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}
    birth = {
        "$type": "app.bsky.actor.defs#personalDetailsPref",
        "birthDate": "2000-01-01T00:00:00.000Z",
    }
    ours = {"atproto-proxy": f"{APPVIEW_DID}#bsky_appview"}
    body = {"preferences": [item, birth]}
    assert (await stage.ask(put, verb="POST", json=body, headers=ours))[0] == 200
    kept = (await stage.ask(get, headers=ours))[1]["preferences"]
    assert kept[:2] == [item, birth]
    assert stage.appview.asked == []
    theirs = {"atproto-proxy": f"{MODERATOR}#atproto_labeler"}
    assert (await stage.ask(get, headers=theirs))[0] == 502  # Nobody listens there.
    assert (await stage.ask(put, verb="POST", json=body, headers=theirs))[0] == 502
    # The moderation service reads them too, the birth date included.
    give_document(
        stage,
        MODERATOR,
        {
            "id": MODERATOR,
            "verificationMethod": [
                {
                    "id": f"{MODERATOR}#atproto_label",
                    "type": "Multikey",
                    "controller": MODERATOR,
                    "publicKeyMultibase": MODERATOR_SIGNER.public_key.did_key.removeprefix(
                        "did:key:"
                    ),
                }
            ],
        },
    )
    moderator = Client(stage.host.client.http, stage.host.client.url)
    service = stage.host.server.config.service_did

    def token(jti: str, lxm: str = get) -> dict[str, str]:
        now_s = int(time.time())
        signed = sign_service_token(
            MODERATOR_SIGNER,
            iss=Did(f"{MODERATOR}#atproto_labeler"),
            aud=service,
            lxm=Nsid(lxm),
            iat=now_s,
            exp=now_s + 60,
            jti=jti,
        )
        return {"Authorization": f"Bearer {signed}"}

    seen = await moderator.call("GET", get, params={"did": stage.alice.did}, headers=token("1"))
    assert seen["preferences"][:2] == [item, birth]
    for jti, params in (("2", {}), ("3", {"did": "did:web:nobody.example"})):
        with pytest.raises(XrpcError) as refused:
            await moderator.call("GET", get, params=params, headers=token(jti))
        assert (refused.value.status, refused.value.name) == (400, "InvalidRequest")
    with pytest.raises(XrpcError) as refused:
        await moderator.call(
            "GET", get, params={"did": stage.alice.did}, headers={**token("4"), **theirs}
        )
    assert refused.value.name == "InvalidRequest"
    with pytest.raises(XrpcError) as refused:
        await moderator.call("GET", get, params={"did": stage.alice.did}, headers=token("5", put))
    assert refused.value.status == 401


async def test_head_and_deactivated_accounts(stage: Stage) -> None:
    await stage.index()
    status, body, headers = await stage.ask(TIMELINE, verb="HEAD")
    assert (status, body) == (200, None)
    assert stage.appview.asked[0].verb == "HEAD"
    assert headers["Atproto-Repo-Rev"]
    await stage.alice.client.post("com.atproto.server.deactivateAccount", {})
    for nsid in (TIMELINE, PROFILE):
        assert await stage.refused(nsid, actor=stage.alice.did) == (401, "AccountDeactivated")


async def test_views_need_a_session(stage: Stage) -> None:
    anonymous = Client(stage.host.client.http, stage.host.client.url)
    with pytest.raises(XrpcError) as refused:
        await anonymous.get(PROFILE, actor=stage.alice.did)
    assert refused.value.name == "AuthMissing"
    assert isinstance(stage.host.client.http, aiohttp.ClientSession)
