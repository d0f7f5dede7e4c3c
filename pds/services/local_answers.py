"""The six views answered from this host alone, for when there is no AppView to ask.

Shown is what lives here: profiles and posts of active accounts of this host, the caller's own likes
of such posts. What only an AppView has is missing: counts of likes and replies, posts and replies
of other hosts, reposts, other people's labels; the timeline holds the caller's own posts. Blocks
between accounts of this host hold, and what was taken down stays hidden.

Cursors begin with `local:`, so that a page that was begun here is continued here.

The rule when this happens is in `app_views`, and published in docs/explain/independence.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from pds.errors import RequestError
from pds.protocol.cbor import decode_json
from pds.protocol.syntax import Did
from pds.services.local_records import POST, LocalAuthor, LocalPost, LocalReader
from pds.services.local_views import ImageUrls, JsonMap, ViewMaker, fits_filter, quoted_uri
from pds.services.quoted_views import QuotedViews
from pds.services.read_after_write_patches import add_reply
from pds.store.engine import Engine, Txn
from pds.store.newest_records import count_collection, list_newest_records
from pds.store.records import find_backlinks

CURSOR_PREFIX: Final = "local:"
FOLLOW: Final = "app.bsky.graph.follow"
BLOCK: Final = "app.bsky.graph.block"
LIKE: Final = "app.bsky.feed.like"
MAX_SCANNED: Final = 200
"""Posts looked at for one page of a feed under a filter; the page may be short then."""
MAX_REPLY_SCAN: Final = 100
"""Among so many of the newest posts of an account replies are sought: there is no index."""
MAX_PARENTS: Final = 80

Job = Callable[[Txn, Did, Mapping[str, Any]], JsonMap | None]


@dataclass(slots=True)
class LocalThread:
    """A thread as far as it lives here.

    `top` is the highest post of it, and `above` the URI of that post's parent, if it has one.
    """

    thread: JsonMap
    top: JsonMap
    above: str | None
    posts: list[LocalPost] = field(default_factory=list)


class LocalAnswers:
    """Builds answers for callers out of the records of this host."""

    def __init__(
        self, *, engine: Engine, reader: LocalReader, quoted: QuotedViews, urls: ImageUrls
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._quoted = quoted
        self._urls = urls
        self._jobs: Mapping[str, Job] = {
            "app.bsky.actor.getProfile": self._profile,
            "app.bsky.actor.getProfiles": self._profiles,
            "app.bsky.feed.getAuthorFeed": self._author_feed,
            "app.bsky.feed.getActorLikes": self._likes,
            "app.bsky.feed.getPostThread": self._post_thread,
            "app.bsky.feed.getTimeline": self._timeline,
        }

    async def answer(self, nsid: str, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        """Return an answer; None when nothing of what was asked for lives here.

        Raises: RequestError `BlockedActor`, `BlockedByActor`, `InvalidRequest`.
        """
        return await self._engine.read("view.local", self._jobs[nsid], viewer, params)

    async def thread(
        self, viewer: Did, uri: str, params: Mapping[str, Any], *, is_unseen: bool
    ) -> LocalThread | None:
        """Return the thread around a post of this host."""
        return await self._engine.read(
            "view.thread", self._read_thread, viewer, uri, params, is_unseen
        )

    # Profiles

    def _profile(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        author = self._reader.read_author(txn, params["actor"])
        return None if author is None else self._show_profile(txn, viewer, author)

    def _profiles(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        found = [self._reader.read_author(txn, actor) for actor in params["actors"]]
        return {
            "profiles": [
                self._show_profile(txn, viewer, author) for author in found if author is not None
            ]
        }

    def _show_profile(self, txn: Txn, viewer: Did, author: LocalAuthor) -> JsonMap:
        view = ViewMaker(self._urls, {}).profile_detailed(author)
        view["followsCount"] = count_collection(txn, author.repo_id, FOLLOW)
        view["postsCount"] = count_collection(txn, author.repo_id, POST)
        if viewer != author.did:
            view["viewer"] = self._relation(txn, viewer, author)
        return view

    def _relation(self, txn: Txn, viewer: Did, author: LocalAuthor) -> JsonMap:
        """Return what two accounts of this host have to do with each other."""
        me = self._reader.read_author(txn, viewer)
        state: JsonMap = {"muted": False, "blockedBy": False}
        if me is not None:
            state["blockedBy"] = _link(txn, author, BLOCK, me) is not None
            for name, source, collection, subject in (
                ("blocking", me, BLOCK, author),
                ("following", me, FOLLOW, author),
                ("followedBy", author, FOLLOW, me),
            ):
                uri = _link(txn, source, collection, subject)
                if uri is not None:
                    state[name] = uri
        return state

    # Feeds

    def _author_feed(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        author = self._reader.read_author(txn, params["actor"])
        if author is None:
            return None
        relation = self._relation(txn, viewer, author)
        if "blocking" in relation:
            raise RequestError("BlockedActor", f"Requester has blocked actor: {author.did}")
        if relation["blockedBy"]:
            raise RequestError("BlockedByActor", f"Requester is blocked by actor: {author.did}")
        return self._feed_of(txn, author, params)

    def _timeline(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        author = self._reader.read_author(txn, viewer)
        return None if author is None else self._feed_of(txn, author, params)

    def _feed_of(self, txn: Txn, author: LocalAuthor, params: Mapping[str, Any]) -> JsonMap:
        limit, name = params["limit"], params.get("filter", "")
        before = _position(params)
        posts: list[LocalPost] = []
        seen: LocalPost | None = None
        for seen in self._reader.newest_posts(txn, author, before=before, limit=MAX_SCANNED):
            if fits_filter(seen, name):
                posts.append(seen)
            if len(posts) == limit:
                break
        # A page that ended early may go on; one that found all records has no cursor.
        is_cut = len(posts) == limit or (seen is not None and self._has_more(txn, author, seen))
        page = self._page(txn, posts)
        if seen is not None and is_cut:
            page["cursor"] = CURSOR_PREFIX + seen.record.rkey
        return page

    def _has_more(self, txn: Txn, author: LocalAuthor, last: LocalPost) -> bool:
        rkey = last.record.rkey
        return bool(list_newest_records(txn, author.repo_id, POST, before=rkey, limit=1))

    def _likes(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        author = self._reader.read_author(txn, params["actor"])
        if author is None or author.did != viewer:
            return None  # Likes are shown to who gave them.
        page = list_newest_records(
            txn, author.repo_id, LIKE, before=_position(params), limit=params["limit"]
        )
        authors: dict[str, LocalAuthor | None] = {author.did: author}
        posts = []
        for stored in page:
            value: Any = decode_json(stored.block)
            subject = value.get("subject")
            uri = subject.get("uri") if isinstance(subject, dict) else None
            post = self._reader.read_post(txn, uri, authors) if isinstance(uri, str) else None
            if post is not None:
                posts.append(post)
        answer = self._page(txn, posts)
        if len(page) == params["limit"]:
            answer["cursor"] = CURSOR_PREFIX + page[-1].path.split("/", 1)[1]
        return answer

    def _page(self, txn: Txn, posts: Iterable[LocalPost]) -> JsonMap:
        found = list(posts)
        maker = self._maker(txn, found)
        return {"feed": [maker.feed_item(post) for post in found]}

    # Threads

    def _post_thread(self, txn: Txn, viewer: Did, params: Mapping[str, Any]) -> JsonMap | None:
        found = self._read_thread(txn, viewer, params["uri"], params, False)
        if found is None:
            return None
        if found.above is not None and params["parentHeight"] > len(found.posts):
            found.top["parent"] = {
                "$type": "app.bsky.feed.defs#notFoundPost",
                "uri": found.above,
                "notFound": True,
            }
        return {"thread": found.thread}

    def _read_thread(
        self, txn: Txn, viewer: Did, uri: str, params: Mapping[str, Any], is_unseen: bool
    ) -> LocalThread | None:
        authors: dict[str, LocalAuthor | None] = {}
        post = self._reader.read_post(txn, uri, authors)
        if post is None:
            return None
        relation = self._relation(txn, viewer, post.author)
        if "blocking" in relation or relation["blockedBy"]:
            blocked = {
                "$type": "app.bsky.feed.defs#blockedPost",
                "uri": post.record.uri,
                "blocked": True,
                "author": {"did": post.author.did, "viewer": relation},
            }
            return LocalThread(blocked, blocked, None)
        parents = self._parents(txn, post, authors, min(params["parentHeight"], MAX_PARENTS))
        replies = self._replies(txn, viewer, post) if params["depth"] > 0 else []
        maker = self._maker(txn, [post, *parents, *replies], is_unseen=is_unseen)
        thread = maker.thread_post(post)
        for reply in replies:
            thread = add_reply(thread, reply, maker)
        top = thread
        for parent in parents:
            top["parent"] = maker.thread_post(parent)
            top = top["parent"]
        above = _parent_uri(parents[-1] if parents else post)
        return LocalThread(thread, top, above, parents)

    def _parents(
        self, txn: Txn, post: LocalPost, authors: dict[str, LocalAuthor | None], limit: int
    ) -> list[LocalPost]:
        """Return the posts above, from below, as far as they live here."""
        parents: list[LocalPost] = []
        shown = {post.record.uri}
        while len(parents) < limit:
            uri = _parent_uri(parents[-1] if parents else post)
            parent = None if uri is None else self._reader.read_post(txn, uri, authors)
            if parent is None or parent.record.uri in shown:
                break
            shown.add(parent.record.uri)
            parents.append(parent)
        return parents

    def _replies(self, txn: Txn, viewer: Did, post: LocalPost) -> list[LocalPost]:
        """Return replies in a thread by its author and by the caller, oldest first."""
        reply = post.record.value.get("reply")
        root = reply["root"]["uri"] if reply is not None else post.record.uri
        found: dict[str, LocalPost] = {}
        for did in {post.author.did, viewer}:
            author = self._reader.read_author(txn, did)
            if author is None:
                continue
            newest = self._reader.newest_posts(txn, author, limit=MAX_REPLY_SCAN)
            for other in islice(newest, MAX_REPLY_SCAN):
                above = other.record.value.get("reply")
                if above is not None and above["root"]["uri"] == root:
                    found[other.record.uri] = other
        found.pop(post.record.uri, None)
        return sorted(found.values(), key=lambda other: (other.record.at_us, other.record.uri))

    def _maker(self, txn: Txn, posts: Iterable[LocalPost], *, is_unseen: bool = False) -> ViewMaker:
        uris = {uri for post in posts if (uri := quoted_uri(post)) is not None}
        quoted = self._quoted.read_local(txn, uris)
        return ViewMaker(self._urls, quoted, is_unseen=is_unseen, has_videos=True)


def _parent_uri(post: LocalPost) -> str | None:
    reply = post.record.value.get("reply")
    if reply is None:
        return None
    uri: str = reply["parent"]["uri"]
    return uri


def _link(txn: Txn, source: LocalAuthor, collection: str, subject: LocalAuthor) -> str | None:
    """Return the URI of the record by which `source` follows or blocks `subject`."""
    paths = find_backlinks(txn, source.repo_id, collection, subject.did, limit=1)
    return f"at://{source.did}/{paths[0]}" if paths else None


def _position(params: Mapping[str, Any]) -> str | None:
    """Return the record key behind which a page begins.

    Raises: RequestError for a cursor of somebody else.
    """
    cursor = params.get("cursor")
    if not cursor:
        return None
    if not cursor.startswith(CURSOR_PREFIX):
        raise RequestError("InvalidRequest", "This cursor cannot be continued here")
    return str(cursor[len(CURSOR_PREFIX) :])
