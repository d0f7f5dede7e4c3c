"""Accounts that move in by a sign-in at the old host in a browser, over real HTTP.

Spec: (OAUTH-1, OAUTH-2, OAUTH-30, OAUTH-47, OAUTH-60..63, OAUTH-66, OAUTH-70..75)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from pds.errors import RequestError
from pds.protocol.plc import PlcService, make_update, sign_operation
from pds.protocol.syntax import Did
from pds.services.migration import Migration, MoveInRequest
from pds.services.migration_session import ALL_SCOPES, SCOPE_VOUCH
from pds.services.migration_work import Given
from pds.store.moves import get_last_move
from tests.fakes.oauth import FakeOAuth, running_oauth
from tests.scenarios.moving import (
    NEW_PASSWORD,
    OWN_KEY,
    Hosts,
    log_of,
    login,
    make_traveller,
    plc_code,
    signed_by_owner,
    signing_key,
    snapshot,
    state_of,
    two_hosts,
)
from tests.support_client import Person

BIRTH_DATE = "app.bsky.actor.defs#personalDetailsPref"
AGE = "app.bsky.actor.defs#declaredAgePref"


@dataclass
class Town:
    """Two hosts, and a door with OAuth before the old one, where an account lives."""

    hosts: Hosts
    oauth: FakeOAuth
    alice: Person

    @property
    def migration(self) -> Migration:
        return self.hosts.migration

    async def start(self, **more: Any) -> dict[str, Any]:
        """Order a move; the answer has the link."""
        given = Given(uses_oauth=True, new_password=NEW_PASSWORD)
        request = MoveInRequest(account=self.alice.did, given=given)
        return await self.migration.start_in(replace(request, **more))

    async def link(self) -> str:
        view = await self.start()
        assert (view["status"], view["problem"]["code"]) == ("waiting", "sign_in_needed"), view
        return str(view["signIn"]["url"])

    async def come_back(self, url: str) -> tuple[int, str]:
        """Let a browser go where it is sent."""
        http = self.hosts.new.client.http
        async with http.get(url, allow_redirects=False) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            return answer.status, await answer.text()

    async def sign_in(self) -> dict[str, Any]:
        """Start, sign in, and wait until the move waits for the code."""
        status, page = await self.come_back(self.oauth.sign_in(await self.link(), self.alice.did))
        assert (status, "You are signed in" in page) == (200, True), page
        return await self.migration.settle(self.alice.did)

    async def finish(self) -> dict[str, Any]:
        await self.migration.go_on(self.alice.did, Given(requests_token=True))
        code = await plc_code(self.hosts.old)
        await self.migration.go_on(self.alice.did, Given(plc_token=code))
        return await self.migration.settle(self.alice.did)

    async def row(self) -> Any:
        engine = self.hosts.new.server.engine
        return await engine.read("test", get_last_move, self.alice.did)


@asynccontextmanager
async def town_in(folder: Path, *, blobs: int = 0) -> AsyncIterator[Town]:
    async with two_hosts(folder) as hosts, running_oauth(hosts.old.url) as oauth:
        alice = await make_traveller(hosts, blobs=blobs)
        oauth.passwords[alice.did] = alice.password
        last = log_of(hosts.plc, alice.did).last
        assert last is not None
        assert last.state is not None
        door = PlcService("AtprotoPersonalDataServer", oauth.host_url)
        fields = make_update(last, services={**last.state.services, "atproto_pds": door})
        hosts.plc.submit(Did(alice.did), sign_operation(fields, OWN_KEY).to_json())
        yield Town(hosts, oauth, alice)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with town_in(tmp_path) as made:
        yield made


async def refusal(call: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await call
    return caught.value


async def test_an_account_arrives_by_a_sign_in_at_the_old_host(tmp_path: Path) -> None:
    async with town_in(tmp_path, blobs=4) as town:
        hosts, alice = town.hosts, town.alice
        before = await snapshot(alice.client, alice.did, signing_key(hosts, alice.did))
        view = await town.sign_in()
        assert (view["status"], view["step"]) == ("waiting", "approve"), view
        assert view["problem"]["code"] == "plc_token_needed"
        assert "signIn" not in view
        town.oauth.expire_tokens()
        await alice.post("written while the move waits")
        view = await town.finish()
        assert view["status"] == "done", view
        assert [warning[:25] for warning in view["warnings"]] == ["The birth date was not co"]
        client = await login(hosts.new, alice.did, NEW_PASSWORD)
        after = await snapshot(client, alice.did, signing_key(hosts, alice.did))
        assert len(after.records) == len(before.records) + 1
        assert before.records.items() <= after.records.items()
        assert after.blobs == before.blobs
        assert after.preferences == [
            item for item in before.preferences if item["$type"] not in (BIRTH_DATE, AGE)
        ]
        session = await client.get("com.atproto.server.getSession")
        old = await alice.client.get("com.atproto.server.getSession")
        assert (session["email"], old["status"]) == (old["email"], "deactivated")
        assert state_of(hosts.plc, alice.did).rotation_keys[0] == OWN_KEY.public_key.did_key
        assert (await town.row()).secrets is None
        assert all(grant.is_over for grant in town.oauth.grants)


async def test_nothing_of_a_sign_in_can_be_read_and_its_answer_works_once(town: Town) -> None:
    link = await town.link()
    row = await town.row()
    parts = town.migration.parts
    opened = parts.keystore.open(f"move {row.move_id}", row.secrets)
    for stored in (row.state, row.secrets, opened):
        assert NEW_PASSWORD.encode() not in bytes(stored)
    for query in ("", "code=1", "state=x&code=1", "state=1.x&code=1", "state=9.x&code=1"):
        url = f"{town.hosts.new.url}/oauth-client/callback?{query}&iss={town.oauth.issuer}"
        assert (await town.come_back(url))[0] == 400
    view = await town.migration.get(town.alice.did)
    assert view["problem"]["code"] == "sign_in_needed"
    back = town.oauth.sign_in(link, town.alice.did)
    state = back.partition("state=")[2].partition("&")[0].encode()
    assert state not in bytes(row.state) + opened
    async with town.hosts.new.client.http.head(back) as answer:
        assert answer.status == 200  # Looking does not use it up.
    wrong = back.replace(state.decode(), state.decode()[:-4] + "AAAA")
    assert (await town.come_back(wrong))[0] == 400
    answers = await asyncio.gather(*(town.come_back(back) for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400]
    status, page = await town.come_back(back)
    assert (status, "Nothing here waits" in page) == (400, True)
    await town.migration.settle(town.alice.did)
    assert [path for path, _ in town.oauth.seen].count("/oauth/token") == 2  # Nonce, and once.
    assert not town.oauth.grants[0].is_over
    row = await town.row()
    opened = parts.keystore.open(f"move {row.move_id}", row.secrets)
    assert b"tok-" in opened
    assert b"tok-" not in bytes(row.state) + bytes(row.secrets)


async def test_another_account_another_server_and_a_no_are_refused_by_name(town: Town) -> None:
    """RFC 9207: who answers must be who was asked; the tokens must be for who moves."""
    town.oauth.sub = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    status, page = await town.come_back(town.oauth.sign_in(await town.link(), town.alice.did))
    assert (status, "another account" in page) == (400, True)
    assert town.oauth.revoked == 1
    view = await town.migration.get(town.alice.did)
    assert (view["status"], view["problem"]["code"]) == ("waiting", "login_needed")
    town.oauth.sub = None
    town.oauth.iss = "https://evil.example"
    before = len(town.oauth.seen)
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    status, page = await town.come_back(back)
    assert (status, "was not from" in page) == (400, True)
    # The code went nowhere.
    assert ("/oauth/token", 200) not in town.oauth.seen[before:]
    town.oauth.iss = None
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    status, page = await town.come_back(back.replace("iss=", "was="))
    assert (status, "was not from" in page) == (400, True)
    status, page = await town.come_back(town.oauth.decline(await town.link()))
    assert (status, "declined" in page) == (400, True)
    assert await town.hosts.new.server.services.accounts.lookup(town.alice.did) is None
    assert (await town.sign_in())["step"] == "approve"


UNUSABLE = (
    ("oauth-protected-resource", web.Response(status=404)),
    (
        "oauth-protected-resource",
        web.Response(status=302, headers={"Location": "http://localhost:1/"}),
    ),
    ("oauth-protected-resource", web.Response(body=b"{}", content_type="text/html")),
    (
        "oauth-authorization-server",
        web.Response(body=b'{"a":"' + b"x" * 100_000 + b'"}', content_type="application/json"),
    ),
    ("oauth-authorization-server", web.Response(body=b"[", content_type="application/json")),
)


async def test_hosts_without_usable_oauth_are_told_so(town: Town) -> None:
    for path, page in UNUSABLE:
        town.oauth.pages = {f"/.well-known/{path}": page}
        error = await refusal(town.start())
        assert error.name == "oauth_unavailable"
        assert "password" in error.message
    town.oauth.pages.clear()
    town.oauth.server_changes["require_pushed_authorization_requests"] = False
    assert (await refusal(town.start())).name == "oauth_unavailable"
    town.oauth.server_changes = {"issuer": "https://other.example"}
    assert (await refusal(town.start())).name == "oauth_unavailable"
    town.oauth.server_changes.clear()
    town.oauth.resource_changes["authorization_servers"] = []
    assert (await refusal(town.start())).name == "oauth_unavailable"
    # The password does it still.
    given = Given(password=town.alice.password, new_password=NEW_PASSWORD)
    await town.migration.start_in(MoveInRequest(account=town.alice.did, given=given))
    assert (await town.migration.settle(town.alice.did))["step"] == "approve"


async def test_a_server_that_knows_too_little_is_refused_or_asked_for_less(town: Town) -> None:
    town.oauth.unknown_scopes = {SCOPE_VOUCH}
    error = await refusal(town.start())
    assert (error.name, "unknown scope" in error.message) == ("oauth_unavailable", True)
    town.oauth.unknown_scopes = set(ALL_SCOPES.split(" ")) - {SCOPE_VOUCH, "atproto"}
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    status, page = await town.come_back(back)
    assert (status, "mail address" in page) == (400, True)
    # The session is kept: what is missing can be given without another sign-in.
    view = await town.start(email="alice@example.test")
    view = await town.migration.settle(town.alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed")
    assert "rotation key of yours" in view["problem"]["nextStep"]


async def test_what_the_owner_does_not_allow_is_left_to_them(town: Town) -> None:
    """All of a move goes on without the permissions that can be done without."""
    town.oauth.withheld_scopes = {
        "account:email",
        "identity:*",
        "account:status?action=manage",
        "rpc:app.bsky.actor.getPreferences?aud=*",
    }
    view = await town.start(email="alice@example.test")
    await town.come_back(town.oauth.sign_in(view["signIn"]["url"], town.alice.did))
    view = await town.migration.settle(town.alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed")
    client = await login(town.hosts.new, town.alice.did, NEW_PASSWORD)
    fields = await client.get("com.atproto.identity.getRecommendedDidCredentials")
    operation = signed_by_owner(town.hosts, town.alice.did, fields)
    await town.migration.go_on(town.alice.did, Given(operation=operation))
    view = await town.migration.settle(town.alice.did)
    assert view["status"] == "done", view
    assert ["Preferences" in view["warnings"][0], "Deactivate" in view["warnings"][1]] == [
        True,
        True,
    ]
    assert len(view["warnings"]) == 2
    assert town.oauth.revoked == 1


async def test_a_lost_renewal_asks_for_another_sign_in_and_the_move_goes_on(town: Town) -> None:
    """OAUTH-62: the refresh token was replaced there, and the answer never came."""
    await town.sign_in()
    town.oauth.expire_tokens()
    town.oauth.loses_replies_to = {"refresh_token"}
    error = await refusal(town.migration.go_on(town.alice.did, Given(requests_token=True)))
    assert error.name == "other_host_unreachable"
    town.oauth.loses_replies_to = set()
    error = await refusal(town.migration.go_on(town.alice.did, Given(requests_token=True)))
    assert error.name == "login_needed"
    view = await town.sign_in()
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed"), view
    assert (await town.finish())["status"] == "done"


async def test_the_answer_may_reach_another_node_and_a_node_may_die_of_it(town: Town) -> None:
    parts = town.migration.parts
    other = Migration(replace(parts, node="other", is_alone=False))
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    # The node that takes the answer dies before it has the tokens: the code is used up.
    town.oauth.loses_replies_to = {"authorization_code"}
    query = urlsplit(back).query
    assert (await refusal(other.finish_sign_in(query))).name == "other_host_unreachable"
    town.oauth.loses_replies_to = set()
    assert (await refusal(other.finish_sign_in(query))).name == "UnknownSignIn"
    view = await town.migration.get(town.alice.did)
    assert view["status"] == "waiting"
    # Another sign-in, and another node takes it; a third one ends the move.
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    view = await other.finish_sign_in(urlsplit(back).query)
    assert view["status"] == "running"
    assert (await other.settle(town.alice.did))["step"] == "approve"
    await other.close()
    assert (await town.finish())["status"] == "done"


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """A service at whose first call its node dies."""

    def __getattr__(self, name: str) -> Any:
        raise Killed


async def test_a_node_that_dies_with_the_session_stored_needs_no_other_sign_in(
    town: Town,
) -> None:
    tokens: Any = Dying()
    parts = town.migration.parts
    dying = Migration(replace(parts, node="dying", is_alone=False, service_tokens=tokens))
    back = town.oauth.sign_in(await town.link(), town.alice.did)
    with pytest.raises(Killed):
        await dying.finish_sign_in(urlsplit(back).query)
    assert (await town.migration.get(town.alice.did))["status"] == "running"
    # Another node takes it up, and finds that somebody has to give the password for here again.
    await town.migration.look(town.alice.did)
    view = await town.migration.settle(town.alice.did)
    assert (view["status"], view["problem"]["code"]) == ("failed", "login_needed")
    await town.start()
    view = await town.migration.settle(town.alice.did)
    assert (view["step"], view["problem"]["code"]) == ("approve", "plc_token_needed"), view
    assert len(town.oauth.grants) == 1


async def test_undoing_a_move_ends_the_session_there(town: Town) -> None:
    await town.sign_in()
    view = await town.migration.undo(town.alice.did)
    assert (view["status"], town.oauth.revoked) == ("undone", 1)
    assert (await town.row()).secrets is None
    first = town.oauth.sign_in(await town.link(), town.alice.did)
    second = town.oauth.sign_in(await town.link(), town.alice.did)
    assert (await town.come_back(first))[0] == 400  # The second link has taken its place.
    await town.migration.undo(town.alice.did)
    assert (await town.come_back(second))[0] == 400
