"""This host as an OAuth client, against a server that keeps the rules and one that does not.

Spec: (OAUTH-1, OAUTH-2, OAUTH-19, OAUTH-20, OAUTH-22, OAUTH-30, OAUTH-60..63, OAUTH-70..73)
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from pds.errors import BadAnswer, NotResolvable, Unreachable
from pds.net.http import GuardedClient, HttpSettings
from pds.net.http_errors import AnswerTooLarge, ForbiddenDestination
from pds.protocol.oauth.errors import OAuthInvalid
from pds.protocol.oauth.jwk import public_jwk, thumbprint
from pds.services import oauth_client
from pds.services.migration_session import ALL_SCOPES
from pds.services.oauth_client import Link, OAuthClient, OAuthRefused, PendingSignIn
from pds.store.keystore import Keystore
from tests.fakes.clock import FakeClock
from tests.fakes.oauth import FakeOAuth, running_oauth

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
SIGNER = Keystore(b"\x07" * 32).client_signer()
PUBLIC = "https://pds.example.com"
LOCAL = "http://localhost:2583"


@pytest.fixture
async def oauth() -> AsyncIterator[FakeOAuth]:
    async with running_oauth() as fake:
        yield fake


@pytest.fixture
async def http() -> AsyncIterator[GuardedClient]:
    async with GuardedClient(HttpSettings.guarded(user_agent="test", unsafe=True)) as client:
        yield client


def make(http: GuardedClient, public_url: str = LOCAL) -> OAuthClient:
    return OAuthClient(http, FakeClock(), SIGNER, public_url)


async def begin(client: OAuthClient, oauth: FakeOAuth) -> tuple[Link, PendingSignIn]:
    server = await client.discover(oauth.host_url)
    return await client.begin(server, scope=ALL_SCOPES, state="s", login_hint="alice.test")


def code_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["code"][0]


async def test_a_public_client_signs_in_renews_and_revokes(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    client = make(http)
    assert client.document(ALL_SCOPES) is None
    assert client.redirect_uri == "http://127.0.0.1:2583/oauth-client/callback"
    link, pending = await begin(client, oauth)
    assert 0 < link.life_s <= 300
    code = code_of(oauth.sign_in(link.url, DID))
    sub, session = await client.redeem(pending, code)
    assert (sub, session.scope) == (DID, ALL_SCOPES)
    renewed = await client.renew(session)
    assert renewed.refresh != session.refresh
    # The old one again, as after a crash: the session is over for good.
    with pytest.raises(OAuthRefused) as caught:
        await client.renew(session)
    assert caught.value.error == "invalid_grant"
    with pytest.raises(OAuthRefused):
        await client.renew(replace(session, refresh=renewed.refresh))
    with pytest.raises(OAuthRefused):
        await client.renew(replace(session, refresh=None))
    # Every request was made twice: first without the nonce that only the answer tells.
    assert oauth.seen[:2] == [("/oauth/par", 400), ("/oauth/par", 201)]


async def test_a_code_works_once_and_a_revoked_session_is_over(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    client = make(http)
    link, pending = await begin(client, oauth)
    code = code_of(oauth.sign_in(link.url, DID))
    _, session = await client.redeem(pending, code)
    with pytest.raises(OAuthRefused):
        await client.redeem(pending, code)
    assert oauth.grants[0].is_over
    link, pending = await begin(client, oauth)
    _, session = await client.redeem(pending, code_of(oauth.sign_in(link.url, DID)))
    await client.revoke(session)
    assert oauth.revoked == 1
    await client.revoke(replace(session, revocation_endpoint=None))


@pytest.mark.parametrize("checks_first", [False, True])
async def test_a_host_with_a_public_name_proves_itself_by_a_key_of_its_own(
    oauth: FakeOAuth, http: GuardedClient, checks_first: bool
) -> None:
    """Each request has an assertion of its own: a server may look at it before the nonce."""
    oauth.checks_clients_first = checks_first
    client = make(http, PUBLIC)
    document = client.document(ALL_SCOPES)
    assert document is not None
    assert document["client_id"] == f"{PUBLIC}/oauth-client-metadata.json"
    assert document["redirect_uris"] == [f"{PUBLIC}/oauth-client/callback"]
    assert document["jwks"]["keys"][0]["kid"] == thumbprint(public_jwk(SIGNER.public_key))
    with pytest.raises(OAuthRefused):
        await begin(client, oauth)
    oauth.documents[document["client_id"]] = document
    link, pending = await begin(client, oauth)
    _, session = await client.redeem(pending, code_of(oauth.sign_in(link.url, DID)))
    await client.renew(session)
    assert pending.key != SIGNER.secret_bytes().hex()
    # All nodes have the same key, and another master key is another client.
    assert Keystore(b"\x07" * 32).client_signer().public_key == SIGNER.public_key
    assert Keystore(b"\x08" * 32).client_signer().public_key != SIGNER.public_key


async def test_what_began_under_a_former_name_goes_on_under_the_new_one(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    """OAUTH-11: servers read the document anew, and it must name the address that they know."""
    before = make(http, PUBLIC)
    oauth.documents[before.client_id("")] = before.document(ALL_SCOPES) or {}
    link, pending = await begin(before, oauth)
    new = "https://new.example.com"
    after = OAuthClient(http, FakeClock(), SIGNER, new, former_urls=(LOCAL, PUBLIC))
    document = after.document(ALL_SCOPES, name="PDS.example.com")
    assert document == before.document(ALL_SCOPES)
    for name in ("", "new.example.com", "elsewhere.example.com"):
        shown = after.document(ALL_SCOPES, name=name)
        assert shown is not None
        assert shown["client_id"] == f"{new}/oauth-client-metadata.json"
        assert shown["redirect_uris"] == [f"{new}/oauth-client/callback"]
    assert after.document(ALL_SCOPES, name="localhost:2583") is None
    oauth.documents[pending.client_id] = document or {}
    _, session = await after.redeem(pending, code_of(oauth.sign_in(link.url, DID)))
    assert (await after.renew(session)).sub == DID


async def test_a_server_that_asks_for_no_nonce_is_not_believed(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    oauth.gives_nonces = False
    with pytest.raises(OAuthInvalid):
        await begin(make(http), oauth)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (web.Response(status=302, headers={"Location": "/oauth/par2"}), BadAnswer),
        (web.Response(body=b"x" * 70_000), AnswerTooLarge),
        (web.Response(body=b"[]", headers={"DPoP-Nonce": "n"}), BadAnswer),
        (web.Response(body=b"not json"), BadAnswer),
        (web.Response(status=503, headers={"Retry-After": "5"}), Unreachable),
        (web.json_response({"request_uri": 7}, headers={"DPoP-Nonce": "n"}), OAuthInvalid),
        (
            web.json_response(
                {"request_uri": "urn:x", "expires_in": "soon"}, headers={"DPoP-Nonce": "n"}
            ),
            OAuthInvalid,
        ),
        (
            web.json_response(
                {"error": "use_dpop_nonce"}, status=400, headers={"DPoP-Nonce": "always"}
            ),
            OAuthRefused,
        ),
        (web.json_response({"error": "use_dpop_nonce"}, status=400), OAuthRefused),
    ],
)
async def test_answers_that_break_a_rule_are_refused(
    oauth: FakeOAuth, http: GuardedClient, page: web.Response, error: type[Exception]
) -> None:
    """No redirect is followed, nothing unbounded is read, nothing is asked more than twice."""
    oauth.pages["/oauth/par"] = page
    with pytest.raises(error):
        await begin(make(http), oauth)


async def test_slow_servers_are_given_up(
    oauth: FakeOAuth, http: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_client, "TIMEOUT_S", 0.05)
    oauth.slow_paths = {"/.well-known/oauth-authorization-server"}
    with pytest.raises(Unreachable):
        await make(http).discover(oauth.host_url)


async def test_words_of_a_server_cannot_steer_a_terminal(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    words: dict[str, Any] = {"error": "a\x1b[2J", "error_description": "b\x07" + "c" * 1000}
    oauth.pages["/oauth/par"] = web.json_response(words, status=400)
    with pytest.raises(OAuthRefused) as caught:
        await begin(make(http), oauth)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_documents_are_found_where_they_must_be(
    oauth: FakeOAuth, http: GuardedClient
) -> None:
    client = make(http)
    assert (await client.discover(oauth.host_url)).issuer == oauth.issuer
    with pytest.raises(NotResolvable):
        await client.discover(f"{oauth.host_url}/other")
    oauth.resource_changes["authorization_servers"] = [oauth.host_url]
    with pytest.raises(OAuthInvalid):  # Whose document says that it is another's.
        await client.discover(oauth.host_url)
    oauth.resource_changes["authorization_servers"] = ["https://192.0.2.1"]
    async with GuardedClient(HttpSettings.guarded(user_agent="test")) as guarded:
        with pytest.raises(ForbiddenDestination):
            await make(guarded).discover(oauth.host_url)
