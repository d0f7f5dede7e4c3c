"""Accounts move by the standard calls, in the order of goat's `account migrate`, both ways.

Other than goat it copies the blobs that are missing, with their types, and keeps the owner's
rotation key. `test_goat.py` does it with goat itself.

From the reference PDS to ours, from ours to another of ours, and from ours to the reference: with
posts, pictures, follows, preferences, and a rotation key that the owner keeps. What is there after
a move must be what was there before it.

Spec: (ACC-20, ACC-40, ACC-41, ACC-50..ACC-59, ID-69, ID-70, REPO-92, XRPC-86)
"""

import asyncio
import io
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import libipld
import pytest

from pds.protocol.keys import make_signer
from tests.fakes.plc import running_plc
from tests.independent import Follower, RepoState, check_export, cid_text, read_car, root_of
from tests.interop.reference import running_reference
from tests.interop.side_by_side import CODE
from tests.interop.test_node_clients import run
from tests.interop.test_reference import mail_server
from tests.support_client import Client, Person, sign_up
from tests.support_process import ServerProcess

SERVER = "com.atproto.server."
IDENTITY = "com.atproto.identity."
POST = "app.bsky.feed.post"
CREATED = "2026-01-01T00:00:00.000Z"
PASSWORD = "the password of a mover"
PICTURES = [b"\x89PNG\r\n\x1a\n" + secrets.token_bytes(2000) for _ in range(6)]
PREFERENCES = [
    {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": False},
    {"$type": "app.bsky.actor.defs#savedFeedsPref", "pinned": [], "saved": []},
]
OWN_KEY = make_signer("k256", b"\x51" * 32).public_key.did_key
"""A rotation key that no host knows the secret of."""


@dataclass
class Home:
    """One host, with the mails that it sent."""

    name: str
    url: str
    mails: list[tuple[str, str]] = field(default_factory=list)

    def client(self, http: aiohttp.ClientSession) -> Client:
        return Client(http, self.url)

    async def mailed_code(self, address: str) -> str:
        """Wait for a mail with a code, and use it up."""
        async with asyncio.timeout(60):
            while True:
                for number, (to, text) in enumerate(self.mails):
                    if to == address and (found := CODE.search(text)):
                        del self.mails[number]
                        return found.group()
                await asyncio.sleep(0.02)


@dataclass
class World:
    """The hosts and the directory that they share."""

    http: aiohttp.ClientSession
    plc_url: str
    reference: Home
    ours: Home
    other: Home

    @property
    def homes(self) -> tuple[Home, Home, Home]:
        """Every host."""
        return self.reference, self.ours, self.other

    async def plc_data(self, did: str) -> Any:
        async with self.http.get(f"{self.plc_url}/{did}/data") as answer:
            assert answer.status == 200
            return await answer.json()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        running_plc() as plc,
        running_world(tmp_path, plc.url.replace("127.0.0.1", "localhost")) as world,
    ):
        yield world


@asynccontextmanager
async def running_world(folder: Path, plc_url: str) -> AsyncIterator[World]:
    """Run the three hosts on loopback, each with a mailbox of its own."""
    async with aiohttp.ClientSession() as http, AsyncExitStack() as stack:
        homes = [Home("reference", ""), Home("ours", ""), Home("other", "")]
        settings = []
        for home in homes:
            mail = mail_server(home.mails)
            url = await asyncio.to_thread(mail.__enter__)
            stack.push_async_callback(asyncio.to_thread, mail.__exit__, None, None, None)
            settings.append(
                {
                    "PDS_EMAIL_SMTP_URL": url,
                    "PDS_EMAIL_FROM_ADDRESS": "pds@example.com",
                    "PDS_BSKY_APP_VIEW_URL": "http://localhost:9",
                    "PDS_BSKY_APP_VIEW_DID": "did:web:appview.example",
                }
            )
        started = running_reference(folder / "reference", plc_url, **settings[0])
        homes[0].url = await asyncio.to_thread(started.__enter__)
        stack.push_async_callback(asyncio.to_thread, started.__exit__, None, None, None)
        for home, more, key in zip(homes[1:], settings[1:], ("17", "18"), strict=True):
            more["PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX"] = key * 32
            home.url = await stack.enter_async_context(running(folder / home.name, plc_url, more))
        yield World(http, plc_url, *homes)


@asynccontextmanager
async def running(folder: Path, plc_url: str, settings: dict[str, str]) -> AsyncIterator[str]:
    server = ServerProcess(folder, plc_url, **settings)
    await server.start()
    try:
        yield server.url
    finally:
        assert await server.stop() == 0, server.log_tail()


async def settle(world: World, home: Home, handle: str) -> Person:
    """Open an account and live in it for a while."""
    person = await sign_up(home.client(world.http), handle)
    for number in range(30):
        await person.post(f"number {number}")
    for content in PICTURES:
        blob = await person.client.upload(content, "image/png")
        image = {"alt": "", "image": blob}
        await person.post("look", embed={"$type": "app.bsky.embed.images", "images": [image]})
    profile = {"$type": "app.bsky.actor.profile", "displayName": "Mover", "avatar": blob}
    await person.client.post(
        "com.atproto.repo.putRecord",
        repo=person.did,
        collection="app.bsky.actor.profile",
        rkey="self",
        record=profile,
    )
    for subject in ("did:plc:" + "b" * 24, "did:web:friend.example"):
        follow = {"subject": subject, "createdAt": CREATED}
        await person.create("app.bsky.graph.follow", follow)
    await person.client.post("app.bsky.actor.putPreferences", preferences=PREFERENCES)
    return person


@dataclass(frozen=True)
class Belongings:
    """What an account has, as anybody can compare it."""

    records: dict[str, str]
    blobs: dict[str, bytes]
    preferences: Any


async def belongings(person: Person, did_key: str) -> Belongings:
    """Fetch everything; the export must be signed with `did_key`."""
    car = await person.client.get("com.atproto.sync.getRepo", did=person.did)
    records = check_export(car, did=person.did, did_key=did_key)
    blobs = {}
    for cid in (await person.client.get("com.atproto.sync.listBlobs", did=person.did))["cids"]:
        blobs[cid] = await person.client.get("com.atproto.sync.getBlob", did=person.did, cid=cid)
    preferences = await person.client.get("app.bsky.actor.getPreferences")
    return Belongings(
        {path: cid_text(cid) for path, cid in records.items()}, blobs, preferences["preferences"]
    )


async def migrate(world: World, person: Person, old: Home, new: Home, handle: str) -> Person:
    """Move an account, call by call; return it at its new host."""
    email = (await person.client.get(SERVER + "getSession"))["email"]
    there = new.client(world.http)
    server = await there.get(SERVER + "describeServer")
    service = await person.client.get(
        SERVER + "getServiceAuth",
        aud=server["did"],
        lxm=SERVER + "createAccount",
        exp=int(time.time()) + 60,
    )
    await there.with_token(service["token"]).post(
        SERVER + "createAccount", did=person.did, handle=handle, email=email, password=PASSWORD
    )
    session = await there.post(SERVER + "createSession", identifier=person.did, password=PASSWORD)
    moved = Person(
        person.did, handle, PASSWORD, session["refreshJwt"], there.with_token(session["accessJwt"])
    )
    await move_content(person, moved)
    await move_identity(world, person, moved, old, email)
    await moved.client.post(SERVER + "activateAccount")
    await person.client.post(SERVER + "deactivateAccount", {})
    return moved


async def move_content(person: Person, moved: Person) -> None:
    """Copy repo, blobs and preferences."""
    car = await person.client.get("com.atproto.sync.getRepo", did=person.did)
    await moved.client.call(
        "POST",
        "com.atproto.repo.importRepo",
        data=io.BytesIO(car),
        headers={"Content-Type": "application/vnd.ipld.car"},
    )
    cursor: dict[str, str] = {}
    while True:
        page = await moved.client.get("com.atproto.repo.listMissingBlobs", limit=4, **cursor)
        for missing in page["blobs"]:
            content = await person.client.get(
                "com.atproto.sync.getBlob", did=person.did, cid=missing["cid"]
            )
            stored = await moved.client.upload(content, "image/png")
            assert stored["ref"]["$link"] == missing["cid"]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    preferences = await person.client.get("app.bsky.actor.getPreferences")
    await moved.client.post("app.bsky.actor.putPreferences", preferences)
    before, after = [await one.client.get(SERVER + "checkAccountStatus") for one in (person, moved)]
    counted = ("indexedRecords", "expectedBlobs", "importedBlobs", "repoBlocks")
    assert {name: after[name] for name in counted} == {name: before[name] for name in counted}
    assert not after["activated"]


async def move_identity(world: World, person: Person, moved: Person, old: Home, email: str) -> None:
    """Have the old host sign what the new one recommends, the owner's own keys in front."""
    wanted = await moved.client.get(IDENTITY + "getRecommendedDidCredentials")
    theirs = await person.client.get(IDENTITY + "getRecommendedDidCredentials")
    now = await world.plc_data(person.did)
    kept = [key for key in now["rotationKeys"] if key not in theirs["rotationKeys"]]
    own = kept or [OWN_KEY]
    await person.client.post(IDENTITY + "requestPlcOperationSignature")
    signed = await person.client.post(
        IDENTITY + "signPlcOperation",
        {
            **wanted,
            "rotationKeys": [*own, *wanted["rotationKeys"]],
            "token": await old.mailed_code(email),
        },
    )
    await moved.client.post(IDENTITY + "submitPlcOperation", operation=signed["operation"])


async def signing_key(world: World, did: str) -> str:
    key: str = (await world.plc_data(did))["verificationMethods"]["atproto"]
    return key


async def check_events(world: World, home: Home, person: Person, did_key: str) -> None:
    """Write once more, and hold what the host announces against two strict consumers."""
    car = await person.client.get("com.atproto.sync.getRepo", did=person.did)
    roots, blocks = read_car(car)
    commit = libipld.decode_dag_cbor(blocks[roots[0]])
    records = check_export(car, did=person.did, did_key=did_key)
    assert root_of(records) == commit["data"]
    await person.post("here I am")
    follower = Follower({person.did: did_key})
    follower.repos[person.did] = RepoState(records, commit["data"], commit["rev"])
    kinds = []
    seq = 0
    url = f"{home.url}/xrpc/com.atproto.sync.subscribeRepos"
    async with (
        asyncio.timeout(60),
        person.client.http.ws_connect(url, params={"cursor": "0"}, max_msg_size=0) as socket,
    ):
        while follower.commits == 0:
            frame = await socket.receive_bytes()
            _, payload = libipld.decode_dag_cbor_multi(frame)
            if person.did in (payload.get("did"), payload.get("repo")):
                kinds.append(follower.take(frame)[0])
                seq = payload["seq"]
    assert kinds[-4:] == ["#account", "#identity", "#sync", "#commit"]
    address = home.url.replace("http", "ws", 1)
    lines = (await run("firehose.mjs", address, world.plc_url, "0", str(seq))).splitlines()
    events = [event for line in lines if (event := json.loads(line))["did"] == person.did]
    assert [event["kind"] for event in events][-4:] == ["account", "identity", "sync", "create"]
    assert events[-4]["active"]


async def test_accounts_move_from_and_to_the_reference(world: World) -> None:
    await from_the_reference_to_ours_and_on(world)
    await from_ours_to_the_reference(world)


async def from_the_reference_to_ours_and_on(world: World) -> None:
    at_old = await settle(world, world.reference, "mover.test")
    before = await belongings(at_old, await signing_key(world, at_old.did))
    assert len(before.records) == 30 + len(PICTURES) + 1 + 2
    assert len(before.blobs) == len(PICTURES)

    at_ours = await migrate(world, at_old, world.reference, world.ours, "mover-a.test")
    key = await signing_key(world, at_ours.did)
    assert await belongings(at_ours, key) == before
    await check_events(world, world.ours, at_ours, key)
    data = await world.plc_data(at_ours.did)
    assert data["rotationKeys"][0] == OWN_KEY
    assert data["services"]["atproto_pds"]["endpoint"] == world.ours.url

    before = await belongings(at_ours, key)
    at_other = await migrate(world, at_ours, world.ours, world.other, "mover-b.test")
    key = await signing_key(world, at_other.did)
    assert await belongings(at_other, key) == before
    await check_events(world, world.other, at_other, key)
    data = await world.plc_data(at_other.did)
    assert data["rotationKeys"][0] == OWN_KEY
    assert data["services"]["atproto_pds"]["endpoint"] == world.other.url
    left = await world.http.get(
        f"{world.ours.url}/xrpc/com.atproto.sync.getRepoStatus", params={"did": at_ours.did}
    )
    assert (await left.json())["status"] == "deactivated"


async def from_ours_to_the_reference(world: World) -> None:
    at_ours = await settle(world, world.ours, "leaver.test")
    key = await signing_key(world, at_ours.did)
    before = await belongings(at_ours, key)
    there = await migrate(world, at_ours, world.ours, world.reference, "leaver-b.test")
    data = await world.plc_data(there.did)
    assert data["rotationKeys"][0] == OWN_KEY
    assert data["services"]["atproto_pds"]["endpoint"] == world.reference.url
    # The reference keeps the commit as it was imported, under the old key, until the next write.
    assert await belongings(there, key) == before
    await there.post("here I am")
    after = await belongings(there, await signing_key(world, there.did))
    assert before.records.items() < after.records.items()
    assert len(after.records) == len(before.records) + 1
