"""Addresses of sockets as people write them."""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.socket_address import parse_socket_address, serves_ipv6_only


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", {"type": "inet", "host": "localhost", "port": "1"}),
        ("tcp:localhost:1", {"type": "inet", "host": "localhost", "port": "1"}),
        (":1", {"type": "inet", "host": "", "port": "1"}),
        ("tcp:[::1]:1", {"type": "inet", "host": "::1", "port": "1"}),
        ("a:b:c", {"type": "inet", "host": "a", "port": "b:c"}),
        ("h:1,to=5,ipv4=off,ipv6", {"type": "inet", "host": "h", "port": "1", "to": 5, "ipv4": False, "ipv6": True}),
        ("unix:a:b,c", {"type": "unix", "path": "a:b,c"}),
        ("vsock:2:3", {"type": "vsock", "cid": "2", "port": "3"}),
        ("fd:name", {"type": "fd", "str": "name"}),
    ],
)
def test_what_they_say(text: str, address: dict[str, Any]) -> None:
    assert parse_socket_address(text) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("localhost", "error parsing address 'localhost'"),
        ("tcp:localhost", "error parsing address 'localhost'"),
        ("tcp:localhost:", "error parsing address 'localhost:'"),
        ("vsock:", "error parsing address ''"),
        ("[::1", "error parsing IPv6 address '[::1'"),
        ("tcp:[::1]", "error parsing IPv6 address '[::1]'"),
        ("unix:", "invalid Unix socket address"),
        ("fd:", "invalid file descriptor address"),
        ("h:1,to=x", "error parsing 'to=x' in address 'h:1,to=x'"),
    ],
)
def test_what_is_none(text: str, complaint: str) -> None:
    with pytest.raises(QobraError) as caught:
        parse_socket_address(text)
    assert caught.value.desc == complaint


@pytest.mark.parametrize(
    ("options", "families", "only"),
    [
        ({}, {AF_INET6}, False),
        ({}, {AF_INET6, AF_INET}, True),
        ({"ipv4": False}, {AF_INET6}, True),
        ({"ipv6": True}, {AF_INET6}, True),
        ({"ipv6": True, "ipv4": True}, {AF_INET6}, False),
    ],
)
def test_who_is_served_at_an_address_of_ipv6(options: dict[str, bool], families: set[int], only: bool) -> None:
    assert serves_ipv6_only(options, families) == only
