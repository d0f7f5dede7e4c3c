"""An AppView on loopback, as unkind as a real one: it lags, fails, stalls, and sends rubbish.

It knows what `index` has read from the server under test, and nothing newer; the rev of that moment
goes out as `atproto-repo-rev`. Every call but `com.atproto.repo.getRecord` must carry a service
token that is good in all respects. `mood` says how it behaves.
"""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from pds.protocol.keys import parse_did_key
from pds.protocol.service_auth import (
    ServiceAuthError,
    check_service_token,
    parse_service_token,
    verify_service_signature,
)
from pds.protocol.syntax import Did
from tests.support_client import Person

APPVIEW_DID = Did("did:web:appview.example")
POST = "app.bsky.feed.post"
FEED = "app.bsky.feed.defs#"
SIZE = 11 * 1024 * 1024


@dataclass
class Asked:
    """One call that was answered, and what its token said."""

    verb: str
    nsid: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    iss: str | None = None
    aud: str | None = None
    lxm: str | None = None


@dataclass
class FakeAppview:
    """What it knows, what it was asked, and how it behaves."""

    mood: str = "good"
    url: str = ""
    did: str = APPVIEW_DID
    asked: list[Asked] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    revs: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    posts: dict[str, dict[str, Any]] = field(default_factory=dict)
    feeds: dict[str, str] = field(default_factory=dict)
    audiences: set[str] = field(default_factory=set)
    send_rev: bool = True
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def index(self, person: Person, key: str) -> None:
        """Read all that an account has written so far, as after its last event."""
        did, client = person.did, person.client
        self.keys[did] = key
        commit = await client.get("com.atproto.sync.getLatestCommit", did=did)
        self.revs[did] = commit["rev"]
        profiles = await client.get(
            "com.atproto.repo.listRecords", repo=did, collection="app.bsky.actor.profile"
        )
        view = {"did": did, "handle": person.handle, "followersCount": 5}
        for record in profiles["records"]:
            view["displayName"] = record["value"].get("displayName", "")
            view["avatar"] = "https://cdn.example/old.jpg"
        self.profiles[did] = view
        page = await client.get("com.atproto.repo.listRecords", repo=did, collection=POST)
        for place, record in enumerate(page["records"]):
            self.posts[record["uri"]] = {
                "uri": record["uri"],
                "cid": record["cid"],
                "author": {name: view[name] for name in view if name != "followersCount"},
                "record": record["value"],
                "likeCount": 7,
                "indexedAt": f"2026-01-02T03:{50 - place:02}:05.000Z",
            }

    def calls(self, nsid: str) -> list[Asked]:
        """Return the calls of one method."""
        return [call for call in self.asked if call.nsid == nsid]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one call."""
        nsid = request.path.removeprefix("/xrpc/")
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Asked(request.method, nsid, dict(request.query), headers, await request.read())
        self.asked.append(call)
        if nsid != "com.atproto.repo.getRecord":
            refusal = self._check_token(call)
            if refusal is not None:
                return _error(401, "BadJwt", refusal)
        bad = await self._misbehave(request, nsid)
        if bad is not None:
            return bad
        answer = self._answer(call, request)
        rev = self.revs.get(call.iss or "")
        answer_headers = {"Atproto-Repo-Rev": rev} if rev and self.send_rev else {}
        answer_headers["Atproto-Content-Labelers"] = "did:web:labels.example"
        if answer is None:
            return _error(400, "NotFound", "not here", answer_headers)
        body = orjson.dumps(answer)
        if self.mood == "gzip" and "gzip" in headers.get("accept-encoding", ""):
            body = gzip.compress(body)
            answer_headers["Content-Encoding"] = "gzip"
        answer_headers["Content-Type"] = "application/json; charset=utf-8"
        return web.Response(body=body, headers=answer_headers)

    def _check_token(self, call: Asked) -> str | None:
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            parsed = parse_service_token(token)
            call.iss, call.aud, call.lxm = parsed.iss, parsed.aud, parsed.lxm
            for_feed = call.nsid == "app.bsky.feed.getFeed"
            check_service_token(
                parsed,
                audiences=frozenset({self.did, *self.audiences}),
                lxm="app.bsky.feed.getFeedSkeleton" if for_feed else call.nsid,
                now_s=int(time.time()),
            )
        except ServiceAuthError as error:
            return f"{error.name}: {error.message}"
        key = self.keys.get(parsed.iss)
        if key is not None and not verify_service_signature(parsed, parse_did_key(key)):
            return "wrong signature"
        return None

    async def _misbehave(self, request: web.BaseRequest, nsid: str) -> web.StreamResponse | None:
        rev = {"Atproto-Repo-Rev": "2222222222222", "Content-Type": "application/json"}
        if self.revs:
            rev["Atproto-Repo-Rev"] = next(iter(self.revs.values()))
        match self.mood:
            case "down" if request.transport is not None:
                request.transport.abort()
                return web.Response()
            case "error":
                return _error(500, "InternalServerError", "our database is gone")
            case "busy":
                return _error(503, "Busy", "later", {"Retry-After": "9"})
            case "redirect":
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
            case "silent":
                await self.release.wait()
                return web.Response()
            case "stalls" | "breaks":
                response = web.StreamResponse(headers=rev)
                await response.prepare(request)
                await response.write(b'{"feed": [')
                if self.mood == "breaks" and request.transport is not None:
                    request.transport.abort()
                await self.release.wait()
                return response
            case "huge":
                return web.Response(body=b" " * SIZE, headers=rev)
            case "bomb":
                packed = gzip.compress(b" " * SIZE)
                return web.Response(body=packed, headers=rev | {"Content-Encoding": "gzip"})
            case "no json":
                return web.Response(body=b'{"feed": [', headers=rev)
            case "html":
                return web.Response(body=b"<html>", headers=rev | {"Content-Type": "text/html"})
            case "wrong shape":
                return web.Response(body=b'{"feed":[{"post":{"uri":5}}],"did":7}', headers=rev)
            case "list":
                return web.Response(body=b"[]", headers=rev)
        return None

    def _answer(self, call: Asked, request: web.BaseRequest) -> Any:
        query = call.query
        match call.nsid.removeprefix("app.bsky."):
            case "actor.getProfile":
                return self.profiles.get(self._did(query["actor"]))
            case "actor.getProfiles":
                found = (self.profiles.get(self._did(a)) for a in request.query.getall("actors"))
                return {"profiles": [view for view in found if view is not None]}
            case "feed.getAuthorFeed":
                return {"feed": self._feed(self._did(query["actor"])), "cursor": "next"}
            case "feed.getActorLikes" | "feed.getFeed":
                return {"feed": self._feed(None)}
            case "feed.getTimeline":
                return {"feed": self._feed(None), "cursor": "next"}
            case "feed.getPosts":
                found = (self.posts.get(uri) for uri in request.query.getall("uris"))
                return {"posts": [view for view in found if view is not None]}
            case "feed.getPostThread":
                return self._thread(query["uri"])
            case "com.atproto.repo.getRecord":
                uri = f"at://{query['repo']}/{query['collection']}/{query['rkey']}"
                did = self.feeds.get(uri)
                return None if did is None else {"uri": uri, "value": {"did": did}}
        return {"echo": call.body.decode()}

    def _did(self, actor: str) -> str:
        return next((did for did, v in self.profiles.items() if v["handle"] == actor), actor)

    def _feed(self, did: str | None) -> list[Any]:
        posts = [p for p in self.posts.values() if did is None or p["author"]["did"] == did]
        posts.sort(key=lambda post: post["indexedAt"], reverse=True)
        return [{"post": post} for post in posts]

    def _thread(self, uri: str) -> Any:
        post = self.posts.get(uri)
        if post is None:
            return None
        replies = [
            {"$type": f"{FEED}threadViewPost", "post": other}
            for other in self.posts.values()
            if other["record"].get("reply", {}).get("parent", {}).get("uri") == uri
        ]
        view = {"$type": f"{FEED}threadViewPost", "post": post, "replies": replies}
        parent = post["record"].get("reply", {}).get("parent", {}).get("uri")
        above = None if parent is None else self._thread(parent)
        return {"thread": view | ({"parent": above["thread"]} if above else {})}


def _error(
    status: int, name: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.json_response({"error": name, "message": message}, status=status, headers=headers)


@asynccontextmanager
async def running_appview() -> AsyncIterator[FakeAppview]:
    """Run the AppView on a free loopback port."""
    fake = FakeAppview()
    loop = asyncio.get_running_loop()
    server = web.Server(fake.handle)  # type: ignore[arg-type]
    listener = await loop.create_server(server, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        fake.release.set()
        listener.close()
        await server.shutdown(0.2)
