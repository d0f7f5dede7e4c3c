"""The PLC client against a directory that misbehaves (ID-60, ID-61, ID-36)."""

import pytest

from pds.errors import BadAnswer, Unreachable
from pds.identity.did_plc import PlcClient
from pds.identity.errors import (
    DidDeactivated,
    DidNotFound,
    PlcOutcomeUnknown,
    PlcRateLimited,
    PlcRejected,
)
from pds.protocol.keys import generate_secret, make_signer
from pds.protocol.plc import make_tombstone, make_update, sign_operation
from pds.protocol.syntax import parse_did
from tests.fakes.plc import Mood, running_plc
from tests.identity.conftest import World
from tests.identity.people import make_person

ALICE = make_person("alice")
NOBODY = parse_did("did:plc:" + "a" * 24)


async def test_a_submitted_identity_can_be_read_in_every_form(world: World) -> None:
    plc = world.plc_client()
    await plc.submit(ALICE.did, ALICE.genesis)
    document = await plc.get_document(ALICE.did)
    assert document.signing_key == ALICE.signing.public_key
    assert document.handle == ALICE.handle
    assert document.pds_endpoint == "https://pds.test"
    assert await plc.get_data(ALICE.did) == ALICE.genesis.state
    assert await plc.get_last_op(ALICE.did) == ALICE.genesis
    assert (await plc.get_audit_log(ALICE.did)).last == ALICE.genesis


async def test_unknown_and_ended_identities_are_told_apart(world: World) -> None:
    plc = world.plc_client()
    with pytest.raises(DidNotFound):
        await plc.get_document(NOBODY)
    await plc.submit(ALICE.did, ALICE.genesis)
    tombstone = sign_operation(make_tombstone(ALICE.genesis), ALICE.rotation)
    await plc.submit(ALICE.did, tombstone)
    with pytest.raises(DidDeactivated):
        await plc.get_document(ALICE.did)
    with pytest.raises(DidDeactivated):
        await plc.get_data(ALICE.did)
    assert (await plc.get_last_op(ALICE.did)).is_tombstone
    assert (await plc.get_audit_log(ALICE.did)).is_tombstoned


async def test_a_repeated_submit_succeeds(world: World) -> None:
    plc = world.plc_client()
    await plc.submit(ALICE.did, ALICE.genesis)
    await plc.submit(ALICE.did, ALICE.genesis)
    update = make_update(ALICE.genesis, also_known_as=["at://b.example.com"])
    await plc.submit(ALICE.did, sign_operation(update, ALICE.rotation))
    await plc.submit(ALICE.did, ALICE.genesis)
    assert len((await plc.get_audit_log(ALICE.did)).entries) == 2


async def test_a_refused_operation_is_rejected_with_the_directorys_words(world: World) -> None:
    plc = world.plc_client()
    await plc.submit(ALICE.did, ALICE.genesis)
    stranger = make_signer("k256", generate_secret("k256", b"x" * 32))
    bad = sign_operation(make_update(ALICE.genesis, also_known_as=[]), stranger)
    with pytest.raises(PlcRejected, match="not signed by an allowed rotation key"):
        await plc.submit(ALICE.did, bad)
    world.plc.write_mood = Mood.RATE_LIMITED
    good = sign_operation(make_update(ALICE.genesis, also_known_as=[]), ALICE.rotation)
    with pytest.raises(PlcRateLimited):
        await plc.submit(ALICE.did, good)


async def test_a_lost_answer_is_found_out(world: World) -> None:
    world.plc.write_mood = Mood.FORGETFUL
    await world.plc_client().submit(ALICE.did, ALICE.genesis)
    assert ("GET", f"/{ALICE.did}/log/last") in world.plc.requests


async def test_an_operation_that_was_not_taken_is_reported_so(world: World) -> None:
    world.plc.write_mood = Mood.FAULTY
    with pytest.raises(Unreachable) as caught:
        await world.plc_client().submit(ALICE.did, ALICE.genesis)
    assert not isinstance(caught.value, PlcOutcomeUnknown)


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.SLOW])
async def test_an_operation_that_may_still_arrive_is_not_called_refused(
    world: World, mood: Mood
) -> None:
    world.plc.write_mood = mood
    with pytest.raises(PlcOutcomeUnknown):
        await world.plc_client(timeout_s=0.2).submit(ALICE.did, ALICE.genesis)


async def test_an_outcome_that_nobody_can_tell_is_its_own_error(world: World) -> None:
    world.plc.write_mood = Mood.FORGETFUL
    world.plc.read_mood = Mood.DOWN
    plc = world.plc_client()
    with pytest.raises(PlcOutcomeUnknown):
        await plc.submit(ALICE.did, ALICE.genesis)
    world.plc.mood = Mood.KIND
    assert await plc.has_operation(ALICE.did, ALICE.genesis)
    other = make_person("other")
    assert not await plc.has_operation(other.did, other.genesis)


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.FAULTY, Mood.SLOW, Mood.BABBLING])
async def test_a_broken_directory_never_denies_an_identity(world: World, mood: Mood) -> None:
    plc = world.plc_client(timeout_s=0.2)
    await plc.submit(ALICE.did, ALICE.genesis)
    world.plc.mood = mood
    for read in (plc.get_document, plc.get_data, plc.get_last_op, plc.get_audit_log):
        with pytest.raises(Unreachable):
            await read(ALICE.did)


async def test_a_lagging_replica_does_not_hide_the_primary(world: World) -> None:
    """ID-60: what decides about a write is asked of the write URL."""
    async with running_plc() as primary:
        plc = PlcClient(world.plc.url, world.trusted, write_url=primary.url)
        await plc.submit(ALICE.did, ALICE.genesis)
        with pytest.raises(DidNotFound):
            await plc.get_document(ALICE.did)
        assert (await plc.get_document(ALICE.did, primary=True)).handle == ALICE.handle
        assert await plc.get_data(ALICE.did) == ALICE.genesis.state
        assert world.plc.requests == [("GET", f"/{ALICE.did}")]


async def test_a_tampered_log_is_noticed(world: World) -> None:
    plc = world.plc_client()
    await plc.submit(ALICE.did, ALICE.genesis)
    forged = ALICE.genesis.to_json()
    forged["alsoKnownAs"] = ["at://mallory.example.com"]
    entry = {
        "did": ALICE.did,
        "operation": forged,
        "cid": ALICE.genesis.cid,
        "nullified": False,
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    world.plc.overrides[f"/{ALICE.did}/log/audit"] = [entry]
    with pytest.raises(BadAnswer):
        await plc.get_audit_log(ALICE.did)


async def test_a_document_of_another_did_is_not_believed(world: World) -> None:
    """ID-30."""
    plc = world.plc_client()
    world.plc.overrides[f"/{ALICE.did}"] = {"id": NOBODY}
    world.plc.overrides[f"/{ALICE.did}/data"] = {"did": NOBODY}
    world.plc.overrides[f"/{ALICE.did}/log/last"] = {"type": "plc_tombstone"}
    for read in (plc.get_document, plc.get_data, plc.get_last_op):
        with pytest.raises(Unreachable):
            await read(ALICE.did)


async def test_an_accepted_operation_that_is_never_shown_is_not_called_done(world: World) -> None:
    world.plc.read_mood = Mood.LAGGING
    plc = PlcClient(world.plc.url, world.trusted, confirm_delays_s=(0.0, 0.01))
    with pytest.raises(PlcOutcomeUnknown):
        await plc.submit(ALICE.did, ALICE.genesis)
    asked = world.plc.requests.count(("GET", f"/{ALICE.did}/log/last"))
    assert asked == 2


async def test_a_refusal_stays_a_refusal_when_nothing_can_be_read(world: World) -> None:
    world.plc.read_mood = Mood.DOWN
    world.plc.write_mood = Mood.RATE_LIMITED
    with pytest.raises(PlcRateLimited):
        await world.plc_client().submit(ALICE.did, ALICE.genesis)
