"""Filters of network backends: their order, what they keep, copy, hold back and write down."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.net.framing import Deframer, frame
from qobra.net.netdev import Netdev
from qobra.testing.network import RecordingCard
from qobra.testing.waiting import wait_until


class Wire:
    """A backend with a card of the test's own, and another port of its hub that shows what went out."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.card, self.outside = RecordingCard(), RecordingCard()
        self.near = self._port("near", self.card)
        self.far = self._port("far", self.outside)

    def _port(self, id: str, peer: RecordingCard) -> Netdev:
        port = self.machine.netdevs.create({"type": "hubport", "id": id, "hubid": 0})
        port.peer = peer
        return port

    def add(self, kind: str, id: str = "f", **properties: Any) -> Any:
        return self.machine.objects.create(kind, id, {"netdev": "near"} | properties)

    def chardev(self, id: str) -> Any:
        return self.machine.chardevs.create(id, {"type": "ringbuf", "data": {"size": 4096}})


@pytest.fixture
def wire() -> Any:
    machine = simple_machine("x86_64", "pc", memory=16 << 20, running=True)
    yield Wire(machine)
    machine.close()


def test_a_mirror_copies_and_lets_pass(wire: Wire) -> None:
    copy = wire.chardev("copy")
    wire.add("filter-mirror", outdev="copy", queue="tx")
    wire.near.take(b"out")
    wire.far.take(b"in")
    assert (wire.outside.packets, wire.card.packets) == ([b"out"], [b"in"])
    wait_until(lambda: copy.read(100) == frame(b"in"))


def test_a_redirector_takes_away_and_brings_back(wire: Wire) -> None:
    away = wire.chardev("away")
    back = wire.machine.chardevs.create("back", {"type": "null", "data": {}})
    wire.add("filter-redirector", "out", outdev="away", queue="tx")
    wire.add("filter-redirector", "in", indev="back", queue="tx")
    wire.far.take(b"one")
    wait_until(lambda: away.read(100) == frame(b"one"))
    assert wire.card.packets == []
    data = frame(b"two") + frame(b"three")
    for piece in (data[:2], data[2:9], data[9:]):
        back.deliver(piece)
    assert wire.card.packets == [b"two", b"three"]


def test_what_comes_back_in_both_directions_goes_on_in_both(wire: Wire) -> None:
    back = wire.machine.chardevs.create("back", {"type": "null", "data": {}})
    wire.add("filter-redirector", indev="back", vnet_hdr_support=True)
    back.deliver(frame(b"both", with_header=True))
    assert (wire.card.packets, wire.outside.packets) == ([b"both"], [b"both"])


def test_a_buffer_holds_back_until_it_is_switched_off(wire: Wire) -> None:
    buffer = wire.add("filter-buffer", interval=1 << 31)
    wire.far.take(b"1")
    wire.near.take(b"2")
    assert (wire.card.packets, wire.outside.packets) == ([], [])
    buffer.set("status", "off")
    assert (wire.card.packets, wire.outside.packets) == ([b"1"], [b"2"])
    wire.far.take(b"3")
    assert wire.card.packets == [b"1", b"3"]


def test_a_buffer_lets_go_after_its_interval_and_when_it_is_deleted(wire: Wire) -> None:
    wire.add("filter-buffer", "short", interval=1)
    wire.far.take(b"1")
    wait_until(lambda: wire.card.packets == [b"1"])
    wire.machine.objects.delete("short")
    wire.add("filter-buffer", "long", interval=1 << 31)
    wire.far.take(b"2")
    wire.machine.objects.delete("long")
    assert wire.card.packets == [b"1", b"2"]


def test_a_dump_is_a_pcap_file(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    wire.add("filter-dump", file=str(path), maxlen=64)
    wire.far.take(b"a" * 100)
    wire.near.take(b"b" * 20)
    data = path.read_bytes()
    assert struct.unpack_from("=IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 64, 1)
    assert struct.unpack_from("=II", data, 32) == (64, 100)
    assert data[40:104] == b"a" * 64
    assert struct.unpack_from("=II", data, 112) == (20, 20)
    assert data[120:] == b"b" * 20


def test_filters_are_where_they_were_put(wire: Wire) -> None:
    wire.add("filter-buffer", "a", interval=1000)
    wire.add("filter-buffer", "b", interval=1000)
    wire.add("filter-buffer", "first", interval=1000, position="head")
    wire.add("filter-buffer", "between", interval=1000, position="id=b", insert="before")
    wire.add("filter-buffer", "after", interval=1000, position="id=a")
    assert [each.id for each in wire.near.filters] == ["first", "a", "after", "between", "b"]


def test_a_backend_that_goes_takes_its_filters_along(wire: Wire) -> None:
    wire.add("filter-buffer", interval=1000)
    wire.machine.netdevs.remove("near")
    assert wire.machine.objects.find("f") is None


@pytest.mark.parametrize(
    ("kind", "properties", "text"),
    [
        ("filter-mirror", {"netdev": "zz", "outdev": "x"}, "Parameter 'netdev' expects a network backend id"),
        ("filter-mirror", {}, "Parameter 'outdev' is missing"),
        ("filter-mirror", {"outdev": "zz"}, "Device 'zz' not found"),
        (
            "filter-mirror",
            {"outdev": "zz", "status": "bad"},
            "Invalid value for netfilter status, should be 'on' or 'off'",
        ),
        ("filter-mirror", {"outdev": "zz", "insert": "bad"}, "Parameter 'insert' does not accept value 'bad'"),
        (
            "filter-mirror",
            {"outdev": "zz", "position": "bad"},
            "Parameter 'position' expects 'head', 'tail' or 'id=<id>'",
        ),
        ("filter-mirror", {"outdev": "zz", "position": "id=zz"}, "filter 'zz' not found"),
        ("filter-redirector", {}, "filter redirector needs 'indev' or 'outdev' at least one property set"),
        ("filter-redirector", {"indev": "zz"}, "IN Device 'zz' not found"),
        ("filter-redirector", {"outdev": "zz"}, "OUT Device 'zz' not found"),
        (
            "filter-redirector",
            {"indev": "zz", "outdev": "zz"},
            "'indev' and 'outdev' could not be same for filter redirector",
        ),
        ("filter-buffer", {}, "Parameter 'interval' is missing"),
        ("filter-buffer", {"interval": 0}, "Property 'filter-buffer.interval' requires a positive value"),
        ("filter-dump", {}, "Parameter 'file' is missing"),
        ("filter-dump", {"file": "/nowhere/x"}, "net dump: can't open /nowhere/x: No such file or directory"),
        ("filter-dump", {"file": "x", "maxlen": 0}, "Property 'filter-dump.maxlen' doesn't take value '0'"),
    ],
)
def test_refusals(wire: Wire, kind: str, properties: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        wire.add(kind, **properties)
    assert str(caught.value) == text
    assert wire.near.filters == ()


def test_a_filter_needs_a_backend(wire: Wire) -> None:
    with pytest.raises(QobraError, match="Parameter 'netdev' is missing"):
        wire.machine.objects.create("filter-mirror", "f", {"outdev": "x"})


def test_a_place_that_is_no_longer_looked_at_is_checked(wire: Wire) -> None:
    buffer = wire.add("filter-buffer", interval=1000)
    with pytest.raises(QobraError, match="Invalid value for netfilter insert, should be 'before' or 'behind'"):
        buffer.set("insert", "bad")


def test_a_length_that_cannot_be_ends_a_stream() -> None:
    deframer = Deframer()
    assert list(deframer.feed(frame(b"good") + b"\xff\xff\xff\xff" + frame(b"lost"))) == [b"good"]
    assert deframer.broken
    assert list(deframer.feed(frame(b"lost"))) == []
