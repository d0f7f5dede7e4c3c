"""Moving in by the standard calls, over real HTTP, with a strict relay listening.

Spec: (ACC-5, ACC-40, ACC-41, ACC-51, ACC-52, REPO-92, XRPC-5, XRPC-86, SYNC-42)
"""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.protocol.cid import Cid
from tests.independent import check_export
from tests.scenarios.conftest import Host, host_in
from tests.scenarios.test_account_life import following
from tests.support_client import Person, sign_up
from tests.support_move import Newcomer, import_car, refusal
from tests.support_repo import ForeignRepo

POST = "app.bsky.feed.post"
SERVER = "com.atproto.server."
PICTURES = [b"\x89PNG\r\n\x1a\n" + bytes([number]) * 50 for number in range(5)]
CREATED = "2026-01-01T00:00:00.000Z"


def picture(content: bytes) -> dict[str, Any]:
    ref = {
        "$type": "blob",
        "ref": Cid.of_raw(content),
        "mimeType": "image/png",
        "size": len(content),
    }
    image = {"alt": "", "image": ref}
    return {
        "$type": POST,
        "text": "look",
        "createdAt": CREATED,
        "embed": {"$type": "app.bsky.embed.images", "images": [image]},
    }


RECORDS = {
    **{
        f"{POST}/{number:04}": {"$type": POST, "text": f"number {number}", "createdAt": CREATED}
        for number in range(40)
    },
    **{f"{POST}/pic{number}": picture(content) for number, content in enumerate(PICTURES)},
    "com.example.unknown/self": {"$type": "com.example.unknown", "data": b"\x00\x01", "n": -5},
}


async def newcomer_at(host: Host, handle: str = "mover.test") -> tuple[Newcomer, Person]:
    plc_url = host.server.config.identity.plc_url
    newcomer = await Newcomer.born(host.client.http, plc_url, handle)
    return newcomer, await newcomer.sign_up(host.client)


async def records_of(host: Host, person: Person) -> dict[str, str]:
    """What a stranger finds in the account's export, checked against its document."""
    plc_url = host.server.config.identity.plc_url
    async with host.client.http.get(f"{plc_url}/{person.did}/data") as answer:
        key = (await answer.json())["verificationMethods"]["atproto"]
    car = await person.client.get("com.atproto.sync.getRepo", did=person.did)
    return {
        path: str(Cid(cid)) for path, cid in check_export(car, did=person.did, did_key=key).items()
    }


def texts(repo: ForeignRepo) -> dict[str, str]:
    return {path: str(cid) for path, cid in repo.records.items()}


async def test_an_account_moves_in_call_by_call(host: Host) -> None:
    newcomer, person = await newcomer_at(host)
    repo = newcomer.repo(RECORDS)
    async with following(host) as relay:
        seq = host.server.engine.last_seq
        await import_car(person.client, repo.car())
        report = await person.client.get(SERVER + "checkAccountStatus")
        assert {name: report[name] for name in report if name not in ("repoCommit", "repoRev")} == {
            "activated": False,
            "validDid": False,
            "repoBlocks": len(repo.blocks),
            "indexedRecords": len(RECORDS),
            "privateStateValues": 0,
            "expectedBlobs": len(PICTURES),
            "importedBlobs": 0,
        }
        assert report["repoRev"] > repo.rev
        assert await missing_by_pages(person) == {str(Cid.of_raw(one)) for one in PICTURES}
        for content in PICTURES:
            await person.client.upload(content, "image/png")
        assert await missing_by_pages(person) == set()
        preferences = [{"$type": "app.bsky.actor.defs#adultContentPref", "enabled": False}]
        await person.client.post("app.bsky.actor.putPreferences", preferences=preferences)
        assert (await refusal(person.client.post(SERVER + "activateAccount"))).status == 400
        assert host.server.engine.last_seq == seq
        await newcomer.move_identity(person)
        await person.client.post(SERVER + "activateAccount")
        assert await records_of(host, person) == texts(repo)
        await person.post("here I am")
        heard = await relay.wait_for(4)
        assert [kind for kind, _ in heard[-4:]] == ["#account", "#identity", "#sync", "#commit"]
    report = await person.client.get(SERVER + "checkAccountStatus")
    assert (report["activated"], report["validDid"], report["importedBlobs"]) == (True, True, 5)
    found = await person.client.get("app.bsky.actor.getPreferences")
    assert found["preferences"] == preferences
    record = await host.client.get(
        "com.atproto.repo.getRecord", repo=person.did, collection=POST, rkey="pic0"
    )
    cid = record["value"]["embed"]["images"][0]["image"]["ref"]["$link"]
    blob = await host.client.get("com.atproto.sync.getBlob", did=person.did, cid=cid)
    assert blob == PICTURES[0]


async def missing_by_pages(person: Person) -> set[str]:
    """What listMissingBlobs says, two at a time."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await person.client.get("com.atproto.repo.listMissingBlobs", limit=2, **cursor)
        found += [blob["cid"] for blob in page["blobs"]]
        assert all(blob["recordUri"].startswith(f"at://{person.did}/") for blob in page["blobs"])
        if "cursor" not in page:
            assert len(set(found)) == len(found)
            return set(found)
        cursor = {"cursor": page["cursor"]}


async def chunked(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 3000):
        yield content[at : at + 3000]


async def test_a_repo_may_come_in_chunks_compressed_and_again(host: Host) -> None:
    """(REPO-93, XRPC-5)"""
    newcomer, person = await newcomer_at(host)
    car = newcomer.repo(RECORDS).car()
    await import_car(person.client, chunked(car))
    head = await person.client.get(SERVER + "checkAccountStatus")
    await import_car(person.client, gzip.compress(car), **{"Content-Encoding": "gzip"})
    assert await person.client.get(SERVER + "checkAccountStatus") == head
    newer = newcomer.repo({**RECORDS, f"{POST}/new": RECORDS[f"{POST}/0001"]}, ago_s=30)
    await import_car(person.client, newer.car())
    found = await person.client.get(SERVER + "checkAccountStatus")
    assert found["indexedRecords"] == len(RECORDS) + 1
    assert found["repoRev"] > head["repoRev"]


async def test_who_may_not_import(host: Host) -> None:
    """(ACC-5, ACC-34, ACC-52)"""
    newcomer, person = await newcomer_at(host)
    car = newcomer.repo(RECORDS).car()
    alice = await sign_up(host.client, "alice.test")
    error = await refusal(import_car(alice.client, car))
    assert (error.status, error.name) == (400, "InvalidRequest")
    assert "deactivated" in error.body["message"]
    await alice.client.post(SERVER + "deactivateAccount", {})
    error = await refusal(import_car(alice.client, car))
    assert "another account" in error.body["message"]
    made = await person.client.post(SERVER + "createAppPassword", name="a tool")
    session = await host.client.post(
        SERVER + "createSession", identifier=person.handle, password=made["password"]
    )
    error = await refusal(import_car(host.client.with_token(session["accessJwt"]), car))
    assert (error.status, error.name) == (400, "InvalidToken")
    error = await refusal(import_car(host.client, car))
    assert error.status == 401
    error = await refusal(import_car(person.client, car, **{"Content-Type": "application/json"}))
    assert error.status == 400


async def test_a_bad_repo_is_refused_with_the_reason(host: Host) -> None:
    newcomer, person = await newcomer_at(host)
    before = await person.client.get(SERVER + "checkAccountStatus")
    repo = newcomer.repo(RECORDS)
    for car, reason in (
        (repo.car()[:-1], "Invalid repo: the CAR ends in the middle"),
        (repo.car(without=[repo.data]), f"Invalid repo: block {repo.data} is missing"),
        (b"not a CAR at all", "Invalid repo: "),
    ):
        error = await refusal(import_car(person.client, car))
        assert (error.status, error.name) == (400, "InvalidRequest")
        assert error.body["message"].startswith(reason)
    assert await person.client.get(SERVER + "checkAccountStatus") == before


async def test_the_operator_limits_and_closes_imports(tmp_path: Path) -> None:
    """(ACC-52, XRPC-5)"""

    def change(config: Any) -> Any:
        return replace(
            config,
            limits=replace(config.limits, repo_import_bytes=5000),
            sign_up=replace(config.sign_up, accepting_imports=True),
        )

    async with host_in(tmp_path, change=change) as host:
        newcomer, person = await newcomer_at(host)
        car = newcomer.repo(RECORDS).car()
        assert len(car) > 5000
        for content in (car, chunked(car)):
            error = await refusal(import_car(person.client, content))
            assert (error.status, error.name) == (413, "PayloadTooLarge")
        small = newcomer.repo({f"{POST}/1": RECORDS[f"{POST}/0001"]})
        await import_car(person.client, small.car())

    def close(config: Any) -> Any:
        return replace(config, sign_up=replace(config.sign_up, accepting_imports=False))

    async with host_in(tmp_path / "closed", change=close) as host:
        newcomer, person = await newcomer_at(host)
        error = await refusal(import_car(person.client, newcomer.repo(RECORDS).car()))
        assert error.body["message"] == "Service is not accepting repo imports"


async def test_a_client_that_hangs_up_after_the_last_byte_loses_nothing(host: Host) -> None:
    """Proxies close requests that take long; the import goes on."""
    newcomer, person = await newcomer_at(host)
    car = newcomer.repo(RECORDS).car()
    sent = asyncio.create_task(import_car(person.client, car))
    async with asyncio.timeout(60):
        while host.server.services.repo_imports.files.used_bytes < len(car):
            await asyncio.sleep(0)
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        while True:
            report = await person.client.get(SERVER + "checkAccountStatus")
            if report["indexedRecords"] == len(RECORDS):
                break
