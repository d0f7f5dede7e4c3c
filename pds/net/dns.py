"""DNS lookups with a time limit and bounded answers: TXT for handles, A and AAAA for hosts.

A definite "no such name or record" raises `NotResolvable`; a timeout or a server failure raises
`Unreachable`. The two are never mixed up: callers cache the first and retry the second.

Address lookups go straight to the nameservers, not through the system's resolver threads: a few
of those serve the whole process, and a zone that answers slowly on purpose would hold them all.
The only module that imports dnspython.
"""

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.resolver
import dns.rrset
from aiohttp.abc import AbstractResolver, ResolveResult

from pds.errors import ConfigError, NotResolvable, Unreachable
from pds.net.addresses import parse_address

MAX_TXT_RECORDS: Final = 64
"""More TXT records than this under one name is no answer for us; real names have a handful."""

MAX_ADDRESSES: Final = 8
"""Addresses tried for one host; a longer answer is cut, so that no name costs many attempts."""

_NAMESERVER: Final = re.compile(
    r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """How to ask.

    `nameservers` are `ip` or `ip:port` (`[ip6]:port`); empty means those of the system.
    `timeout_s` is for one whole lookup, retries included.
    """

    nameservers: tuple[str, ...] = ()
    timeout_s: float = 3.0


class DnsClient:
    """Asks the configured nameservers."""

    def __init__(self, settings: DnsSettings | None = None) -> None:
        """Read the system's nameservers, unless some are configured."""
        settings = settings or DnsSettings()
        self._timeout_s = settings.timeout_s
        if settings.nameservers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [_parse_nameserver(text) for text in settings.nameservers]
        else:
            try:
                resolver = dns.asyncresolver.Resolver()
            except dns.resolver.NoResolverConfiguration:
                # A machine without DNS can still serve; each lookup then says Unreachable.
                resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.use_search_by_default = False
        resolver.timeout = max(settings.timeout_s / 2, 0.1)
        resolver.lifetime = settings.timeout_s
        self._resolver = resolver

    async def lookup_txt(self, name: str) -> list[str]:
        """Return the TXT records of `name`, the character-strings of each record joined (ID-10).

        Raises: NotResolvable (no such name, no TXT record, too many), Unreachable.
        """
        rrset = await self._lookup(name, "TXT")
        if len(rrset) > MAX_TXT_RECORDS:
            raise NotResolvable(f"too many TXT records at {name}")
        return [
            b"".join(record.strings).decode("utf-8", "replace")
            for record in rrset
            if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
        ]

    async def lookup_addresses(self, host: str) -> list[str]:
        """Return at most `MAX_ADDRESSES` IPv6 and IPv4 addresses of `host`.

        Raises: NotResolvable when both kinds are definitely absent, else Unreachable.
        """
        answers = await asyncio.gather(
            self._lookup(host, "AAAA"), self._lookup(host, "A"), return_exceptions=True
        )
        found: list[list[str]] = []
        failure: BaseException | None = None
        for answer in answers:
            if isinstance(answer, BaseException):
                if failure is None or not isinstance(answer, NotResolvable):
                    failure = answer
            else:
                found.append(
                    [
                        record.address
                        for record in answer
                        if isinstance(record, (dns.rdtypes.IN.A.A, dns.rdtypes.IN.AAAA.AAAA))
                    ]
                )
        if not any(found):
            raise failure or NotResolvable(f"{host} has no address")
        share = MAX_ADDRESSES // len(found)
        return [address for addresses in found for address in addresses[:share]]

    async def _lookup(self, name: str, kind: str) -> dns.rrset.RRset:
        if not self._resolver.nameservers:
            raise Unreachable("no nameserver is configured")
        question = _parse_name(name)
        try:
            # The outer limit also covers what dnspython does not count (TCP connects).
            async with asyncio.timeout(self._timeout_s + 0.5):
                answer = await self._resolver.resolve(question, kind, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN) as error:
            raise NotResolvable(f"{name} has no {kind} record") from error
        except (dns.exception.Timeout, TimeoutError) as error:
            raise Unreachable(f"timeout while looking up {kind} of {name}") from error
        except (dns.resolver.NoNameservers, OSError, EOFError) as error:
            raise Unreachable(f"no nameserver answered for {kind} of {name}") from error
        except dns.exception.DNSException as error:
            raise Unreachable(f"malformed DNS answer for {kind} of {name}") from error
        if answer.rrset is None:
            raise NotResolvable(f"{name} has no {kind} record")
        return answer.rrset


class DnsResolver(AbstractResolver):
    """Lets aiohttp find hosts with a `DnsClient`."""

    def __init__(self, client: DnsClient) -> None:
        """Resolve with `client`, which others may share."""
        self._client = client

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host`, or raise OSError as aiohttp expects.

        `EAI_NONAME` means a definite no, `EAI_AGAIN` that we could not find out.
        """
        try:
            addresses = await self._client.lookup_addresses(host)
        except NotResolvable as error:
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        except Unreachable as error:
            raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
            for kind in (socket.AF_INET6 if ":" in address else socket.AF_INET,)
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """Do nothing: the client holds no sockets between lookups."""


def _parse_name(text: str) -> dns.name.Name:
    """Return the absolute name; one that cannot exist is a definite no, and nobody is asked."""
    try:
        name = dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise NotResolvable(f"{text[:300]!r} is no DNS name") from error
    if name == dns.name.root:
        raise NotResolvable("the name is empty")
    return name


def _parse_nameserver(text: str) -> dns.nameserver.Nameserver:
    match = _NAMESERVER.fullmatch(text)
    host = match and (match["bracketed"] or match["plain"])
    if match is None or host is None:
        host = text  # an IPv6 address without a port, or nothing that we know
    if parse_address(host) is None:
        raise ConfigError(f"nameserver {text!r} must be an IP address, or address:port")
    return dns.nameserver.Do53Nameserver(host, int((match and match["port"]) or 53))
