"""EHCI from the guest's side: both schedules, the doorbell, the frame index, ports and their companions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.usb import EhciHost, UhciHost

_MS = 10**6
_COMMAND, _STATUS, _INTERRUPTS, _INDEX, _PERIODIC, _ASYNCHRONOUS, _CONFIGURED, _PORT = (
    0x00, 0x04, 0x08, 0x0C, 0x14, 0x18, 0x40, 0x44,
)  # fmt: skip
_RUN, _PERIODIC_ON, _ASYNCHRONOUS_ON, _DOORBELL = 0x01, 0x10, 0x20, 0x40
_QUEUE, _TRANSFERS, _BUFFER = 0x300000, 0x301000, 0x310000
_ACTIVE, _HALTED, _ERROR = 0x80, 0x40, 0x08
_DEVICE = bytes((0x80, 6, 0, 1, 0, 0, 18, 0))


class Pc:
    """A PC with an EHCI controller of the ICH9 in slot 4, function 7."""

    def __init__(self) -> None:
        self.machine = simple_machine(memory=32 << 20)
        self.access = BoardAccess(self.machine)
        self.add("ich9-usb-ehci1", id="ehci", addr="4.7", multifunction="on")

    def add(self, driver: str, *, hot: bool = False, **options: str) -> Any:
        board: Any = self.machine.board
        with self.machine.control:
            board.ready = hot
            try:
                return add_device(self.machine, {"driver": driver} | options, keyval=True)
            finally:
                board.ready = True

    def remove(self, id: str) -> None:
        with self.machine.control:
            remove_device(self.machine, id)


@pytest.fixture
def pc() -> Iterator[Pc]:
    pc = Pc()
    yield pc
    pc.machine.close()


class Ehci:
    """The registers of the controller, and structures in memory."""

    def __init__(self, pc: Pc) -> None:
        self.access = pc.access
        function = PciFunction(pc.access, 4 << 3 | 7)
        function.enable(memory=0xE1000000, ports=0xC800)
        self.base = function.bars[0] + 0x20
        assert self.access.load(function.bars[0], 1) == 0x20

    def get(self, register: int) -> int:
        return self.access.load(self.base + register, 4)

    def put(self, register: int, value: int) -> None:
        self.access.store(self.base + register, 4, value)

    def words(self, address: int, *values: int) -> None:
        self.access.write(address, b"".join(value.to_bytes(4, "little") for value in values))

    def queue(self, at: int, following: int, *, endpoint: int = 0, address: int = 0, first: int, mask: int = 0) -> None:
        """A queue head of high speed, alone or followed by another, whose transfers begin with ``first``."""
        head = 0x40 << 16 | 1 << 15 | 1 << 14 | 2 << 12 | endpoint << 8 | address
        self.words(at, following, head, 1 << 30 | mask, 0, first, 1, 0, 0, 0, 0, 0, 0)

    def transfer(
        self, at: int, code: int, length: int, *, buffer: int = _BUFFER, following: int = 1, alternate: int = 1
    ) -> None:
        """A transfer descriptor: 0 is OUT, 1 IN, 2 SETUP."""
        token = length << 16 | 1 << 15 | 3 << 10 | code << 8 | _ACTIVE
        pages = [buffer, *[(buffer & ~4095) + 4096 * n for n in range(1, 5)]]
        self.words(at, following, alternate, token, *pages)

    def token(self, at: int) -> int:
        return self.access.load(at + 8, 4)


def enable_port(ehci: Ehci, pc: Pc, port: int = 0) -> None:
    ehci.put(_CONFIGURED, 1)
    ehci.put(_PORT + 4 * port, 0x1100)
    ehci.put(_PORT + 4 * port, 0x1000)
    assert ehci.get(_PORT + 4 * port) & 0x5 == 0x5


def test_a_chain_of_transfers_is_carried_out_in_one_visit(pc: Pc) -> None:
    pc.add("usb-tablet", port="1")
    ehci = Ehci(pc)
    enable_port(ehci, pc)
    # A buffer that begins at the end of a page goes on in the next.
    setup, data, status = _TRANSFERS, _TRANSFERS + 0x40, _TRANSFERS + 0x80
    pc.access.write(_BUFFER, _DEVICE)
    ehci.transfer(setup, 2, 8, following=data)
    ehci.transfer(data, 1, 18, buffer=_BUFFER + 0x1FF8, following=status)
    ehci.transfer(status, 0, 0)
    ehci.queue(_QUEUE, _QUEUE | 2, first=setup)
    ehci.put(_ASYNCHRONOUS, _QUEUE)
    ehci.put(_INTERRUPTS, 0x3F)
    ehci.put(_STATUS, 0x3F)
    ehci.put(_COMMAND, _RUN | _ASYNCHRONOUS_ON)
    pc.access.step(2 * _MS)
    assert [ehci.token(at) & 0x7FFF00FF for at in (setup, data, status)] == [0, 0, 0]
    descriptor = pc.access.read(_BUFFER + 0x1FF8, 18)
    assert descriptor[:2] == b"\x12\x01" and descriptor[7] == 64
    assert ehci.get(_STATUS) & 0x1 and ehci.get(_STATUS) & 0x8000
    # The overlay shows the last transfer.
    assert pc.access.load(_QUEUE + 12, 4) == status


def test_a_short_packet_goes_on_with_the_alternate_transfer(pc: Pc) -> None:
    pc.add("usb-tablet", port="1")
    ehci = Ehci(pc)
    enable_port(ehci, pc)
    setup, data, never, status = (_TRANSFERS + 0x40 * n for n in range(4))
    pc.access.write(_BUFFER, _DEVICE[:6] + b"\xff\0")
    ehci.transfer(setup, 2, 8, following=data)
    ehci.transfer(data, 1, 255, buffer=_BUFFER + 0x1000, following=never, alternate=status)
    ehci.transfer(never, 1, 255)
    ehci.transfer(status, 0, 0)
    ehci.queue(_QUEUE, _QUEUE | 2, first=setup)
    ehci.put(_ASYNCHRONOUS, _QUEUE)
    ehci.put(_COMMAND, _RUN | _ASYNCHRONOUS_ON)
    pc.access.step(2 * _MS)
    assert ehci.token(data) >> 16 & 0x7FFF == 255 - 18
    assert ehci.token(never) & _ACTIVE and not ehci.token(status) & _ACTIVE


@pytest.mark.parametrize(("change", "error"), [("address", _ERROR), ("code", 0x20), ("length", 0x20), ("stall", 0)])
def test_what_cannot_be_carried_out_halts_the_queue(pc: Pc, change: str, error: int) -> None:
    pc.add("usb-tablet", port="1")
    ehci = Ehci(pc)
    enable_port(ehci, pc)
    first, second = _TRANSFERS, _TRANSFERS + 0x40
    length = 5 * 4096 + 1 if change == "length" else 8
    ehci.transfer(first, {"code": 3, "stall": 1}.get(change, 2), length, following=second)
    ehci.transfer(second, 1, 18)
    ehci.queue(_QUEUE, _QUEUE | 2, first=first, address=5 if change == "address" else 0)
    ehci.put(_ASYNCHRONOUS, _QUEUE)
    ehci.put(_STATUS, 0x3F)
    ehci.put(_COMMAND, _RUN | _ASYNCHRONOUS_ON)
    pc.access.step(2 * _MS)
    assert ehci.token(first) & 0xFF == _HALTED | error
    assert ehci.token(second) & _ACTIVE
    assert ehci.get(_STATUS) & 0x3 == 0x3


def test_interrupt_transfers_wait_in_the_periodic_schedule(pc: Pc) -> None:
    tablet = pc.add("usb-tablet", port="2")
    host = EhciHost(pc.access, 4 << 3 | 7, port=1)
    host.configure(address=3)
    ehci = Ehci(pc)
    ehci.put(_COMMAND, 0)
    ehci.words(0x400000, *[1] * 1024)
    ehci.words(0x400000 + 4 * 5, _QUEUE | 2)
    ehci.transfer(_TRANSFERS, 1, 8)
    ehci.queue(_QUEUE, 1, first=_TRANSFERS, endpoint=1, address=3, mask=1)
    ehci.put(_PERIODIC, 0x400000)
    ehci.put(_INDEX, 0)
    ehci.put(_COMMAND, _RUN | _PERIODIC_ON)
    pc.access.step(10 * _MS)
    assert ehci.token(_TRANSFERS) & _ACTIVE  # nothing to report
    with pc.machine.control:
        tablet.input_event({"type": "abs", "data": {"axis": "x", "value": 0x1234}})
        tablet.input_sync()
    pc.access.step(900 * _MS)
    assert ehci.token(_TRANSFERS) & _ACTIVE  # not yet its frame
    pc.access.step(130 * _MS)
    assert not ehci.token(_TRANSFERS) & _ACTIVE
    assert pc.access.read(_BUFFER, 6)[:3] == b"\0\x34\x12"


def test_isochronous_transfers_find_no_endpoint(pc: Pc) -> None:
    ehci = Ehci(pc)
    ehci.words(0x400000, *[_QUEUE] * 1024)
    ehci.words(_QUEUE, _QUEUE + 0x100 | 4, *[1 << 31 | 64 << 16 | 1 << 15, 0] * 4, *[0] * 7)
    ehci.words(_QUEUE + 0x100, 1, 0, 0, 1 << 31 | 8 << 16 | 0x80, 0, 0, 1)
    ehci.put(_PERIODIC, 0x400000)
    ehci.put(_COMMAND, _RUN | _PERIODIC_ON)
    pc.access.step(2 * _MS)
    assert pc.access.load(_QUEUE + 4, 4) >> 28 == 1 and pc.access.load(_QUEUE + 8, 4) == 0
    assert pc.access.load(_QUEUE + 0x10C, 4) & 0xFF == _ERROR
    assert ehci.get(_STATUS) & 0x3 == 0x3


def test_the_doorbell_is_answered_once_nothing_of_a_queue_is_held(pc: Pc) -> None:
    ehci = Ehci(pc)
    other = _QUEUE + 0x200
    ehci.queue(_QUEUE, other | 2, first=1)
    ehci.queue(other, _QUEUE | 2, first=1)
    ehci.put(_ASYNCHRONOUS, other)
    ehci.put(_COMMAND, _RUN | _ASYNCHRONOUS_ON)
    pc.access.step(2 * _MS)
    # The second queue leaves the ring.
    ehci.words(_QUEUE, _QUEUE | 2)
    ehci.put(_COMMAND, _RUN | _ASYNCHRONOUS_ON | _DOORBELL)
    pc.access.step(2 * _MS)
    assert ehci.get(_STATUS) & 0x20 and not ehci.get(_COMMAND) & _DOORBELL
    assert ehci.get(_ASYNCHRONOUS) == _QUEUE


def test_the_frame_index_goes_on_while_it_runs_and_rolls_over(pc: Pc) -> None:
    ehci = Ehci(pc)
    ehci.put(_INDEX, 0x1FF0)
    ehci.put(_COMMAND, _RUN)
    pc.access.step(_MS)
    assert ehci.get(_INDEX) == 0x1FF8 and not ehci.get(_STATUS) & 0x8
    ehci.put(_INDEX, 5)  # not while it runs
    pc.access.step(2 * _MS)
    assert ehci.get(_INDEX) == 0x2008 and ehci.get(_STATUS) & 0x8
    ehci.put(_STATUS, 0x8)
    pc.access.step(1000 * _MS)
    assert not ehci.get(_STATUS) & 0x8
    pc.access.step(24 * _MS)
    assert ehci.get(_STATUS) & 0x8
    ehci.put(_COMMAND, 0)
    assert ehci.get(_STATUS) & 0x1000
    before = ehci.get(_INDEX)
    pc.access.step(5 * _MS)
    assert ehci.get(_INDEX) == before < 0x4000


def test_endless_rings_and_lists_take_a_bounded_time(pc: Pc) -> None:
    pc.add("usb-tablet", port="1")
    ehci = Ehci(pc)
    enable_port(ehci, pc)
    # A transfer that follows itself, in a queue that is in both schedules and follows itself.
    ehci.words(_TRANSFERS, _TRANSFERS, 1, 8 << 16 | 2 << 8 | _ACTIVE, _BUFFER, 0, 0, 0, 0)
    ehci.queue(_QUEUE, _QUEUE | 2, first=_TRANSFERS, mask=0xFF)
    ehci.words(0x400000, *[_QUEUE | 2] * 1024)
    ehci.put(_ASYNCHRONOUS, _QUEUE)
    ehci.put(_PERIODIC, 0x400000)
    ehci.put(_COMMAND, _RUN | _PERIODIC_ON | _ASYNCHRONOUS_ON)
    pc.access.step(5 * _MS)
    assert ehci.get(_STATUS) & 0xC000 == 0xC000


def test_companions_have_the_ports_until_the_guest_configures(pc: Pc) -> None:
    pc.add("ich9-usb-uhci1", addr="4.0", multifunction="on", masterbus="ehci.0", firstport="0")
    pc.add("usb-tablet", port="1")
    pc.add("usb-kbd", port="2", usb_version="1")
    ehci = Ehci(pc)
    uhci = PciFunction(pc.access, 4 << 3)
    uhci.enable()
    ports = [uhci.bars[4] + 0x10, uhci.bars[4] + 0x12]

    def seen() -> list[int]:
        return [pc.access.port_in(port, 2) & 1 for port in ports] + [ehci.get(_PORT + 4 * n) & 0x2001 for n in (0, 1)]

    assert seen() == [1, 1, 0x2000, 0x2000]
    ehci.put(_CONFIGURED, 1)
    assert seen() == [0, 0, 1, 1]
    # One that is too slow is not enabled by a reset; the guest hands it over.
    ehci.put(_PORT + 4, 0x1100)
    ehci.put(_PORT + 4, 0x1000)
    assert not ehci.get(_PORT + 4) & 0x4
    ehci.put(_PORT + 4, 0x3000)
    assert seen() == [0, 1, 1, 0x2000]
    host = UhciHost(pc.access, 4 << 3, port=1)
    host.packet_size = 8
    descriptor = host.control(_DEVICE, 18)
    assert descriptor is not None and descriptor[8:10] == b"\x27\x06"
    # What is gone from there leaves the port to the first again.
    pc.add("usb-mouse", port="3")
    assert ehci.get(_PORT + 8) & 1
    ehci.put(_COMMAND, 0x2)
    assert seen() == [1, 1, 0x2000, 0x2000]
    assert ehci.get(_PORT + 8) & 0x2001 == 1  # it has no companion


def test_a_port_comes_back_when_the_device_behind_the_companion_goes(pc: Pc) -> None:
    pc.add("ich9-usb-uhci1", addr="4.0", multifunction="on", masterbus="ehci.0", firstport="0")
    pc.add("usb-kbd", port="1", usb_version="1", id="keys")
    ehci = Ehci(pc)
    ehci.put(_CONFIGURED, 1)
    ehci.put(_PORT, 0x3000)
    assert ehci.get(_PORT) & 0x2001 == 0x2000
    pc.remove("keys")
    assert ehci.get(_PORT) & 0x2001 == 0
    pc.add("usb-hub", port="1", hot=True)
    assert ehci.get(_PORT) & 0x2003 == 3


def test_companions_need_ports_of_their_own(pc: Pc) -> None:
    pc.add("usb-ehci", id="plain", addr="5")
    pc.add("ich9-usb-uhci1", masterbus="ehci.0", firstport="2")
    for driver, options, text in (
        ("ich9-usb-uhci2", {"masterbus": "nope.0"}, "USB bus 'nope.0' not found"),
        ("ich9-usb-uhci2", {"masterbus": ""}, "USB bus '' not found"),
        ("ich9-usb-uhci2", {"masterbus": "plain.0"}, "Can't use USB bus 'plain.0' as masterbus"),
        ("ich9-usb-uhci2", {"masterbus": "ehci.0", "firstport": "5"}, "firstport must be between 0 and 4"),
        ("ich9-usb-uhci2", {"masterbus": "ehci.0", "firstport": "1"}, "firstport 1 asks for ports 1-2, but port 2 has"),
        ("pci-ohci", {"masterbus": "ehci.0", "num-ports": "7"}, "firstport must be between 0 and"),
        ("pci-ohci", {"num-ports": "16"}, "OHCI num-ports=16 is too big"),
        ("usb-kbd", {"bus": "plain.0", "usb_version": "1"}, "speed mismatch"),
    ):
        with pytest.raises(QobraError, match=text):
            pc.add(driver, **options)
    pc.add("pci-ohci", masterbus="ehci.0", firstport="4", **{"num-ports": "2"})


def test_a_port_that_is_suspended_carries_nothing_until_it_is_resumed(pc: Pc) -> None:
    device = pc.add("usb-kbd", port="1")
    host = EhciHost(pc.access, 4 << 3 | 7)
    keyboard = host.control(_DEVICE, 18)
    assert keyboard is not None
    assert host.control(bytes((0x00, 3, 1, 0, 0, 0, 0, 0))) == b""  # it may wake the host
    ehci = Ehci(pc)
    ehci.put(_PORT, 0x1084)
    assert host.control(_DEVICE, 18) is None
    ehci.put(_STATUS, 0x3F)
    with pc.machine.control:
        device.input_event({"type": "key", "data": {"key": {"type": "qcode", "data": "a"}, "down": True}})
    assert ehci.get(_PORT) & 0xC4 == 0xC4 and ehci.get(_STATUS) & 0x4
    ehci.put(_PORT, 0x1004)
    assert ehci.get(_PORT) & 0xC4 == 0x4
    assert host.control(_DEVICE, 18) == keyboard


def test_a_reset_finds_every_device_anew(pc: Pc) -> None:
    pc.add("usb-kbd", port="1")
    ehci = Ehci(pc)
    enable_port(ehci, pc)
    ehci.put(_COMMAND, 0x2)
    assert [ehci.get(register) for register in (_COMMAND, _CONFIGURED, _PORT)] == [0x80000, 0, 0x1003]
    assert ehci.get(_STATUS) == 0x1004
