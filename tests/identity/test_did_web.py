"""did:web (ID-2, ID-40, DM-67)."""

import json

import pytest

from pds.errors import Unreachable
from pds.identity.did_web import MAX_DOCUMENT_BYTES, DidWebResolver, did_web_url
from pds.identity.errors import DidNotFound, UnsupportedDidMethod
from pds.protocol.syntax import Did, parse_did
from tests.fakes.web import Page
from tests.identity.conftest import World

PATH = "/.well-known/did.json"


def test_the_document_lies_at_the_well_known_place() -> None:
    did = parse_did("did:web:pds.example.com")
    assert did_web_url(did) == "https://pds.example.com/.well-known/did.json"
    local = parse_did("did:web:localhost%3A8000")
    assert did_web_url(local, dev=True) == "http://localhost:8000/.well-known/did.json"


@pytest.mark.parametrize(
    "did",
    [
        "did:web:example.com:user:alice",
        "did:web:example.com%3A8080",
        "did:web:localhost%3A8000",
        "did:web:localhost",
        "did:web:host.local",
        "did:web:host.internal",
        "did:web:host.test",
        "did:web:127.0.0.1",
        "did:web:example.com%2Fpath",
        "did:web:user%40example.com",
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
    ],
)
def test_other_forms_are_not_supported(did: str) -> None:
    with pytest.raises(UnsupportedDidMethod):
        did_web_url(Did(did))


def local_did(world: World) -> Did:
    return parse_did(f"did:web:localhost%3A{world.web.port}")


async def test_a_document_is_fetched(world: World) -> None:
    did = local_did(world)
    body = json.dumps({"id": did}).encode()
    world.web.set_page("localhost", PATH, body)
    assert await DidWebResolver(world.guarded, dev=True).fetch_document(did) == body


@pytest.mark.parametrize(
    "page",
    [
        Page(b"", 404),
        Page(b"", 403),
        Page(b"", 302, {"Location": "/elsewhere"}),
        Page(b"x" * (MAX_DOCUMENT_BYTES + 1)),
    ],
    ids=["missing", "forbidden", "redirect", "large"],
)
async def test_a_definite_no_is_not_found(world: World, page: Page) -> None:
    world.web.set_page("localhost", PATH, page)
    world.web.set_page("localhost", "/elsewhere", b"{}")
    with pytest.raises(DidNotFound):
        await DidWebResolver(world.guarded, dev=True).fetch_document(local_did(world))
    assert ("localhost", "/elsewhere") not in world.web.requests


@pytest.mark.parametrize(
    "page",
    [Page(status=500), Page(status=429), Page(delay_s=5.0), Page(hang_up=True)],
    ids=["fault", "too many", "slow", "hang up"],
)
async def test_no_answer_is_unreachable(world: World, page: Page) -> None:
    world.web.set_page("localhost", PATH, page)
    resolver = DidWebResolver(world.guarded, dev=True, timeout_s=0.2)
    with pytest.raises(Unreachable):
        await resolver.fetch_document(local_did(world))


async def test_a_host_that_does_not_exist_is_not_found_and_one_that_may_is_not(
    world: World,
) -> None:
    resolver = DidWebResolver(world.guarded, dev=True, timeout_s=0.5)
    world.web.resolver.missing.add("gone.example.com")
    with pytest.raises(DidNotFound):
        await resolver.fetch_document(parse_did("did:web:gone.example.com"))
    world.web.resolver.down.add("lost.example.com")
    with pytest.raises(Unreachable):
        await resolver.fetch_document(parse_did("did:web:lost.example.com"))
