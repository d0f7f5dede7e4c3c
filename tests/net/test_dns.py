"""DNS lookups against a real nameserver on loopback that misbehaves."""

import asyncio
import socket
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from pds.errors import ConfigError, NotResolvable, Unreachable
from pds.net.dns import (
    MAX_ADDRESSES,
    MAX_TXT_RECORDS,
    DnsClient,
    DnsResolver,
    DnsSettings,
)


class Nameserver(asyncio.DatagramProtocol):
    """Answers from `zone`: (name, type) to a list of texts, or a code, or silence."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.codes: dict[str, int] = {}
        self.silent: set[str] = set()
        self.garbage: set[str] = set()
        self.asked: list[str] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data, address) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text().rstrip(".")
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(name)
        if name in self.silent:
            return
        if name in self.garbage:
            self.transport.sendto(data[:2] + b"\xff" * 30, address)
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        texts = self.zone.get((name, kind))
        if name in self.codes:
            answer.set_rcode(self.codes[name])
        elif texts is not None:
            answer.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, texts))
        elif not any(known == name for known, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(max_size=65535), address)


@asynccontextmanager
async def nameserver(timeout_s: float = 60.0):
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(Nameserver, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    settings = DnsSettings(nameservers=(f"127.0.0.1:{port}",), timeout_s=timeout_s)
    try:
        yield server, DnsClient(settings)
    finally:
        transport.close()


async def test_strings_of_one_record_are_joined_and_records_are_not():
    async with nameserver() as (server, client):
        server.zone["_atproto.a.example", "TXT"] = ['"did=did:plc:" "abc"', '"v=spf1 -all"']
        found = await client.lookup_txt("_atproto.a.example")
        assert sorted(found) == ["did=did:plc:abc", "v=spf1 -all"]


async def test_bytes_that_are_no_text_are_replaced():
    async with nameserver() as (server, client):
        server.zone["a.example", "TXT"] = ['"\\255x"']
        assert await client.lookup_txt("a.example") == ["�x"]


async def test_absent_names_and_absent_records_are_a_definite_no():
    async with nameserver() as (server, client):
        server.zone["a.example", "A"] = ["192.0.2.1"]
        for name in ("a.example", "nothing.example"):
            with pytest.raises(NotResolvable):
                await client.lookup_txt(name)


@pytest.mark.parametrize(
    "name",
    ["a" * 64 + ".example", ".".join(["abcdefgh"] * 40), "a..example", "", "é" * 70 + ".example"],
)
async def test_names_that_cannot_exist_are_a_definite_no_and_nobody_is_asked(name):
    async with nameserver() as (server, client):
        with pytest.raises(NotResolvable):
            await client.lookup_txt(name)
        assert [asked for asked in server.asked if asked] == []


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR])
async def test_failing_nameserver_means_could_not_find_out(code):
    async with nameserver() as (server, client):
        server.codes["a.example"] = code
        with pytest.raises(Unreachable):
            await client.lookup_txt("a.example")


async def test_silence_and_garbage_mean_could_not_find_out_in_time():
    async with nameserver(timeout_s=0.3) as (server, client):
        server.silent.add("silent.example")
        server.garbage.add("garbage.example")
        for name in ("silent.example", "garbage.example"):
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unreachable):
                await client.lookup_txt(name)
            assert asyncio.get_running_loop().time() - started < 1.5


async def test_nameserver_that_is_not_there_means_could_not_find_out():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = DnsClient(DnsSettings(nameservers=(f"127.0.0.1:{port}",), timeout_s=0.3))
    with pytest.raises(Unreachable):
        await client.lookup_txt("a.example")


async def test_endless_answers_are_refused():
    async with nameserver() as (server, client):
        server.zone["many.example", "TXT"] = [f'"{n}"' for n in range(MAX_TXT_RECORDS + 1)]
        server.zone["some.example", "TXT"] = [f'"{n}"' for n in range(MAX_TXT_RECORDS)]
        with pytest.raises(NotResolvable, match="too many"):
            await client.lookup_txt("many.example")
        assert len(await client.lookup_txt("some.example")) == MAX_TXT_RECORDS


async def test_addresses_of_both_kinds_are_found_and_bounded():
    async with nameserver() as (server, client):
        server.zone["both.example", "A"] = [f"192.0.2.{n}" for n in range(1, 50)]
        server.zone["both.example", "AAAA"] = [f"2001:db8::{n:x}" for n in range(1, 50)]
        server.zone["four.example", "A"] = [f"192.0.2.{n}" for n in range(1, 50)]
        server.zone["text.example", "TXT"] = ['"x"']
        both = await client.lookup_addresses("both.example")
        assert len(both) == MAX_ADDRESSES
        assert len([address for address in both if ":" in address]) == MAX_ADDRESSES // 2
        assert len(await client.lookup_addresses("four.example")) == MAX_ADDRESSES
        for name in ("text.example", "nothing.example"):
            with pytest.raises(NotResolvable):
                await client.lookup_addresses(name)


async def test_one_kind_of_address_is_enough_when_the_other_lookup_fails():
    async with nameserver() as (server, client):

        class Half:
            async def resolve(self, name, kind, search):
                if kind == "AAAA":
                    raise dns.exception.Timeout
                return await real.resolve(name, kind, search=search)

        real, client._resolver = client._resolver, Half()
        Half.nameservers = real.nameservers
        server.zone["a.example", "A"] = ["192.0.2.1"]
        assert await client.lookup_addresses("a.example") == ["192.0.2.1"]
        # But an absent A says nothing while AAAA is unknown.
        with pytest.raises(Unreachable):
            await client.lookup_addresses("nothing.example")


async def test_aiohttp_resolver_tells_no_from_do_not_know():
    async with (
        nameserver() as (server, client),
        nameserver(timeout_s=0.3) as (silent, hasty_client),
    ):
        resolver, hasty = DnsResolver(client), DnsResolver(hasty_client)
        server.zone["a.example", "A"] = ["192.0.2.1"]
        server.zone["a.example", "AAAA"] = ["2001:db8::1"]
        silent.silent.add("silent.example")
        found = await resolver.resolve("a.example", 443, socket.AF_UNSPEC)
        assert {(entry["host"], entry["family"]) for entry in found} == {
            ("192.0.2.1", socket.AF_INET),
            ("2001:db8::1", socket.AF_INET6),
        }
        [only] = await resolver.resolve("a.example", 443, socket.AF_INET)
        assert (only["host"], only["port"], only["hostname"]) == ("192.0.2.1", 443, "a.example")
        for asked, name, code in (
            (resolver, "nothing.example", socket.EAI_NONAME),
            (hasty, "silent.example", socket.EAI_AGAIN),
        ):
            with pytest.raises(socket.gaierror) as caught:
                await asked.resolve(name, 443)
            assert caught.value.errno == code
            await asked.close()


@pytest.mark.parametrize("text", ["dns.example", "1.1.1.1:x", "1.1.1.1:", "[::1", ":53", "", "1.1"])
def test_nameservers_must_be_addresses(text):
    with pytest.raises(ConfigError, match="nameserver"):
        DnsClient(DnsSettings(nameservers=(text,)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.1.1.1", ("1.1.1.1", 53)),
        ("1.1.1.1:5353", ("1.1.1.1", 5353)),
        ("2606:4700::1111", ("2606:4700::1111", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("[::1]", ("::1", 53)),
    ],
)
def test_nameserver_forms(text, expected):
    client = DnsClient(DnsSettings(nameservers=(text,)))
    [server] = client._resolver.nameservers
    assert (server.address, server.port) == expected


async def test_machine_without_nameservers_answers_unreachable():
    client = DnsClient(DnsSettings(nameservers=("127.0.0.1",)))
    client._resolver.nameservers = []
    with pytest.raises(Unreachable):
        await client.lookup_txt("a.example")
