"""Ethernet over L2TPv3, with a far end that is a plain socket, and between two backends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.testing.network import RecordingCard
from qobra.testing.waiting import wait_until

_PACKET = b"\xff" * 6 + b"a packet of Ethernet" * 3


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.parametrize(
    ("options", "out", "into"),
    [
        ({"txsession": 0xFFFFFFFF}, "00030000ffffffff", "00030000ffffffff"),
        (
            {"txsession": 1, "rxsession": 2, "txcookie": 3, "rxcookie": 4},
            "00030000 00000001 00000003",
            "00030000 00000002 00000004",
        ),
        (
            {"txsession": 1, "cookie64": True, "rxcookie": 4, "offset": 2},
            "00030000 00000001 0000",
            "00030000 00000001 0000000000000004 0000",
        ),
        ({"txsession": 1, "counter": True}, "00030000 00000001 00000000", "00030000 00000001 00000007"),
    ],
)
def test_messages(machine: Machine, options: dict[str, Any], out: str, into: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        far.settimeout(30)
        [port] = _free_ports(1)
        place = {"src": "127.0.0.1", "dst": "127.0.0.1", "udp": True, "srcport": port}
        place["dstport"] = str(far.getsockname()[1])
        backend: Any = machine.netdevs.create({"type": "l2tpv3", "id": "t", **place, **options})
        backend.peer = peer = RecordingCard()
        backend.send(_PACKET)
        data, near = far.recvfrom(2000)
        assert data == bytes.fromhex(out) + _PACKET
        far.sendto(bytes.fromhex(into)[:-1] + b"\x55" + _PACKET, near) if "counter" not in options else None
        far.sendto(bytes.fromhex(into) + _PACKET, near)
        wait_until(lambda: len(peer.packets) >= 1)
        assert peer.packets[-1] == _PACKET
        if "counter" in options:
            backend.send(_PACKET)
            assert far.recv(2000)[8:12] == b"\0\0\0\1"


def test_two_ends(machine: Machine) -> None:
    ports = _free_ports(2)
    backends: list[Any] = []
    for number in range(2):
        place = {"src": "localhost", "dst": "localhost", "udp": True, "srcport": ports[number]}
        place["dstport"] = ports[1 - number]
        options = {"txsession": 5 + number, "rxsession": 6 - number, "pincounter": True}
        backends.append(machine.netdevs.create({"type": "l2tpv3", "id": f"t{number}", **place, **options}))
        backends[-1].peer = RecordingCard()
    backends[0].send(_PACKET)
    backends[1].send(_PACKET[::-1])
    wait_until(lambda: all(each.peer.packets for each in backends))
    assert [each.peer.packets for each in backends] == [[_PACKET[::-1]], [_PACKET]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send what is not UDP")
def test_over_ip_itself(machine: Machine) -> None:
    place = {"src": "127.0.0.1", "dst": "127.0.0.1", "txsession": 77, "txcookie": 1, "rxcookie": 1}
    backend: Any = machine.netdevs.create({"type": "l2tpv3", "id": "t", **place})
    backend.peer = peer = RecordingCard()
    backend.send(_PACKET)
    wait_until(lambda: peer.packets == [_PACKET])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"udp": True}, "l2tpv3_open : need both src and dst port for udp"),
        ({"txcookie": 1 << 32}, "l2tpv3_open : a session or cookie does not fit in its field"),
        ({"udp": True, "srcport": "1", "dstport": "1", "src": "1.2.3.4"}, "l2tpv3_open : socket creation failed"),
        ({"dst": "nowhere.invalid"}, "l2tpv3_open : could not resolve dst"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], text: str) -> None:
    place = {"src": "127.0.0.1", "dst": "127.0.0.1", "txsession": 1}
    with pytest.raises(QobraError) as caught:
        machine.netdevs.create({"type": "l2tpv3", "id": "t", **place, **options})
    assert caught.value.desc.startswith(text)
