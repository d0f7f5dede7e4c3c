"""Our did:plc operations at the real directory server, and its logs under our verifier."""

import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from pds.identity.did_plc import PlcClient
from pds.identity.errors import DidDeactivated, PlcRejected
from pds.net.http import HttpSettings, TrustedClient
from pds.protocol.diddoc import parse_did_document
from pds.protocol.keys import generate_secret, make_signer, parse_did_key
from pds.protocol.plc import (
    PlcError,
    PlcService,
    did_for_genesis,
    make_handle_update,
    make_tombstone,
    make_update,
    render_document,
    sign_genesis,
    sign_operation,
)
from pds.protocol.plc_log import validate_new_operation
from pds.protocol.syntax import parse_did, parse_handle
from tests.interop.node import NodeProject, node_project

PACKAGES = ["@did-plc/server@0.0.1", "@did-plc/lib@0.0.4", "@atproto/crypto@0.4.5"]
RECOVERY = make_signer("p256", generate_secret("p256", b"c" * 32))
ROTATION = make_signer("k256", generate_secret("k256", b"r" * 32))
SIGNING = make_signer("k256", generate_secret("k256", b"s" * 32))
GENESIS = sign_genesis(
    ROTATION,
    rotation_keys=[RECOVERY.public_key.did_key, ROTATION.public_key.did_key],
    signing_key=SIGNING.public_key.did_key,
    handle=parse_handle("alice.example.com"),
    pds_endpoint="https://pds.example.com",
)
DID = did_for_genesis(GENESIS)


@pytest.fixture(scope="module")
def project() -> NodeProject:
    return node_project("plc", PACKAGES)


@pytest.fixture
def directory_url(project: NodeProject) -> Iterator[str]:
    with project.running("plc_server.mjs") as url:
        yield url


@pytest.fixture
async def plc(directory_url: str) -> AsyncIterator[PlcClient]:
    settings = HttpSettings.trusted(user_agent="test", allow_private=True)
    async with TrustedClient(settings) as http:
        yield PlcClient(directory_url, http)


async def test_the_real_directory_accepts_our_genesis_updates_and_tombstone(
    plc: PlcClient,
) -> None:
    await plc.submit(DID, GENESIS)
    assert GENESIS.state is not None
    assert await plc.get_data(DID) == GENESIS.state
    document = await plc.get_document(DID)
    # The published package still writes the legacy key types; what they say must be the same.
    ours = parse_did_document(render_document(DID, GENESIS.state), DID)
    assert (document.signing_key, document.handle) == (ours.signing_key, ours.handle)
    assert document.services == ours.services

    renamed = sign_operation(make_handle_update(GENESIS, parse_handle("bob.example.com")), ROTATION)
    await plc.submit(DID, renamed)
    moved = sign_operation(
        make_update(
            renamed,
            rotation_keys=[RECOVERY.public_key.did_key],
            verification_methods={"atproto": RECOVERY.public_key.did_key},
            services={
                "atproto_pds": PlcService("AtprotoPersonalDataServer", "https://new.example.com")
            },
        ),
        RECOVERY,
    )
    await plc.submit(DID, moved)
    assert await plc.get_data(DID) == moved.state
    with pytest.raises(PlcRejected):
        await plc.submit(DID, sign_operation(make_update(moved, also_known_as=[]), ROTATION))
    assert (await plc.get_audit_log(DID)).last == moved

    await plc.submit(DID, sign_operation(make_tombstone(moved), RECOVERY))
    with pytest.raises(DidDeactivated):
        await plc.get_document(DID)
    assert (await plc.get_audit_log(DID)).is_tombstoned


async def test_the_real_directory_and_our_rules_agree_on_recovery(plc: PlcClient) -> None:
    await plc.submit(DID, GENESIS)
    stolen = sign_operation(make_update(GENESIS, also_known_as=["at://x.example.com"]), ROTATION)
    await plc.submit(DID, stolen)
    weak = sign_operation(make_update(GENESIS, also_known_as=["at://y.example.com"]), ROTATION)
    back = sign_operation(make_update(GENESIS, also_known_as=["at://z.example.com"]), RECOVERY)
    log = await plc.get_audit_log(DID)
    now_us = time.time_ns() // 1000 + 1_000_000
    with pytest.raises(PlcError):
        validate_new_operation(DID, log, weak, now_us)
    with pytest.raises(PlcRejected):
        await plc.submit(DID, weak)
    expected = validate_new_operation(DID, log, back, now_us)
    await plc.submit(DID, back)
    seen = await plc.get_audit_log(DID)
    assert [entry.nullified for entry in seen.entries] == [False, True, False]
    assert [entry.operation for entry in seen.active] == [
        entry.operation for entry in expected.active
    ]


async def test_our_verifier_accepts_logs_of_the_official_library(
    plc: PlcClient, project: NodeProject, directory_url: str
) -> None:
    dids = json.loads(project.run("plc_identities.mjs", directory_url))
    logs = {name: await plc.get_audit_log(parse_did(did)) for name, did in dids.items()}
    for name in ("plain", "changed", "recovered"):
        state = logs[name].state
        assert state is not None
        assert await plc.get_data(logs[name].did) == state
        document = await plc.get_document(logs[name].did)
        assert document.signing_key == parse_did_key(state.verification_methods["atproto"])
        assert document.also_known_as == state.also_known_as
    assert len(logs["changed"].entries) == 4
    assert [entry.nullified for entry in logs["recovered"].entries] == [False, True, True, False]
    assert logs["recovered"].state is not None
    assert logs["recovered"].state.also_known_as == ("at://back.example.com",)
    assert logs["ended"].is_tombstoned
