"""Accounts that are written to while they are switched: nothing that was taken in is lost.

Spec: (ACC-43, ACC-50, ACC-54)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pds.protocol.cid import parse_cid
from pds.services.migration import Migration
from pds.services.migration_work import Given
from tests.scenarios.moving import (
    NEW_PASSWORD,
    Hosts,
    finish,
    login,
    make_traveller,
    no_sleep,
    plc_code,
    post_picture,
    request_for,
    signing_key,
    snapshot,
    stage,
    two_hosts,
)
from tests.support_client import Client, Person, XrpcError

POST = "app.bsky.feed.post"
RECORDS = 2000
BATCH = 200
THERE, HERE = "3m22222222222", "3m33333333333"


async def fill(person: Person, count: int) -> None:
    """Write many posts, some hundred at a time."""
    for first in range(0, count, BATCH):
        writes = [
            {
                "$type": "com.atproto.repo.applyWrites#create",
                "collection": POST,
                "value": {
                    "$type": POST,
                    "text": f"post number {number} of many, " + "as long as people write " * 8,
                    "createdAt": "2026-01-02T03:04:05.000Z",
                },
            }
            for number in range(first, min(first + BATCH, count))
        ]
        await person.client.post("com.atproto.repo.applyWrites", repo=person.did, writes=writes)


@dataclass
class Writer:
    """Writes at the old host, some posts per second, until that refuses."""

    person: Person
    pause_s: float
    taken: dict[str, str] = field(default_factory=dict)
    """Path and CID of each post that was acknowledged."""
    latencies_s: list[float] = field(default_factory=list)
    refusal: str = ""

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                made = await self.person.post(f"live {len(self.taken)}")
            except XrpcError as error:
                self.refusal = error.name
                return
            self.taken[made["uri"].split("/", 3)[3]] = made["cid"]
            self.latencies_s.append(time.monotonic() - began)
            await asyncio.sleep(self.pause_s)


async def find_missing(hosts: Hosts, did: str, taken: dict[str, str]) -> set[str]:
    """Return which of these posts are not at the new host, under the same path and CID."""
    client = await login(hosts.new, did, NEW_PASSWORD)
    after = await snapshot(client, did, signing_key(hosts, did))
    found = {path: bytes(cid) for path, cid in after.records.items()}
    return {path for path, cid in taken.items() if found.get(path) != to_bytes(cid)}


def to_bytes(cid: str) -> bytes:
    return bytes(parse_cid(cid))


async def test_whoever_writes_on_while_the_account_moves_loses_nothing(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=1)
        await fill(alice, RECORDS)
        writer = Writer(alice, pause_s=0.01)
        writing = asyncio.create_task(writer.run())
        view = await stage(hosts, alice)
        assert view["step"] == "approve", view
        view = await finish(hosts, alice)
        await writing
        assert (view["status"], view["warnings"]) == ("done", []), view
        assert writer.refusal == "AccountDeactivated"
        assert len(writer.taken) > 0
        assert await find_missing(hosts, alice.did, writer.taken) == set()


class _Meddled:
    """Lets something happen right before an account becomes active, and right after."""

    def __init__(self, inner: Any, before: "Act", after: "Act") -> None:
        self._inner = inner
        self._before = before
        self._after = after

    async def activate(self, aid: int) -> Any:
        await self._before()
        change = await self._inner.activate(aid)
        await self._after()
        return change


Act = Callable[[], Awaitable[object]]


async def nothing() -> None:
    """Let happen what happens."""


async def move_meddled(
    hosts: Hosts, person: Person, *, before: Act, after: Act = nothing
) -> dict[str, Any]:
    parts = hosts.migration.parts
    lifecycle: Any = _Meddled(parts.lifecycle, before, after)
    migration = Migration(replace(parts, node="other", sleep=no_sleep, lifecycle=lifecycle))
    await migration.start_in(request_for(person))
    await migration.settle(person.did)
    await migration.go_on(person.did, Given(requests_token=True))
    await migration.go_on(person.did, Given(plc_token=await plc_code(hosts.old)))
    return await migration.settle(person.did)


async def read(client: Client, did: str, rkey: str) -> Any:
    try:
        return (
            await client.get("com.atproto.repo.getRecord", repo=did, collection=POST, rkey=rkey)
        )["value"]["text"]
    except XrpcError as error:
        return error.name


async def test_what_was_written_behind_the_last_look_is_carried_over(tmp_path: Path) -> None:
    """ACC-43: created, changed and deleted there, with a picture; the owner is not bothered."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=1)
        kept = [(await alice.post(f"kept {n}"))["uri"].rpartition("/")[2] for n in range(3)]
        pictures: list[str] = []

        async def write() -> None:
            await alice.client.post(
                "com.atproto.repo.putRecord",
                repo=alice.did,
                collection=POST,
                rkey=kept[0],
                record={"$type": POST, "text": "changed", "createdAt": "2026-01-02T03:04:05.000Z"},
            )
            await alice.client.post(
                "com.atproto.repo.deleteRecord", repo=alice.did, collection=POST, rkey=kept[1]
            )
            await alice.post("late")
            pictures.append(await post_picture(alice, b"late" * 500))

        before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
        view = await move_meddled(hosts, alice, before=write)
        assert (view["status"], view["warnings"]) == ("done", []), view
        assert view["progress"]["carriedOver"] == 4
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
        assert len(after.records) == len(before.records) + 1
        assert [await read(client, alice.did, rkey) for rkey in kept] == [
            "changed",
            "RecordNotFound",
            "kept 2",
        ]
        assert set(pictures) <= set(after.blobs)


async def test_what_was_written_here_already_is_left_and_told(tmp_path: Path) -> None:
    """The new host's own writes win; what contradicts them is counted in a warning."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        kept = [(await alice.post(f"kept {n}"))["uri"].rpartition("/")[2] for n in range(2)]

        async def put(client: Client, rkey: str, text: str) -> None:
            await client.post(
                "com.atproto.repo.putRecord",
                repo=alice.did,
                collection=POST,
                rkey=rkey,
                record={"$type": POST, "text": text, "createdAt": "2026-01-02T03:04:05.000Z"},
            )

        async def write_there() -> None:
            await put(alice.client, kept[0], "changed there")
            await put(alice.client, kept[1], "changed there")
            await put(alice.client, THERE, "made there")

        async def write_here() -> None:
            client = await login(hosts.new, alice.did, NEW_PASSWORD)
            await put(client, kept[0], "changed here")
            await put(client, HERE, "made here")

        view = await move_meddled(hosts, alice, before=write_there, after=write_here)
        assert view["status"] == "done", view
        assert view["progress"]["carriedOver"] == 2
        assert len(view["warnings"]) == 1, view
        warning = view["warnings"][0]
        assert "1 writes" in warning
        assert f"{POST}/{kept[0]}: it was written here, too" in warning
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        texts = [await read(client, alice.did, rkey) for rkey in (*kept, THERE, HERE)]
        assert texts == ["changed here", "changed there", "made there", "made here"]
