"""Rules of the ``user`` backend: ports of the host that lead to the guest, and addresses that lead to the host."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import NamedTuple

from qobra.errors import QobraError

_PORT_MAX = 65535
_DIGITS_MAX = 9
"""Zeroes before a number are let by, but not without end."""
_UDP = {"": False, "tcp": False, "udp": True}


class HostEnd(NamedTuple):
    """A port of the host's."""

    udp: bool
    address: IPv4Address
    port: int


class HostForward(NamedTuple):
    """``[tcp|udp]:[host address]:host port-[guest address]:guest port``; None is the first address that DHCP gives."""

    host: HostEnd
    guest: IPv4Address | None
    guest_port: int


class GuestForward(NamedTuple):
    """``[tcp]:address:port-device``, where the device is ``cmd:`` and a command, or a chardev in its short form."""

    address: IPv4Address
    port: int
    target: str


class _Bad(ValueError):
    """What is wrong with a rule."""


def host_forward(rule: str) -> HostForward:
    """Read a rule. Raises QobraError."""
    try:
        protocol, rest = _split(rule, ":", "No : separators")
        udp = _protocol(protocol)
        address, rest = _split(rest, ":", "Missing : separator")
        host = _address(address, "host") if address else IPv4Address(0)
        port, rest = _split(rest, "-", "Bad host port separator")
        host_port = _port(port, 0, "host")
        address, port = _split(rest, ":", "Missing guest address")
        guest = _address(address, "guest") if address else None
        return HostForward(HostEnd(udp, host, host_port), guest, _port(port, 1, "guest"))
    except _Bad as error:
        raise QobraError(f"Invalid host forwarding rule '{rule}' ({error})")


def host_end(text: str) -> HostEnd:
    """Read the end of a rule that names it: ``[tcp|udp]:[address]:port``. Raises QobraError."""
    try:
        protocol, rest = _split(text, ":", "No : separators")
        address, port = _split(rest, ":", "Missing : separator")
        host = _address(address, "host") if address else IPv4Address(0)
        return HostEnd(_protocol(protocol), host, _port(port, 0, "host"))
    except _Bad:
        raise QobraError("invalid format")


def guest_forward(rule: str) -> GuestForward:
    """Read a rule. Raises QobraError."""
    try:
        protocol, rest = _split(rule, ":", "")
        if protocol not in ("", "tcp"):
            raise _Bad
        address, rest = _split(rest, ":", "")
        port, target = _split(rest, "-", "")
        return GuestForward(_address(address, "guest"), _port(port, 1, "guest"), target)
    except _Bad:
        raise QobraError(f"Invalid guest forwarding rule '{rule}'")


def _split(text: str, separator: str, problem: str) -> tuple[str, str]:
    head, found, rest = text.partition(separator)
    if not found:
        raise _Bad(problem)
    return head, rest


def _protocol(text: str) -> bool:
    if text not in _UDP:
        raise _Bad("Bad protocol name")
    return _UDP[text]


def _address(text: str, whose: str) -> IPv4Address:
    try:
        return IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        raise _Bad(f"Bad {whose} address")


def _port(text: str, least: int, whose: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS_MAX or not least <= int(text) <= _PORT_MAX:
        raise _Bad(f"Bad {whose} port")
    return int(text)
