"""What read-after-write changes in the answer of each of the six views.

Pure. A patch is two functions: which of the unseen posts have a place in this answer, and the
answer with them. Answers were held against their lexicons before; posts that an answer has already
are never added again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pds.services.local_records import LocalAuthor, LocalPost, Unseen
from pds.services.local_views import JsonMap, ViewMaker, fits_filter

THREAD_POST: Final = "app.bsky.feed.defs#threadViewPost"
PIN: Final = "app.bsky.feed.defs#reasonPin"
AUTHOR_FEED: Final = "app.bsky.feed.getAuthorFeed"
MAX_DEPTH: Final = 100
"""How deep a thread is searched for the parents of replies."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)

Posts = tuple[LocalPost, ...]


@dataclass(frozen=True, slots=True)
class Local:
    """What is put into an answer; `posts` are oldest first."""

    author: LocalAuthor
    is_profile_new: bool
    posts: Posts
    maker: ViewMaker


@dataclass(frozen=True, slots=True)
class Patch:
    """How the answers of one method are changed."""

    choose: Callable[[JsonMap, Unseen, Mapping[str, Any]], Posts]
    change: Callable[[JsonMap, Local], JsonMap]
    takes_posts: bool


def is_of_interest(nsid: str, params: Mapping[str, Any], unseen: Unseen) -> bool:
    """Whether an answer could change at all, judged without its body.

    Later pages of a feed are never added to: what is new was on the first.
    """
    if unseen.is_profile_new:
        return True
    if not PATCHES[nsid].takes_posts or not unseen.posts or params.get("cursor"):
        return False
    return nsid != AUTHOR_FEED or _is_own(params, unseen.author)


def _is_own(params: Mapping[str, Any], author: LocalAuthor) -> bool:
    actor = str(params.get("actor", ""))
    return actor == author.did or actor.lower() == author.handle


# Which posts


def _no_posts(value: JsonMap, unseen: Unseen, params: Mapping[str, Any]) -> Posts:
    return ()


def _posts_of_author_feed(value: JsonMap, unseen: Unseen, params: Mapping[str, Any]) -> Posts:
    if not _is_own(params, unseen.author):
        return ()
    name = str(params.get("filter", ""))
    return tuple(post for post in _posts_of_feed(value, unseen, params) if fits_filter(post, name))


def _posts_of_feed(value: JsonMap, unseen: Unseen, params: Mapping[str, Any]) -> Posts:
    """Return posts that are not on this page and are newer than its end."""
    if params.get("cursor"):
        return ()
    feed = value["feed"]
    shown = {item["post"]["uri"] for item in feed}
    end = _instant(feed[-1]["post"]["indexedAt"]) if feed else _EPOCH
    return tuple(
        post
        for post in unseen.posts
        if post.record.uri not in shown and _instant(post.record.indexed_at) > end
    )


def _posts_of_thread(value: JsonMap, unseen: Unseen, params: Mapping[str, Any]) -> Posts:
    thread = value["thread"]
    if thread.get("$type") != THREAD_POST:
        return ()
    uri = thread["post"]["uri"]
    root = _root_of(thread["post"].get("record"))
    return tuple(
        post for post in unseen.posts if _root_of(post.record.value) in {uri, root} - {None}
    )


def _root_of(record: Any) -> str | None:
    reply = record.get("reply") if isinstance(record, dict) else None
    root = reply.get("root") if isinstance(reply, dict) else None
    uri = root.get("uri") if isinstance(root, dict) else None
    return uri if isinstance(uri, str) else None


# What changes


def _patch_profile(value: JsonMap, local: Local) -> JsonMap:
    if value["did"] != local.author.did:
        return value
    return local.maker.patch_detailed(value, local.author)


def _patch_profiles(value: JsonMap, local: Local) -> JsonMap:
    return value | {"profiles": [_patch_profile(view, local) for view in value["profiles"]]}


def _patch_feed(value: JsonMap, local: Local) -> JsonMap:
    feed = [_with_author(item, local) for item in value["feed"]]
    for post in local.posts:
        feed.insert(_place_of(post, feed), local.maker.feed_item(post))
    return value | {"feed": feed}


def _place_of(post: LocalPost, feed: list[JsonMap]) -> int:
    """Return the place before the first older post; what is pinned stays on top."""
    at = _instant(post.record.indexed_at)
    for place, item in enumerate(feed):
        is_pinned = item.get("reason", {}).get("$type") == PIN
        if not is_pinned and _instant(item["post"]["indexedAt"]) < at:
            return place
    return len(feed)


def _with_author(item: JsonMap, local: Local) -> JsonMap:
    """Return a feed item or thread post whose author looks as the newest profile says."""
    post = item["post"]
    if not local.is_profile_new or post["author"]["did"] != local.author.did:
        return item
    author = local.maker.patch_basic(post["author"], local.author)
    return item | {"post": post | {"author": author}}


def _patch_thread(value: JsonMap, local: Local) -> JsonMap:
    thread = value["thread"]
    if thread.get("$type") != THREAD_POST:
        return value
    thread = _patch_thread_post(thread, local, 0)
    for post in local.posts:
        thread = add_reply(thread, post, local.maker)
    return value | {"thread": thread}


def _patch_thread_post(view: JsonMap, local: Local, depth: int) -> JsonMap:
    """Return a thread post with the newest profile, and what is below it too."""
    view = _with_author(view, local)
    if not local.is_profile_new or depth > MAX_DEPTH or "replies" not in view:
        return view
    return view | {
        "replies": [
            _patch_thread_post(reply, local, depth + 1)
            if reply.get("$type") == THREAD_POST
            else reply
            for reply in view["replies"]
        ]
    }


def add_reply(view: JsonMap, post: LocalPost, maker: ViewMaker, depth: int = 0) -> JsonMap:
    """Return a thread with a post under its parent, if that is in it."""
    replies: list[JsonMap] = view.get("replies", [])
    if post.record.value["reply"]["parent"]["uri"] == view["post"]["uri"]:
        shown = {_uri_of(reply) for reply in replies}
        if post.record.uri in shown:
            return view
        return view | {"replies": [maker.thread_post(post), *replies]}
    if depth > MAX_DEPTH or not replies:
        return view
    return view | {
        "replies": [
            add_reply(reply, post, maker, depth + 1) if reply.get("$type") == THREAD_POST else reply
            for reply in replies
        ]
    }


def _uri_of(view: JsonMap) -> Any:
    return view["post"]["uri"] if "post" in view else view.get("uri")


def _instant(text: str) -> datetime:
    """Return an instant of an answer; the few forms that Python cannot read count as the oldest."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return _EPOCH
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


PATCHES: Final[Mapping[str, Patch]] = {
    "app.bsky.actor.getProfile": Patch(_no_posts, _patch_profile, takes_posts=False),
    "app.bsky.actor.getProfiles": Patch(_no_posts, _patch_profiles, takes_posts=False),
    AUTHOR_FEED: Patch(_posts_of_author_feed, _patch_feed, takes_posts=True),
    "app.bsky.feed.getActorLikes": Patch(_no_posts, _patch_feed, takes_posts=False),
    "app.bsky.feed.getPostThread": Patch(_posts_of_thread, _patch_thread, takes_posts=True),
    "app.bsky.feed.getTimeline": Patch(_posts_of_feed, _patch_feed, takes_posts=True),
}
"""The six views."""
