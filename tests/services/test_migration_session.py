"""Calls of a move in an OAuth session: proofs, nonces, renewal.

Spec: (OAUTH-62, OAUTH-70..75)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from pds.errors import StoreError
from pds.net.http import GuardedClient, HttpSettings
from pds.protocol.syntax import Did
from pds.services.migration_host import RemoteHost
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_session import ALL_SCOPES, Bound, Permission, revoke_quietly
from pds.services.oauth_client import OAuthClient, OAuthSession
from pds.store.keystore import Keystore
from tests.fakes.clock import FakeClock
from tests.fakes.oauth import FakeOAuth, running_oauth
from tests.net.servers import serving

DID = Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")


@dataclass
class Setting:
    """A host behind OAuth, and a session at it."""

    oauth: FakeOAuth
    http: GuardedClient
    client: OAuthClient
    session: OAuthSession
    kept: list[OAuthSession] = field(default_factory=list)
    is_full: bool = False

    async def keep(self, session: OAuthSession) -> None:
        if self.is_full:
            raise StoreError("the disk is full")
        self.kept.append(session)

    def host(self, session: OAuthSession | None = None) -> RemoteHost:
        bound = Bound(self.client, session or self.session, DID, self.keep)
        return RemoteHost(self.http, self.oauth.host_url, session=bound)


async def answer(request: web.Request) -> web.StreamResponse:
    if request.path.endswith("createSession"):
        return web.json_response({"accessJwt": "bearer"})
    if request.path.endswith("getRepo"):
        return web.Response(body=b"car of " + request.headers["Authorization"].encode())
    return web.json_response({"token": request.headers.get("Authorization", "")})


@asynccontextmanager
async def signed_in(*, withheld: frozenset[str] = frozenset()) -> AsyncIterator[Setting]:
    settings = HttpSettings.guarded(user_agent="test", unsafe=True)
    async with (
        serving(answer) as port,
        running_oauth(f"http://127.0.0.1:{port}") as oauth,
        GuardedClient(settings) as http,
    ):
        oauth.passwords[DID] = "password"
        oauth.withheld_scopes = set(withheld)
        signer = Keystore(b"\x07" * 32).client_signer()
        client = OAuthClient(http, FakeClock(), signer, "http://localhost:2583")
        server = await client.discover(oauth.host_url)
        link, pending = await client.begin(
            server, scope=ALL_SCOPES, state="s", login_hint="alice.test"
        )
        code = parse_qs(urlsplit(oauth.sign_in(link.url, DID)).query)["code"][0]
        _, session = await client.redeem(pending, code)
        oauth.seen.clear()
        yield Setting(oauth, http, client, session)


async def test_calls_carry_proofs_and_take_the_nonces_of_answers() -> None:
    async with signed_in() as town:
        host = town.host()
        assert await host.query_as_owner("com.example.get", x="1") == {"token": "Bearer bearer"}
        assert await host.procedure("com.example.do", {}) == {"token": "Bearer bearer"}
        # The first without a nonce, then with the newest of each answer.
        assert [status for _, status in town.oauth.seen] == [401, 200, 200]
        async with town.host().open_repo(DID, since=None, max_bytes=1000) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"car of Bearer bearer"


async def test_an_expired_session_is_renewed_once_and_kept_before_it_is_used() -> None:
    async with signed_in() as town:
        host = town.host()
        await host.query_as_owner("com.example.get")
        town.oauth.expire_tokens()
        await asyncio.gather(*(host.query_as_owner("com.example.get") for _ in range(5)))
        assert len(town.kept) == 1
        assert town.kept[0].refresh != town.session.refresh
        assert town.kept[0].key == town.session.key
        town.oauth.expire_tokens()
        async with host.open_blob(DID, "bafkrei", max_bytes=1000) as (chunks, _):
            # What is public is had without the session that has ended.
            assert b'"token": ""' in b"".join([chunk async for chunk in chunks])


async def test_tokens_that_cannot_be_stored_are_not_used() -> None:
    async with signed_in() as town:
        town.oauth.expire_tokens()
        town.is_full = True
        host = town.host()
        with pytest.raises(StoreError):
            await host.query_as_owner("com.example.get")
        town.is_full = False
        # The old refresh token is shown again, and ends the session.
        with pytest.raises(MoveProblem) as caught:
            await host.query_as_owner("com.example.get")
        assert caught.value.code is Code.LOGIN_NEEDED
        assert town.oauth.grants[0].is_over


async def test_a_session_says_what_it_may_do() -> None:
    async with signed_in() as town:
        host = town.host()
        assert all(host.allows(permission) for permission in Permission)
    withheld = frozenset({"identity:*", "account:email"})
    async with signed_in(withheld=withheld) as town:
        host = town.host()
        assert [host.allows(one) for one in (Permission.SIGN, Permission.EMAIL)] == [False, False]
        assert host.allows(Permission.LEAVE)
    assert not any(RemoteHost(town.http, "http://x.test").allows(one) for one in Permission)


async def test_a_revocation_that_fails_changes_nothing() -> None:
    async with signed_in() as town:
        town.oauth.pages["/oauth/revoke"] = web.Response(status=500)
        await revoke_quietly(town.client, town.session)
        town.oauth.pages["/oauth/revoke"] = web.Response(status=400, body=b"{}")
        await revoke_quietly(town.client, town.session)
        await revoke_quietly(town.client, None)
        town.oauth.pages.clear()
        await revoke_quietly(town.client, town.session)
        assert town.oauth.revoked == 1


async def test_a_renewal_for_another_account_ends_the_session() -> None:
    """OAUTH-63: the tokens are for whom they were, or for nobody."""
    async with signed_in() as setting:
        setting.oauth.expire_tokens()
        setting.oauth.passwords["did:plc:44ybard66vv44zksje25o7dz"] = "password"
        setting.oauth.grants[0].sub = "did:plc:44ybard66vv44zksje25o7dz"
        with pytest.raises(MoveProblem) as caught:
            await setting.host().query_as_owner("com.atproto.server.getSession")
        assert caught.value.code is Code.LOGIN_NEEDED
        assert setting.kept == []
