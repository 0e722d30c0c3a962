"""The guest's network as its options describe it; values and texts are those of QEMU 7.2."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.net import user_options


@pytest.mark.parametrize(
    ("net", "network", "length"),
    [
        ("10.0.2.5/24", "10.0.2.0", 24),
        ("1.2", "1.0.0.0", 8),
        ("127.255.255.255", "127.0.0.0", 8),
        ("172.31.255.255", "172.16.0.0", 12),
        ("172.32.255.255", "172.32.0.0", 16),
        ("191.255.255.255", "191.255.0.0", 16),
        ("192.168.255.255", "192.168.0.0", 16),
        ("192.169.255.255", "192.169.255.240", 28),
        ("198.18.255.255", "198.18.0.0", 15),
        ("198.19.255.255", "198.19.255.240", 28),
        ("223.255.255.255", "223.255.255.240", 28),
        ("240.255.255.255", "240.255.255.0", 24),
        ("10.255.255.255/12", "10.240.0.0", 12),
        ("10.0.2.255/255.255.255.240", "10.0.2.240", 28),
        ("10.0.2.255/0xfffffff0", "10.0.2.240", 28),
    ],
)
def test_network_and_mask(net: str, network: str, length: int) -> None:
    config = user_options.read({"net": net})
    assert config.network == IPv4Address(network)
    assert int(config.netmask) == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
    assert config.host == IPv4Address(int(config.network) + 2)
    assert config.nameserver == IPv4Address(int(config.network) + 3)
    assert config.dhcp_start == IPv4Address(int(config.network) + 15)


def test_the_older_name_of_the_network() -> None:
    assert user_options.read({"ip": "10.1.2.3"}).network == IPv4Address("10.1.2.0")
    assert user_options.read({"ip": "10.1.2.3", "net": "10.3.0.0/16"}).network == IPv4Address("10.3.0.0")
    with pytest.raises(QobraError, match="Failed to parse netmask"):
        user_options.read({"ip": "nope"})


@pytest.mark.parametrize("options", [{"ip": "10.1.0.0"}, {"net": "10.1.0.0"}, {"host": "10.0.2.2"}])
def test_what_is_left_out_by_the_other_has_no_network(options: dict[str, Any]) -> None:
    with pytest.raises(QobraError, match="IPv4 disabled but netmask/host/dns provided"):
        user_options.read({**options, "ipv6": True})


@pytest.mark.parametrize(
    ("options", "ipv4", "ipv6"),
    [
        ({}, True, True),
        ({"ipv4": True}, True, False),
        ({"ipv4": False}, False, True),
        ({"ipv6": True}, False, True),
        ({"ipv6": False}, True, False),
        ({"ipv4": True, "ipv6": True}, True, True),
    ],
)
def test_one_that_is_asked_for_is_alone(options: dict[str, Any], ipv4: bool, ipv6: bool) -> None:
    config = user_options.read(options)
    assert (config.in_enabled, config.in6_enabled) == (ipv4, ipv6)


def test_ipv6() -> None:
    config = user_options.read({"ipv6-prefix": "fec1::", "ipv6-prefixlen": 48, "ipv6-dns": "fec9::1"})
    assert (config.prefix6, config.prefix6_length) == (IPv6Address("fec1::"), 48)
    assert (config.host6, config.nameserver6) == (IPv6Address("fec1::2"), IPv6Address("fec9::1"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"net": "10.0.2.0/33"}, "Invalid netmask provided (must be in range 4-32)"),
        ({"net": "10.0.2.0/" + "2" * 5000}, "Invalid netmask provided (must be in range 4-32)"),
        ({"net": "10.0.2.0/3"}, "Invalid netmask provided (must be in range 4-32)"),
        ({"net": "10.0.2.0/"}, "Invalid netmask provided (must be in range 4-32)"),
        ({"net": "foo"}, "Failed to parse netmask"),
        ({"net": "10.0.2.0/foo"}, "Failed to parse netmask (trailing chars)"),
        ({"net": "10.0.2.0/24/2"}, "Failed to parse netmask (trailing chars)"),
        ({"net": "10.0.2.0/30"}, "DHCP must be different from host and DNS"),
        ({"net": "10.0.2.0/32"}, "DNS must be different from host"),
        ({"host": "10.0.2.256"}, "Failed to parse host"),
        ({"host": "10.0.3.1"}, "Host doesn't belong to network"),
        ({"dns": "x"}, "Failed to parse DNS"),
        ({"dns": "10.0.2.2"}, "DNS must be different from host"),
        ({"dhcpstart": "x"}, "Failed to parse DHCP start address"),
        ({"dhcpstart": "10.9.0.0"}, "DHCP doesn't belong to network"),
        ({"dhcpstart": "10.0.2.2"}, "DHCP must be different from host and DNS"),
        ({"ipv6-prefix": "zz"}, "Failed to parse IPv6 prefix"),
        ({"ipv6-host": "fec1::2"}, "IPv6 Host doesn't belong to network"),
        ({"ipv6-dns": "zz"}, "Failed to parse IPv6 DNS"),
        *(
            (
                {"ipv6-prefixlen": length},
                "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)",
            )
            for length in (-1, 127)
        ),
        ({"ipv4": False, "ipv6": False}, "IPv4 and IPv6 disabled"),
        ({"ipv4": False, "net": "10.0.2.0/24"}, "IPv4 disabled but netmask/host/dns provided"),
        ({"ipv6": False, "ipv6-host": "fec0::2"}, "IPv6 disabled but prefix/host6/dns6 provided"),
        ({"domainname": "d" * 256}, "'domainname' parameter cannot exceed 255 bytes"),
        ({"bootfile": "b" * 128}, "'bootfile' parameter cannot exceed 127 bytes"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        user_options.read(options)
    assert str(caught.value) == text
