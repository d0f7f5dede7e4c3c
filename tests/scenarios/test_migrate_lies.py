"""Moves from hosts that lie, stall and break: nothing of it gets in, and faults have a name.

Spec: (ACC-50, ACC-53, ACC-61, ID-68)
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from pds.errors import RequestError
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
    request_for,
    signing_key,
    snapshot,
    state_of,
    two_hosts,
)
from tests.support_client import sign_up

Told = bytes | int | tuple[int, bytes]
Lie = Callable[[bytes], Told]


class LyingHttp:
    """The way to a host that answers some methods otherwise; a number is a status without a body.

    `lies` is by method; `asked` counts the calls of each.
    """

    def __init__(self, inner: Any, lies: dict[str, Lie]) -> None:
        self.inner = inner
        self.lies = lies
        self.asked: dict[str, int] = {}

    @asynccontextmanager
    async def request(self, verb: str, url: str, **options: Any) -> AsyncIterator[Any]:
        nsid = url.partition("/xrpc/")[2].partition("?")[0]
        self.asked[nsid] = self.asked.get(nsid, 0) + 1
        async with self.inner.request(verb, url, **options) as answer:
            lie = self.lies.get(nsid)
            if lie is None:
                yield answer
                return
            told = lie(await answer.read())
            yield _Told(answer, told)


class _Told:
    def __init__(self, answer: Any, told: Told) -> None:
        self.url = answer.url
        self.headers = CIMultiDict(answer.headers)
        self.status: int = answer.status
        self.body = b""
        match told:
            case bytes():
                self.body = told
            case int():
                self.status = told
            case status, body:
                self.status, self.body = status, body
        self.headers["Location"] = self.url

    async def read(self, max_bytes: int | None = None) -> bytes:
        return self.body

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        yield self.body


def lied_to(hosts: Hosts, **lies: Lie) -> tuple[Migration, LyingHttp]:
    """A node of the new host to which the old one lies; names are methods with `_` for dots."""
    by_method = {name.replace("_", "."): lie for name, lie in lies.items()}
    http: Any = LyingHttp(hosts.migration.parts.http, by_method)
    parts = replace(hosts.migration.parts, http=http, node="lied-to", sleep=no_sleep)
    return Migration(parts), http


async def test_a_repo_and_blobs_that_are_not_the_accounts_stay_out(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=2)
        mallory = await sign_up(hosts.old.client, "mallory.old.test")
        await mallory.post("not by alice")
        foreign = await mallory.client.get("com.atproto.sync.getRepo", did=mallory.did)
        migration, http = lied_to(hosts, com_atproto_sync_getRepo=lambda _: foreign)
        await migration.start_in(request_for(alice))
        view = await migration.settle(alice.did)
        assert (view["status"], view["problem"]["code"]) == ("failed", "repo_refused")
        http.lies = {"com.atproto.sync.getRepo": lambda car: car[:-10]}
        await migration.go_on(alice.did)
        view = await migration.settle(alice.did)
        assert view["problem"]["code"] == "repo_refused"
        assert view["progress"]["records"] == 0
        # Bytes that are not the blob's, again and again: not taken, and not taken for lost.
        http.lies = {"com.atproto.sync.getBlob": lambda content: content + b"!"}
        await migration.go_on(alice.did)
        view = await migration.settle(alice.did)
        assert (view["status"], view["problem"]["code"]) == ("failed", "blobs_unfinished")
        assert view["progress"]["blobsCopied"] == view["progress"]["blobsGone"] == 0
        # A host that says it has none is believed; the account moves without.
        gone = json.dumps({"error": "BlobNotFound", "message": "Blob not found"}).encode()
        http.lies = {"com.atproto.sync.getBlob": lambda _: (400, gone)}
        await migration.go_on(alice.did, Given(accepts_missing=True))
        view = await migration.settle(alice.did)
        assert (view["step"], view["progress"]["blobsCopied"]) == ("approve", 0)
        assert len(view["warnings"]) == 1
        http.lies = {}
        await finish(hosts, alice)
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        missing = await client.get("com.atproto.repo.listMissingBlobs")
        assert len(missing["blobs"]) == 2


async def test_an_operation_that_was_not_asked_for_is_not_submitted(tmp_path: Path) -> None:
    """ID-68: the host that signs may sign what it likes; it is compared before it is used."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        identity = state_of(hosts.plc, alice.did)

        def change(content: bytes) -> bytes:
            answer = json.loads(content)
            answer["operation"]["rotationKeys"] = list(identity.rotation_keys)
            return json.dumps(answer).encode()

        migration, http = lied_to(hosts, com_atproto_identity_signPlcOperation=change)
        await migration.start_in(request_for(alice))
        await migration.settle(alice.did)
        await migration.go_on(alice.did, Given(requests_token=True))
        await migration.go_on(alice.did, Given(plc_token=await plc_code(hosts.old)))
        view = await migration.settle(alice.did)
        assert view["problem"]["code"] == "other_host_faulty"
        assert "signed another operation" in view["problem"]["message"]
        assert state_of(hosts.plc, alice.did) == identity
        http.lies = {"com.atproto.identity.signPlcOperation": lambda _: b'{"operation": 7}'}
        await migration.go_on(alice.did)
        assert (await migration.settle(alice.did))["step"] == "approve"  # The code was used up.
        assert (await hosts.migration.undo(alice.did))["status"] == "undone"
        assert state_of(hosts.plc, alice.did) == identity


async def test_a_host_that_breaks_is_asked_again_and_named(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=1)
        before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
        migration, http = lied_to(hosts, com_atproto_sync_getRepo=lambda _: 503)
        await migration.start_in(request_for(alice))
        view = await migration.settle(alice.did)
        assert (view["status"], view["problem"]["code"]) == ("failed", "other_host_unreachable")
        assert hosts.old.url.removeprefix("http://") in view["problem"]["nextStep"]
        assert http.asked["com.atproto.sync.getRepo"] == 9
        http.lies = {"com.atproto.sync.getRepo": lambda _: 302}
        await migration.go_on(alice.did)
        view = await migration.settle(alice.did)
        assert view["problem"]["code"] == "other_host_faulty"
        assert "redirects without end" in view["problem"]["message"]
        calls = iter((503, 429, 502))
        http.lies = {"com.atproto.sync.getBlob": lambda content: next(calls, None) or content}
        await migration.go_on(alice.did)
        view = await migration.settle(alice.did)
        assert (view["step"], view["progress"]["blobsCopied"]) == ("approve", 1)
        # What fails after the switch does not hold the account up.
        http.lies = {"com.atproto.server.deactivateAccount": lambda _: 500}
        await migration.go_on(alice.did, Given(requests_token=True))
        await migration.go_on(alice.did, Given(plc_token=await plc_code(hosts.old)))
        view = await migration.settle(alice.did)
        assert view["status"] == "done"
        assert len(view["warnings"]) == 1
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
        assert after == before


async def test_a_host_that_does_not_say_what_it_is_is_not_moved_from(tmp_path: Path) -> None:
    """Which handles end with the old host must be known before one is kept."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=0)
        migration, _ = lied_to(hosts, com_atproto_server_describeServer=lambda _: 503)
        with pytest.raises(RequestError) as caught:
            await migration.start_in(request_for(alice))
        assert caught.value.name == "other_host_unreachable"
        assert await migration.list_all() == ([], None)


async def test_accounts_are_switched_no_faster_than_relays_allow(tmp_path: Path) -> None:
    async with two_hosts(
        tmp_path,
        lambda config: replace(config, migration=replace(config.migration, switches_per_hour=1)),
    ) as hosts:
        for name in ("alice", "bob"):
            person = await make_traveller(hosts, name, blobs=0)
            await hosts.migration.start_in(request_for(person))
            await hosts.migration.settle(person.did)
            await hosts.migration.go_on(person.did, Given(requests_token=True))
            code = await plc_code(hosts.old, to=f"{name}@example.test")
            await hosts.migration.go_on(person.did, Given(plc_token=code))
            if name == "alice":
                assert (await hosts.migration.settle(person.did))["status"] == "done"
        view = await hosts.migration.settle(person.did)
        assert (view["status"], view["step"]) == ("running", "identity")
        assert view["problem"]["code"] == "paced"
        assert view["retryAt"] > hosts.new.server.clock.now_us() + 3000 * 1_000_000
        # It waits for its turn, and takes nobody's place.
        assert await hosts.migration.resume() == 0
