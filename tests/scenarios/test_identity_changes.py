"""Handles, keys and PLC operations over real HTTP, as clients and the operator see them."""

import base64
import json
import re
from typing import Any

import pytest

from pds.protocol.frames import decode_frame
from tests.scenarios.conftest import Host
from tests.support_client import Client, Person, XrpcError, sign_up

IDENTITY = "com.atproto.identity"
TEMP = "com.atproto.temp"


async def refusal(awaitable: Any) -> tuple[int, str]:
    with pytest.raises(XrpcError) as caught:
        await awaitable
    return caught.value.status, caught.value.name


async def as_operator(host: Host, nsid: str, **fields: Any) -> Any:
    secret = base64.b64encode(f"admin:{host.admin_password}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
    content = json.dumps(fields).encode()
    return await host.client.call("POST", nsid, data=content, headers=headers)


async def code_for(host: Host, person: Person) -> str:
    await person.client.post(f"{IDENTITY}.requestPlcOperationSignature")
    text = host.mailbox.received()[-1].mail.text
    found = re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", text)
    assert found is not None
    return found[0]


async def with_app_password(host: Host, person: Person) -> Client:
    made = await person.client.post("com.atproto.server.createAppPassword", name="phone")
    session = await host.client.post(
        "com.atproto.server.createSession", identifier=person.did, password=made["password"]
    )
    return host.client.with_token(session["accessJwt"])


async def last_event(host: Host) -> tuple[str, dict[str, Any]]:
    sql = "SELECT frame FROM event ORDER BY seq DESC LIMIT 1"
    row = await host.server.engine.read("test.event", lambda txn: txn.read_one(sql))
    frame = decode_frame(bytes(row[0]))
    return frame.type, frame.payload


async def test_a_handle_is_changed_everywhere(host: Host) -> None:
    """ID-25, ID-13, ID-14, ID-20."""
    alice = await sign_up(host.client, "alice.test")
    assert await refusal(alice.client.post(f"{IDENTITY}.updateHandle", handle="admin.test")) == (
        400,
        "HandleNotAvailable",
    )
    app = await with_app_password(host, alice)
    assert (await refusal(app.post(f"{IDENTITY}.updateHandle", handle="queen.test")))[0] == 400
    await alice.client.post(f"{IDENTITY}.updateHandle", handle="Queen.test")
    assert await host.client.get(f"{IDENTITY}.resolveHandle", handle="queen.test") == {
        "did": alice.did
    }
    assert (await refusal(host.client.get(f"{IDENTITY}.resolveHandle", handle="alice.test")))[
        1
    ] == "HandleNotFound"
    found = await host.client.get(f"{IDENTITY}.resolveIdentity", identifier="queen.test")
    assert (found["did"], found["handle"]) == (alice.did, "queen.test")
    assert found["didDoc"]["alsoKnownAs"] == ["at://queen.test"]
    state = host.plc.get_state(alice.did)
    assert state is not None
    assert state.also_known_as == ("at://queen.test",)
    session = await alice.client.get("com.atproto.server.getSession")
    assert session["handle"] == "queen.test"
    for name, status in (("queen.test", 200), ("alice.test", 404)):
        url = f"{host.url}/.well-known/atproto-did"
        async with host.client.http.get(url, headers={"Host": name}) as answer:
            assert answer.status == status
    kind, payload = await last_event(host)
    assert (kind, payload["handle"]) == ("#identity", "queen.test")


async def test_an_owner_adds_a_key_of_their_own(host: Host) -> None:
    """ID-67, ID-68, ID-69, ACC-63."""
    alice = await sign_up(host.client, "alice.test")
    wanted = await alice.client.get(f"{IDENTITY}.getRecommendedDidCredentials")
    app = await with_app_password(host, alice)
    assert await app.get(f"{IDENTITY}.getRecommendedDidCredentials") == wanted
    for call in (
        app.post(f"{IDENTITY}.requestPlcOperationSignature"),
        app.post(f"{IDENTITY}.signPlcOperation", token="x"),
        app.post(f"{IDENTITY}.submitPlcOperation", operation={}),
    ):
        assert await refusal(call) == (400, "InvalidToken")
    mine = "did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169"
    signed = await alice.client.post(
        f"{IDENTITY}.signPlcOperation",
        token=await code_for(host, alice),
        rotationKeys=[mine, *wanted["rotationKeys"]],
    )
    await alice.client.post(f"{IDENTITY}.submitPlcOperation", **signed)
    state = host.plc.get_state(alice.did)
    assert state is not None
    assert state.rotation_keys[0] == mine
    assert dict(state.verification_methods) == wanted["verificationMethods"]
    kind, payload = await last_event(host)
    assert (kind, "handle" in payload) == ("#identity", False)
    only = await alice.client.post(
        f"{IDENTITY}.signPlcOperation", token=await code_for(host, alice), rotationKeys=[mine]
    )
    url = f"{host.url}/xrpc/{IDENTITY}.submitPlcOperation"
    headers = {"Authorization": f"Bearer {alice.client.token}"}
    async with host.client.http.post(url, json=only, headers=headers) as answer:
        assert answer.status == 200
        assert await answer.read() == b""
        assert answer.headers["Warning"].startswith('299 - "This server is none')
    assert (await refusal(alice.client.post(f"{IDENTITY}.updateHandle", handle="new.test")))[
        0
    ] == 400


async def test_the_operator_sets_handles_and_keys(host: Host) -> None:
    """ACC-48, ID-72."""
    alice = await sign_up(host.client, "alice.test")
    await alice.post("before")
    await as_operator(
        host, "com.atproto.admin.updateAccountHandle", did=alice.did, handle="admin.test"
    )
    reserved = await host.client.post("com.atproto.server.reserveSigningKey", did=alice.did)
    key = reserved["signingKey"]
    await as_operator(
        host, "com.atproto.admin.updateAccountSigningKey", did=alice.did, signingKey=key
    )
    state = host.plc.get_state(alice.did)
    assert state is not None
    assert state.verification_methods["atproto"] == key
    assert state.also_known_as == ("at://admin.test",)
    made = await alice.post("after")
    assert made["validationStatus"] == "valid"


async def test_which_handles_are_to_be_had(host: Host) -> None:
    """The temp methods; their answers are held against the lexicon."""
    await sign_up(host.client, "alice.test")
    check = f"{TEMP}.checkHandleAvailability"
    free = await host.client.get(check, handle="free.test")
    assert free == {"handle": "free.test", "result": {"$type": f"{check}#resultAvailable"}}
    taken = await host.client.get(check, handle="alice.test", email="alice@mail.test")
    assert taken["result"]["$type"] == f"{check}#resultUnavailable"
    assert taken["result"]["suggestions"][0]["handle"].endswith(".test")
    assert await refusal(host.client.get(check, handle="free.test", email="x")) == (
        400,
        "InvalidEmail",
    )
    assert (await refusal(host.client.post(f"{TEMP}.addReservedHandle", handle="free")))[0] == 401
    assert await as_operator(host, f"{TEMP}.addReservedHandle", handle="free") == {}
    now = await host.client.get(check, handle="free.test")
    assert now["result"]["$type"] == f"{check}#resultUnavailable"
    assert await refusal(sign_up(host.client, "free.test")) == (400, "HandleNotAvailable")


async def test_the_other_temp_methods(host: Host) -> None:
    alice = await sign_up(host.client, "alice.test")
    assert await alice.client.get(f"{TEMP}.checkSignupQueue") == {"activated": True}
    assert (await refusal(host.client.get(f"{TEMP}.checkSignupQueue")))[0] == 401
    assert await refusal(host.client.get(f"{TEMP}.dereferenceScope", scope="ref:x")) == (
        400,
        "InvalidScopeReference",
    )
    for call in (
        alice.client.get(f"{TEMP}.fetchLabels"),
        alice.client.post(f"{TEMP}.requestPhoneVerification", phoneNumber="1"),
    ):
        assert await refusal(call) == (501, "MethodNotImplemented")
    await as_operator(host, f"{TEMP}.revokeAccountCredentials", account="alice.test")
    assert await refusal(alice.client.get("com.atproto.server.getSession")) == (
        400,
        "ExpiredToken",
    )
    login = host.client.post(
        "com.atproto.server.createSession", identifier="alice.test", password=alice.password
    )
    assert await refusal(login) == (401, "AuthenticationRequired")
