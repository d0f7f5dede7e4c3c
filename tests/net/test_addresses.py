"""Which literal addresses are public (XRPC-68)."""

from ipaddress import IPv4Network, IPv6Network

import pytest

from pds.net.addresses import is_address_like_host, is_in_networks, is_public_address


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "93.184.215.14",
        "172.15.255.255",
        "172.32.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "192.0.1.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_public_addresses(text):
    assert is_public_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.0.170",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::1.1.1.1",
        "::ffff:10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:101:101::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "",
        "localhost",
        "1.1.1",
        "0x7f.0.0.1",
        "01.1.1.1",
    ],
)
def test_addresses_that_are_not_public(text):
    assert not is_public_address(text)


def test_networks_match_the_address_inside_a_mapped_one():
    networks = (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8"))
    assert is_in_networks("10.1.1.1", networks)
    assert is_in_networks("::ffff:10.1.1.1", networks)
    assert is_in_networks("fd00::1", networks)
    assert not is_in_networks("11.0.0.1", networks)
    assert not is_in_networks("nonsense", networks)
    assert not is_in_networks("10.1.1.1", ())


@pytest.mark.parametrize(
    "host",
    [
        "1.1.1.1",
        "[::1]",
        "::1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "1.1.1.1.",
        "a.1",
    ],
)
def test_hosts_that_some_resolver_takes_for_an_address(host):
    assert is_address_like_host(host)


@pytest.mark.parametrize(
    "host", ["example.com", "1.example", "xn--p1ai", "localhost", "a.0xyz.com"]
)
def test_names_are_not_addresses(host):
    assert not is_address_like_host(host)
