"""Who may define an NSID, by DNS alone (LEX-80, LEX-83)."""

import asyncio

import pytest

from pds.errors import Unreachable
from pds.identity.lexicon_names import LexiconAuthorities, NoLexiconAuthority, authority_of
from pds.protocol.syntax import parse_nsid
from tests.fakes.dns import FakeDns

NSID = parse_nsid("net.example.feed.post")
NAME = "_lexicon.feed.example.net"
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def test_the_authority_is_all_but_the_last_segment_reversed() -> None:
    """LEX-80: no climbing, no descending."""
    assert authority_of(NSID) == "feed.example.net"
    assert authority_of(parse_nsid("COM.Example.fooBar")) == "example.com"


async def test_one_record_names_the_did_and_nothing_is_remembered() -> None:
    """LEX-80, LEX-83."""
    dns = FakeDns({NAME: ["v=spf1 -all", f"did={DID}"]})
    authorities = LexiconAuthorities(dns)
    assert await authorities.resolve(NSID) == DID
    dns.txt[NAME] = ["did=did:web:other.example"]
    assert await authorities.resolve(NSID) == "did:web:other.example"
    assert dns.lookups == [NAME, NAME]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (None, "there is no TXT record"),
        ([], "no DIDs"),
        (["v=spf1 -all", f"DID={DID}"], "no DIDs"),
        ([f"did={DID}", "did=did:web:other.example"], "several DIDs"),
        ([f"did={DID}", f"did={DID}"], "several DIDs"),
        ([f"did={DID}", "did="], "several DIDs"),
        (["did=nonsense"], "no valid DID"),
    ],
)
async def test_anything_else_is_a_definite_no(records: list[str] | None, reason: str) -> None:
    """LEX-80: exactly one, and nobody else is asked."""
    dns = FakeDns({} if records is None else {NAME: records})
    with pytest.raises(NoLexiconAuthority, match=reason):
        await LexiconAuthorities(dns).resolve(NSID)
    assert dns.lookups == [NAME]


async def test_silence_is_no_answer() -> None:
    """Could not find out is not a no."""
    dns = FakeDns()
    dns.down.add(NAME)
    with pytest.raises(Unreachable):
        await LexiconAuthorities(dns).resolve(NSID)
    dns.down.clear()
    dns.slow.add(NAME)
    async with asyncio.timeout(2):
        with pytest.raises(Unreachable, match="timeout"):
            await LexiconAuthorities(dns, timeout_s=0.01).resolve(NSID)


async def test_a_name_too_long_for_dns_is_not_asked_for() -> None:
    """An NSID may have 317 characters, a DNS name 253."""
    dns = FakeDns()
    nsid = parse_nsid(".".join(["com", *(["a" * 60] * 4), "x"]))
    with pytest.raises(NoLexiconAuthority, match="too long"):
        await LexiconAuthorities(dns).resolve(nsid)
    assert dns.lookups == []
