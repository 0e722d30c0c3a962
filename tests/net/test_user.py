"""The user mode network: a guest of a few lines asks for its address, speaks TCP, and is reached through the host."""

from __future__ import annotations

import random
import shutil
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from qobra.command.hmp_usernet import hostfwd_add, hostfwd_remove
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.net import slirp
from qobra.net.forwarding import host_end
from qobra.testing.network import RecordingCard
from qobra.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(not slirp.available, reason="libslirp is not installed")

_GUEST_MAC, _EVERYBODY = bytes.fromhex("525400123456"), b"\xff" * 6
_GUEST, _HOST = IPv4Address("10.0.2.15"), IPv4Address("10.0.2.2")
_ARP, _IP, _TCP, _UDP = 0x0806, 0x0800, 6, 17
_FIN, _SYN, _PSH, _ACK = 1, 2, 8, 16


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class _Guest:
    """The other end of a user mode network."""

    def __init__(self, machine: Machine, **options: Any) -> None:
        self.netdev = machine.netdevs.create({"type": "user", "id": "n", **options})
        self.card = RecordingCard()
        self.netdev.peer = self.card
        self.host_mac = b"\x52\x55" + _HOST.packed

    def take(self, kind: int) -> bytes:
        """The payload of the next packet of that type; requests for the guest's hardware address are answered."""

        def found() -> bytes | None:
            for packet in tuple(self.card.packets):
                self.card.packets.remove(packet)
                (type_,) = struct.unpack_from(">H", packet, 12)
                if type_ == _ARP and kind != _ARP and packet[20:22] == b"\0\1":
                    self.arp(2, packet[28:32], packet[22:28])
                elif type_ == kind:
                    return packet[14:]
            return None

        result: list[bytes] = []
        wait_until(lambda: bool(result.extend(filter(None, [found()])) or result))
        return result[0]

    def send(self, kind: int, payload: bytes, to: bytes) -> None:
        self.netdev.take(to + _GUEST_MAC + struct.pack(">H", kind) + payload)

    def arp(self, operation: int, address: bytes, mac: bytes = bytes(6)) -> None:
        body = struct.pack(">HHBBH", 1, _IP, 6, 4, operation) + _GUEST_MAC + _GUEST.packed + mac + address
        self.send(_ARP, body, _EVERYBODY if operation == 1 else mac)

    def ip(self, protocol: int, payload: bytes, to: IPv4Address, source: IPv4Address = _GUEST) -> None:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + source.packed + to.packed
        header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
        self.send(_IP, header + payload, self.host_mac if to != IPv4Address("255.255.255.255") else _EVERYBODY)


class _Connection:
    """A TCP connection without retransmission, from the guest's side."""

    def __init__(self, guest: _Guest, port: int) -> None:
        self.guest, self.port = guest, port
        self.sent, self.received = 1000, 0
        self.peer, self.peer_port = _HOST, 0

    def connect(self, address: IPv4Address, port: int) -> None:
        self.peer, self.peer_port = address, port
        self._say(_SYN)
        self.expect(_SYN | _ACK)
        self._say(_ACK)

    def accept(self) -> None:
        self.expect(_SYN)
        self._say(_SYN | _ACK)
        self.expect(_ACK)

    def send(self, data: bytes) -> None:
        self._say(_PSH | _ACK, data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.expect(_ACK)
            self._say(_ACK)
        return data

    def expect(self, flags: int) -> bytes:
        packet = self.guest.take(_IP)
        assert packet[9] == _TCP
        self.peer = IPv4Address(packet[12:16])
        segment = packet[20:]
        self.peer_port, port, number, _acknowledged, offset, got = struct.unpack_from(">HHIIBB", segment)
        assert port == self.port
        assert got & flags == flags
        data = segment[offset >> 4 << 2 :]
        self.received = number + len(data) + bool(got & (_SYN | _FIN))
        return data

    def _say(self, flags: int, data: bytes = b"") -> None:
        segment = struct.pack(
            *(">HHIIBBHHH", self.port, self.peer_port, self.sent, self.received, 0x50, flags, 0x7FFF, 0, 0)
        )
        segment += data
        pseudo = _GUEST.packed + self.peer.packed + struct.pack(">BBH", 0, _TCP, len(segment))
        segment = segment[:16] + struct.pack(">H", _checksum(pseudo + segment)) + segment[18:]
        self.guest.ip(_TCP, segment, self.peer)
        self.sent += len(data) + bool(flags & (_SYN | _FIN))


def test_hardware_address_of_the_host(machine: Machine) -> None:
    guest = _Guest(machine)
    guest.arp(1, _HOST.packed)
    answer = guest.take(_ARP)
    assert answer[6:8] == b"\0\2"
    assert answer[8:18] == guest.host_mac + _HOST.packed


def test_dhcp_tells_what_the_options_say(machine: Machine) -> None:
    guest = _Guest(
        machine,
        net="192.168.7.0/24",
        dhcpstart="192.168.7.9",
        dns="192.168.7.53",
        hostname="pluto",
        dnssearch=[{"str": "example.org"}],
        domainname="example.com",
        bootfile="start.bin",
    )
    request = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0) + bytes(16) + _GUEST_MAC + bytes(10 + 192)
    request += bytes.fromhex("63825363 350101 ff")  # a cookie, "discover", and the end
    datagram = struct.pack(">HHHH", 68, 67, 8 + len(request), 0) + request
    guest.ip(_UDP, datagram, IPv4Address("255.255.255.255"), IPv4Address(0))
    offer = guest.take(_IP)[28:]
    assert IPv4Address(offer[16:20]) == IPv4Address("192.168.7.9")
    assert offer[108:].startswith(b"start.bin\0")
    options, at = {}, 240
    while offer[at] != 0xFF:
        options[offer[at]] = offer[at + 2 : at + 2 + offer[at + 1]]
        at += 2 + offer[at + 1]
    assert options[53] == b"\2"
    assert options[3] == IPv4Address("192.168.7.2").packed
    assert options[6] == IPv4Address("192.168.7.53").packed
    assert options[12] == b"pluto"
    assert options[15] == b"example.com"
    assert b"\7example\3org\0" in options[119]


def test_tcp_out_to_the_host(machine: Machine) -> None:
    guest = _Guest(machine)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = _Connection(guest, 1025)
        connection.connect(_HOST, server.getsockname()[1])
        inside, _ = server.accept()
        with inside:
            inside.settimeout(30)
            connection.send(b"from the guest")
            assert inside.recv(100) == b"from the guest"
            connection.expect(_ACK)
            inside.sendall(b"from the host")
            assert connection.receive(13) == b"from the host"
        assert f"10.0.2.2 {server.getsockname()[1]} " in guest.netdev.connections()


def test_restricted_guests_do_not_get_out(machine: Machine) -> None:
    guest = _Guest(machine, restrict=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        connection = _Connection(guest, 1025)
        connection.peer_port = server.getsockname()[1]
        connection._say(_SYN)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_port_of_the_host_leads_to_the_guest(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guest = _Guest(machine, hostfwd=[{"str": f"tcp:127.0.0.1:{port}-:22"}])
    assert "TCP[HOST_FORWARD]" in guest.netdev.connections()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as outside:
        connection = _Connection(guest, 22)
        connection.accept()
        connection.send(b"SSH-2.0-here")
        assert outside.recv(100) == b"SSH-2.0-here"


def test_forwarding_comes_and_goes(machine: Machine) -> None:
    guest = _Guest(machine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QobraError, match=f"Could not set up host forwarding rule 'tcp:127.0.0.1:{port}-:22'"):
            guest.netdev.forward(f"tcp:127.0.0.1:{port}-:22")
    guest.netdev.forward(f"tcp:127.0.0.1:{port}-:22")
    assert guest.netdev.forward_no_more(host_end(f"tcp:127.0.0.1:{port}"))
    assert not guest.netdev.forward_no_more(host_end(f"tcp:127.0.0.1:{port}"))
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_monitor_says_what_is_wrong_with_a_rule_without_the_prefix_of_errors(machine: Machine) -> None:
    _Guest(machine)
    with machine.control:
        assert hostfwd_add(machine, {"arg1": "nope", "arg2": "tcp::1-:2"}) == "unrecognized netdev id 'nope'\n"
        assert hostfwd_remove(machine, {"arg1": "nope", "arg2": "tcp::1"}) == "unrecognized netdev id 'nope'\n"
        assert hostfwd_add(machine, {"arg1": "x"}) == "Invalid host forwarding rule 'x' (No : separators)\n"
        assert hostfwd_remove(machine, {"arg1": "x"}) == "invalid format\n"


@pytest.mark.skipif(shutil.which("cat") is None, reason="cat is not installed")
def test_an_address_leads_to_a_command(machine: Machine) -> None:
    guest = _Guest(machine, guestfwd=[{"str": "tcp:10.0.2.100:80-cmd:cat"}])
    connection = _Connection(guest, 1026)
    connection.connect(IPv4Address("10.0.2.100"), 80)
    connection.send(b"there and back")
    assert connection.receive(14) == b"there and back"


def test_an_address_leads_to_a_chardev(machine: Machine, tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen(1)
        guest = _Guest(machine, guestfwd=[{"str": f"tcp:10.0.2.100:80-unix:{tmp_path}/server"}])
        inside, _ = server.accept()
        with inside:
            inside.settimeout(30)
            connection = _Connection(guest, 1026)
            connection.connect(IPv4Address("10.0.2.100"), 80)
            connection.send(b"from the guest")
            assert inside.recv(100) == b"from the guest"
            connection.expect(_ACK)
            inside.sendall(b"from the chardev")
            assert connection.receive(16) == b"from the chardev"
    machine.netdevs.remove("n")
    assert machine.chardevs.find("guestfwd.tcp.80") is None


def test_an_address_that_is_not_free(machine: Machine) -> None:
    for rule in ("tcp:10.9.9.9:80-null", "tcp:10.0.2.2:80-cmd:cat"):
        with pytest.raises(QobraError, match=f"Conflicting/invalid host:port in guest forwarding rule '{rule}'"):
            _Guest(machine, guestfwd=[{"str": rule}])


def test_packets_of_no_sense_are_survived(machine: Machine) -> None:
    guest, chance = _Guest(machine), random.Random(20)
    for _ in range(2000):
        kind = chance.choice((_ARP, _IP, 0x86DD, 0x1234))
        payload = bytearray(chance.randbytes(chance.randrange(120)))
        if kind == _IP and payload:
            payload[0] = 0x45
        if kind == 0x86DD and payload:
            payload[0] = 0x60
        guest.send(kind, bytes(payload), guest.host_mac)
    guest.card.packets.clear()
    guest.arp(1, _HOST.packed)
    wait_until(lambda: any(packet[20:22] == b"\0\2" for packet in guest.card.packets))


def test_nothing_is_sent_once_it_is_gone(machine: Machine) -> None:
    guest = _Guest(machine)
    machine.netdevs.remove("n")
    guest.netdev.send(_EVERYBODY + _GUEST_MAC + bytes(60))
    assert guest.card.packets == []
