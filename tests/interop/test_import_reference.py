"""A host of the reference PDS, switched in place: everything verifies, and everybody goes on.

Spec: (ACC-30, ACC-33, SYNC-10, SYNC-11, XRPC-25)
"""

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from pds.services.reference_import_settings import ENV_FILE
from tests.fakes.plc import running_plc
from tests.independent import Follower, check_export
from tests.interop.reference import ADMIN_PASSWORD, running_reference
from tests.support_process import ServerProcess

ACCOUNTS = 20
RECORDS = 2000
SERVER = "com.atproto.server"
REPO = "com.atproto.repo"
KILLS = 5
PICTURE = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(range(256))
PREFERENCES = [
    {"$type": "app.bsky.actor.defs#interestsPref", "tags": ["b", "a"]},
    {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True},
]


@dataclass
class Account:
    """An account as its owner and the network know it."""

    name: str
    did: str = ""
    access: str = ""
    refresh: str = ""
    app_passwords: list[str] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    blob: str = ""

    @property
    def handle(self) -> str:
        return f"{self.name}.test"

    @property
    def password(self) -> str:
        return f"the password of {self.name}"


class Client:
    """Calls methods of one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def call(
        self, nsid: str, body: Any = None, *, as_: Account | str | None = None, status: int = 200
    ) -> Any:
        """Call a procedure; `as_` is an account, a token, or `admin`."""
        headers = {"Content-Type": "application/json"}
        if as_ == "admin":
            headers["Authorization"] = aiohttp.encode_basic_auth("admin", ADMIN_PASSWORD)
        elif as_ is not None:
            token = as_ if isinstance(as_, str) else as_.access
            headers["Authorization"] = f"Bearer {token}"
        if isinstance(body, bytes):
            headers["Content-Type"] = "image/png"
        content = body if isinstance(body, bytes) else json.dumps(body) if body else None
        if content is None:
            del headers["Content-Type"]
        url = f"{self.url}/xrpc/{nsid}"
        async with self.session.post(url, data=content, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == status, (nsid, answer.status, text)
            return json.loads(text) if text else None

    async def get(
        self, nsid: str, *, as_: Account | None = None, status: int = 200, **params: str
    ) -> Any:
        headers = {} if as_ is None else {"Authorization": f"Bearer {as_.access}"}
        url = f"{self.url}/xrpc/{nsid}"
        async with self.session.get(url, params=params, headers=headers) as answer:
            content = await answer.read()
            assert answer.status == status, (nsid, answer.status, content[:500])
            return json.loads(content) if answer.content_type == "application/json" else content

    async def follow(self, follower: Follower, *, at_least: int) -> list[tuple[str, Any]]:
        """Read the firehose behind the last number until a number is reached."""
        taken = []
        url = f"{self.url}/xrpc/com.atproto.sync.subscribeRepos?cursor={follower.last_seq}"
        async with asyncio.timeout(60), self.session.ws_connect(url) as socket:
            while follower.last_seq < at_least:
                taken.append(follower.take(await socket.receive_bytes()))
        return taken


class Host:
    """What was made on the reference, to be found again."""

    def __init__(self) -> None:
        self.accounts = [Account(f"account{number:02}") for number in range(ACCOUNTS)]
        self.code = ""
        self.hidden_uri = ""
        self.hidden_blob = ""
        self.exports: dict[str, bytes] = {}

    @property
    def deactivated(self) -> Account:
        return self.accounts[3]

    @property
    def taken_down(self) -> Account:
        return self.accounts[4]

    @property
    def active(self) -> list[Account]:
        return [one for one in self.accounts if one not in (self.deactivated, self.taken_down)]


def post(text: str, blob: str | None = None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "$type": "app.bsky.feed.post",
        "text": text,
        "createdAt": "2026-01-01T00:00:00Z",
    }
    if blob is not None:
        ref = {"$type": "blob", "ref": {"$link": blob}, "mimeType": "image/png", "size": 272}
        record["embed"] = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": ref}]}
    return record


async def fill_account(client: Client, account: Account, code: str) -> None:
    made = await client.call(
        f"{SERVER}.createAccount",
        {
            "handle": account.handle,
            "email": f"{account.name}@example.com",
            "password": account.password,
            "inviteCode": code,
        },
    )
    account.did, account.access, account.refresh = (
        made[name] for name in ("did", "accessJwt", "refreshJwt")
    )
    content = PICTURE + account.name.encode() * 2
    uploaded = await client.call(f"{REPO}.uploadBlob", content[:272], as_=account)
    account.blob = uploaded["blob"]["ref"]["$link"]
    for number in range(5):
        record = post(f"number {number}", account.blob if number == 0 else None)
        body = {"repo": account.did, "collection": "app.bsky.feed.post", "record": record}
        made = await client.call(f"{REPO}.createRecord", body, as_=account)
        account.uris.append(made["uri"])
    writes = [
        {
            "$type": f"{REPO}.applyWrites#create",
            "collection": "app.bsky.feed.post",
            "value": post(f"of many: {number}"),
        }
        for number in range(RECORDS // ACCOUNTS - 5)
    ]
    body = {"repo": account.did, "writes": writes}
    made = await client.call(f"{REPO}.applyWrites", body, as_=account)
    account.uris += [result["uri"] for result in made["results"]]
    for number in range(2):
        wanted = {"name": f"client {number}", "privileged": bool(number)}
        made = await client.call(f"{SERVER}.createAppPassword", wanted, as_=account)
        account.app_passwords.append(made["password"])
    put = {"preferences": PREFERENCES}
    await client.call("app.bsky.actor.putPreferences", put, as_=account)


async def fill(client: Client, host: Host) -> None:
    """Make everything that a host can have."""
    made = await client.call(f"{SERVER}.createInviteCode", {"useCount": ACCOUNTS + 5}, as_="admin")
    host.code = made["code"]
    for at in range(0, ACCOUNTS, 4):
        some = host.accounts[at : at + 4]
        await asyncio.gather(*(fill_account(client, account, host.code) for account in some))
    gone = Account("gone")
    await fill_account(client, gone, host.code)
    await client.call("com.atproto.admin.deleteAccount", {"did": gone.did}, as_="admin")
    first = host.accounts[0]
    await client.call(f"{REPO}.uploadBlob", b"nobody refers to this", as_=first)
    for account in host.accounts:
        host.exports[account.did] = await client.get("com.atproto.sync.getRepo", did=account.did)
    await client.call(
        f"{SERVER}.deactivateAccount",
        {"deleteAfter": "2040-01-01T00:00:00.000Z"},
        as_=host.deactivated,
    )
    host.hidden_uri, host.hidden_blob = host.accounts[5].uris[1], host.accounts[6].blob
    ref = await client.get(
        f"{REPO}.getRecord",
        repo=host.accounts[5].did,
        collection="app.bsky.feed.post",
        rkey=host.hidden_uri.rsplit("/", 1)[1],
    )
    for subject in (
        {"$type": "com.atproto.admin.defs#repoRef", "did": host.taken_down.did},
        {"$type": "com.atproto.repo.strongRef", "uri": host.hidden_uri, "cid": ref["cid"]},
        {
            "$type": "com.atproto.admin.defs#repoBlobRef",
            "did": host.accounts[6].did,
            "cid": host.hidden_blob,
        },
    ):
        await client.call(
            "com.atproto.admin.updateSubjectStatus",
            {"subject": subject, "takedown": {"applied": True, "ref": "case 7"}},
            as_="admin",
        )


def digests(folder: Path) -> dict[str, str]:
    """Return the content of a folder, and when each file was written."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        + str(file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


async def run_import(
    server: ServerProcess, folder: Path, *options: str, kill_after_s: float | None = None
) -> tuple[int, str, str]:
    """Run `pds import-reference`, and perhaps kill it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pds", "import-reference", str(folder), *options),
        env=server.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if kill_after_s is not None:
        try:
            async with asyncio.timeout(kill_after_s):
                await process.wait()
        except TimeoutError:
            process.kill()
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def keys_of(session: aiohttp.ClientSession, plc_url: str, host: Host) -> Mapping[str, str]:
    """Return the signing keys, as the directory has them."""
    keys = {}
    for account in host.accounts:
        async with session.get(f"{plc_url}/{account.did}/data") as answer:
            keys[account.did] = (await answer.json())["verificationMethods"]["atproto"]
    return keys


async def check_signing_in(client: Client, host: Host) -> None:
    """Old passwords, app passwords and refresh tokens go on; access tokens ask for a refresh."""
    await asyncio.gather(*(check_owner(client, account) for account in host.active))
    await asyncio.gather(*(check_app_passwords(client, account) for account in host.active[:5]))


async def check_owner(client: Client, account: Account) -> None:
    told = await client.call(f"{SERVER}.refreshSession", as_=account.refresh)
    assert told["did"] == account.did
    refused = await client.get(f"{SERVER}.getSession", as_=account, status=400)
    assert refused["error"] == "ExpiredToken"
    wanted = {"identifier": account.handle, "password": account.password}
    told = await client.call(f"{SERVER}.createSession", wanted)
    account.access = told["accessJwt"]
    assert told["email"] == f"{account.name}@example.com"


async def check_app_passwords(client: Client, account: Account) -> None:
    for number, password in enumerate(account.app_passwords):
        for _ in range(2):  # The second time with our own hash.
            wanted = {"identifier": account.did, "password": password}
            await client.call(f"{SERVER}.createSession", wanted)
        listed = await client.get(f"{SERVER}.listAppPasswords", as_=account)
        assert listed["passwords"][number]["privileged"] is bool(number)
    wrong = {"identifier": account.did, "password": "abcd-efgh-2345-6722"}
    await client.call(f"{SERVER}.createSession", wrong, status=401)


async def check_content(client: Client, host: Host, keys: Mapping[str, str]) -> None:
    """Repos, blobs, preferences and invite codes are the same as before; hidden things stay so."""
    for account in host.active:
        # Its owner, because one of them has a hidden record.
        export = await client.get("com.atproto.sync.getRepo", as_=account, did=account.did)
        before = check_export(host.exports[account.did], did=account.did, did_key=keys[account.did])
        after = check_export(export, did=account.did, did_key=keys[account.did])
        assert after == before
        assert len(after) == RECORDS // ACCOUNTS
        told = await client.get("app.bsky.actor.getPreferences", as_=account)
        assert told["preferences"] == PREFERENCES
        if account.blob != host.hidden_blob:
            content = await client.get(
                "com.atproto.sync.getBlob", did=account.did, cid=account.blob
            )
            assert content == (PICTURE + account.name.encode() * 2)[:272]
    hidden = host.accounts[6]
    await client.get("com.atproto.sync.getBlob", did=hidden.did, cid=host.hidden_blob, status=400)
    repo, collection, rkey = host.hidden_uri.removeprefix("at://").split("/")
    await client.get(f"{REPO}.getRecord", repo=repo, collection=collection, rkey=rkey, status=400)
    for account, status in ((host.deactivated, "deactivated"), (host.taken_down, "takendown")):
        told = await client.get("com.atproto.sync.getRepoStatus", did=account.did)
        assert (told["active"], told["status"]) == (False, status)
    codes = await client.session.get(
        f"{client.url}/xrpc/com.atproto.admin.getInviteCodes",
        headers={"Authorization": aiohttp.encode_basic_auth("admin", ADMIN_PASSWORD)},
    )
    (code,) = (await codes.json())["codes"]
    assert (code["code"], code["available"]) == (host.code, ACCOUNTS + 5)
    assert len(code["uses"]) == ACCOUNTS


async def test_a_host_of_the_reference_is_switched_in_place(tmp_path: Path) -> None:
    host, old = Host(), tmp_path / "old"
    async with running_plc() as plc, aiohttp.ClientSession() as session:
        plc_url = plc.url.replace("127.0.0.1", "localhost")
        started = running_reference(
            old,
            plc_url,
            PDS_INVITE_REQUIRED="true",
            PDS_BSKY_APP_VIEW_URL="http://localhost:1",  # Without one it keeps no preferences.
            PDS_BSKY_APP_VIEW_DID="did:web:localhost",
        )
        url = await asyncio.to_thread(started.__enter__)
        try:
            client = Client(session, url)
            await fill(client, host)
            keys = await keys_of(session, plc.url, host)
            follower = Follower(keys)
            # It has seen half of the old host's events when that ends.
            await client.follow(follower, at_least=ACCOUNTS * 5)
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
        port = urlsplit(url).port
        (old / ENV_FILE).write_text(
            "PDS_HOSTNAME=localhost\n"
            f"PDS_PORT={port}\nPDS_DATA_DIRECTORY=/in/its/container\n"
            "PDS_BLOBSTORE_DISK_LOCATION=/in/its/container/blobs\n"
            "PDS_JWT_SECRET='a secret for tests that is long enough to be one'\n"
            f"PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX={'23' * 32}\n"
        )
        before = digests(old)
        server = ServerProcess(
            tmp_path / "new",
            plc.url,
            PDS_PORT=str(port),
            PDS_SERVICE_DID="did:web:localhost",
            PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX="23" * 32,
        )
        server.url = f"http://localhost:{port}"
        code, out, err = await run_import(server, old, "--dry-run")
        assert code == 0, out + err
        assert f"{ACCOUNTS} accounts are fine" in out
        chance = random.Random(5)
        for _ in range(KILLS):
            await run_import(server, old, kill_after_s=chance.uniform(0.7, 2.5))
        code, out, err = await run_import(server, old, "--json")
        assert code == 0, out + err
        assert digests(old) == before
        if out:
            check_report(json.loads(out))
        await server.start()
        try:
            client = Client(session, server.url)
            await check_signing_in(client, host)
            await check_content(client, host, keys)
            await go_on(client, host, follower)
        finally:
            assert await server.stop() == 0, server.log_tail()


def check_report(report: dict[str, Any]) -> None:
    assert report["isComplete"]
    accounts = report["accounts"]
    assert len(accounts) == ACCOUNTS
    assert {one["outcome"] for one in accounts} <= {"imported", "present"}
    assert not any(one["missing_blobs"] or one["damaged_blobs"] for one in accounts)
    assert report["events"]["skipped"] == 0


async def go_on(client: Client, host: Host, follower: Follower) -> None:
    """Write here; who followed the old host gets the rest of its events, then ours."""
    for account in host.active:
        record = {"repo": account.did, "collection": "app.bsky.feed.post", "record": post("here")}
        await client.call(f"{REPO}.createRecord", record, as_=account)
    wanted = {"identifier": host.deactivated.handle, "password": host.deactivated.password}
    told = await client.call(f"{SERVER}.createSession", wanted)
    await client.call(f"{SERVER}.activateAccount", as_=told["accessJwt"])
    marker = {"repo": host.accounts[0].did, "collection": "app.bsky.feed.post"}
    last = await client.call(
        f"{REPO}.createRecord", {**marker, "record": post("the end")}, as_=host.accounts[0]
    )
    old_last, revs = follower.last_seq, set()
    url = f"{client.url}/xrpc/com.atproto.sync.subscribeRepos?cursor={old_last}"
    kinds = []
    async with asyncio.timeout(60), client.session.ws_connect(url) as socket:
        while last["commit"]["rev"] not in revs:
            kind, payload = follower.take(await socket.receive_bytes())
            kinds.append(kind)
            revs.add(payload.get("rev"))
    assert "#info" not in kinds
    for account in host.active:
        state = follower.repos[account.did]
        latest = await client.get("com.atproto.sync.getLatestCommit", did=account.did)
        assert state.rev == latest["rev"]
        assert len(state.records) >= RECORDS // ACCOUNTS + 1
