"""Every method that is served answers well at least once, in the words of its lexicon.

The server itself holds its answers against the schemas here, and so does the client: the fields,
the media type, and that nothing comes where nothing is declared. A method without a good call in
this story fails the test, so that none can be added without one.

Spec: (LEX-85, LEX-86, LEX-100, XRPC-6)
"""

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pds.app import METHOD_TABLES
from pds.config import Config
from pds.identity.lexicon_names import LexiconAuthorities, NoLexiconAuthority
from pds.protocol.syntax import Did
from pds.services.lexicons import load_catalog
from pds.services.settings import LexiconPolicy
from tests.fakes.appview import APPVIEW_DID, FakeAppview, running_appview
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, XrpcError, sign_up

ADMIN = "com.atproto.admin."
IDENTITY = "com.atproto.identity."
REPO = "com.atproto.repo."
SERVER = "com.atproto.server."
SYNC = "com.atproto.sync."
TEMP = "com.atproto.temp."
POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
NOTE = "net.example.note"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
MOVER_PASSWORD = "another password of mallory"

NEVER_GOOD = {f"{TEMP}dereferenceScope": "InvalidScopeReference"}
"""Methods that refuse every call, and how: there is nothing that they could answer."""

CATALOG = load_catalog()


class CheckingClient(Client):
    """Holds every good answer against the lexicon, and notes which method gave it."""

    answered: set[str]

    @classmethod
    def make(cls, client: Client) -> "CheckingClient":
        made = cls(client.http, client.url, client.token)
        made.answered = set()
        return made

    def with_token(self, token: str | None) -> "CheckingClient":
        made = type(self)(self.http, self.url, token)
        made.answered = self.answered
        return made

    async def call(self, verb: str, nsid: str, **options: Any) -> Any:
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            scheme = "Basic" if self.token.startswith("YWRtaW46") else "Bearer"
            headers.setdefault("Authorization", f"{scheme} {self.token}")
        url = f"{self.url}/xrpc/{nsid}"
        async with self.http.request(verb, url, headers=headers, **options) as answer:
            content = await answer.read()
            is_json = answer.content_type == "application/json"
            if answer.status >= 300:
                raise XrpcError(answer.status, content, answer.headers)
            method = CATALOG.method(nsid)
            assert method is not None
            match method.output_encoding:
                case None:
                    assert content == b"", nsid
                case "application/json":
                    assert is_json, nsid
                    method.check_output(await answer.json())
                case "*/*":
                    assert content, nsid
                case encoding:
                    assert (answer.content_type, bool(content)) == (encoding, True), nsid
            self.answered.add(nsid)
            return await answer.json() if is_json else content


class Story:
    """A host with an AppView, and Alice, who does everything once."""

    def __init__(self, host: Host, appview: FakeAppview) -> None:
        self.host = host
        self.appview = appview
        self.client = CheckingClient.make(host.client)
        secret = base64.b64encode(f"admin:{host.admin_password}".encode()).decode()
        self.admin = self.client.with_token(secret)
        self.alice: Person
        self.authorities: dict[str, str] = {}
        """What DNS says about who defines an NSID."""

    async def code(self) -> str:
        """The code in the mail that came last."""
        await self.host.server.services.account_mails.settle()
        text = self.host.mailbox.received()[-1].mail.text
        found = re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", text)
        assert found is not None
        return found[0]

    async def begin(self) -> None:
        await self.client.get(f"{SERVER}describeServer")
        await self.client.get(f"{TEMP}checkHandleAvailability", handle="alice.test")
        self.alice = await sign_up(self.client, "alice.test")

    async def sessions(self) -> None:
        alice = self.alice
        for method in ("getSession", "checkAccountStatus", "getAccountInviteCodes"):
            await alice.client.get(SERVER + method)
        await alice.client.get(f"{TEMP}checkSignupQueue")
        await alice.client.get(f"{SERVER}getServiceAuth", aud=APPVIEW_DID, lxm="net.example.get")
        made = await alice.client.post(f"{SERVER}createAppPassword", name="phone")
        await alice.client.get(f"{SERVER}listAppPasswords")
        session = await self.client.post(
            f"{SERVER}createSession", identifier=alice.did, password=made["password"]
        )
        refresh = self.client.with_token(session["refreshJwt"])
        newer = await refresh.post(f"{SERVER}refreshSession")
        await self.client.with_token(newer["refreshJwt"]).post(f"{SERVER}deleteSession")
        await alice.client.post(f"{SERVER}revokeAppPassword", name="phone")
        for nsid, name in NEVER_GOOD.items():
            with pytest.raises(XrpcError, match=name):
                await self.client.get(nsid, scope="ref:x")

    async def records(self) -> None:
        alice, did = self.alice, self.alice.did
        blob = await alice.client.upload(PNG, "image/png")
        image = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
        made = await alice.post("with an image", embed=image)
        rkey = made["uri"].rpartition("/")[2]
        place = {"collection": POST, "rkey": rkey}
        record = await self.client.get(f"{REPO}getRecord", repo=did, **place)
        await self.client.get(f"{REPO}listRecords", repo=did, collection=POST)
        await self.client.get(f"{REPO}describeRepo", repo=did)
        note = {"repo": did, "collection": "net.example.draft", "rkey": "a"}
        await alice.client.post(f"{REPO}putRecord", **note, record={"text": "x"})
        await alice.client.post(f"{REPO}deleteRecord", **note)
        like = {"subject": {"uri": made["uri"], "cid": made["cid"]}, "createdAt": CREATED}
        kinds = {"create": {"value": like}, "update": {"value": like}, "delete": {}}
        for kind, fields in kinds.items():
            write = {"$type": f"{REPO}applyWrites#{kind}", "collection": LIKE, "rkey": RKEY}
            await alice.client.post(f"{REPO}applyWrites", repo=did, writes=[write | fields])
        await alice.client.get(f"{REPO}listMissingBlobs")
        cid = blob["ref"]["$link"]
        await self.client.get(f"{SYNC}getBlob", did=did, cid=cid)
        await self.client.get(f"{SYNC}getBlocks", did=did, cids=[record["cid"]])
        await self.client.get(f"{SYNC}getRecord", did=did, **place)

    async def sync(self) -> None:
        did = self.alice.did
        for method in ("getRepo", "getCheckout", "getHead", "getLatestCommit", "getRepoStatus"):
            await self.client.get(SYNC + method, did=did)
        await self.client.get(f"{SYNC}listBlobs", did=did)
        await self.client.get(f"{SYNC}listRepos")
        await self.client.get(f"{SYNC}listHosts")
        await self.client.get(f"{SYNC}listReposByCollection", collection=POST)
        netloc = self.host.server.config.netloc
        await self.client.get(f"{SYNC}getHostStatus", hostname=netloc)
        await self.client.post(f"{SYNC}requestCrawl", hostname=netloc)
        await self.client.post(f"{SYNC}notifyOfUpdate", hostname=netloc)
        url = f"{self.client.url}/xrpc/{SYNC}subscribeRepos?cursor=0"
        async with self.client.http.ws_connect(url) as socket:
            message = await socket.receive(timeout=60)
            assert message.type is aiohttp.WSMsgType.BINARY
        self.client.answered.add(f"{SYNC}subscribeRepos")

    async def lexicons(self) -> None:
        """Alice publishes what her notes are: found by DNS, proven by her own repo (LEX-85)."""
        alice = self.alice
        self.authorities[NOTE] = alice.did
        text = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
        schema = {"lexicon": 1, "id": NOTE, "defs": {"main": note_type(text)}}
        await alice.create("com.atproto.lexicon.schema", schema, rkey=NOTE)
        resolve_lexicon = "com.atproto.lexicon.resolveLexicon"
        found = await self.client.call("GET", resolve_lexicon, params={"nsid": NOTE})
        assert found["schema"]["defs"] == schema["defs"]
        made = await alice.create(NOTE, {"text": "x"}, validate=True)
        assert made["validationStatus"] == "valid"

    async def identity(self) -> None:
        alice = self.alice
        await self.client.get(f"{IDENTITY}resolveDid", did=alice.did)
        await self.client.get(f"{IDENTITY}resolveHandle", handle=alice.handle)
        await self.client.get(f"{IDENTITY}resolveIdentity", identifier=alice.did)
        await alice.client.post(f"{IDENTITY}refreshIdentity", identifier=alice.did)
        wanted = await alice.client.get(f"{IDENTITY}getRecommendedDidCredentials")
        await alice.client.post(f"{IDENTITY}requestPlcOperationSignature")
        signed = await alice.client.post(
            f"{IDENTITY}signPlcOperation",
            token=await self.code(),
            rotationKeys=wanted["rotationKeys"],
        )
        await alice.client.post(f"{IDENTITY}submitPlcOperation", **signed)
        await alice.client.post(f"{IDENTITY}updateHandle", handle="queen.test")

    async def views(self) -> None:
        alice = self.alice
        state = self.host.plc.get_state(alice.did)
        assert state is not None
        await self.appview.index(alice, state.verification_methods["atproto"])
        await alice.client.post("app.bsky.actor.putPreferences", preferences=[])
        await alice.client.get("app.bsky.actor.getPreferences")
        await alice.client.get("app.bsky.actor.getProfile", actor=alice.did)
        await alice.client.get("app.bsky.actor.getProfiles", actors=[alice.did])
        await alice.client.get("app.bsky.feed.getAuthorFeed", actor=alice.did)
        await alice.client.get("app.bsky.feed.getActorLikes", actor=alice.did)
        await alice.client.get("app.bsky.feed.getTimeline")
        made = await alice.post("seen at once")
        await alice.client.get("app.bsky.feed.getPostThread", uri=made["uri"])
        feed, generator = f"at://{alice.did}/app.bsky.feed.generator/a", "did:web:feeds.example"
        self.appview.feeds[feed] = generator
        self.appview.audiences.add(generator)
        await alice.client.get("app.bsky.feed.getFeed", feed=feed)
        device = {"serviceDid": APPVIEW_DID, "token": "t", "platform": "ios", "appId": "app"}
        await alice.client.post("app.bsky.notification.registerPush", **device)
        await alice.client.post("app.bsky.notification.unregisterPush", **device)

    async def mail(self) -> None:
        alice, email = self.alice, "alice@example.test"
        await alice.client.post(f"{SERVER}requestEmailConfirmation")
        await alice.client.post(f"{SERVER}confirmEmail", email=email, token=await self.code())
        await alice.client.post(f"{SERVER}requestEmailUpdate")
        await alice.client.post(
            f"{SERVER}updateEmail", email="queen@example.test", token=await self.code()
        )
        await self.client.post(f"{SERVER}requestPasswordReset", email="queen@example.test")
        await self.client.post(
            f"{SERVER}resetPassword", token=await self.code(), password=MOVER_PASSWORD
        )
        session = await self.client.post(
            f"{SERVER}createSession", identifier=alice.did, password=MOVER_PASSWORD
        )
        alice.client = self.client.with_token(session["accessJwt"])

    async def admin_methods(self) -> None:
        did = self.alice.did
        admin = self.admin
        code = await admin.post(f"{SERVER}createInviteCode", useCount=1)
        await admin.post(f"{SERVER}createInviteCodes", useCount=1, codeCount=2)
        await admin.get(f"{ADMIN}getInviteCodes")
        await admin.post(f"{ADMIN}disableInviteCodes", codes=[code["code"]])
        await admin.post(f"{ADMIN}disableAccountInvites", account=did)
        await admin.post(f"{ADMIN}enableAccountInvites", account=did)
        await admin.get(f"{ADMIN}getAccountInfo", did=did)
        await admin.get(f"{ADMIN}getAccountInfos", dids=[did])
        await admin.get(f"{ADMIN}searchAccounts", email="queen")
        subject = {"$type": f"{ADMIN}defs#repoRef", "did": did}
        for applied in (True, False):
            takedown = {"applied": applied, "ref": "1"}
            await admin.post(f"{ADMIN}updateSubjectStatus", subject=subject, takedown=takedown)
            await admin.get(f"{ADMIN}getSubjectStatus", did=did)
        await admin.post(f"{ADMIN}sendEmail", recipientDid=did, senderDid=did, content="A word")
        await admin.post(f"{ADMIN}updateAccountEmail", account=did, email="king@example.test")
        await admin.post(f"{ADMIN}updateAccountHandle", did=did, handle="king.test")
        key = await self.client.post(f"{SERVER}reserveSigningKey", did=did)
        await admin.post(f"{ADMIN}updateAccountSigningKey", did=did, signingKey=key["signingKey"])
        await admin.post(f"{TEMP}addReservedHandle", handle="crown")
        await admin.post(f"{ADMIN}updateAccountPassword", did=did, password="the last password")
        await admin.post(f"{TEMP}revokeAccountCredentials", account=did)

    async def end(self) -> None:
        bob = await sign_up(self.client, "bob.test")
        await bob.post("I move out and in again")
        car = await self.client.get(f"{SYNC}getRepo", did=bob.did)
        await bob.client.post(f"{SERVER}deactivateAccount", body={})
        headers = {"Content-Type": "application/vnd.ipld.car"}
        await bob.client.call("POST", f"{REPO}importRepo", data=car, headers=headers)
        await bob.client.post(f"{SERVER}activateAccount")
        await bob.client.post(f"{SERVER}requestAccountDelete")
        await self.client.post(
            f"{SERVER}deleteAccount", did=bob.did, password=bob.password, token=await self.code()
        )
        await self.admin.post(f"{ADMIN}deleteAccount", did=self.alice.did)


CREATED = "2026-01-02T03:04:05.000Z"
RKEY = "3kaaaaaaaaa2a"
SERVED = {entry.nsid for table in METHOD_TABLES for entry in table}


def note_type(record: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "key": "any", "record": record}


@pytest.fixture
async def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Story]:
    async with AsyncExitStack() as stack:
        authorities: dict[str, str] = {}

        async def resolve(_self: object, nsid: str) -> Did:
            if nsid not in authorities:
                raise NoLexiconAuthority(nsid)
            return Did(authorities[nsid])

        monkeypatch.setattr(LexiconAuthorities, "resolve", resolve)
        appview = await stack.enter_async_context(running_appview())

        def change(config: Config) -> Config:
            federation = replace(
                config.federation,
                appview_url=appview.url,
                appview_did=APPVIEW_DID,
                lexicon_resolution=LexiconPolicy.LAZY,
            )
            return replace(config, federation=federation)

        host = await stack.enter_async_context(host_in(tmp_path, change=change))
        made = Story(host, appview)
        made.authorities = authorities
        yield made


async def test_every_method_answers_in_the_words_of_its_lexicon(story: Story) -> None:
    """LEX-100: nothing that is served goes without a good answer here."""
    await story.begin()
    await story.sessions()
    await story.records()
    await story.sync()
    await story.lexicons()
    await story.views()
    await story.identity()
    await story.mail()
    await story.admin_methods()
    await story.end()
    answered = story.client.answered
    assert SERVED - answered == set(NEVER_GOOD)
    assert answered <= SERVED


def test_every_method_that_is_served_is_described() -> None:
    """LEX-11: inputs and outputs can be checked, because each schema is usable."""
    for nsid in SERVED:
        assert CATALOG.method(nsid) is not None, nsid
