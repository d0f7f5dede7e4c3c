"""Which callers count as one: what limits per address are counted by.

An IPv6 customer has at least a /64 network and may send from any address in it, so all of it counts
as one caller. An IPv4 address counts alone, also when it arrives in the form of an IPv6 one.
"""

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

CUSTOMER_BITS: Final = 64


def unmapped_address(text: str) -> IPv4Address | IPv6Address:
    """Return the address, IPv4 taken out of the IPv6 form that a dual-stack socket shows.

    Raises: ValueError.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def caller_block(address: str) -> str:
    """Return the name under which a caller at `address` is counted; other texts are kept."""
    try:
        parsed = unmapped_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), CUSTOMER_BITS), strict=False))
    return str(parsed)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks between commas. Raises: ValueError."""
    return tuple(ip_network(item.strip()) for item in text.split(",") if item.strip())
