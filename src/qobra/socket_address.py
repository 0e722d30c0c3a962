"""Addresses of sockets as command lines and people write them: ``tcp:HOST:PORT``, ``unix:PATH``, ``vsock:CID:PORT``."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.units import decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS = ("tcp", "unix", "vsock", "fd")


def parse_socket_address(text: str) -> dict[str, Any]:
    """The SocketAddress that ``text`` says; without a kind it is HOST:PORT. Raises QobraError."""
    kind, _colon, rest = text.partition(":")
    return socket_address(kind, rest) if kind in KINDS else socket_address("tcp", text)


def socket_address(kind: str, rest: str) -> dict[str, Any]:
    """The SocketAddress of ``rest`` after its ``kind``, one of :data:`KINDS`. Raises QobraError."""
    if kind == "unix":
        if not rest:
            raise QobraError("invalid Unix socket address")
        return {"type": "unix", "path": rest}
    if kind == "fd":
        if not rest:
            raise QobraError("invalid file descriptor address")
        return {"type": "fd", "str": rest}
    place, *options = rest.split(",")
    host, colon, port = _split(place, rest)
    if not colon or not port:
        raise QobraError(f"error parsing address '{rest}'")
    if kind == "vsock":
        return {"type": "vsock", "cid": host, "port": port}
    address: dict[str, Any] = {"type": "inet", "host": host, "port": port}
    for option in options:
        name, _equals, value = option.partition("=")
        if name == "to" and (last := decimal(value)) is not None:
            address["to"] = last
        elif name in ("ipv4", "ipv6") and value in ("", "on", "off"):
            address[name] = value != "off"
        else:
            raise QobraError(f"error parsing '{option}' in address '{rest}'")
    return address


def serves_ipv6_only(address: dict[str, Any], families: set[int]) -> bool:
    """Whether a socket of IPv6 is to leave IPv4 alone: one of the ``families`` has it, or it is not wanted."""
    from socket import AF_INET6

    wanted = address.get("ipv4", None if address.get("ipv6") is None else not address["ipv6"])
    return wanted is False or families != {AF_INET6}


def _split(place: str, whole: str) -> tuple[str, str, str]:
    """Host, colon and port; an IPv6 address stands in brackets."""
    if not place.startswith("["):
        return place.partition(":")
    host, closing, port = place[1:].partition("]")
    if not closing or not port[1:] or port[0] != ":":
        raise QobraError(f"error parsing IPv6 address '{whole}'")
    return host, ":", port[1:]
