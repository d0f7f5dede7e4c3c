"""Views of the network: asked of an AppView, brought up to date, or made here when there is none.

For the six views (`read_after_write_patches.PATCHES`):

* normally the AppView's answer is passed on, patched with what the caller wrote since;
* a thread that the AppView cannot find, around the caller's own post that it has not seen, is made
  here;
* without an AppView (none configured, or the account wants none) all six are made here;
* when the AppView gives no answer (unreachable, a 5xx, nonsense), those are made here that show
  accounts of this host: profiles, author feeds, threads. Not the timeline and not likes, which a
  client would take for the whole.

Answers made here carry `X-Freehold-View: local`. The rule is published in
docs/explain/independence.md. Beside that: the tokens of feeds (`open_feed`) and the address for
push notifications (`send_to_notifier`).
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import orjson

from pds.errors import NotResolvable, RemoteError, RequestError
from pds.protocol.data import Json
from pds.protocol.diddoc import parse_origin
from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.syntax import Did, parse_at_uri, parse_did
from pds.services.local_answers import CURSOR_PREFIX, LocalAnswers
from pds.services.local_records import parse_post_uri
from pds.services.principal import Principal
from pds.services.proxy import (
    APPVIEW_ID,
    MAX_ASKED_BYTES,
    NoService,
    ProxiedCall,
    Proxy,
    ProxyTarget,
    TokenFor,
)
from pds.services.proxy_answers import ProxiedAnswer, UpstreamError
from pds.services.read_after_write import JSON, ReadAfterWrite, ViewAnswer
from pds.services.resolving import DidDocuments

THREAD: Final = "app.bsky.feed.getPostThread"
PROFILES: Final = "app.bsky.actor.getProfiles"
WHEN_DOWN: Final = frozenset(
    {"app.bsky.actor.getProfile", PROFILES, "app.bsky.feed.getAuthorFeed", THREAD}
)
"""Views that are made here when the AppView gives no answer."""
LOCAL_HEADERS: Final[Mapping[str, str]] = {"content-type": JSON, "X-Freehold-View": "local"}

SKELETON: Final = "app.bsky.feed.getFeedSkeleton"
GENERATOR: Final = "app.bsky.feed.generator"
MAX_FEEDS: Final = 1000
FEED_TTL_S: Final = 300.0
"""How long the DID behind a feed is remembered: it hardly ever changes, and every page asks."""

NOTIFIER_ID: Final = "bsky_notif"
NOTIFIER_TYPE: Final = "BskyNotificationService"

View: TypeAlias = "ProxiedAnswer | ViewAnswer"


class AppViews:
    """Answers the app.bsky methods that are more than passed on."""

    def __init__(
        self,
        *,
        proxy: Proxy,
        documents: DidDocuments,
        catalog: Catalog,
        read_after_write: ReadAfterWrite,
        local: LocalAnswers,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxy = proxy
        self._documents = documents
        self._catalog = catalog
        self._read_after_write = read_after_write
        self._local = local
        self._monotonic = monotonic
        self._feeds: OrderedDict[str, tuple[Did, float]] = OrderedDict()

    # The six views

    @asynccontextmanager
    async def open_view(
        self, principal: Principal, call: ProxiedCall, params: Mapping[str, Any]
    ) -> AsyncIterator[View]:
        """Hand over the answer of one of the six views: the AppView's to send on, or one of ours.

        Raises: RequestError; UpstreamError.
        """
        did = self._proxy.check_permission(principal, call.nsid)
        async with AsyncExitStack() as stack:
            try:
                answer = await self._ask(stack, principal, call, params)
            except NoService as missing:
                answer = await self._without_appview(did, call.nsid, params, missing)
            except UpstreamError as refusal:
                answer = await self._instead_of(refusal, principal, call, params)
            yield answer

    async def _ask(
        self,
        stack: AsyncExitStack,
        principal: Principal,
        call: ProxiedCall,
        params: Mapping[str, Any],
    ) -> View:
        header = call.headers.get("atproto-proxy")
        if str(params.get("cursor", "")).startswith(CURSOR_PREFIX):
            raise NoService(call.nsid)  # A page that was begun here is continued here.
        target = await self._proxy.find_target(call.nsid, header, aid=principal.aid)
        answer = await stack.enter_async_context(
            self._proxy.forward(principal, call, target=target)
        )
        if call.method == "HEAD":
            return answer
        patched = await self._read_after_write.patch(principal, call.nsid, params, answer, target)
        return patched or answer

    async def _without_appview(
        self, did: Did, nsid: str, params: Mapping[str, Any], missing: NoService
    ) -> ViewAnswer:
        value = await self._local.answer(nsid, did, params)
        if value is not None:
            return _local_answer(value)
        if nsid == THREAD:
            raise RequestError("NotFound", f"Post not found: {params['uri']}") from missing
        raise RequestError("InvalidRequest", "Profile not found") from missing

    async def _instead_of(
        self,
        refusal: UpstreamError,
        principal: Principal,
        call: ProxiedCall,
        params: Mapping[str, Any],
    ) -> ViewAnswer:
        """Return an answer of ours in place of an error of the AppView's, or raise that."""
        if call.nsid == THREAD and refusal.name == "NotFound":
            thread = await self._own_thread(principal, call, params, refusal.repo_rev)
            if thread is not None:
                return thread
        did, header = principal.did, call.headers.get("atproto-proxy")
        is_for_appview = header is None or header.endswith(f"#{APPVIEW_ID}")
        is_replaceable = call.nsid in WHEN_DOWN and is_for_appview and not params.get("cursor")
        if not refusal.is_outage or not is_replaceable or did is None:
            raise refusal
        value = await self._local.answer(call.nsid, did, params)
        if value is None or (
            call.nsid == PROFILES and len(value["profiles"]) < len(params["actors"])
        ):
            raise refusal
        return _local_answer(value)

    async def _own_thread(
        self,
        principal: Principal,
        call: ProxiedCall,
        params: Mapping[str, Any],
        rev: str | None,
    ) -> ViewAnswer | None:
        """Return the thread around a post of the caller's that the AppView has not seen."""
        unseen = await self._read_after_write.find_unseen(principal, rev)
        uri = parse_post_uri(params["uri"])
        if unseen is None or uri is None:
            return None
        if uri.authority not in (unseen.author.did, unseen.author.handle):
            return None
        own = f"at://{unseen.author.did}/{uri.collection}/{uri.rkey}"
        if all(post.record.uri != own for post in unseen.posts):
            return None
        found = await self._local.thread(unseen.author.did, own, params, is_unseen=True)
        if found is None:
            return None
        left = params["parentHeight"] - len(found.posts)
        if found.above is not None and left > 0:
            above = await self._ask_for_parents(principal, call, found.above, left)
            if above is not None:
                found.top["parent"] = above
                if not self._is_valid(THREAD, {"thread": found.thread}):
                    del found.top["parent"]
        headers = {**LOCAL_HEADERS, **self._read_after_write.lag(unseen)}
        return ViewAnswer(orjson.dumps({"thread": found.thread}), headers)

    async def _ask_for_parents(
        self, principal: Principal, call: ProxiedCall, uri: str, height: int
    ) -> Json:
        """Return the AppView's thread above a post; None when it is not to be had."""
        query = urlencode({"uri": uri, "parentHeight": height - 1, "depth": 0})
        header = call.headers.get("atproto-proxy")
        try:
            target = await self._proxy.find_target(THREAD, header, aid=principal.aid)
            content = await self._proxy.ask(target, THREAD, query, asker=principal.did)
            answer = orjson.loads(content)
        except (RequestError, ValueError):
            return None  # The thread is shown without what is above.
        thread: Json = answer.get("thread") if isinstance(answer, dict) else None
        return thread

    def _is_valid(self, nsid: str, value: Json) -> bool:
        method = self._catalog.method(nsid)
        try:
            if method is not None:
                method.check_output(value)
            orjson.dumps(value)
        except (LexiconError, TypeError):  # The latter: nested more deeply than can be written.
            return False
        return method is not None

    # Feeds

    @asynccontextmanager
    async def open_feed(
        self, principal: Principal, call: ProxiedCall, feed: str
    ) -> AsyncIterator[ProxiedAnswer]:
        """Hand over the AppView's page of a feed.

        The AppView passes our token on to the feed generator, so it is made for that one.
        Raises: RequestError `UnknownFeed`; UpstreamError.
        """
        self._proxy.check_permission(principal, call.nsid)
        header = call.headers.get("atproto-proxy")
        target = await self._proxy.find_target(call.nsid, header, aid=principal.aid)
        token_for = TokenFor(await self._find_generator(feed, target), SKELETON)
        async with self._proxy.forward(
            principal, call, target=target, token_for=token_for
        ) as answer:
            yield answer

    async def _find_generator(self, feed: str, target: ProxyTarget) -> Did:
        """Return the DID of the service behind a feed, as its record says."""
        key = f"{target.name} {feed}"
        known = self._feeds.get(key)
        if known is not None and known[1] > self._monotonic():
            return known[0]
        uri = parse_at_uri(feed)  # The lexicon has checked it.
        unknown = RequestError("UnknownFeed", "could not resolve feed did")
        if uri.collection is None or uri.rkey is None:
            raise unknown
        query = {"repo": uri.authority, "collection": uri.collection, "rkey": uri.rkey}
        try:
            content = await self._proxy.ask(target, "com.atproto.repo.getRecord", urlencode(query))
            did = parse_did(orjson.loads(content)["value"]["did"])
        except UpstreamError as error:
            if error.is_outage:
                raise
            raise unknown from error
        except (ValueError, KeyError, TypeError) as error:
            raise unknown from error
        self._feeds[key] = (did, self._monotonic() + FEED_TTL_S)
        while len(self._feeds) > MAX_FEEDS:
            self._feeds.popitem(last=False)
        return did

    # Push notifications

    async def send_to_notifier(
        self, principal: Principal, call: ProxiedCall, service_did: str
    ) -> None:
        """Pass a registration for push notifications on to the service that it names.

        Raises: RequestError `InvalidRequest` when there is no such service; UpstreamError.
        """
        self._proxy.check_permission(principal, call.nsid)
        target = await self._find_notifier(Did(service_did))
        token_for = TokenFor(service_did, call.nsid)
        async with self._proxy.forward(
            principal, call, target=target, token_for=token_for
        ) as answer:
            await answer.read(MAX_ASKED_BYTES)

    async def _find_notifier(self, did: Did) -> ProxyTarget:
        appview = self._proxy.appview
        if appview is not None and appview.did == did:
            return appview
        try:
            document = await self._documents.resolve_did(did)
        except NotResolvable as error:
            raise RequestError(
                "InvalidRequest", f"could not resolve did document: {did}"
            ) from error
        except RemoteError as error:
            raise UpstreamError(
                "UpstreamFailure",
                f"could not resolve did document: {did}",
                502,
                is_outage=True,
            ) from error
        service = document.service(NOTIFIER_ID)
        url = parse_origin(service.endpoint) if service is not None else None
        if service is None or service.type != NOTIFIER_TYPE or url is None:
            raise RequestError(
                "InvalidRequest",
                f"invalid notification service details in did document: {did}",
            )
        return ProxyTarget(did, NOTIFIER_ID, url, is_configured=False)


def _local_answer(value: Json) -> ViewAnswer:
    return ViewAnswer(orjson.dumps(value), LOCAL_HEADERS)
