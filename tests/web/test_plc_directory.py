"""The HTTP face of the embedded directory: paths, statuses, content types (spec: did:plc API)."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pds.protocol.plc import make_tombstone, make_update, render_document, sign_operation
from tests.fakes.plc import FakePlc, running_plc
from tests.identity.people import make_person

ALICE = make_person("alice")
BOB = make_person("bob")


@pytest.fixture
async def plc() -> AsyncIterator[FakePlc]:
    async with running_plc() as plc:
        yield plc


async def get(plc: FakePlc, path: str) -> tuple[int, str, bytes]:
    async with aiohttp.ClientSession() as session, session.get(plc.url + path) as answer:
        return answer.status, answer.content_type, await answer.read()


async def post(plc: FakePlc, path: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(plc.url + path, data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.read()


async def submit(plc: FakePlc, did: str, operation: Any) -> None:
    status, body = await post(plc, f"/{did}", json.dumps(operation.to_json()).encode())
    assert (status, body) == (200, b"OK")


async def test_an_identity_is_served_in_every_form(plc: FakePlc) -> None:
    await submit(plc, ALICE.did, ALICE.genesis)
    changed = make_update(ALICE.genesis, also_known_as=["at://b.example.com"])
    second = sign_operation(changed, ALICE.rotation)
    await submit(plc, ALICE.did, second)
    status, kind, body = await get(plc, f"/{ALICE.did}")
    assert second.state is not None
    assert (status, kind) == (200, "application/did+ld+json")
    assert json.loads(body) == render_document(ALICE.did, second.state)
    status, kind, body = await get(plc, f"/{ALICE.did}/data")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body) == second.state.to_json(ALICE.did)
    _, _, body = await get(plc, f"/{ALICE.did}/log")
    assert json.loads(body) == [ALICE.genesis.to_json(), second.to_json()]
    _, _, body = await get(plc, f"/{ALICE.did}/log/last")
    assert json.loads(body) == second.to_json()
    _, _, body = await get(plc, f"/{ALICE.did}/log/audit")
    entries = json.loads(body)
    assert [entry["cid"] for entry in entries] == [ALICE.genesis.cid, second.cid]
    assert set(entries[0]) == {"did", "operation", "cid", "nullified", "createdAt"}


async def test_unknown_and_ended_identities_answer_404_in_different_words(plc: FakePlc) -> None:
    for path in ("", "/data", "/log", "/log/audit", "/log/last"):
        status, _, body = await get(plc, f"/{BOB.did}{path}")
        assert (status, json.loads(body)) == (404, {"message": f"DID not registered: {BOB.did}"})
    await submit(plc, BOB.did, BOB.genesis)
    await submit(plc, BOB.did, sign_operation(make_tombstone(BOB.genesis), BOB.rotation))
    for path in ("", "/data"):
        status, _, body = await get(plc, f"/{BOB.did}{path}")
        assert (status, json.loads(body)) == (404, {"message": f"DID not available: {BOB.did}"})
    assert (await get(plc, f"/{BOB.did}/log/last"))[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 50_000, 400),
        (b"[]", 400),
        (b'{"type":"plc_operation"}', 400),
        (b" " * 100_001, 413),
    ],
)
async def test_bad_operations_are_refused_with_a_message(
    plc: FakePlc, body: bytes, status: int
) -> None:
    found, answer = await post(plc, f"/{ALICE.did}", body)
    assert found == status
    assert json.loads(answer)["message"]
    assert len(plc.directory) == 0


async def test_strange_paths_answer_404(plc: FakePlc) -> None:
    for path in ("/x%0Ay", "/did:plc:x/other", "/"):
        assert (await get(plc, path))[0] == 404
    assert (await get(plc, "/_health"))[0] == 200


async def test_export_is_json_lines_by_time_or_by_sequence(plc: FakePlc) -> None:
    assert (await get(plc, "/export"))[2] == b""
    await submit(plc, ALICE.did, ALICE.genesis)
    await submit(plc, BOB.did, BOB.genesis)
    status, kind, body = await get(plc, "/export?count=1")
    assert (status, kind) == (200, "application/jsonlines")
    first = json.loads(body)
    assert "seq" not in first
    _, _, body = await get(plc, "/export?after=0")
    lines = [json.loads(line) for line in body.splitlines()]
    assert [(line["type"], line["seq"], line["did"]) for line in lines] == [
        ("sequenced_op", 1, ALICE.did),
        ("sequenced_op", 2, BOB.did),
    ]
    assert (await get(plc, "/export?after=2"))[2] == b""
    assert (await get(plc, "/export?after=2099-01-01T00:00:00.000Z"))[2] == b""
    assert len((await get(plc, "/export?after=2020-01-01T00:00:00.000Z"))[2].splitlines()) == 2
    for query in ("count=0", "count=x", "count=-1", "after=yesterday"):
        assert (await get(plc, f"/export?{query}"))[0] == 400
