"""Two hosts with one directory of identities, and an account with all that a move may lose."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pds.config import Config
from pds.errors import RequestError
from pds.protocol.keys import make_signer
from pds.protocol.plc import (
    PlcService,
    PlcState,
    did_for_genesis,
    make_update,
    sign_genesis,
    sign_operation,
)
from pds.protocol.plc_log import PlcLog
from pds.protocol.syntax import Did, Handle
from pds.services.migration import Migration, MoveInRequest
from pds.services.migration_work import Given
from pds.services.plc_directory import PlcDirectory
from tests.independent import check_export
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, sign_up

OWN_KEY = make_signer("k256", b"\x51" * 32)
NEW_PASSWORD = "password-at-the-new-host"
PREFERENCES = [
    {"$type": "app.bsky.actor.defs#adultContentPref", "enabled": True},
    {"$type": "app.bsky.actor.defs#personalDetailsPref", "birthDate": "1990-01-02T00:00:00.000Z"},
]


@dataclass
class Hosts:
    """The host that is left and the one that is moved to."""

    old: Host
    new: Host
    plc: PlcDirectory

    @property
    def migration(self) -> Migration:
        return self.new.server.services.migration


def under(domain: str) -> Callable[[Config], Config]:
    """Handles of a host that cannot be mixed up with another's."""
    return lambda config: replace(config, host=replace(config.host, handle_domains=(domain,)))


def directory() -> PlcDirectory:
    """A directory that knows one identity already: an empty one is not taken by `host_in`."""
    plc = PlcDirectory(now_us=lambda: time.time_ns() // 1000, rate_limits=None)
    key = OWN_KEY.public_key.did_key
    genesis = sign_genesis(
        OWN_KEY,
        rotation_keys=[key],
        signing_key=key,
        handle=Handle("somebody.test"),
        pds_endpoint="https://pds.example",
    )
    plc.submit(did_for_genesis(genesis), genesis.to_json())
    return plc


def log_of(plc: PlcDirectory, did: str) -> PlcLog:
    log = plc.get_log(Did(did))
    assert log is not None
    return log


def state_of(plc: PlcDirectory, did: str) -> PlcState:
    state = log_of(plc, did).state
    assert state is not None
    return state


@asynccontextmanager
async def two_hosts(
    folder: Path, change_new: Callable[[Config], Config] = lambda config: config
) -> AsyncIterator[Hosts]:
    plc = directory()
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(
            host_in(folder / "old", plc=plc, change=under(".old.test"))
        )
        new = await stack.enter_async_context(
            host_in(
                folder / "new",
                plc=plc,
                change=lambda config: change_new(under(".new.test")(config)),
            )
        )
        yield Hosts(old, new, plc)


async def make_traveller(hosts: Hosts, name: str = "alice", *, blobs: int = 5) -> Person:
    """Open an account at the old host, with records, pictures, preferences and a key of its own."""
    person = await sign_up(hosts.old.client, f"{name}.old.test")
    add_own_key(hosts, person.did)
    await fill(person, blobs=blobs)
    return person


async def fill(person: Person, *, blobs: int) -> None:
    for number in range(10):
        await person.post(f"post {number}")
    await person.create(
        "app.bsky.graph.follow",
        {"subject": "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "createdAt": "2026-01-02T03:04:05.000Z"},
    )
    for number in range(blobs):
        await post_picture(person, bytes([number]) * 2000)
    await person.client.post("app.bsky.actor.putPreferences", preferences=PREFERENCES)


async def post_picture(person: Person, content: bytes) -> str:
    blob = await person.client.upload(b"\x89PNG\r\n\x1a\n" + content, "image/png")
    embed = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
    await person.post("a picture", embed=embed)
    return str(blob["ref"]["$link"])


def add_own_key(hosts: Hosts, did: str) -> None:
    """Put a key of the owner above the host's, and a service that no host has set."""
    rotation_signer = hosts.old.server.services.migration.parts.rotation_signer
    last = log_of(hosts.plc, did).last
    assert last is not None
    assert last.state is not None
    fields = make_update(
        last,
        rotation_keys=[OWN_KEY.public_key.did_key, *last.state.rotation_keys],
        services={**last.state.services, "bsky_chat": PlcService("Chat", "https://chat.example")},
    )
    hosts.plc.submit(Did(did), sign_operation(fields, rotation_signer).to_json())


async def plc_code(host: Host, *, to: str | None = None) -> str:
    """Wait for the mail with the code, and read the newest."""
    async with asyncio.timeout(60):
        while True:
            for received in reversed(host.mailbox.received()):
                found = re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", received.mail.text)
                is_theirs = to is None or received.mail.to == to
                if found and is_theirs and received.mail.purpose == "plc_operation":
                    return found.group()
            await asyncio.sleep(0.005)


def signed_by_owner(hosts: Hosts, did: str, recommended: Any) -> dict[str, Any]:
    """An operation as a tool makes it that holds the owner's rotation key."""
    last = log_of(hosts.plc, did).last
    assert last is not None
    assert last.state is not None
    services = {
        name: PlcService(entry["type"], entry["endpoint"])
        for name, entry in recommended["services"].items()
    }
    fields = make_update(
        last,
        rotation_keys=[OWN_KEY.public_key.did_key, *recommended["rotationKeys"]],
        also_known_as=recommended["alsoKnownAs"],
        verification_methods=recommended["verificationMethods"],
        services={**last.state.services, **services},
    )
    return sign_operation(fields, OWN_KEY).to_json()


class _NeverActive:
    """Stands in for the life of accounts: none becomes active."""

    async def activate(self, aid: int) -> None:
        raise RequestError("InvalidRequest", f"account {aid} shall not become active")


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def never_activating(hosts: Hosts) -> Migration:
    """A node of the new host at which every move stops right after the switch."""
    lifecycle: Any = _NeverActive()
    parts = replace(hosts.migration.parts, node="other", sleep=no_sleep, lifecycle=lifecycle)
    return Migration(parts)


@dataclass
class Snapshot:
    """What an account holds, without what is the host's."""

    records: dict[str, bytes]
    blobs: dict[str, str]
    preferences: list[Any]


async def snapshot(client: Client, did: str, key: str) -> Snapshot:
    """Read everything, as its owner; the export is verified with the key that signs now."""
    car = await client.get("com.atproto.sync.getRepo", did=did)
    records = check_export(car, did=did, did_key=key)
    listed = await client.get("com.atproto.sync.listBlobs", did=did)
    blobs = {}
    for cid in listed["cids"]:
        content = await client.get("com.atproto.sync.getBlob", did=did, cid=cid)
        blobs[cid] = hashlib.sha256(content).hexdigest()
    preferences = await client.get("app.bsky.actor.getPreferences")
    return Snapshot(records, blobs, preferences["preferences"])


def signing_key(hosts: Hosts, did: str) -> str:
    return state_of(hosts.plc, did).verification_methods["atproto"]


async def login(host: Host, did: str, password: str) -> Client:
    answer = await host.client.post(
        "com.atproto.server.createSession", identifier=did, password=password
    )
    return host.client.with_token(answer["accessJwt"])


def request_for(person: Person, **more: Any) -> MoveInRequest:
    given = Given(password=person.password, new_password=NEW_PASSWORD)
    return MoveInRequest(account=person.did, given=given, **more)


async def stage(hosts: Hosts, person: Person, **more: Any) -> dict[str, Any]:
    """Bring a move to where it waits for the code."""
    await hosts.migration.start_in(request_for(person, **more))
    return await hosts.migration.settle(person.did)


async def finish(hosts: Hosts, person: Person) -> dict[str, Any]:
    """Give a move the code, and wait for its end."""
    await hosts.migration.go_on(person.did, Given(requests_token=True))
    code = await plc_code(hosts.old)
    await hosts.migration.go_on(person.did, Given(plc_token=code))
    return await hosts.migration.settle(person.did)
