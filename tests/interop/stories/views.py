"""What goes through to an AppView, and what comes back with the caller's own newest records."""

from collections.abc import Awaitable, Callable
from typing import Any

from tests.interop.side_by_side import Pair
from tests.interop.stories.records import PNG, post

ACTOR, FEED = "app.bsky.actor", "app.bsky.feed"
Index = Callable[[str], Awaitable[None]]
"""Has both AppViews read all of one account."""


async def views(pair: Pair, index: Index) -> None:
    """The six views, before and after the caller has written something new."""
    for name in ("gina", "hans"):
        await pair.sign_up(name)
    await write_profile(pair, "gina", "Gina")
    await write_post(pair, "gina", "old", post("an old post"))
    await write_post(pair, "hans", "other", post("by another"))
    for name in ("gina", "hans"):
        await index(name)
    await look(pair, "nothing new")
    await write_profile(pair, "gina", "Gina the second")
    await write_post(pair, "gina", "new", post("a new post"))
    parent = {"uri": "{old.uri}", "cid": "{old.cid}"}
    await write_post(
        pair, "gina", "reply", post("a reply", reply=dict.fromkeys(("root", "parent"), parent))
    )
    await pair.post(
        "views: upload", "com.atproto.repo.uploadBlob", PNG, auth="gina",
        headers={"Content-Type": "image/png"}, save={"picture": "blob"},
    )  # fmt: skip
    images = {"$type": "app.bsky.embed.images", "images": [{"alt": "a", "image": "{picture}"}]}
    await write_post(pair, "gina", "image", post("with an image", embed=images))
    card = {"uri": "https://example.com", "title": "t", "description": "d"}
    external = {"$type": "app.bsky.embed.external", "external": card}
    await write_post(pair, "gina", "card", post("with a card", embed=external))
    quote = {
        "$type": "app.bsky.embed.record",
        "record": {"uri": "{other.uri}", "cid": "{other.cid}"},
    }
    await write_post(pair, "gina", "quote", post("with a quote", embed=quote))
    await look(pair, "something new")
    await pair.get("thread: new post", f"{FEED}.getPostThread", {"uri": "{new.uri}"}, auth="gina")
    await pair.get(
        "thread: new reply", f"{FEED}.getPostThread", {"uri": "{reply.uri}"}, auth="gina"
    )


async def look(pair: Pair, label: str) -> None:
    """Ask for each view, as the writer and as another."""
    for name in ("gina", "hans"):
        for method, params in (
            (f"{ACTOR}.getProfile", {"actor": "{gina.did}"}),
            (f"{ACTOR}.getProfiles", {"actors": ["{gina.did}", "{hans.did}"]}),
            (f"{FEED}.getAuthorFeed", {"actor": "{gina.did}"}),
            (f"{FEED}.getActorLikes", {"actor": "{gina.did}"}),
            (f"{FEED}.getTimeline", {}),
            (f"{FEED}.getPostThread", {"uri": "{old.uri}"}),
        ):
            short = method.rpartition(".")[2]
            await pair.get(f"{short} by {name}: {label}", method, params, auth=name)


async def passed_on(pair: Pair, _: Index) -> None:
    """Everything else that is passed on, or must not be."""
    await pair.get("passed on", "app.bsky.feed.getPosts", {"uris": ["{old.uri}"]}, auth="gina")
    await pair.get("passed on: nobody", "app.bsky.feed.getPosts", {"uris": ["{old.uri}"]})
    await pair.get("passed on: unknown to all", "com.example.getThing", auth="gina")
    await pair.get("passed on: no method", "nonsense", auth="gina")
    await pair.post(
        "passed on: post", "app.bsky.graph.muteActor", {"actor": "{hans.did}"}, auth="gina"
    )
    for label, header in {
        "to the AppView by name": "{appview}#bsky_appview",
        "no service": "{appview}",
        "no DID": "nonsense#bsky_appview",
        "empty": "",
        "two": "{appview}#a#b",
    }.items():
        await pair.get(
            f"passed on: {label}", "app.bsky.feed.getPosts", {"uris": ["{old.uri}"]}, auth="gina",
            headers={"atproto-proxy": header},
        )  # fmt: skip
    for method in ("com.atproto.server.getSession", "com.atproto.identity.updateHandle"):
        verb = "GET" if method.endswith("Session") else "POST"
        body = None if verb == "GET" else {"handle": "ginny.test"}
        await pair.request(
            f"passed on: protected {method}", method, verb=verb, body=body, auth="gina",
            headers={"atproto-proxy": "{appview}#bsky_appview"},
        )  # fmt: skip
    chat = "chat.bsky.convo.getLog"
    header = {"atproto-proxy": "{appview}#bsky_appview"}
    await pair.get("passed on: chat", chat, auth="gina", headers=header)
    await pair.get("view: no parameters", f"{ACTOR}.getProfile", auth="gina")
    await pair.get("view: nobody", f"{ACTOR}.getProfile", {"actor": "{gina.did}"})
    await pair.get(
        "view: unknown", f"{ACTOR}.getProfile", {"actor": "did:web:x.example"}, auth="gina"
    )
    await pair.get("view: wrong limit", f"{FEED}.getTimeline", {"limit": 1000}, auth="gina")
    report = {
        "reasonType": "com.atproto.moderation.defs#reasonSpam",
        "subject": {"$type": "com.atproto.admin.defs#repoRef", "did": "{hans.did}"},
    }
    await pair.post(
        "report: nobody there", "com.atproto.moderation.createReport", report, auth="gina"
    )


async def preferences(pair: Pair, _: Index) -> None:
    """Private preferences."""
    get, put = f"{ACTOR}.getPreferences", f"{ACTOR}.putPreferences"
    adult = {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}
    birth = {
        "$type": "app.bsky.actor.defs#personalDetailsPref",
        "birthDate": "1990-01-01T00:00:00.000Z",
    }
    await pair.get("preferences: none", get, auth="gina")
    await pair.get("preferences: nobody", get)
    for label, listed in {
        "two": [adult, birth],
        "of another namespace": [{"$type": "com.example.defs#pref"}],
        "without type": [{"enabled": True}],
        "no list": {},
        "computed one": [adult, birth, {"$type": "app.bsky.actor.defs#declaredAgePref"}],
    }.items():
        await pair.post(f"preferences put: {label}", put, {"preferences": listed}, auth="gina")
    await pair.post("preferences put: nobody", put, {"preferences": []})
    await pair.get("preferences: some", get, auth="gina")
    await pair.post(
        "app password of gina", "com.atproto.server.createAppPassword", {"name": "a"}, auth="gina",
        save={"ginapass": "password"},
    )  # fmt: skip
    await pair.post(
        "sign in gina with it",
        "com.atproto.server.createSession",
        {"identifier": "{gina.did}", "password": "{ginapass}"},
        save={"ginaapp.access": "accessJwt"},
    )
    await pair.get("preferences: by the app password", get, auth="ginaapp")
    await pair.post(
        "preferences put: birth date by the app password",
        put,
        {"preferences": [birth]},
        auth="ginaapp",
    )
    await pair.post(
        "preferences put: by the app password", put, {"preferences": [adult]}, auth="ginaapp"
    )
    await pair.get("preferences: after that", get, auth="gina")


async def write_profile(pair: Pair, name: str, text: str) -> None:
    """Write the profile of an account."""
    record = {"$type": "app.bsky.actor.profile", "displayName": text, "description": "about"}
    body: dict[str, Any] = {
        "repo": f"{{{name}.did}}",
        "collection": "app.bsky.actor.profile",
        "rkey": "self",
        "record": record,
    }
    await pair.post(f"profile {text}", "com.atproto.repo.putRecord", body, auth=name)


async def write_post(pair: Pair, name: str, key: str, record: dict[str, Any]) -> None:
    """Write a post, and keep its URI and CID under `key`."""
    body = {"repo": f"{{{name}.did}}", "collection": "app.bsky.feed.post", "record": record}
    save = {f"{key}.uri": "uri", f"{key}.cid": "cid"}
    await pair.post(f"post {key}", "com.atproto.repo.createRecord", body, auth=name, save=save)
