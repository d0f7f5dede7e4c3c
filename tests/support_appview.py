"""A server between people and an AppView that misbehaves, for tests of app.bsky methods."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from pds.config import Config
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.syntax import Did
from pds.services.lexicons import load_catalog
from tests.fakes.appview import APPVIEW_DID, FakeAppview, running_appview
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Person, sign_up

PROFILE = "app.bsky.actor.getProfile"
PROFILES = "app.bsky.actor.getProfiles"
AUTHOR_FEED = "app.bsky.feed.getAuthorFeed"
LIKES = "app.bsky.feed.getActorLikes"
THREAD = "app.bsky.feed.getPostThread"
TIMELINE = "app.bsky.feed.getTimeline"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
MODERATOR = Did("did:web:mod.example.com")
CATALOG = load_catalog()


@dataclass
class Stage:
    """A server, its AppView, and two people."""

    host: Host
    appview: FakeAppview
    alice: Person
    bob: Person

    def key(self, person: Person) -> str:
        state = self.host.plc.get_state(person.did)
        assert state is not None
        return state.verification_methods["atproto"]

    async def index(self) -> None:
        for person in (self.alice, self.bob):
            await self.appview.index(person, self.key(person))

    async def ask(
        self, nsid: str, person: Person | None = None, *, verb: str = "GET", **options: Any
    ) -> tuple[int, Any, Any]:
        """Return status, JSON (held against the lexicon when it is an answer), and headers."""
        client = (person or self.alice).client
        headers = {"Authorization": f"Bearer {client.token}", **options.pop("headers", {})}
        url = f"{client.url}/xrpc/{nsid}"
        async with client.http.request(verb, url, headers=headers, **options) as answer:
            content = await answer.read()
            body = orjson.loads(content) if content else None
            method = CATALOG.method(nsid)
            if answer.status == 200 and method is not None and verb == "GET":
                method.check_output(body)
            return answer.status, body, answer.headers

    async def view(self, nsid: str, person: Person | None = None, **params: Any) -> Any:
        status, body, _ = await self.ask(nsid, person, params=params)
        assert status == 200, body
        return body

    async def refused(self, nsid: str, person: Person | None = None, **params: Any) -> Any:
        status, body, _ = await self.ask(nsid, person, params=params)
        assert status >= 400, body
        return status, body["error"]


def settings(appview: FakeAppview | None) -> Any:
    def change(config: Config) -> Config:
        federation = replace(
            config.federation,
            appview_url=None if appview is None else appview.url,
            appview_did=None if appview is None else APPVIEW_DID,
            mod_service_did=MODERATOR,
            mod_service_url="http://127.0.0.1:9",
        )
        outbound = replace(config.outbound, proxy_headers_timeout_s=0.5, proxy_body_timeout_s=0.4)
        return replace(config, federation=federation, outbound=outbound)

    return change


async def set_stage(stack: AsyncExitStack, folder: Path, *, with_appview: bool) -> Stage:
    appview = await stack.enter_async_context(running_appview())
    change = settings(appview if with_appview else None)
    host = await stack.enter_async_context(host_in(folder, change=change))
    alice = await sign_up(host.client, "alice.test")
    bob = await sign_up(host.client, "bob.test")
    return Stage(host, appview, alice, bob)


async def put_profile(person: Person, **fields: Any) -> None:
    await person.client.post(
        "com.atproto.repo.putRecord",
        repo=person.did,
        collection="app.bsky.actor.profile",
        rkey="self",
        record={"$type": "app.bsky.actor.profile", **fields},
    )


def ref(made: Any) -> dict[str, str]:
    return {"uri": made["uri"], "cid": made["cid"]}


def reply_to(parent: Any, root: Any = None) -> dict[str, Any]:
    return {"reply": {"root": ref(root or parent), "parent": ref(parent)}}


def uris(answer: Any) -> list[str]:
    return [item["post"]["uri"] for item in answer["feed"]]


def give_document(stage: Stage, did: Did, document: dict[str, Any]) -> None:
    """Let the server find a DID document without a network."""
    resolver: Any = stage.host.server.services.app_views._documents
    real = resolver.resolve_did

    async def resolve_did(wanted: Did, *, refresh: bool = False) -> DidDocument:
        if wanted == did:
            return parse_did_document(document, did)
        found: DidDocument = await real(wanted, refresh=refresh)
        return found

    resolver.resolve_did = resolve_did
