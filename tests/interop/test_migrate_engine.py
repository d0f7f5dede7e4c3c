"""Our moves with the reference PDS at the other end, in both directions.

Spec: (ACC-20, ACC-50..59, ACC-63)
"""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from pds.protocol.keys import make_signer
from pds.protocol.plc import make_update, sign_operation
from pds.protocol.syntax import Did
from pds.services.migration import MoveInRequest, MoveOutRequest
from pds.services.migration_work import Given
from tests.interop.reference import running_reference
from tests.interop.test_reference import mail_server
from tests.scenarios.conftest import Host, host_in
from tests.scenarios.moving import (
    NEW_PASSWORD,
    OWN_KEY,
    directory,
    fill,
    log_of,
    login,
    snapshot,
    state_of,
    under,
)
from tests.support_client import Client, Person, sign_up

REFERENCE_KEY = make_signer("k256", bytes.fromhex("23" * 32))


@dataclass
class Ends:
    """Our host, and the reference with its mails."""

    ours: Host
    reference: Client
    mails: list[tuple[str, str]]


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    mails: list[tuple[str, str]] = []
    mailing = mail_server(mails)
    async with (
        host_in(tmp_path / "ours", plc=directory(), change=under(".new.test")) as ours,
        aiohttp.ClientSession() as http,
    ):
        smtp_url = await asyncio.to_thread(mailing.__enter__)
        started = running_reference(
            tmp_path / "reference",
            ours.server.config.identity.plc_url.replace("127.0.0.1", "localhost"),
            PDS_EMAIL_SMTP_URL=smtp_url,
            PDS_EMAIL_FROM_ADDRESS="pds@example.com",
            PDS_SERVICE_HANDLE_DOMAINS=".ref.test",
            PDS_BSKY_APP_VIEW_URL="http://localhost:9",  # Without one it keeps no preferences.
            PDS_BSKY_APP_VIEW_DID="did:web:appview.example",
        )
        url = await asyncio.to_thread(started.__enter__)
        try:
            yield Ends(ours, Client(http, url), mails)
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
            await asyncio.to_thread(mailing.__exit__, None, None, None)


async def mailed_code(ends: Ends) -> str:
    async with asyncio.timeout(60):
        while True:
            for _, text in reversed(ends.mails):
                if found := re.search(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b", text):
                    return found.group()
            await asyncio.sleep(0.01)


async def test_accounts_move_from_the_reference_and_to_it(ends: Ends) -> None:
    ours, plc = ends.ours, ends.ours.plc
    migration = ours.server.services.migration
    # In: from the reference, with a key of the owner's above the host's.
    alice = await sign_up(ends.reference, "alice.ref.test")
    last = log_of(plc, alice.did).last
    assert last is not None
    assert last.state is not None
    keys = [OWN_KEY.public_key.did_key, *last.state.rotation_keys]
    fields = make_update(last, rotation_keys=keys)
    plc.submit(Did(alice.did), sign_operation(fields, REFERENCE_KEY).to_json())
    await fill(alice, blobs=4)
    old_key = state_of(plc, alice.did).verification_methods["atproto"]
    before = await snapshot(alice.client, alice.did, old_key)
    plan = await migration.plan_in(alice.did)
    assert (plan["content"]["records"], plan["content"]["blobs"]) == (15, 4)
    given = Given(password=alice.password, new_password=NEW_PASSWORD)
    await migration.start_in(MoveInRequest(account=alice.did, given=given))
    view = await migration.settle(alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed"), view
    assert view["rotationKeys"]["dropped"] == [REFERENCE_KEY.public_key.did_key]
    await alice.post("written while the move waits")
    ends.mails.clear()
    await migration.go_on(alice.did, Given(requests_token=True))
    await migration.go_on(alice.did, Given(plc_token=await mailed_code(ends)))
    view = await migration.settle(alice.did)
    assert (view["status"], view["warnings"]) == ("done", []), view
    client = await login(ours, alice.did, NEW_PASSWORD)
    key = state_of(plc, alice.did).verification_methods["atproto"]
    after = await snapshot(client, alice.did, key)
    assert before.records.items() <= after.records.items()
    assert len(after.records) == len(before.records) + 1
    assert after.blobs == before.blobs
    assert after.preferences == before.preferences
    assert (await alice.client.get("com.atproto.server.getSession"))["active"] is False
    assert state_of(plc, alice.did).rotation_keys[0] == OWN_KEY.public_key.did_key

    # Out: to the reference.
    bob = await sign_up(ours.client, "bob.new.test")
    await fill(bob, blobs=4)
    old_key = state_of(plc, bob.did).verification_methods["atproto"]
    before = await snapshot(bob.client, bob.did, old_key)
    await migration.start_out(
        MoveOutRequest(
            account=bob.did,
            url=ends.reference.url.replace("127.0.0.1", "localhost"),
            handle="bob.ref.test",
            by_operator=True,
            given=Given(password=NEW_PASSWORD),
        )
    )
    view = await migration.settle(bob.did)
    assert (view["status"], view["warnings"]) == ("done", []), view
    session = await ends.reference.post(
        "com.atproto.server.createSession", identifier=bob.did, password=NEW_PASSWORD
    )
    assert (session["active"], session["handle"]) == (True, "bob.ref.test")
    there = Person(
        bob.did,
        "bob.ref.test",
        NEW_PASSWORD,
        session["refreshJwt"],
        ends.reference.with_token(session["accessJwt"]),
    )
    # The reference keeps the imported commit until the next write.
    after = await snapshot(there.client, bob.did, old_key)
    assert (after.records, after.blobs) == (before.records, before.blobs)
    assert after.preferences == before.preferences
    await there.post("written at the reference")
    key = state_of(plc, bob.did).verification_methods["atproto"]
    assert len((await snapshot(there.client, bob.did, key)).records) == len(before.records) + 1
    assert (await bob.client.get("com.atproto.server.getSession"))["status"] == "deactivated"
