"""Which addresses a request that a stranger can aim may connect to.

The lists are our own, not `ipaddress.is_global`: that differs between Python versions and calls
NAT64, IPv4-compatible, multicast and some tunnel addresses global. For IPv6 the rule is turned
round: only global unicast (2000::/3) may be reached, less the blocks in it that are not hosts.

Refuses to resolve names: it judges literal addresses only, at the moment of connecting (XRPC-68).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network

_FORBIDDEN_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared (carrier NAT), and one cloud's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # one cloud's host agent, at a public address
        "169.254.0.0/16",  # link-local, and most clouds' metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_FORBIDDEN_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: wraps an IPv4 address of anyone's choice
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public_address(text: str) -> bool:
    """Tell whether `text`, a literal IPv4 or IPv6 address, is a public unicast host address.

    IPv4-mapped and NAT64 addresses are judged by the IPv4 address inside (hosts without IPv4
    reach the IPv4 internet only through NAT64). Anything unreadable is not public.
    """
    address = parse_address(text)
    return address is not None and _is_public(address)


def is_in_networks(text: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether the literal address `text` lies in one of `networks`."""
    address = parse_address(text)
    return address is not None and any(
        address.version == network.version and address in network for network in networks
    )


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that `text` spells, unwrapped if it is IPv4-mapped, else None."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return _is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        return address in _GLOBAL_UNICAST and not any(address in net for net in _FORBIDDEN_V6)
    return not any(address in net for net in _FORBIDDEN_V4)


def is_address_like_host(host: str) -> bool:
    """Tell whether a URL host is an IP address in any spelling that some resolver accepts.

    Besides the ordinary forms: `127.1`, `2130706433`, `0x7f.0.0.1`. A name whose last label is a
    number can be no public host name.
    """
    bare = host.strip("[]").rstrip(".")
    if ":" in bare or parse_address(bare) is not None:
        return True
    last = bare.rpartition(".")[2].lower()
    return last.isdigit() or last.startswith("0x")
