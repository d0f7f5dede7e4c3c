"""Moves by a sign-in that are disturbed: hosts that refuse, orders that change, links left open.

Spec: (OAUTH-62, OAUTH-66)
"""

from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from pds.protocol.plc import PlcService, make_update, sign_operation
from pds.protocol.syntax import Did
from pds.services.migration import Migration, MoveInRequest
from pds.services.migration_state import open_secrets
from pds.services.migration_work import Given
from pds.services.oauth_client import OAuthClient
from tests.net.servers import serving
from tests.scenarios.moving import NEW_PASSWORD, OWN_KEY, log_of
from tests.scenarios.test_migrate_oauth import Town, refusal, town

__all__ = ["town"]
CREATE_ACCOUNT = "com.atproto.server.createAccount"
SESSION_PATH = "/xrpc/com.atproto.server.getSession"


async def secrets_of(town: Town) -> Any:
    return open_secrets(town.migration.parts.keystore, await town.row())


@pytest.mark.parametrize("status", [400, 401, 403, 410])
async def test_a_host_that_refuses_its_documents_is_one_without_oauth(
    town: Town, status: int
) -> None:
    for path in ("oauth-protected-resource", "oauth-authorization-server"):
        town.oauth.pages = {f"/.well-known/{path}": web.Response(status=status)}
        error = await refusal(town.start())
        assert (error.name, "password" in error.message) == ("oauth_unavailable", True)


async def test_who_cannot_be_read_about_is_told_where(town: Town) -> None:
    parts = town.migration.parts
    client = OAuthClient(
        parts.http, parts.clock, parts.keystore.client_signer(), "https://pds.example.com"
    )
    migration = Migration(replace(parts, oauth=client))
    given = Given(uses_oauth=True, new_password=NEW_PASSWORD)
    error = await refusal(migration.start_in(MoveInRequest(account=town.alice.did, given=given)))
    assert error.name == "oauth_unavailable"
    assert "https://pds.example.com/oauth-client-metadata.json can be read" in error.message
    assert "or: start the move with the password" in error.message


async def test_a_link_is_forgotten_when_the_move_is_over_or_goes_on_without_it(town: Town) -> None:
    await town.link()
    await town.migration.undo(town.alice.did)
    assert "signIn" not in await town.migration.get(town.alice.did)
    back = town.oauth.decline(await town.link())
    answer = await town.alice.client.get(
        "com.atproto.server.getServiceAuth",
        aud=town.migration.parts.service_did,
        lxm=CREATE_ACCOUNT,
    )
    given = Given(service_token=answer["token"], new_password=NEW_PASSWORD)
    request = MoveInRequest(account=town.alice.did, email="alice@example.test", given=given)
    await town.migration.start_in(request)
    view = await town.migration.settle(town.alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed")
    assert "signIn" not in view
    assert (await town.come_back(back))[0] == 400
    view = await town.migration.get(town.alice.did)
    assert view["problem"]["code"] == "plc_token_needed"


async def test_a_session_that_another_replaces_is_revoked(town: Town) -> None:
    await town.sign_in()
    await town.migration.go_on(town.alice.did, Given(password=town.alice.password))
    await town.migration.settle(town.alice.did)
    assert town.oauth.revoked == 1


async def test_a_session_that_the_host_does_not_know_makes_way_for_a_sign_in(town: Town) -> None:
    """The reference refuses tokens that it has not signed with 400 InvalidToken."""
    await town.sign_in()
    words = {"error": "InvalidToken", "message": "Token could not be verified"}
    town.oauth.pages = {SESSION_PATH: web.json_response(words, status=400)}
    view = await town.start()
    assert view["problem"]["code"] == "sign_in_needed"
    town.oauth.pages.clear()
    status, _ = await town.come_back(town.oauth.sign_in(view["signIn"]["url"], town.alice.did))
    assert status == 200
    assert town.oauth.revoked == 1


async def test_tokens_are_shown_to_no_host_but_the_one_that_gave_them(town: Town) -> None:
    """Between two orders the account went elsewhere, or the operator named another host."""
    town.oauth.withheld_scopes = {"account:email"}
    await town.come_back(town.oauth.sign_in(await town.link(), town.alice.did))
    assert (await secrets_of(town)).session is not None
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization", ""))
        if request.path.endswith("describeServer"):
            return web.json_response({"did": "did:web:other.test", "availableUserDomains": []})
        return web.json_response({"error": "Nothing"}, status=400)

    async with serving(answer) as port:
        log = log_of(town.hosts.plc, town.alice.did).last
        assert log is not None
        assert log.state is not None
        door = PlcService("AtprotoPersonalDataServer", f"http://127.0.0.1:{port}")
        fields = make_update(log, services={**log.state.services, "atproto_pds": door})
        town.hosts.plc.submit(Did(town.alice.did), sign_operation(fields, OWN_KEY).to_json())
        request = MoveInRequest(account=town.alice.did, given=Given(new_password=NEW_PASSWORD))
        await town.migration.parts.resolver.forget(Did(town.alice.did))
        await refusal(town.migration.start_in(request))
    assert seen
    assert set(seen) == {""}
    assert (await secrets_of(town)).session is None
    assert town.oauth.revoked == 1


async def test_a_proof_that_is_refused_speaks_of_the_clock(town: Town) -> None:
    words = {"error": "invalid_dpop_proof", "error_description": "DPoP iat is not recent enough"}
    town.oauth.pages = {"/oauth/par": web.json_response(words, status=400)}
    error = await refusal(town.start())
    assert error.name == "oauth_unavailable"
    assert "DPoP iat is not recent enough. See that the clock of this server" in error.message
