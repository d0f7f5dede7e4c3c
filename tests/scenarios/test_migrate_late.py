"""Old hosts that contradict themselves or take their time, and owners who write right away.

Spec: (ACC-43, ACC-50, ACC-54)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pds.errors import Unavailable
from pds.services import migration_in, migration_switch
from pds.services.migration import Migration
from pds.services.migration_host import RemoteHost
from pds.services.migration_work import Work
from pds.store.engine import Txn
from tests.scenarios.moving import (
    NEW_PASSWORD,
    Hosts,
    finish,
    login,
    make_traveller,
    stage,
    two_hosts,
)
from tests.scenarios.test_migrate_switch import POST, move_meddled, read
from tests.support_client import Client, Person

FOLLOW = "app.bsky.graph.follow"
LATE = "3m22222222222"


async def put(client: Client, did: str, rkey: str, text: str) -> None:
    await client.post(
        "com.atproto.repo.putRecord",
        repo=did,
        collection=POST,
        rkey=rkey,
        record={"$type": POST, "text": text, "createdAt": "2026-01-02T03:04:05.000Z"},
    )


async def delete(client: Client, did: str, rkey: str) -> None:
    await client.post("com.atproto.repo.deleteRecord", repo=did, collection=POST, rkey=rkey)


async def new_post(person: Person, text: str) -> str:
    return str((await person.post(text))["uri"].rpartition("/")[2])


@dataclass
class Lag:
    """An old host with a cache, or with a copy of its database that lags behind."""

    sent: list[bytes] = field(default_factory=list)
    left: int = 0
    """How many times it sends again what it sent first."""


def lagging(monkeypatch: pytest.MonkeyPatch) -> Lag:
    lag = Lag()
    open_repo = RemoteHost.open_repo

    @asynccontextmanager
    async def opened(
        self: RemoteHost, did: Any, *, since: str | None, max_bytes: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if lag.left:
            lag.left -= 1
            yield once(lag.sent[0])
            return
        async with open_repo(self, did, since=since, max_bytes=max_bytes) as chunks:
            lag.sent.append(b"".join([chunk async for chunk in chunks]))
        yield once(lag.sent[-1])

    monkeypatch.setattr(RemoteHost, "open_repo", opened)
    return lag


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_a_repo_that_lags_behind_what_its_host_says_is_not_taken_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its head is noted as copied, and what was not sent is never asked for again."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        lag = lagging(monkeypatch)
        await stage(hosts, alice)
        rkey = await new_post(alice, "written while the account moves")
        lag.left = 1
        view = await finish(hosts, alice)
        assert (view["status"], view["warnings"]) == ("done", []), view
        assert lag.left == 0
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        assert await read(client, alice.did, rkey) == "written while the account moves"


async def move_on(hosts: Hosts, person: Person, act: Any) -> dict[str, Any]:
    """Finish a move that is staged; `act` happens between the last look and the activation."""
    parts = hosts.migration.parts
    activate = parts.lifecycle.activate

    async def meddled(aid: int) -> Any:
        await act()
        return await activate(aid)

    parts.lifecycle.activate = meddled  # type: ignore[method-assign]
    return await finish(hosts, person)


async def test_a_late_look_at_an_old_state_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ACC-43: the difference to a state before what was copied is no list of writes."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        lag = lagging(monkeypatch)
        await stage(hosts, alice)
        rkey = await new_post(alice, "copied by the last look")

        async def write_there() -> None:
            lag.left = 9  # From now on the first state is sent again.
            await put(alice.client, alice.did, LATE, "late")

        view = await move_on(hosts, alice, write_there)
        assert view["status"] == "done", view
        assert lag.left < 9
        assert view["progress"]["carriedOver"] == 0
        assert len(view["warnings"]) == 1, view
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        assert await read(client, alice.did, rkey) == "copied by the last look"


async def test_what_was_deleted_here_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    """Nor does a write here, in another part of the repo, keep late writes from being found."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        kept = [await new_post(alice, f"kept {n}") for n in range(3)]

        async def write_there() -> None:
            await put(alice.client, alice.did, LATE, "late")
            await put(alice.client, alice.did, kept[1], "changed there")

        async def write_here() -> None:
            client = await login(hosts.new, alice.did, NEW_PASSWORD)
            await delete(client, alice.did, kept[0])
            await delete(client, alice.did, kept[1])
            await client.post(
                "com.atproto.repo.createRecord",
                repo=alice.did,
                collection=FOLLOW,
                record={
                    "$type": FOLLOW,
                    "subject": "did:plc:vpkhqolt662uhesyj6nxm7ys",
                    "createdAt": "2026-01-02T03:04:05.000Z",
                },
            )

        view = await move_meddled(hosts, alice, before=write_there, after=write_here)
        assert view["status"] == "done", view
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        texts = [await read(client, alice.did, rkey) for rkey in (*kept, LATE)]
        assert texts == ["RecordNotFound", "RecordNotFound", "kept 2", "late"]
        assert view["progress"]["carriedOver"] == 1
        assert len(view["warnings"]) == 1, view
        assert f"{POST}/{kept[1]}: it was deleted here, too" in view["warnings"][0]


async def test_without_events_nothing_is_made_that_may_have_been_deleted(tmp_path: Path) -> None:
    """Nor is a younger record changed; one that is as it was copied is."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        kept = [await new_post(alice, f"kept {n}") for n in range(3)]

        async def write_there() -> None:
            await put(alice.client, alice.did, LATE, "late")
            for rkey in kept[:2]:
                await put(alice.client, alice.did, rkey, "changed there")

        async def write_here() -> None:
            client = await login(hosts.new, alice.did, NEW_PASSWORD)
            await put(client, alice.did, kept[0], "changed here")
            await delete(client, alice.did, kept[2])
            await hosts.new.server.engine.transact("test", forget)

        def forget(txn: Txn) -> None:
            txn.write("DELETE FROM event WHERE kind = 'sync'")

        view = await move_meddled(hosts, alice, before=write_there, after=write_here)
        assert (view["status"], view["progress"]["carriedOver"]) == ("done", 1), view
        assert "3 writes" in view["warnings"][0], view
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        texts = [await read(client, alice.did, rkey) for rkey in (*kept, LATE)]
        assert texts == ["changed here", "changed there", "RecordNotFound", "RecordNotFound"]


async def test_a_crash_right_after_the_activation_lets_no_old_write_win(tmp_path: Path) -> None:
    """ACC-52: which writes are the owner's here is written down before there can be any."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        rkey = await new_post(alice, "kept")

        async def write_there() -> None:
            await put(alice.client, alice.did, rkey, "changed there")

        async def write_here() -> None:
            client = await login(hosts.new, alice.did, NEW_PASSWORD)
            await put(client, alice.did, rkey, "changed here")
            raise Unavailable("the node is gone")

        view = await move_meddled(hosts, alice, before=write_there, after=write_here)
        assert (view["status"], view["step"]) == ("running", "activate")
        heir = Migration(replace(hosts.migration.parts, node="heir", is_alone=True))
        assert await heir.resume() == 1
        view = await heir.settle(alice.did)
        assert view["status"] == "done", view
        assert any("written here, too" in warning for warning in view["warnings"]), view
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        assert await read(client, alice.did, rkey) == "changed here"


async def test_a_host_that_trickles_does_not_keep_the_account_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity names this host already: nobody could use the account anywhere (ACC-40)."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        await stage(hosts, alice)
        look = migration_switch._look_last
        looks: list[Work] = []

        async def endless(work: Work) -> None:
            looks.append(work)
            await asyncio.Event().wait()

        async def look_at_endless(work: Work) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(migration_in, "copy_repo", endless)
                patch.setattr(migration_switch, "LAST_LOOKS_S", 0.05)
                await look(work)

        monkeypatch.setattr(migration_switch, "_look_last", look_at_endless)
        async with asyncio.timeout(60):
            view = await finish(hosts, alice)
        assert len(looks) == 1
        assert view["status"] == "done", view
        assert ["took too long" in warning for warning in view["warnings"]] == [True], view
