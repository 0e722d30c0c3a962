"""Rules that lead to the guest, and from it; texts are those of QEMU 7.2."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from qobra.errors import QobraError
from qobra.net.forwarding import GuestForward, HostEnd, HostForward, guest_forward, host_end, host_forward

_ANY = IPv4Address(0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tcp::5580-:22", HostForward(HostEnd(False, _ANY, 5580), None, 22)),
        ("::0-:22", HostForward(HostEnd(False, _ANY, 0), None, 22)),
        (
            "udp:127.0.0.1:5581-10.0.2.16:53",
            HostForward(HostEnd(True, IPv4Address("127.0.0.1"), 5581), IPv4Address("10.0.2.16"), 53),
        ),
    ],
)
def test_host_rules(rule: str, expected: HostForward) -> None:
    assert host_forward(rule) == expected


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("x", "No : separators"),
        ("tcp:", "Missing : separator"),
        ("foo::80-:80", "Bad protocol name"),
        ("tcp::80", "Bad host port separator"),
        ("tcp::80-", "Missing guest address"),
        ("tcp::x-:22", "Bad host port"),
        ("tcp::70000-:22", "Bad host port"),
        pytest.param(f"tcp::{'8' * 5000}-:22", "Bad host port", id="digits"),
        ("tcp:zz:5582-:22", "Bad host address"),
        ("tcp::5582-zz:22", "Bad guest address"),
        ("tcp::5582-:0", "Bad guest port"),
        ("tcp::5582-:70000", "Bad guest port"),
    ],
)
def test_host_rules_refused(rule: str, reason: str) -> None:
    with pytest.raises(QobraError) as caught:
        host_forward(rule)
    assert str(caught.value) == f"Invalid host forwarding rule '{rule}' ({reason})"


def test_host_ends() -> None:
    assert host_end("udp:127.0.0.1:53") == HostEnd(True, IPv4Address("127.0.0.1"), 53)
    for text in ("x", "tcp:127.0.0.1:", "udp::x", "tcp::5592-:22"):
        with pytest.raises(QobraError, match="^invalid format$"):
            host_end(text)


def test_guest_rules() -> None:
    expected = GuestForward(IPv4Address("10.0.2.100"), 80, "cmd:cat -- x:y")
    assert (
        guest_forward("tcp:10.0.2.100:80-cmd:cat -- x:y") == guest_forward(":10.0.2.100:80-cmd:cat -- x:y") == expected
    )


@pytest.mark.parametrize(
    "rule",
    [
        *("x", "tcp", "tcp:", "udp:10.0.2.100:80-null", "tcp:10.0.2.100:80", "tcp:zz:80-null"),
        *("tcp:10.0.2.100:x-null", "tcp:10.0.2.100:0-null"),
    ],
)
def test_guest_rules_refused(rule: str) -> None:
    with pytest.raises(QobraError) as caught:
        guest_forward(rule)
    assert str(caught.value) == f"Invalid guest forwarding rule '{rule}'"
