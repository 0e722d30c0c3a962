"""Management controllers: what the simulated one answers, by each of its interfaces, and the one in another process."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.device import ipmi_bmc_extern
from qobra.machine.ipmi import framing
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_IDENTITY = "1c01002000000002070000000000"
_KCS, _BT = 0xCA2, 0xE4
_FLOOD = 16 << 20


class Guest:
    """A PC with a controller and an interface to it."""

    def __init__(self, interface: str = "isa-ipmi-kcs", bmc: str = "ipmi-bmc-sim", **options: str) -> None:
        self.machine: Machine = simple_machine(memory=1 << 20)
        self.access = BoardAccess(self.machine)
        self.events: list[str] = []
        self.machine.events.subscribe(lambda event: self.events.append(event["event"]))
        with self.machine.control:
            board = self.machine.board
            assert board is not None
            board.ready = False
            for name in ("line",) if bmc == "ipmi-bmc-extern" else ():
                self.other, own = socket.socketpair()
                self.own = own.detach()
                address = {"type": "fd", "data": {"str": str(self.own)}}
                self.machine.chardevs.create(name, {"type": "socket", "data": {"addr": address, "server": False}})
                options["chardev"] = name
            self.bmc: Any = add_device(self.machine, {"driver": bmc, "id": "bmc"} | options, keyval=True)
            place = {"addr": "5"} if interface.startswith("pci") else {}
            self.device = add_device(self.machine, {"driver": interface, "bmc": "bmc"} | place, keyval=True)
            board.ready = True
            board.reset_all()

    def by_kcs(self, text: str, base: int = _KCS) -> str:
        """A driver of the keyboard controller style interface."""
        get, put = self.access.port_in, self.access.port_out
        request, response = bytes.fromhex(text), bytearray()
        put(base + 1, 1, 0x61)
        for value in request[:-1]:
            get(base, 1)
            put(base, 1, value)
            assert get(base + 1, 1) >> 6 == 2
        put(base + 1, 1, 0x62)
        put(base, 1, request[-1])
        wait_until(lambda: not get(base + 1, 1) & 2)
        while get(base + 1, 1) >> 6 == 1:
            response.append(get(base, 1))
            put(base, 1, 0x68)
        assert get(base + 1, 1) & 0xC3 == 0x01
        get(base, 1)
        return response.hex()

    def by_bt(self, text: str, base: int = _BT) -> str:
        """A driver of the block transfer interface."""
        get, put = self.access.port_in, self.access.port_out
        request = bytes.fromhex(text)
        put(base, 1, 0x01)
        for value in (len(request) + 1, request[0], 7, *request[1:]):
            put(base + 1, 1, value)
        put(base, 1, 0x04)
        wait_until(lambda: bool(get(base, 1) & 0x08))
        put(base, 1, 0x40)
        put(base, 1, 0x0A)
        response = bytes(get(base + 1, 1) for _ in range(get(base + 1, 1)))
        put(base, 1, 0x40)
        assert response[1] == 7
        return (response[:1] + response[2:]).hex()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.machine.close()


_ANSWERS = [
    ("1801", _IDENTITY),
    ("1808", "1c08c1"),
    ("1901", "1d01c2"),
    ("18", "1c00c7"),
    ("0000", "0400000020202020"),
    ("0001", "04010061000000"),
    ("000202", "0402d5"),
    ("000206", "0402cc"),
    ("1825", "1c25000000000000000000"),
    ("1822", "1c2280"),
    ("1833", "1c3380"),
    ("1835", "1c3580"),
    ("18060102", "1c0600"),
    ("28100000", "2c1000000400"),
    ("2810ff", "2c10cb"),
    ("281100ff0310", "2c11cc"),
    ("2840", "2c40005100000008ffffffffffffffff02"),
    ("28430000000000ff", "2c43cb"),
    ("284700004f4f52aa", "2c47cc"),
    ("284701004f4f52aa", "2c47c5"),
    ("28230000000000ff", "2c2300ffff000051022320000023016300236f0f01000000000000000000000000000000c85761746368646f67"),
    ("2823000000000a0a", "2c23c5"),
    ("2823010000000a0a", "2c2300ffff6300236f0f0100000000"),
    ("282451000100000000", "2c24cc"),
    ("102d00", "142d0000c00000"),
    ("102d01", "142dcb"),
    ("102900", "142900c00f010000"),
    ("1028003f01000000", "1428cc"),
    ("102f00", "142f00236f"),
    ("18340020", "1c34c7"),
    ("18340120180801", "1c34cc"),
    ("b000", "b400c1"),
]


@pytest.mark.parametrize(("request_", "response"), _ANSWERS, ids=lambda text: text[:12])
def test_what_the_controller_answers(guest: Guest, request_: str, response: str) -> None:
    if request_ == "18":
        assert guest.bmc._controller.answer(b"\x18").hex() == response
    else:
        assert guest.by_kcs(request_) == response


def test_every_interface(guest: Guest) -> None:
    assert guest.by_kcs("1801") == _IDENTITY
    for name, bar in (("isa-ipmi-bt", 0), ("pci-ipmi-kcs", 0xC000), ("pci-ipmi-bt", 0xC000)):
        other = Guest(name)
        if bar:
            PciFunction(other.access, 5 << 3).enable()
        ask = other.by_kcs if name.endswith("kcs") else other.by_bt
        assert ask("1801", bar or _BT) == _IDENTITY
        other.machine.close()


def test_bt_tells_what_it_can_do() -> None:
    guest = Guest("isa-ipmi-bt")
    assert guest.by_bt("1836") == "1c360001ffff0a00"
    assert guest.by_bt("2811000000ff") == "2c11ca"
    guest.machine.close()


def test_an_error_and_an_abort(guest: Guest) -> None:
    get, put = guest.access.port_in, guest.access.port_out
    put(_KCS, 1, 0)  # data that nobody expects
    assert get(_KCS + 1, 1) >> 6 == 3
    put(_KCS + 1, 1, 0x60)
    get(_KCS, 1)
    put(_KCS, 1, 0)
    assert (get(_KCS + 1, 1) >> 6, get(_KCS, 1)) == (1, 0x02)
    put(_KCS, 1, 0x68)
    assert get(_KCS + 1, 1) >> 6 == 0
    get(_KCS, 1)
    assert guest.by_kcs("1801") == _IDENTITY
    assert guest.by_kcs("18010000" + "00" * 300) == "1c01c8"
    assert guest.by_kcs("1801") == _IDENTITY


def test_the_event_log(guest: Guest) -> None:
    entry = "0000" + "02" + "00000000" + "200004026f6fa00000"
    for number in range(128):
        assert guest.by_kcs("2844" + entry) == "2c4400" + number.to_bytes(2, "little").hex()
    assert guest.by_kcs("2844" + entry) == "2c44c4"
    assert guest.by_kcs("2840")[-2:] == "82"  # something was lost
    found = guest.by_kcs("28430000ffff00ff")
    assert found.startswith("2c4300ffff7f0002")
    assert found.endswith("200004026f6fa00000")
    assert guest.by_kcs("2842") == "2c42008000"
    assert guest.by_kcs("28478000434c52aa") == "2c470001"
    assert guest.by_kcs("2840")[6:14] == "51000000"


def test_the_inventory(guest: Guest) -> None:
    assert guest.by_kcs("281200fe030102") == "2c120002"
    assert guest.by_kcs("281100fd0303") == "2c110003000102"
    assert guest.by_kcs("281200ff030102") == "2c12cc"


def test_files(tmp_path: Path) -> None:
    inventory, records = tmp_path / "fru", tmp_path / "sdr"
    inventory.write_bytes(b"inventory")
    records.write_bytes(bytes.fromhex("0000510102aabb" + "0000510101cc"))
    guest = Guest(frudatafile=str(inventory), sdrfile=str(records), fruareasize="4", guid="auto", device_id="7")
    assert guest.by_kcs("281000") == "2c1000090000"
    assert guest.by_kcs("281100000009") == "2c110009" + b"inventory".hex()
    assert guest.by_kcs("28230000010000ff") == "2c2300ffff0100510101cc"
    assert len(guest.by_kcs("1808")) == 2 * 19
    assert guest.by_kcs("1801")[6:8] == "07"
    guest.machine.close()
    records.write_bytes(bytes(4))
    with pytest.raises(QobraError, match="cut short"):
        Guest(sdrfile=str(records))
    with pytest.raises(QobraError, match="No such file"):
        Guest(frudatafile=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("action", "event"), [("00", "SHUTDOWN"), ("03", "RESET"), ("05", "POWERDOWN")], ids=["off", "reset", "soft"]
)
def test_the_chassis(guest: Guest, action: str, event: str) -> None:
    assert guest.by_kcs("0002" + action) == "040200"
    assert event in guest.events
    if event == "RESET":
        assert guest.by_kcs("0009") == "0409000100"


def test_the_watchdog(guest: Guest) -> None:
    assert guest.by_kcs("182e0c") == "1c2e00"  # into the buffer, and into the log
    assert guest.by_kcs("18240431010014" + "00") == "1c2400"  # after 2 s a reset, a message 1 s before
    assert guest.by_kcs("1822") == "1c2200"
    guest.access.step(500_000_000)
    assert guest.by_kcs("1825") == "1c25000431010014000f00"
    guest.access.step(500_000_000)
    assert guest.access.port_in(_KCS + 1, 1) & 0x04  # attention
    assert guest.by_kcs("1831") == "1c31000a"
    assert guest.by_kcs("1835")[6:] == "0000" + "02" + "00000000" + "200004" + "23006fc834ff"
    assert guest.by_kcs("1825") == "1c25000431010014000a00"
    guest.access.step(1_000_000_000)
    assert "RESET" in guest.events
    assert guest.by_kcs("1825") == "1c25000431011014000000"
    assert guest.by_kcs("2840")[6:12] == "510200"
    assert guest.by_kcs("102d00") == "142d0000c00201"


def test_interrupts(guest: Guest) -> None:
    levels: list[int] = []
    with guest.machine.control:
        guest.machine.board.gsi[5].intercept(levels.append)  # type: ignore[union-attr]
    guest.by_kcs("1801")
    assert not any(levels)
    guest.by_kcs("182e01")
    guest.by_kcs("1801")
    assert any(levels)
    assert levels[-1] == 0


def test_what_is_refused(guest: Guest) -> None:
    with guest.machine.control:
        board: Any = guest.machine.board
        board.ready = False
        for options, text in (
            ({"driver": "isa-ipmi-kcs"}, "requires a bmc attribute"),
            ({"driver": "isa-ipmi-bt", "bmc": "bmc"}, "BMC is already in use"),
            ({"driver": "ipmi-bmc-extern"}, "requires chardev attribute"),
            ({"driver": "ipmi-bmc-sim", "guid": "x"}, "doesn't take value 'x'"),
        ):
            with pytest.raises(QobraError, match=text):
                add_device(guest.machine, options, keyval=True)


# -- in another process


def _read_until(connection: socket.socket, end: int) -> bytes:
    data = bytearray()
    connection.settimeout(20)
    while not data or data[-1] != end:
        data += connection.recv(1)
    return bytes(data)


def test_a_controller_elsewhere() -> None:
    guest = Guest("isa-ipmi-bt", "ipmi-bmc-extern")
    other = guest.other
    assert _read_until(other, framing.ORDER_END) == b"\xff\x01\xa1"
    assert _read_until(other, framing.ORDER_END) == b"\x08\x3f\xa1"
    get, put = guest.access.port_in, guest.access.port_out
    with guest.machine.control:
        guest.machine.run_state.request_reset()
    assert _read_until(other, framing.ORDER_END) == b"\x04\xa1"
    guest.events.clear()
    put(_BT, 1, 0x01)
    for value in (5, 0x18, 9, 0x01, 0xA0, 0xAA):
        put(_BT + 1, 1, value)
    put(_BT, 1, 0x04)
    message = _read_until(other, framing.MESSAGE_END)
    assert message[1:-2] == b"\x18\x01\xaa\xb0\xaa\xba"
    assert get(_BT, 1) & 0x80
    content = bytes((message[0],)) + b"\x1c\x01\x00\xa0"
    other.sendall(b"junk\xa0")
    other.sendall(framing.frame(content + bytes((-sum(content) & 0xFF,)), framing.MESSAGE_END))
    wait_until(lambda: bool(get(_BT, 1) & 0x08))
    put(_BT, 1, 0x0A)
    assert bytes(get(_BT + 1, 1) for _ in range(6)) == b"\x05\x1c\x09\x01\x00\xa0"
    other.sendall(b"\x01\xa1")
    wait_until(lambda: bool(get(_BT, 1) & 0x10))
    for order, event in ((0x09, "POWERDOWN"), (0x04, "RESET"), (0x03, "SHUTDOWN")):
        other.sendall(bytes((order, 0xA1)))
        wait_until(lambda event=event: event in guest.events)  # type: ignore[misc]
    other.close()
    wait_until(lambda: not guest.bmc._connected)
    assert guest.by_bt("1801") == "1c01d2"
    guest.machine.close()


def test_a_controller_elsewhere_that_sends_without_end_is_held_back() -> None:
    guest = Guest("isa-ipmi-bt", "ipmi-bmc-extern")
    guest.other.setblocking(False)
    sent = 0
    with guest.machine.control:
        # Nothing is taken while the machine does something else, and nothing waits inside of it.
        while sent < _FLOOD and select.select([], [guest.other], [], 0.05)[1]:
            sent += guest.other.send(bytes(65536))
    assert sent < _FLOOD
    guest.machine.close()


def test_a_controller_elsewhere_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipmi_bmc_extern, "_TIMEOUT_NS", 10**6)
    guest = Guest("isa-ipmi-bt", "ipmi-bmc-extern")
    wait_until(lambda: guest.bmc._connected)
    assert guest.by_bt("1801") == "1c01c3"
    assert guest.by_bt("1808") == "1c08c3"
    guest.machine.close()


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_framing_takes_anything(pieces: list[bytes]) -> None:
    receiver = framing.Receiver()
    for piece in pieces:
        for _end, content in receiver.take(piece):
            assert len(content) <= 302


@given(st.binary(min_size=2, max_size=300), st.integers(0, 255))
def test_framing_returns_what_was_sent(request_: bytes, sequence: int) -> None:
    sent = framing.message(sequence, request_)
    assert framing.Receiver().take(sent) == [(framing.MESSAGE_END, bytes((sequence,)) + request_)]
