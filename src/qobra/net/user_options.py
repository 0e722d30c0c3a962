"""The options of the ``user`` backend: which network the guest finds itself in."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from qobra.errors import QobraError
from qobra.net.slirp import Config

_DEFAULT_NETWORK = "10.0.2.0/24"
_DEFAULT_PREFIX = "fec0::"
_ALL = 0xFFFFFFFF
_NAME_MAX = 255
_BOOTFILE_MAX = 127
_DIGITS_MAX = 9
"""A length of a netmask with more digits than this is none."""

# The mask that belongs to an address given without one: the first of these nets that has it.
_CLASSES = (
    ("0.0.0.0", 1, 8),
    ("172.16.0.0", 12, 12),
    ("128.0.0.0", 2, 16),
    ("192.168.0.0", 16, 16),
    ("198.18.0.0", 16, 15),
    ("224.0.0.0", 3, 24),
    ("0.0.0.0", 0, 28),
)


def read(options: dict[str, Any]) -> Config:
    """What ``options`` (NetdevUserOptions) say, and defaults for the rest. Raises QobraError."""
    ipv4, ipv6 = options.get("ipv4"), options.get("ipv6")
    has4 = any(name in options for name in ("net", "ip", "host", "dns", "dhcpstart"))
    has6 = any(name in options for name in ("ipv6-prefix", "ipv6-host", "ipv6-dns"))
    # One that is asked for, and not the other, is alone.
    if ipv4 is None:
        ipv4 = ipv6 is not True
    if ipv6 is None:
        ipv6 = options.get("ipv4") is not True
    if not ipv4 and has4:
        raise QobraError("IPv4 disabled but netmask/host/dns provided")
    if not ipv6 and has6:
        raise QobraError("IPv6 disabled but prefix/host6/dns6 provided")
    if not ipv4 and not ipv6:
        raise QobraError("IPv4 and IPv6 disabled")
    if options.get("domainname") == "":
        raise QobraError("'domainname' parameter cannot be empty")
    for name in ("domainname", "tftp-server-name"):
        if len(options.get(name, "").encode()) > _NAME_MAX:
            raise QobraError(f"'{name}' parameter cannot exceed {_NAME_MAX} bytes")
    if len(options.get("bootfile", "").encode()) > _BOOTFILE_MAX:
        raise QobraError(f"'bootfile' parameter cannot exceed {_BOOTFILE_MAX} bytes")
    return _network(options)._replace(
        restricted=options.get("restrict", False),
        in_enabled=ipv4,
        in6_enabled=ipv6,
        hostname=options.get("hostname"),
        tftp_server_name=options.get("tftp-server-name"),
        tftp_path=options.get("tftp"),
        bootfile=options.get("bootfile"),
        dns_search=[each["str"] for each in options.get("dnssearch", ())],
        domainname=options.get("domainname"),
        **_network6(options),
    )


def address(text: str, what: str) -> IPv4Address:
    """An address in the forms of ``inet_aton``. Raises QobraError: ``Failed to parse`` what it is."""
    try:
        return IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        raise QobraError(f"Failed to parse {what}")


def _network(options: dict[str, Any]) -> Config:
    older = f"{options['ip']}/24" if "ip" in options else _DEFAULT_NETWORK
    net, mask = _net_and_mask(options.get("net", older))

    def inside(name: str, what: str, number: int) -> IPv4Address:
        return address(options[name], what) if name in options else IPv4Address(net | (number & ~mask & _ALL))

    host = inside("host", "host", 2)
    if int(host) & mask != net:
        raise QobraError("Host doesn't belong to network")
    dns = inside("dns", "DNS", 3)
    if dns == host:
        raise QobraError("DNS must be different from host")
    dhcp = inside("dhcpstart", "DHCP start address", 15)
    if int(dhcp) & mask != net:
        raise QobraError("DHCP doesn't belong to network")
    if dhcp in (host, dns):
        raise QobraError("DHCP must be different from host and DNS")
    return Config(network=IPv4Address(net), netmask=IPv4Address(mask), host=host, dhcp_start=dhcp, nameserver=dns)


def _net_and_mask(text: str) -> tuple[int, int]:
    base, slash, length = text.partition("/")
    net = int(address(base, "netmask"))
    if not slash:
        bits = next(mask for low, same, mask in _CLASSES if (net ^ int(IPv4Address(low))) >> (32 - same) == 0)
    elif length and not length.isdecimal():
        try:
            mask = int(IPv4Address(socket.inet_aton(length)))
        except (OSError, ValueError):
            raise QobraError("Failed to parse netmask (trailing chars)")
        return net & mask, mask
    else:
        bits = int(length or 0) if len(length) <= _DIGITS_MAX else 0
        if not 4 <= bits <= 32:
            raise QobraError("Invalid netmask provided (must be in range 4-32)")
    mask = _ALL << (32 - bits) & _ALL
    return net & mask, mask


def _network6(options: dict[str, Any]) -> dict[str, Any]:
    prefix = _address6(options.get("ipv6-prefix", _DEFAULT_PREFIX), "IPv6 prefix")
    length = options.get("ipv6-prefixlen", 64)
    if not 0 <= length <= 126:
        raise QobraError("Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)")

    def inside(name: str, what: str, number: int) -> IPv6Address:
        return _address6(options[name], what) if name in options else IPv6Address(int(prefix) | number)

    host = inside("ipv6-host", "IPv6 host", 2)
    if (int(host) ^ int(prefix)) >> (128 - length):
        raise QobraError("IPv6 Host doesn't belong to network")
    return {
        "prefix6": prefix,
        "prefix6_length": length,
        "host6": host,
        "nameserver6": inside("ipv6-dns", "IPv6 DNS", 3),
    }


def _address6(text: str, what: str) -> IPv6Address:
    try:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError):
        raise QobraError(f"Failed to parse {what}")
