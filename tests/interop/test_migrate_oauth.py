"""A move from the reference PDS by its own OAuth: its sign-in and consent, its scopes, its tokens.

Spec: (OAUTH-1, OAUTH-2, OAUTH-30, OAUTH-47, OAUTH-60..66, OAUTH-70..75, OAUTH-83)
"""

import json
from typing import Any

import aiohttp

from pds.protocol.oauth.jwk import public_jwk, thumbprint
from pds.services.migration import MoveInRequest
from pds.services.migration_session import ALL_SCOPES
from pds.services.migration_work import Given
from pds.services.oauth_client import OAuthClient
from pds.store.clock import SystemClock
from pds.store.keystore import Keystore
from tests.interop.browser import sign_in
from tests.interop.reference import reference_project
from tests.interop.test_migrate_engine import Ends, ends, mailed_code
from tests.scenarios.moving import NEW_PASSWORD, fill, login, snapshot, state_of
from tests.support_client import sign_up

__all__ = ["ends"]
DETAILS = (
    "app.bsky.actor.defs#personalDetailsPref",
    "app.bsky.actor.defs#declaredAgePref",
)


async def come_back(ends: Ends, url: str) -> str:
    async with ends.ours.client.http.get(url) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return text


async def test_an_account_moves_from_the_reference_by_a_sign_in_there(ends: Ends) -> None:
    migration, plc = ends.ours.server.services.migration, ends.ours.plc
    alice = await sign_up(ends.reference, "alice.ref.test")
    await fill(alice, blobs=4)
    key = state_of(plc, alice.did).verification_methods["atproto"]
    before = await snapshot(alice.client, alice.did, key)
    given = Given(uses_oauth=True, new_password=NEW_PASSWORD)
    view = await migration.start_in(MoveInRequest(account=alice.did, given=given))
    assert view["problem"]["code"] == "sign_in_needed", view
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        link = view["signIn"]["url"]
        back = await sign_in(http, link, did=alice.did, password=alice.password)
    assert "You are signed in" in await come_back(ends, back)
    view = await migration.settle(alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed"), view
    await alice.post("written while the move waits")
    ends.mails.clear()
    await migration.go_on(alice.did, Given(requests_token=True))
    await migration.go_on(alice.did, Given(plc_token=await mailed_code(ends)))
    view = await migration.settle(alice.did)
    assert view["status"] == "done", view
    assert [warning[:24] for warning in view["warnings"]] == ["The birth date was not c"]
    client = await login(ends.ours, alice.did, NEW_PASSWORD)
    key = state_of(plc, alice.did).verification_methods["atproto"]
    after = await snapshot(client, alice.did, key)
    assert before.records.items() <= after.records.items()
    assert len(after.records) == len(before.records) + 1
    assert after.blobs == before.blobs
    assert after.preferences == [
        item for item in before.preferences if item["$type"] not in DETAILS
    ]
    session = await client.get("com.atproto.server.getSession")
    assert session["email"].startswith("alice")
    old = await alice.client.get("com.atproto.server.getSession")
    assert (old["active"], old["status"]) == (False, "deactivated")
    assert len(state_of(plc, alice.did).rotation_keys) == 1

    # Somebody who takes permissions away has to do these parts themselves.
    bob = await sign_up(ends.reference, "bob.ref.test")
    await bob.post("hello")
    given = Given(uses_oauth=True, new_password=NEW_PASSWORD)
    request = MoveInRequest(account=bob.did, email="bob@example.test", given=given)
    view = await migration.start_in(request)
    kept = [scope for scope in ALL_SCOPES.split(" ") if scope.startswith(("atproto", "rpc:com"))]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        link = view["signIn"]["url"]
        back = await sign_in(http, link, did=bob.did, password=bob.password, scope=" ".join(kept))
    await come_back(ends, back)
    view = await migration.settle(bob.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed"), view
    assert "rotation key of yours" in view["problem"]["nextStep"]
    assert (await migration.undo(bob.did))["status"] == "undone"


def test_the_reference_takes_this_host_for_a_confidential_client() -> None:
    """Its own code loads our document, and checks our assertion and our request (OAUTH-14, 20)."""
    http: Any = None
    signer = Keystore(b"\x07" * 32).client_signer()
    client = OAuthClient(http, SystemClock(), signer, "https://pds.example.com")
    client_id, issuer = client.client_id(ALL_SCOPES), "https://auth.example.com"
    request = {
        "client_id": client_id,
        "response_type": "code",
        "redirect_uri": client.redirect_uri,
        "scope": ALL_SCOPES,
        "state": "s",
        "code_challenge": "c",
        "code_challenge_method": "S256",
    }
    told = {
        "clientId": client_id,
        "document": client.document(ALL_SCOPES),
        "assertion": client._authentication(client_id, issuer)["client_assertion"],
        "issuer": issuer,
        "request": request,
    }
    answer = json.loads(reference_project().run("oauth_client.mjs", json.dumps(told)))
    assert answer["method"] == "private_key_jwt"
    assert answer["kid"] == thumbprint(public_jwk(signer.public_key))
    assert answer["scope"] == ALL_SCOPES
    assert answer["refreshDays"] > 80  # A public client's is good for 14.
