"""A card reader behind xHCI: what it says of a slot without a card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.usb.xhci import ring
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.xhci import XhciDriver

_ANSWERS, _MESSAGES = 5, 6


@pytest.fixture
def reader() -> Iterator[tuple[XhciDriver, int]]:
    machine = simple_machine(memory=16 << 20)
    board: Any = machine.board
    with machine.control:
        add_device(machine, {"driver": "qemu-xhci", "id": "usb", "addr": "4"}, keyval=True)
        add_device(machine, {"driver": "usb-ccid", "bus": "usb.0"}, keyval=True)
        board.reset_all()
    access = BoardAccess(machine)
    function = PciFunction(access, 4 << 3)
    function.enable()
    driver = XhciDriver(access, function.bars[0])
    driver.start()
    driver.reset_port(5)
    slot = driver.enable_slot()
    assert driver.address(slot, 5).code == ring.SUCCESS
    assert driver.configure(slot, {_ANSWERS: (6, 64), _MESSAGES: (2, 64)}).code == ring.SUCCESS
    assert driver.control(slot, bytes((0, 9, 1, 0, 0, 0, 0, 0)))[0] == ring.SUCCESS
    yield driver, slot
    machine.close()


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (bytes((0x65, 0, 0, 0, 0, 0, 7, 0, 0, 0)), "81000000000007020000"),
        (bytes((0x62, 0, 0, 0, 0, 0, 8, 0, 0, 0)), "8000000000000842fe00"),
        (bytes((0x6F, 100, 0, 0, 0, 0, 9, 0, 0, 0)) + bytes(100), "8000000000000942fe00"),
        (bytes((0x6C, 0, 0, 0, 0, 0, 10, 0, 0, 0)), "8200000000000a42fe00"),
        (bytes((0x72, 0, 0, 0, 0, 0, 11, 0, 0, 0)), "8100000000000b420000"),
        (bytes((0x65, 0, 0, 0, 0, 1, 12, 0, 0, 0)), "8100000000010c420500"),
    ],
)
def test_an_empty_slot(reader: tuple[XhciDriver, int], message: bytes, answer: str) -> None:
    driver, slot = reader
    for at in range(0, len(message), 64):
        assert driver.send(slot, _MESSAGES, message[at : at + 64]).code == ring.SUCCESS
    assert driver.receive(slot, _ANSWERS, 64)[1].hex() == answer


def test_descriptors_and_nonsense(reader: tuple[XhciDriver, int]) -> None:
    driver, slot = reader
    configuration = driver.descriptor(slot, 2) or b""
    assert len(configuration) == configuration[2] == 93 and configuration[18] == 54
    assert driver.send(slot, _MESSAGES, b"abc").code == ring.STALL_ERROR
