"""Handles by DNS and well-known page: precedence and failures (ID-1, ID-2, ID-3, ID-10..ID-12)."""

import asyncio

import pytest

from pds.errors import Unreachable
from pds.identity.errors import HandleNotFound
from pds.identity.handle import MAX_PAGE_BYTES
from pds.protocol.syntax import parse_did, parse_handle
from tests.fakes.dns import FakeDns
from tests.fakes.web import Page
from tests.identity.conftest import World

ALICE = parse_handle("alice.example.com")
DID = parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
OTHER = parse_did("did:web:other.example.com")
NAME = "_atproto.alice.example.com"


async def test_dns_alone_and_the_page_alone_are_enough(world: World) -> None:
    world.dns.set_handle(ALICE, DID)
    assert await world.handle_resolver().resolve(ALICE) == DID
    world.dns.txt.clear()
    world.web.set_handle(ALICE, OTHER.encode())
    assert await world.handle_resolver().resolve(ALICE) == OTHER


async def test_dns_wins_over_the_page(world: World) -> None:
    world.dns.set_handle(ALICE, DID)
    world.web.set_handle(ALICE, OTHER.encode())
    assert await world.handle_resolver().resolve(ALICE) == DID


async def test_dns_does_not_wait_for_the_page(world: World) -> None:
    world.dns.set_handle(ALICE, DID)
    world.web.set_handle(ALICE, Page(OTHER.encode(), delay_s=30.0))
    async with asyncio.timeout(0.2):
        assert await world.handle_resolver().resolve(ALICE) == DID


async def test_the_page_counts_when_dns_cannot_be_asked(world: World) -> None:
    world.web.set_handle(ALICE, DID.encode())
    world.dns.down.add(NAME)
    assert await world.handle_resolver().resolve(ALICE) == DID
    world.dns.down.clear()
    world.dns.slow.add(NAME)
    assert await world.handle_resolver().resolve(ALICE) == DID


@pytest.mark.parametrize(
    "records",
    [
        ["v=spf1 -all", f"did={DID}"],
        [f"did={DID}", f"did={DID}"],
        [f"did={DID}", "did=nonsense", "did="],
        [f"did={DID} "],
        [f"DID={OTHER}", f"did={DID}"],
    ],
)
async def test_only_valid_did_values_count(world: World, records: list[str]) -> None:
    world.dns.txt[NAME] = records
    assert await world.handle_resolver().resolve(ALICE) == DID


async def test_two_different_dids_in_dns_are_a_failure_whatever_the_page_says(
    world: World,
) -> None:
    world.dns.set_handle(ALICE, DID, OTHER)
    world.web.set_handle(ALICE, DID.encode())
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(ALICE)


@pytest.mark.parametrize(
    "body", [f"{DID}", f"{DID}\n", f" \r\n{DID} \r\n", f"{DID}\nanother line\n"]
)
async def test_the_first_line_of_the_page_is_trimmed(world: World, body: str) -> None:
    """ID-11."""
    world.web.set_handle(ALICE, body.encode())
    assert await world.handle_resolver().resolve(ALICE) == DID


async def test_redirects_are_followed_a_few_times(world: World) -> None:
    """ID-11."""
    there = f"http://www.example.com:{world.web.port}/did"
    world.web.set_handle(ALICE, Page(b"", 301, {"Location": there}))
    world.web.set_page("www.example.com", "/did", DID.encode())
    assert await world.handle_resolver().resolve(ALICE) == DID
    world.web.set_page("www.example.com", "/did", Page(b"", 302, {"Location": there}))
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(ALICE)


@pytest.mark.parametrize(
    "page",
    [
        Page(b"", 404),
        Page(b"", 403),
        Page(b"<html>did:plc</html>"),
        Page(b""),
        Page(b"did:plc:\xff\xfe"),
        Page(DID.encode() + b" " * MAX_PAGE_BYTES),
    ],
    ids=["missing", "forbidden", "html", "empty", "binary", "large"],
)
async def test_a_page_without_a_did_is_a_definite_no(world: World, page: Page) -> None:
    """ID-11: not 2xx, no DID, or more than the cap."""
    world.web.set_handle(ALICE, page)
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(ALICE)


@pytest.mark.parametrize(
    "page", [Page(status=500), Page(delay_s=5.0), Page(hang_up=True)], ids=["5xx", "slow", "cut"]
)
async def test_failing_to_find_out_is_no_definite_no(world: World, page: Page) -> None:
    world.web.set_handle(ALICE, page)
    with pytest.raises(Unreachable):
        await world.handle_resolver().resolve(ALICE)
    world.web.set_handle(ALICE, b"nothing")
    world.dns.down.add(NAME)
    with pytest.raises(Unreachable):
        await world.handle_resolver().resolve(ALICE)


async def test_a_host_without_address_and_without_record_is_not_found(world: World) -> None:
    world.web.resolver.missing.add(ALICE)
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(ALICE)


async def test_backup_nameservers_are_asked_last(world: World) -> None:
    backup = FakeDns()
    backup.set_handle(ALICE, OTHER)
    resolver = world.handle_resolver(backup=backup)
    world.web.set_handle(ALICE, DID.encode())
    assert await resolver.resolve(ALICE) == DID
    assert backup.lookups == []
    world.web.pages.clear()
    assert await resolver.resolve(ALICE) == OTHER
    world.dns.is_down = True
    assert await resolver.resolve(ALICE) == OTHER
    backup.is_down = True
    with pytest.raises(Unreachable):
        await resolver.resolve(ALICE)


@pytest.mark.parametrize("name", ["a.local", "a.onion", "a.internal", "handle.invalid", "x.arpa"])
async def test_disallowed_top_level_domains_ask_nobody(world: World, name: str) -> None:
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(parse_handle(name))
    assert world.dns.lookups == []
    assert world.web.requests == []


async def test_a_handle_too_long_for_dns_is_asked_over_the_web_only(world: World) -> None:
    long = parse_handle(".".join(["a" * 60] * 4) + ".example")
    assert len(long) > 244
    with pytest.raises(HandleNotFound):
        await world.handle_resolver().resolve(long)
    assert world.dns.lookups == []


async def test_cancelling_leaves_nothing_running(world: World) -> None:
    world.dns.slow.add(NAME)
    world.web.set_handle(ALICE, Page(delay_s=30.0))
    before = asyncio.all_tasks()
    task = asyncio.create_task(world.handle_resolver().resolve(ALICE))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}
    assert not any("HandleResolver" in name for name in names)
