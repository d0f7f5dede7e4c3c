"""PLC operations that owners make with our help (ID-67..ID-71, ACC-63)."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pds.errors import RequestError
from pds.protocol.keys import make_signer
from pds.protocol.plc import (
    PlcOperation,
    PlcService,
    make_tombstone,
    make_update,
    sign_operation,
)
from pds.services.journal_settling import Settled
from pds.store.accounts import Account, update_takedown
from tests.fakes.plc import Mood
from tests.services.creation_host import OPERATOR_KEY, PUBLIC_URL, ROTATION, Crash, CrashPoint
from tests.services.identity_host import IdentityHost, identity_host

USER_SIGNER = make_signer("p256", b"\x09" * 32)
USER_KEY = USER_SIGNER.public_key.did_key
OUR_KEY = ROTATION.public_key.did_key
STRANGER = make_signer("k256", b"\x0a" * 32)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[IdentityHost]:
    async with identity_host(tmp_path) as host:
        yield host


async def refusal(awaitable: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value


def last_of(host: IdentityHost, did: str) -> PlcOperation:
    log = host.plc.directory.get_log(did)
    assert log is not None
    return log.active[-1].operation


async def code_for(host: IdentityHost, account: Account) -> str:
    await host.operations.request_signature(account.aid)
    return str(host.codes.sent[-1])


async def test_what_is_recommended_is_what_lives_here(host: IdentityHost) -> None:
    """ID-67: the operator's key above ours."""
    alice = await host.add()
    answer = (await host.operations.recommend(alice.aid)).to_json()
    state = host.state(alice.did)
    assert answer == {
        "rotationKeys": [OPERATOR_KEY, OUR_KEY],
        "alsoKnownAs": ["at://alice.pds.test"],
        "verificationMethods": dict(state.verification_methods),
        "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": PUBLIC_URL}},
    }


async def test_no_rotation_keys_are_recommended_to_a_did_web(host: IdentityHost) -> None:
    """ID-67, ID-41."""
    alice = await host.add()
    sql = "UPDATE account SET did = 'did:web:alice.example.com' WHERE aid = ?"
    await host.engine.transact("test.did", lambda txn: txn.write(sql, (alice.aid,)))
    answer = (await host.operations.recommend(alice.aid)).to_json()
    assert sorted(answer) == ["alsoKnownAs", "services", "verificationMethods"]
    assert "did:plc" in (await refusal(host.operations.request_signature(alice.aid))).message
    assert "did:plc" in (await refusal(host.operations.sign(alice.aid, "x", {}))).message


async def test_only_what_is_named_is_changed_and_nothing_is_sent(host: IdentityHost) -> None:
    """ID-68, ACC-63: foreign keys and services stay."""
    alice = await host.add()
    before = host.state(alice.did)
    services = {
        **before.services,
        "atproto_labeler": PlcService("AtprotoLabeler", "https://l.test"),
    }
    fields = make_update(last_of(host, alice.did), services=services)
    host.plc.directory.submit(alice.did, sign_operation(fields, ROTATION).to_json())
    keys = [USER_KEY, *before.rotation_keys]
    operation = await host.operations.sign(
        alice.aid, await code_for(host, alice), {"rotationKeys": keys, "alsoKnownAs": None}
    )
    assert operation.state is not None
    assert list(operation.state.rotation_keys) == keys
    assert operation.state.also_known_as == before.also_known_as
    assert operation.state.services == services
    assert operation.prev == last_of(host, alice.did).cid
    assert host.operations_of(alice.did) == 2
    host.plc.directory.submit(alice.did, operation.to_json())


async def test_a_code_signs_once_and_lower_case_will_do(host: IdentityHost) -> None:
    """ACC-36."""
    alice = await host.add()
    changes = {"alsoKnownAs": ["at://alice.pds.test", "https://alice.example"]}
    error = await refusal(host.operations.sign(alice.aid, None, changes))
    assert error.message == "email confirmation token required to sign PLC operations"
    code = await code_for(host, alice)
    assert (await refusal(host.operations.sign(alice.aid, "AAAAA-AAAAA", changes))).name == (
        "InvalidToken"
    )
    await host.operations.sign(alice.aid, code.lower(), changes)
    assert (await refusal(host.operations.sign(alice.aid, code, changes))).name == "InvalidToken"
    code = await code_for(host, alice)
    host.clock.advance(16 * 60)
    assert (await refusal(host.operations.sign(alice.aid, code, changes))).name == "ExpiredToken"


@pytest.mark.parametrize(
    "changes",
    [
        {"rotationKeys": []},
        {"rotationKeys": ["did:key:zNonsense"]},
        {"rotationKeys": [OUR_KEY, OUR_KEY]},
        {"rotationKeys": [OUR_KEY] * 6},
        {"rotationKeys": [1]},
        {"rotationKeys": "did:key:x"},
        {"alsoKnownAs": ["x" * 300]},
        {"alsoKnownAs": [None]},
        {"verificationMethods": {"atproto": "nonsense"}},
        {"verificationMethods": {"atproto": 5}},
        {"verificationMethods": []},
        {"services": {"x": {"type": "T"}}},
        {"services": {"x": {"type": "T", "endpoint": "https://e.test", "more": "x"}}},
        {"services": {"x": {"type": "T", "endpoint": 5}}},
        {"services": {"x": "https://e.test"}},
        {"alsoKnownAs": [f"https://{n}.example/{'x' * 230}" for n in range(10)],
         "services": {str(n): {"type": "T", "endpoint": "h" * 400} for n in range(9)}},
    ],
)  # fmt: skip
async def test_parts_that_cannot_be_valid_use_up_no_code(
    host: IdentityHost, changes: dict[str, Any]
) -> None:
    """ID-59, ID-68."""
    alice = await host.add()
    code = await code_for(host, alice)
    assert (await refusal(host.operations.sign(alice.aid, code, changes))).name == "InvalidRequest"
    await host.operations.sign(alice.aid, code, {})


async def test_we_sign_nothing_for_an_identity_that_is_not_in_our_hands(
    host: IdentityHost,
) -> None:
    """ID-68: a clear error when our key is no rotation key any more, or the DID was ended."""
    alice = await host.add()
    code = await code_for(host, alice)
    fields = make_update(last_of(host, alice.did), rotation_keys=[USER_KEY])
    host.plc.directory.submit(alice.did, sign_operation(fields, ROTATION).to_json())
    error = await refusal(host.operations.sign(alice.aid, code, {}))
    assert "holds no rotation key" in error.message
    tombstone = sign_operation(make_tombstone(last_of(host, alice.did)), USER_SIGNER)
    host.plc.directory.submit(alice.did, tombstone.to_json())
    assert (await refusal(host.operations.sign(alice.aid, code, {}))).message == (
        "Did is tombstoned"
    )
    host.plc.mood = Mood.DOWN
    error = await refusal(host.operations.sign(alice.aid, code, {}))
    assert (error.name, error.status) == ("UpstreamFailure", 502)


async def test_an_operation_that_fits_is_passed_on_and_announced(host: IdentityHost) -> None:
    """ID-69, SYNC-34: without a handle."""
    alice = await host.add()
    keys = [USER_KEY, *host.state(alice.did).rotation_keys]
    operation = await host.operations.sign(
        alice.aid, await code_for(host, alice), {"rotationKeys": keys}
    )
    seen = len(await host.frames())
    assert await host.operations.submit(alice.aid, operation.to_json()) == []
    assert list(host.state(alice.did).rotation_keys) == keys
    [(kind, payload)] = await host.events_since(seen)
    assert (kind, payload["did"], "handle" in payload) == ("#identity", alice.did, False)
    assert await host.operations.submit(alice.aid, operation.to_json()) == []  # A repeat is fine.
    assert host.operations_of(alice.did) == 2
    await host.assert_agrees(alice.did)


async def test_self_custody_is_allowed_and_said(host: IdentityHost) -> None:
    """ID-71."""
    alice = await host.add()
    fields = make_update(last_of(host, alice.did), rotation_keys=[USER_KEY])
    operation = sign_operation(fields, ROTATION)
    host.plc_settings = replace(host.plc_settings, allow_self_custody=False)
    host.restart()
    error = await refusal(host.operations.submit(alice.aid, operation.to_json()))
    assert error.message == "Rotation keys do not include server's rotation key"
    host.plc_settings = replace(host.plc_settings, allow_self_custody=True)
    host.restart()
    [note] = await host.operations.submit(alice.aid, operation.to_json())
    assert "rotation keys" in note
    assert host.state(alice.did).rotation_keys == (USER_KEY,)
    await host.assert_agrees(alice.did)


def change(host: IdentityHost, did: str, signer: Any = ROTATION, **parts: Any) -> dict[str, Any]:
    return sign_operation(make_update(last_of(host, did), **parts), signer).to_json()


async def test_an_operation_with_which_the_account_could_not_live_here_is_refused(
    host: IdentityHost,
) -> None:
    """ID-69."""
    alice, bob = await host.add(), await host.add("bob.pds.test")
    did = alice.did
    state = host.state(did)
    elsewhere = PlcService("AtprotoPersonalDataServer", "https://other.test")
    strange = PlcService("Strange", PUBLIC_URL)
    refused = {
        "Incorrect endpoint": change(host, did, services={"atproto_pds": elsewhere}),
        "Incorrect type": change(host, did, services={"atproto_pds": strange}),
        "Incorrect signing key": change(host, did, verification_methods={"atproto": USER_KEY}),
        "Incorrect handle": change(host, did, also_known_as=["at://other.pds.test"]),
        "tombstone": sign_operation(make_tombstone(last_of(host, did)), ROTATION).to_json(),
        "Not a valid operation": {**change(host, did), "extra": 1},
        "not in the active history": sign_operation(
            {**make_update(last_of(host, did)), "prev": last_of(host, bob.did).cid}, ROTATION
        ).to_json(),
        "not signed by an allowed": change(host, did, STRANGER),
        "not a list": {**change(host, did), "alsoKnownAs": "at://alice.pds.test"},
    }
    for message, operation in refused.items():
        error = await refusal(host.operations.submit(alice.aid, operation))
        assert (error.name, error.status) == ("InvalidRequest", 400)
        assert message in error.message
    for nonsense in (None, [], "x", {}):
        assert (await refusal(host.operations.submit(alice.aid, nonsense))).status == 400
    assert host.state(did) == state
    await host.assert_agrees(did)


async def test_a_taken_down_account_may_sign_but_not_submit(host: IdentityHost) -> None:
    """ACC-45."""
    alice = await host.add()
    await host.engine.transact("test.takedown", update_takedown, alice.aid, "ref")
    operation = await host.operations.sign(alice.aid, await code_for(host, alice), {})
    error = await refusal(host.operations.submit(alice.aid, operation.to_json()))
    assert error.name == "AccountTakedown"


@pytest.mark.parametrize(
    ("when", "what", "is_sent"),
    [
        ("before", "identity.reserve", False),
        ("after", "identity.reserve", True),
        ("before", "plc.submit", True),
        ("after", "plc.submit", True),
        ("before", "identity.confirm", True),
        ("after", "identity.confirm", True),
    ],
)
async def test_a_crash_at_each_step_sends_and_announces_it_once_or_never(
    host: IdentityHost, when: str, what: str, is_sent: bool
) -> None:
    """Promise A8."""
    alice = await host.add()
    operation = change(host, alice.did, rotation_keys=[USER_KEY, OUR_KEY])
    seen = len(await host.frames())
    host.crash = CrashPoint(when, what)
    with pytest.raises(Crash):
        await host.operations.submit(alice.aid, operation)
    host.restart()
    assert (await host.journal.recover())[Settled.WAITING] == 0
    assert host.operations_of(alice.did) == 1 + int(is_sent)
    assert len(await host.events_since(seen)) == int(is_sent)
    await host.assert_agrees(alice.did)


async def test_a_directory_that_is_down_is_not_our_fault(host: IdentityHost) -> None:
    alice = await host.add()
    operation = change(host, alice.did, rotation_keys=[USER_KEY, OUR_KEY])
    host.plc.mood = Mood.DOWN
    error = await refusal(host.operations.submit(alice.aid, operation))
    assert (error.name, error.status) == ("UpstreamFailure", 502)
    host.plc.mood = Mood.KIND
    host.plc.write_mood = Mood.RATE_LIMITED
    error = await refusal(host.operations.submit(alice.aid, operation))
    assert (error.name, error.status) == ("RateLimitExceeded", 429)
    await host.assert_agrees(alice.did)
