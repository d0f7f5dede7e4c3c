"""goat's commands against our server: those of an owner, of a stranger, and of the administrator.

Spec: (ACC-40, ACC-50, ID-69, ID-70, REPO-92, SYNC-1)
"""

import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pds.services.principal import Scope
from pds.services.session_tokens import SessionTokens
from tests.independent import check_export
from tests.interop.goat import Goat, GoatError, HandleWeb, running_directory
from tests.interop.test_migration import Home
from tests.interop.test_reference import mail_server
from tests.support_live import LiveServer

ADMIN_PASSWORD = "admin-password-for-tests"
PASSWORD = "the password of a goat"
EMAIL = "billy@example.test"
POST = "app.bsky.feed.post"
PROFILE = "app.bsky.actor.profile"
CREATED = "2026-01-01T00:00:00.000Z"
PICTURE = b"\x89PNG\r\n\x1a\n" + secrets.token_bytes(2000)
FIRST_COMMIT = "prevData is nil, skipping MST check"
"""What goat says of an account's first commit, which has nothing before it."""
DID = re.compile(r"did:plc:[a-z2-7]{24}")
DID_KEY = re.compile(r"did:key:\w+")


@dataclass
class Stay:
    """A server with its directory, and a goat that is signed in there."""

    server: LiveServer
    goat: Goat
    mailbox: Home
    did: str = ""
    recovery_key: str = ""

    async def admin(self, *arguments: str) -> str:
        """Run one of the administrator's commands."""
        host = ("--pds-host", self.server.url, "--admin-password", ADMIN_PASSWORD)
        return await self.goat.run("pds", "admin", *host, *arguments)

    async def plc_code(self) -> str:
        """Ask for a token that lets an operation be signed."""
        await self.goat.run("account", "plc", "request-token")
        return await self.mailbox.mailed_code(EMAIL)

    async def status(self) -> str:
        """What `account status` says of the account: the line that tells of its state."""
        lines = (await self.goat.run("account", "status", self.did)).splitlines()
        assert lines[0] == f"DID: {self.did}"
        return lines[1] if lines[1] == "Active: true" else lines[2]


@pytest.fixture
async def stay(tmp_path: Path) -> AsyncIterator[Stay]:
    mails: list[tuple[str, str]] = []
    async with running_directory() as plc_url:
        with mail_server(mails) as smtp_url:
            mail = {"PDS_EMAIL_SMTP_URL": smtp_url, "PDS_EMAIL_FROM_ADDRESS": "pds@example.com"}
            server = LiveServer(tmp_path / "server", plc_url, **mail)
            server.plc_url = plc_url
            await server.start()
            try:
                web = HandleWeb(tmp_path, server.url)
                async with web.running():
                    goat = Goat(tmp_path / "goat", plc_url)
                    web.trust(goat)
                    stay = Stay(server, goat, Home("ours", server.url, mails))
                    await open_account(stay)
                    yield stay
            finally:
                assert await server.stop() == 0, server.log_tail()


async def open_account(stay: Stay) -> None:
    goat = stay.goat
    (stay.recovery_key,) = DID_KEY.findall(await goat.run("key", "generate"))
    said = await goat.run(
        *("account", "create", "--pds-host", stay.server.url, "--handle", "billy.test"),
        *("--email", EMAIL, "--password", PASSWORD, "--recovery-key", stay.recovery_key),
    )
    (stay.did,) = DID.findall(said)
    await goat.run("account", "login", "-u", "billy.test", "-p", PASSWORD)


async def refusal(goat: Goat, *arguments: str) -> str:
    """Run a command that must be refused; return what goat says of it."""
    with pytest.raises(GoatError) as refused:
        await goat.run(*arguments)
    return str(refused.value)


async def test_an_owner_writes_and_a_stranger_reads(stay: Stay) -> None:
    goat, did = stay.goat, stay.did
    described = await goat.json("pds", "describe", stay.server.url)
    assert described["did"] == f"did:web:localhost%3A{stay.server.port}"
    assert (await goat.run("resolve", "--did", "billy.test")).strip() == did
    assert await goat.json("resolve", did) == await goat.json("resolve", "billy.test")
    assert f"Host: {stay.server.url}" in await goat.run("account", "check-auth")

    picture = goat.write("picture.png", PICTURE)
    blob = await goat.json("blob", "upload", picture)
    computed = await goat.json("blob", "compute", picture)
    assert blob == {**computed, "mimeType": "image/png"}
    await write_records(goat, did, blob)

    paths = await check_records(stay)
    assert [path.partition("/")[0] for path in paths] == [PROFILE, POST, POST, "com.example.thing"]
    assert (await goat.run("blob", "ls", did)).split() == [blob["ref"]["$link"]]
    await goat.run("blob", "export", did, "-o", "blobs")
    assert (goat.folder / "blobs" / blob["ref"]["$link"]).read_bytes() == PICTURE

    wanted = [{"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True}]
    await goat.run("bsky", "prefs", "import", goat.write("preferences.json", wanted))
    assert await goat.json("bsky", "prefs", "export") == wanted
    session = await goat.json("xrpc", "query", "@pds", "com.atproto.server.getSession")
    assert (session["did"], session["handle"]) == (did, "billy.test")
    await check_stream(stay)


async def write_records(goat: Goat, did: str, blob: dict[str, Any]) -> None:
    await goat.run("bsky", "post", "hello")
    embed = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
    post = {"$type": POST, "text": "look", "createdAt": CREATED, "embed": embed}
    said = await goat.run("record", "create", goat.write("post.json", post))
    assert await goat.json("get", said.split("\t")[0]) == post
    profile = {"$type": PROFILE, "displayName": "Billy"}
    await goat.run("record", "create", "-r", "self", goat.write("profile.json", profile))
    profile["displayName"] = "William"
    await goat.run("record", "update", "-r", "self", goat.write("profile.json", profile))
    assert await goat.json("record", "get", f"at://billy.test/{PROFILE}/self") == profile

    unknown = goat.write("thing.json", {"$type": "com.example.thing", "size": 1})
    assert "Unknown lexicon type" in await refusal(goat, "record", "create", unknown)
    for _ in range(2):
        said = await goat.run("record", "create", "--no-validate", unknown)
    rkey = said.split("\t")[0].rpartition("/")[2]
    await goat.run("record", "delete", "-c", "com.example.thing", "-r", rkey)
    uri = f"at://{did}/com.example.thing/{rkey}"
    assert "RecordNotFound" in await refusal(goat, "get", uri)


async def check_records(stay: Stay) -> list[str]:
    """Hold goat's readings of the repository against each other; return the sorted paths."""
    goat, did = stay.goat, stay.did
    listed = [line.split("\t") for line in (await goat.run("ls", did)).splitlines()]
    await goat.run("repo", "export", "billy.test", "-o", "repo.car")
    of_car = [line.split("\t") for line in (await goat.run("repo", "ls", "repo.car")).splitlines()]
    assert sorted([f"{collection}/{rkey}", cid] for collection, rkey, cid in listed) == of_car
    car = (goat.folder / "repo.car").read_bytes()
    records = check_export(car, did=did, did_key=await stay.server.signing_key(did))
    assert sorted(records) == [path for path, _ in of_car]
    inspected = await goat.run("repo", "inspect", "repo.car")
    assert f"DID: {did}\n" in inspected
    tree = await goat.run("repo", "mst", "repo.car")
    assert tree.count("\n├──") + tree.count("\n└──") >= 1
    await goat.run("repo", "unpack", "repo.car", "-o", "unpacked")
    files = (goat.folder / "unpacked").glob("*/*.json")
    assert sorted(f"{path.parent.name}/{path.stem}" for path in files) == sorted(records)
    return sorted(records)


async def check_stream(stay: Stay) -> None:
    """Follow everything with goat's verification on."""
    goat, did = stay.goat, stay.did
    await goat.run("bsky", "post", "the last one")
    verify = ("--verify-basic", "--verify-sig", "--verify-mst")
    kinds = ["identity", "account", "commit", "sync", *["commit"] * 8]
    events, warnings = await goat.firehose(stay.server.url, *verify, count=len(kinds))
    assert [event["type"] for event in events] == kinds
    assert {event["payload"].get("repo", did) for event in events} == {did}
    (warning,) = warnings
    assert (warning["msg"], warning["seq"]) == (FIRST_COMMIT, events[2]["payload"]["seq"])
    actions = [*["create"] * 3, "update", *["create"] * 2, "delete", "create"]
    events, warnings = await goat.firehose(stay.server.url, "--ops", count=len(actions))
    assert [event["action"] for event in events] == actions
    assert (events[-1]["record"]["text"], warnings) == ("the last one", [])


async def test_an_owner_looks_after_the_identity(stay: Stay) -> None:
    goat, did = stay.goat, stay.did
    await outlive_a_token(stay)
    data = await goat.json("account", "plc", "current")
    assert data["rotationKeys"][0] == stay.recovery_key
    operation = await goat.json("account", "plc", "recommended")
    assert operation["rotationKeys"] == data["rotationKeys"][1:]
    unsigned = goat.write("unsigned.json", operation)
    signed = await goat.json("account", "plc", "sign", "--token", await stay.plc_code(), unsigned)
    await goat.run("account", "plc", "submit", goat.write("signed.json", signed))
    assert await goat.json("plc", "data", did) == {"did": did, **operation}

    (own,) = DID_KEY.findall(await goat.run("key", "generate", "--type", "P-256"))
    code = await stay.plc_code()
    await goat.run("account", "plc", "add-rotation-key", "--token", code, "--first", own)
    await goat.run("account", "update-handle", "bill.test")
    data = await goat.json("plc", "data", did)
    assert data["rotationKeys"] == [own, *operation["rotationKeys"]]
    assert data["alsoKnownAs"] == ["at://bill.test"]
    assert (await goat.run("resolve", "--did", "bill.test")).strip() == did
    unknown = await refusal(goat, "resolve", "billy.test")
    assert "handle not found" in unknown or "handle resolution failed" in unknown  # As DNS answers.

    await goat.run("account", "deactivate")
    assert await stay.status() == "Status: deactivated"
    assert "RepoDeactivated" in await refusal(goat, "repo", "export", did, "-o", "repo.car")
    assert "AccountDeactivated" in await refusal(goat, "bsky", "post", "no")
    await goat.run("account", "activate")
    assert await stay.status() == "Active: true"
    await goat.run("bsky", "post", "I am back")


async def outlive_a_token(stay: Stay) -> None:
    """Let the access token be an expired one: goat must see that it can refresh the session."""
    session = stay.goat.read_session()
    now = int(time.time())
    tokens = SessionTokens(
        secrets=[stay.server.environment["PDS_JWT_SECRET"]],
        service_did=f"did:web:localhost%3A{stay.server.port}",
    )
    expired = tokens.issue_access(
        did=stay.did,
        scope=Scope.ACCESS,
        session_id="of no session",
        issued_s=now - 7200,
        expires_s=now - 100,
    )
    stay.goat.write_session({**session, "access_token": expired, "password": "unknown"})
    assert "auth refresh callback" in await stay.goat.run("account", "check-auth")
    refreshed = stay.goat.read_session()
    assert refreshed["session_token"] != session["session_token"]
    assert "auth refresh callback" not in await stay.goat.run("account", "check-auth")


async def test_the_administrator_looks_after_accounts(stay: Stay) -> None:
    goat, did = stay.goat, stay.did
    blob = await goat.json("blob", "upload", goat.write("picture.png", PICTURE))
    cid = blob["ref"]["$link"]
    profile = {"$type": PROFILE, "avatar": blob}
    await goat.run("record", "create", "-r", "self", goat.write("profile.json", profile))

    await stay.admin("account", "takedown", did)
    assert await stay.status() == "Status: takendown"
    assert "AccountTakedown" in await refusal(goat, "account", "check-auth")
    await stay.admin("account", "takedown", "--reverse", did)
    assert await stay.status() == "Active: true"

    await stay.admin("blob", "purge", did, cid)
    assert '"applied": true' in await stay.admin("blob", "status", did, cid)
    assert "BlobNotFound" in await refusal(goat, "blob", "download", "-o", "one", did, cid)
    await stay.admin("blob", "purge", "--reverse", did, cid)
    await goat.run("blob", "download", "-o", "one", did, cid)
    assert (goat.folder / "one").read_bytes() == PICTURE

    await stay.admin("account", "update", "--email", "b@example.test", "--handle", "bob.test", did)
    info = await stay.admin("account", "info", did)
    assert '"email": "b@example.test"' in info
    assert '"handle": "bob.test"' in info
    password = (await stay.admin("account", "reset-password", did)).split()[-1]
    assert "Invalid identifier or password" in await refusal(goat, "account", "check-auth")
    await goat.run("account", "login", "-u", "bob.test", "-p", password)
    await goat.run("account", "check-auth")

    codes = (await stay.admin("create-invites", "-n", "2", "--uses", "3")).split()
    assert len(set(codes)) == 2
    said = await stay.admin(
        *("account", "create", "--handle", "nanny.test", "--email", "nanny@example.test"),
        *("--password", PASSWORD),
    )
    (nanny,) = DID.findall(said)
    listed = (await goat.run("pds", "account", "list", stay.server.url)).splitlines()
    assert [line.split("\t")[:2] for line in listed] == [[did, "active"], [nanny, "active"]]
    await stay.admin("account", "delete", nanny)
    assert nanny not in await stay.admin("account", "list")
