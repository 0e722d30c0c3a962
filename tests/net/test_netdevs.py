"""Network backends, and cards on them: packets from one guest to another, filters, announcements."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.net.announce import packet
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
from qobra.testing.network import RecordingCard
from qobra.testing.waiting import wait_until

_BROADCAST = b"\xff" * 6


@pytest.fixture
def machine() -> Any:
    machine = simple_machine("x86_64", "pc", memory=16 << 20, running=True)
    yield machine
    machine.close()


def _attach(machine: Machine, id: str) -> RecordingCard:
    peer = RecordingCard()
    backend = machine.netdevs.find(id)
    assert backend is not None
    backend.peer = peer
    return peer


def test_a_hub_passes_packets_to_all_others(machine: Machine) -> None:
    peers = []
    for i in range(3):
        machine.netdevs.create({"type": "hubport", "id": f"p{i}", "hubid": 7})
        peers.append(_attach(machine, f"p{i}"))
    machine.netdevs.create({"type": "hubport", "id": "other", "hubid": 8})
    stranger = _attach(machine, "other")
    first = machine.netdevs.find("p0")
    assert first is not None
    first.send(b"hello")
    assert [peer.packets for peer in (*peers, stranger)] == [[], [b"hello"], [b"hello"], []]


def test_sockets_carry_packets_both_ways(machine: Machine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machine.netdevs.create({"type": "socket", "id": "l", "listen": f"127.0.0.1:{port}"})
    machine.netdevs.create({"type": "socket", "id": "c", "connect": f"127.0.0.1:{port}"})
    listening, connecting = _attach(machine, "l"), _attach(machine, "c")
    backends: Any = [machine.netdevs.find(id) for id in ("c", "l")]
    backends[0].send(b"x" * 1500)
    wait_until(lambda: listening.packets == [b"x" * 1500])
    assert backends[0].describe() == f"socket,socket: connect to 127.0.0.1:{port}"
    assert backends[1].describe().startswith("socket,socket: connection from 127.0.0.1:")
    backends[1].send(b"y" * 60)
    wait_until(lambda: connecting.packets == [b"y" * 60])


def test_what_arrived_before_buffers_is_there_with_them(machine: Machine) -> None:
    ours, its = socket.socketpair()
    backend = machine.netdevs.create({"type": "socket", "id": "s", "fd": str(its.detach())})
    card = _attach(machine, "s")
    with ours:
        for number in range(50):
            packet = bytes((number,)) * 60
            ours.sendall(len(packet).to_bytes(4, "big") + packet)
            with machine.control:
                backend.catch_up()
            assert card.packets[number:] == [packet]
        ours.sendall((60).to_bytes(4, "big") + bytes(20))
        with machine.control:
            backend.catch_up()
        assert len(card.packets) == 50
        ours.sendall(bytes(40))
        with machine.control:
            backend.catch_up()
        assert card.packets[50:] == [bytes(60)]


def test_who_comes_next_begins_a_stream_of_its_own(machine: Machine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machine.netdevs.create({"type": "socket", "id": "l", "listen": f"127.0.0.1:{port}"})
    card = _attach(machine, "l")
    with socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall((60).to_bytes(4, "big") + bytes(20))
    with socket.create_connection(("127.0.0.1", port)) as second:
        second.sendall((60).to_bytes(4, "big") + b"z" * 60)
        wait_until(lambda: card.packets == [b"z" * 60])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "hubport", "id": "taken", "hubid": 0}, "Duplicate ID 'taken'"),
        ({"type": "hubport", "id": "n", "hubid": 0, "netdev": "none"}, "netdev 'none' not found"),
        ({"type": "socket", "id": "n"}, "exactly one of listen=, connect=, mcast= or udp= is required"),
        ({"type": "socket", "id": "n", "connect": "nowhere"}, "doesn't contain ':' separating host from port"),
        ({"type": "socket", "id": "n", "udp": "127.0.0.1:1"}, "localaddr= is mandatory with udp="),
        ({"type": "socket", "id": "n", "mcast": "127.0.0.1:1"}, "127.0.0.1 (0x7f000001) does not contain a multicast"),
        ({"type": "vde", "id": "n"}, "network backend 'vde' is not compiled into this binary"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], text: str) -> None:
    machine.netdevs.create({"type": "hubport", "id": "taken", "hubid": 0})
    with pytest.raises(QobraError) as caught:
        machine.netdevs.create(options)
    assert text in caught.value.desc
    assert [backend.id for backend in machine.netdevs] == ["taken"]


def test_removal_takes_the_link_away(machine: Machine) -> None:
    machine.netdevs.create({"type": "hubport", "id": "p", "hubid": 0})
    peer = _attach(machine, "p")
    machine.netdevs.remove("p")
    assert peer.link_changes == 1
    with pytest.raises(QobraError) as caught:
        machine.netdevs.remove("p")
    assert (caught.value.desc, caught.value.error_class) == ("Device 'p' not found", DEVICE_NOT_FOUND)


class NetDriver:
    """A guest's driver of virtio-net in slot 5."""

    def __init__(self, machine: Machine) -> None:
        self.guest = BoardAccess(machine)
        function = PciFunction(self.guest, 5 << 3)
        function.enable()
        self.transport, memory = ModernPci(function), Memory()
        start_driver(self.transport, 1 << 32 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 5)
        self.receive, self.send, self.control = (Queue(self.transport, memory, n) for n in range(3))
        self.buffer, self.out, self.command = memory.take(4096), memory.take(4096), memory.take(4096)
        driver_ok(self.transport)

    def transmit(self, data: bytes) -> None:
        self.guest.write(self.out, bytes(12) + data)
        self.send.send([(self.out, 12 + len(data), False)])
        self.send.wait_used()

    def set_mode(self, mode: int, value: int) -> int:
        self.guest.write(self.command, bytes((0, mode, value, 0xFF)))
        self.control.send([(self.command, 3, False), (self.command + 3, 1, True)])
        self.control.wait_used()
        return self.guest.load(self.command + 3, 1)

    def offer(self) -> None:
        self.receive.send([(self.buffer, 2048, True)])

    def received(self) -> bytes:
        _head, length = self.receive.wait_used()
        return self.guest.read(self.buffer + 12, length - 12)


@pytest.fixture
def card(machine: Machine) -> tuple[Machine, NetDriver, RecordingCard, list[Any]]:
    events: list[Any] = []
    machine.events.subscribe(events.append)
    for id in ("a", "b"):
        machine.netdevs.create({"type": "hubport", "id": id, "hubid": 0})
    with machine.control:
        options = {"driver": "virtio-net-pci", "netdev": "a", "id": "nic", "addr": "5", "mac": "52:54:00:00:00:01"}
        add_device(machine, options, keyval=True)
    return machine, NetDriver(machine), _attach(machine, "b"), events


def test_packets_leave_and_arrive(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, driver, outside, _events = card
    driver.transmit(b"out" * 20)
    assert outside.packets == [b"out" * 20]
    driver.offer()
    backend: Any = machine.netdevs.find("b")
    backend.send(_BROADCAST + b"in" * 30)
    assert driver.received() == _BROADCAST + b"in" * 30


def test_packets_wait_for_buffers_in_order(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, driver, _outside, _events = card
    backend: Any = machine.netdevs.find("b")
    for number in range(3):
        backend.send(_BROADCAST + bytes((number,)) * 60)
    for number in range(3):
        driver.offer()
        assert driver.received()[6:] == bytes((number,)) * 60


def test_a_reset_loses_what_waits(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, driver, _outside, _events = card
    backend: Any = machine.netdevs.find("b")
    backend.send(_BROADCAST + b"early" * 20)
    with machine.control:
        machine.board.reset_all()
    driver = NetDriver(machine)
    driver.offer()
    backend.send(_BROADCAST + b"later" * 20)
    assert driver.received()[6:11] == b"later"


def test_filters_and_their_event(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, driver, _outside, events = card
    assert driver.set_mode(0, 0) == 0
    assert driver.set_mode(0, 0) == 0
    changed = [event["data"] for event in events if event["event"] == "NIC_RX_FILTER_CHANGED"]
    assert changed == [{"path": "/machine/peripheral/nic/virtio-backend", "name": "nic"}]
    with machine.control:
        (info,) = dispatch.call(machine, "query-rx-filter", {"name": "nic"})
    assert not info["promiscuous"] and info["main-mac"] == "52:54:00:00:00:01"
    driver.offer()
    backend: Any = machine.netdevs.find("b")
    backend.send(bytes.fromhex("525400000002") + b"not for us" * 6)
    backend.send(bytes.fromhex("525400000001") + b"for us" * 10)
    assert driver.received()[6:12] == b"for us"


def test_the_link_goes_down_and_up(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, driver, outside, _events = card
    assert driver.transport.config(6, 2) == 1
    with machine.control:
        with pytest.raises(QobraError, match=r"net client\(b\) isn't a NIC"):
            dispatch.call(machine, "query-rx-filter", {"name": "b"})
        dispatch.call(machine, "set_link", {"name": "nic", "up": False})
    assert driver.transport.config(6, 2) == 0 and driver.transport.isr() & 2
    driver.transmit(b"lost" * 20)
    assert outside.packets == []
    with machine.control:
        dispatch.call(machine, "set_link", {"name": "nic", "up": True})
    driver.transmit(b"sent" * 20)
    assert outside.packets == [b"sent" * 20]


def test_announcements_come_in_rounds(card: tuple[Machine, NetDriver, RecordingCard, list[Any]]) -> None:
    machine, _driver, outside, _events = card
    with machine.control:
        dispatch.call(machine, "announce-self", {"initial": 1, "max": 2, "rounds": 3, "step": 1})
    wait_until(lambda: len(outside.packets) == 3)
    assert outside.packets == [packet(bytes.fromhex("525400000001"))] * 3


def test_ids_of_backends_are_identifiers(machine: Machine) -> None:
    with pytest.raises(QobraError, match="^Parameter 'id' expects an identifier$"):
        dispatch.call(machine, "netdev_add", {"type": "hubport", "id": "1x", "hubid": 0})


@pytest.mark.parametrize("port", ["\u00b2", "9" * 5000, "65536", ""])
def test_ports_that_cannot_be(machine: Machine, port: str) -> None:
    with pytest.raises(QobraError, match="doesn't contain ':' separating host from port"):
        machine.netdevs.create({"type": "socket", "id": "l", "listen": f"127.0.0.1:{port}"})
