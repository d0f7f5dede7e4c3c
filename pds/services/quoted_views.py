"""Views of what posts quote: from here when it lives here, else from the AppView.

A quote whose view is not to be had is shown as not found; that never fails the post. The AppView is
asked once for all posts and once for all feeds, once for each list, and has little time.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import AtUri, Did, InvalidSyntax, parse_at_uri
from pds.services.local_records import POST, LocalAuthor, LocalPost, LocalReader
from pds.services.local_views import ImageUrls, JsonMap, ViewMaker, quoted_uri
from pds.services.proxy import Proxy, ProxyTarget
from pds.store.engine import Engine, Txn

GENERATOR: Final = "app.bsky.feed.generator"
LIST: Final = "app.bsky.graph.list"
MAX_LISTS: Final = 3
ASK_TIMEOUT_S: Final = 3.0

_KEPT_OF_POST: Final = (
    *("uri", "cid", "author", "labels", "indexedAt"),
    *("replyCount", "repostCount", "likeCount", "quoteCount"),
)


class QuotedViews:
    """Finds the views of quoted records."""

    def __init__(
        self, *, engine: Engine, reader: LocalReader, proxy: Proxy, urls: ImageUrls
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._proxy = proxy
        self._maker = ViewMaker(urls, {})

    async def find(
        self, posts: Iterable[LocalPost], *, asker: Did, target: ProxyTarget | None
    ) -> dict[str, Json]:
        """Return views by URI of what `posts` quote, as far as they are to be had."""
        uris = {uri for post in posts if (uri := quoted_uri(post)) is not None}
        if not uris:
            return {}
        found = await self._engine.read("quotes.local", self.read_local, uris)
        missing = uris - found.keys()
        if target is None or not missing:
            return found
        groups: dict[str, list[str]] = {}
        for uri in sorted(missing):
            parsed = _parse(uri)
            if parsed is not None and parsed.collection is not None:
                groups.setdefault(parsed.collection, []).append(uri)
        asked = [
            self._ask(target, asker, "app.bsky.feed.getPosts", "uris", groups.get(POST, [])),
            self._ask(
                target, asker, "app.bsky.feed.getFeedGenerators", "feeds", groups.get(GENERATOR, [])
            ),
            *(
                self._ask(target, asker, "app.bsky.graph.getList", "list", [uri])
                for uri in groups.get(LIST, [])[:MAX_LISTS]
            ),
        ]
        for answer in await asyncio.gather(*asked):
            for view in _views_of(answer):
                if isinstance(view.get("uri"), str) and view["uri"] in missing:
                    found[view["uri"]] = view
        return found

    def read_local(self, txn: Txn, uris: Iterable[str]) -> dict[str, Json]:
        """Return views of those posts that live here."""
        authors: dict[str, LocalAuthor | None] = {}
        posts = ((uri, self._reader.read_post(txn, uri, authors)) for uri in uris)
        return {uri: self._maker.quoted_post(post) for uri, post in posts if post is not None}

    async def _ask(
        self, target: ProxyTarget, asker: Did, nsid: str, name: str, uris: list[str]
    ) -> JsonMap:
        if not uris:
            return {}
        query = urlencode([(name, uri) for uri in uris])
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = orjson.loads(await self._proxy.ask(target, nsid, query, asker=asker))
        except (RequestError, TimeoutError, ValueError):
            return {}  # What is not to be had is shown as not found.
        return answer if isinstance(answer, dict) else {}


def _views_of(answer: JsonMap) -> Iterable[JsonMap]:
    """Yield what can stand in a quote; whoever uses it checks the whole against the lexicon."""
    for post in _maps(answer.get("posts")):
        view: JsonMap = {name: post[name] for name in _KEPT_OF_POST if name in post}
        view |= {"$type": "app.bsky.embed.record#viewRecord", "value": post.get("record")}
        if "embed" in post:
            view["embeds"] = [post["embed"]]
        yield view
    for feed in _maps(answer.get("feeds")):
        yield feed | {"$type": "app.bsky.feed.defs#generatorView"}
    for entry in _maps([answer.get("list")]):
        yield entry | {"$type": "app.bsky.graph.defs#listView"}


def _maps(value: Any) -> list[JsonMap]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _parse(uri: str) -> AtUri | None:
    try:
        return parse_at_uri(uri)
    except InvalidSyntax:
        return None
