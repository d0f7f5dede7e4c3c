"""What people can read of their own host without an AppView, or when it is down.

The rule is docs/explain/independence.md.
Spec: (XRPC-61, XRPC-64, XRPC-67, XRPC-68, ACC-44, SYNC-70)
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.protocol.syntax import Did
from pds.services.audit import Order
from pds.services.moderation import AccountChange, RecordSubject
from tests.fakes.appview import APPVIEW_DID, running_appview
from tests.support_appview import (
    AUTHOR_FEED,
    LIKES,
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

MADE_CID = "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum"


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield await set_stage(stack, tmp_path, with_appview=True)


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield await set_stage(stack, tmp_path, with_appview=False)


async def test_when_the_appview_gives_no_answer_what_lives_here_is_shown(stage: Stage) -> None:
    """Its faults are never reported as ours, and own content stays readable."""
    await stage.index()
    post = await stage.alice.post("here")
    await put_profile(stage.alice, displayName="Alice")
    views: list[tuple[str, dict[str, Any]]] = [
        (PROFILE, {"actor": "alice.test"}),
        (PROFILES, {"actors": [stage.alice.did, "bob.test"]}),
        (AUTHOR_FEED, {"actor": stage.alice.did}),
        (THREAD, {"uri": post["uri"]}),
    ]
    stranger = "did:web:stranger.example"
    elsewhere: list[tuple[str, dict[str, Any]]] = [
        (PROFILE, {"actor": stranger}),
        (PROFILES, {"actors": [stage.alice.did, stranger]}),
        (AUTHOR_FEED, {"actor": stage.alice.did, "cursor": "x"}),
    ]
    for mood in ("down", "error", "busy", "redirect", "huge", "bomb", "silent", "stalls", "breaks"):
        stage.appview.mood = mood
        is_slow = mood in ("silent", "stalls")
        for nsid, params in views[:1] if is_slow else views:
            status, body, headers = await stage.ask(nsid, params=params)
            assert status == 200, (mood, nsid, body)
            assert headers["X-Freehold-View"] == "local"
        expected = (503, "Busy") if mood == "busy" else (502, "UpstreamFailure")
        assert await stage.refused(TIMELINE) == expected, mood
        for nsid, params in elsewhere if mood in ("down", "error", "busy") else []:
            assert await stage.refused(nsid, **params) == expected, (mood, nsid)


# Without an AppView


async def test_without_an_appview_own_content_can_be_read(alone: Stage) -> None:
    alice, bob = alone.alice, alone.bob
    avatar = await alice.client.upload(PNG, "image/png")
    await put_profile(alice, displayName="Alice", avatar=avatar, website="https://a.example")
    made = [await alice.post(f"post {i}") for i in range(5)]
    reply = await bob.post("reply", **reply_to(made[0]))
    like = {"subject": ref(made[1]), "createdAt": "2026-01-02T03:04:05.000Z"}
    await bob.create("app.bsky.feed.like", like)
    gone = {"uri": made[0]["uri"].replace(alice.did, "did:web:gone.example"), "cid": reply["cid"]}
    await bob.create("app.bsky.feed.like", {**like, "subject": gone})
    follow = {"subject": alice.did, "createdAt": "2026-01-02T03:04:05.000Z"}
    followed = await bob.create("app.bsky.graph.follow", follow)
    status, view, headers = await alone.ask(PROFILE, bob, params={"actor": "Alice.test"})
    assert (status, headers["X-Freehold-View"]) == (200, "local")
    assert (view["displayName"], view["postsCount"], view["followsCount"]) == ("Alice", 5, 0)
    assert view["viewer"] == {"muted": False, "blockedBy": False, "following": followed["uri"]}
    assert "avatar" in view
    profiles = await alone.view(PROFILES, actors=["bob.test", "nobody.test", alice.did])
    assert [entry["handle"] for entry in profiles["profiles"]] == ["bob.test", "alice.test"]
    first = await alone.view(AUTHOR_FEED, bob, actor=alice.did, limit=3)
    rest = await alone.view(AUTHOR_FEED, bob, actor=alice.did, limit=3, cursor=first["cursor"])
    assert uris(first) + uris(rest) == [entry["uri"] for entry in reversed(made)]
    assert "cursor" not in rest
    likes = await alone.view(LIKES, bob, actor=bob.did)
    assert uris(likes) == [made[1]["uri"]]
    thread = (await alone.view(THREAD, uri=made[0]["uri"]))["thread"]
    assert "replies" not in thread  # Bob's replies are looked for when Bob asks.
    thread = (await alone.view(THREAD, bob, uri=made[0]["uri"]))["thread"]
    assert thread["replies"][0]["post"]["uri"] == reply["uri"]
    thread = (await alone.view(THREAD, uri=reply["uri"]))["thread"]
    assert thread["parent"]["post"]["uri"] == made[0]["uri"]
    assert uris(await alone.view(TIMELINE, bob)) == [reply["uri"]]


async def test_without_an_appview_the_rest_is_refused_with_a_reason(alone: Stage) -> None:
    stranger = "did:web:stranger.example"
    post = f"at://{stranger}/app.bsky.feed.post/3kaaaaaaaaa2a"
    assert await alone.refused(PROFILE, actor=stranger) == (400, "InvalidRequest")
    assert await alone.refused(AUTHOR_FEED, actor=stranger) == (400, "InvalidRequest")
    assert await alone.refused(LIKES, actor=alone.bob.did) == (400, "InvalidRequest")
    assert await alone.refused(THREAD, uri=post) == (400, "NotFound")
    assert await alone.refused(AUTHOR_FEED, actor="bob.test", cursor="x") == (
        400,
        "InvalidRequest",
    )
    assert await alone.refused("app.bsky.notification.listNotifications") == (
        400,
        "InvalidRequest",
    )
    gone = await alone.alice.post("quoting", **reply_to({"uri": post, "cid": MADE_CID}))
    thread = (await alone.view(THREAD, uri=gone["uri"]))["thread"]
    assert thread["parent"] == {
        "$type": "app.bsky.feed.defs#notFoundPost",
        "uri": post,
        "notFound": True,
    }
    assert alone.appview.asked == []


async def test_local_answers_keep_blocks_takedowns_and_states(alone: Stage) -> None:
    alice, bob = alone.alice, alone.bob
    hidden = await alice.post("hidden")
    shown = await alice.post("shown")
    operator = alone.host.server.services.operator.moderation
    path = hidden["uri"].removeprefix(f"at://{alice.did}/")
    subject = RecordSubject(Did(alice.did), path, None)
    await operator.change_record(subject, takedown=True, ref=None, order=Order("cli:test"))
    assert uris(await alone.view(AUTHOR_FEED, bob, actor=alice.did)) == [shown["uri"]]
    assert uris(await alone.view(AUTHOR_FEED, actor=alice.did)) == [shown["uri"]]
    assert await alone.refused(THREAD, bob, uri=hidden["uri"]) == (400, "NotFound")
    block = {"subject": bob.did, "createdAt": "2026-01-02T03:04:05.000Z"}
    await alice.create("app.bsky.graph.block", block)
    assert await alone.refused(AUTHOR_FEED, bob, actor=alice.did) == (400, "BlockedByActor")
    assert await alone.refused(AUTHOR_FEED, actor=bob.did) == (400, "BlockedActor")
    view = await alone.view(PROFILE, bob, actor=alice.did)
    assert view["viewer"]["blockedBy"] is True
    thread = await alone.view(THREAD, bob, uri=shown["uri"])
    assert thread["thread"]["blocked"] is True
    change = AccountChange(takedown=True)
    await operator.change_account(Did(alice.did), change, Order("cli:test"))
    assert await alone.refused(PROFILE, bob, actor=alice.did) == (400, "InvalidRequest")


async def test_an_account_can_have_another_appview_or_none(stage: Stage) -> None:
    did, services = Did(stage.alice.did), stage.host.server.services
    await stage.alice.post("here")
    await stage.index()
    order = Order("cli:test")
    other = Did("did:web:other.example")
    choices, proxy = services.appview_choices, services.proxy
    with pytest.raises(Exception, match="proxy did"):
        await choices.set(did, other, order, proxy=proxy)
    async with running_appview() as second:
        second.did = other
        endpoint = {"id": "#bsky_appview", "type": "BskyAppView", "serviceEndpoint": second.url}
        give_document(stage, other, {"id": other, "service": [endpoint]})
        second.profiles[did] = {"did": did, "handle": "alice.test", "displayName": "Second"}
        assert await choices.set(did, other, order, proxy=proxy) == (
            None,
            f"{other}#bsky_appview",
        )
        view = await stage.view(PROFILE, actor=did)
        assert view["displayName"] == "Second"
        assert second.asked[0].aud == other
        assert "displayName" not in await stage.view(PROFILE, stage.bob, actor=did)
        # Its preferences stay here, whichever of the two is named.
        named = {"atproto-proxy": f"{other}#bsky_appview"}
        get = "app.bsky.actor.getPreferences"
        assert (await stage.ask(get, headers=named))[:2] == (200, {"preferences": []})
        assert second.calls(get) == []
        # A header overrules it for one call.
        header = {"atproto-proxy": f"{APPVIEW_DID}#bsky_appview"}
        _, view, _ = await stage.ask(PROFILE, params={"actor": did}, headers=header)
        assert "displayName" not in view
    rehearsal = replace(order, is_rehearsal=True)
    assert (await choices.set(did, "none", rehearsal, proxy=proxy))[1] == "none"
    assert await choices.get(1) != "none"
    await choices.set(did, "none", order, proxy=proxy)
    _, _, headers = await stage.ask(TIMELINE)
    assert headers["X-Freehold-View"] == "local"
    await choices.set(did, None, order, proxy=proxy)
    _, _, headers = await stage.ask(TIMELINE)
    assert "X-Freehold-View" not in headers
    trail, _ = await services.operator.audit.list(subject=did)
    assert [row.act for row in trail] == ["account.set-appview"] * 3
