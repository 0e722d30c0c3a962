"""Registers at their edges: widths that a device does not know, bits that cannot be set, what is reserved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction

_ONES = 0xFFFFFFFF


class Card:
    """A PCI function on a PC, and its base addresses."""

    def __init__(self, driver: str, **options: Any) -> None:
        self.machine = simple_machine(memory=16 << 20, running=True)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 20})
            board.ready = False
            self.device: Any = add_device(self.machine, {"driver": driver, "addr": "5"} | options, keyval=True)
            board.ready = True
        self.function = PciFunction(self.access, 5 << 3)
        self.function.enable()
        self.bars = self.function.bars


@pytest.fixture
def plug() -> Iterator[Callable[..., Card]]:
    with ExitStack() as stack:

        def made(driver: str, **options: Any) -> Card:
            card = Card(driver, **options)
            stack.callback(card.machine.close)
            return card

        yield made


@pytest.mark.parametrize(("driver", "bar", "table"), [("virtio-rng-pci", 1, 0), ("nvme", 0, 0x2000)])
def test_the_message_table_takes_accesses_of_four_bytes_and_eight(
    plug: Callable[..., Card], driver: str, bar: int, table: int
) -> None:
    options = {"drive": "disk", "serial": "s"} if driver == "nvme" else {}
    card = plug(driver, **options)
    at = card.bars[bar] + table
    card.access.store(at, 4, 0xFEE00000)
    card.access.store(at, 1, 0x44)
    card.access.store(at + 2, 2, 0x5566)
    assert card.access.load(at, 4) == 0xFEE00000
    assert card.access.load(at + 2, 2) == 0
    card.access.store(at, 8, 0x1_FEE01000)
    assert card.access.load(at, 8) == 0x1_FEE01000


def test_nobody_answers_where_the_configuration_of_a_virtio_device_ends(plug: Callable[..., Card]) -> None:
    card = plug("virtio-blk-pci", drive="disk")
    config = card.bars[4] + 0x2000
    length = card.device.device.config_size
    inside = card.access.load(config + length - 1, 1)
    assert inside != 0xFF
    assert card.access.load(config + length - 1, 2) == 0xFFFF
    assert card.access.port_in(card.bars[0] + 20 + length - 1, 2) == 0xFFFF


def test_a_reset_of_a_virtio_device_chooses_the_first_queue(plug: Callable[..., Card]) -> None:
    card = plug("virtio-net-pci")
    common = card.bars[4]
    card.access.store(common + 0x16, 2, 2)
    assert (card.access.load(common + 0x18, 2), card.access.load(common + 0x1E, 2)) == (64, 2)
    card.access.store(common + 0x14, 1, 0)
    assert (card.access.load(common + 0x18, 2), card.access.load(common + 0x1E, 2)) == (256, 0)


def test_a_driver_that_takes_every_feature_of_before_1_0_has_not_looked(plug: Callable[..., Card]) -> None:
    card = plug("virtio-net-pci")
    card.access.port_out(card.bars[0] + 4, 4, _ONES)
    assert card.access.port_in(card.bars[0] + 4, 4) == 1 << 5  # the address is what all of them knew
    card.access.port_out(card.bars[0] + 4, 4, 1 << 16 | 1 << 6)
    assert card.access.port_in(card.bars[0] + 4, 4) == 1 << 16 | 1 << 6


def test_a_disk_with_the_old_interface_alone_takes_commands_of_scsi_for_known(plug: Callable[..., Card]) -> None:
    card = plug("virtio-blk-pci", **{"drive": "disk", "disable-modern": "on"})
    offered = card.access.port_in(card.bars[0], 4)
    assert offered & (1 << 7 | 1 << 27) == 1 << 7
    card.access.port_out(card.bars[0] + 4, 4, 1 << 7)
    assert card.access.port_in(card.bars[0] + 4, 4) == 1 << 7


def test_a_driver_of_before_1_0_sets_parts_of_the_address(plug: Callable[..., Card]) -> None:
    card = plug("virtio-net-pci", mac="52:54:00:12:34:56")
    card.access.port_out(card.bars[0] + 20 + 4, 4, 0xFFFF0201)  # goes on into the status
    assert card.access.load(card.bars[4] + 0x2000, 4) == 0x12005452
    assert card.access.load(card.bars[4] + 0x2004, 2) == 0x0201


def test_admin_queues_begin_at_a_page(plug: Callable[..., Card]) -> None:
    card = plug("nvme", drive="disk", serial="s")
    base = card.bars[0]
    for offset, value in ((0x24, 0x000F000F), (0x28, 0x10000), (0x30, 0x20800)):
        card.access.store(base + offset, 4, value)
        assert card.access.load(base + offset, 4) == value
    card.access.store(base + 0x14, 4, 0x00460001)
    assert card.access.load(base + 0x1C, 4) == 2
    card.access.store(base + 0x14, 4, 0)
    card.access.store(base + 0x30, 4, 0x20000)
    card.access.store(base + 0x14, 4, 0x00460001)
    assert card.access.load(base + 0x1C, 4) == 1


def test_a_card_has_registers_and_between_them_nothing(plug: Callable[..., Card]) -> None:
    card = plug("e1000")
    seen = {}
    for offset in (0x04, 0x3C, 0x38, 0xC4, 0x2800, 0x2820, 0x3410, 0x5820, 0x5480, 0x5478, 0x5F00, 0x4010):
        card.access.store(card.bars[0] + offset, 4, _ONES)
        seen[offset] = card.access.load(card.bars[0] + offset, 4)
    assert seen == {
        0x04: 0, 0x3C: 0, 0x38: _ONES, 0xC4: 0xFFFF, 0x2800: _ONES, 0x2820: 0xFFFF, 0x3410: 0x7FF, 0x5820: 0x222300,
        0x5480: 0, 0x5478: _ONES, 0x5F00: 0x7FF, 0x4010: 0,
    }  # fmt: skip
    card.access.store(card.bars[0] + 0x39, 1, 0x12)  # the register that the address lies in, and all of it
    assert card.access.load(card.bars[0] + 0x38, 4) == 0x12
    card.access.store(card.bars[0] + 0xC8, 4, 0x4)
    assert card.access.load(card.bars[0] + 0xC8, 4) == 0x4  # what was set off, without taking it back
    assert card.access.load(card.bars[0] + 0xC0, 4) == 0x4
    assert card.access.load(card.bars[0] + 0xC8, 4) == 0


def test_no_other_transceiver_answers(plug: Callable[..., Card]) -> None:
    card = plug("e1000")
    card.access.store(card.bars[0] + 0x20, 4, 2 << 26 | 2 << 21 | 1 << 16 | 1 << 29)
    assert card.access.load(card.bars[0] + 0x20, 4) == 0x50000000
    assert card.access.load(card.bars[0] + 0xC0, 4) == 0


def test_a_usb_controller_remembers_what_it_has_no_use_for(plug: Callable[..., Card]) -> None:
    card = plug("piix3-usb-uhci")
    base, access = card.bars[4], card.access
    access.port_out(base, 2, 0xA8F0)
    access.port_out(base + 4, 2, 0xFFFF)
    access.port_out(base + 0x10, 2, 0xFFFF)
    assert [access.port_in(base + n, 2) for n in (0, 4, 0x10)] == [0xA8F0, 0xFFFF, 0xFEC0]
    access.port_out(base + 2, 2, 0x20)  # halted can be cleared
    assert access.port_in(base + 2, 2) == 0
    assert [access.port_in(base + n, 1) for n in (1, 0x11, 0x12, 0x13, 0x15)] == [0x7F, 0xC0, 0x80, 0x80, 0x7F]
    access.port_out(base, 2, 2)
    assert [access.port_in(base + n, 2) for n in (0, 2, 0x10)] == [0, 0x20, 0x80]


def test_a_slot_without_a_card_has_no_power(plug: Callable[..., Card]) -> None:
    card = plug("sdhci-pci")
    access, base = card.access, card.bars[0]
    access.store(base + 0x29, 1, 0xFF)
    assert access.load(base + 0x29, 1) == 0xFE
    access.store(base + 0x04, 2, 0xFFFF)
    assert access.load(base + 0x04, 2) == 0x7200  # no block is longer than the buffer
    access.store(base + 0x2C, 4, _ONES)  # which is no reset that there is
    assert access.load(base + 0x2C, 4) == 0x00FFFFFF
    access.store(base + 0x2C, 2, 0xFFFE)
    assert access.load(base + 0x2C, 2) == 0xFFFC  # off, it is not stable


def test_a_driver_makes_up_errors_of_the_slot(plug: Callable[..., Card]) -> None:
    card = plug("sdhci-pci")
    access, base = card.access, card.bars[0]
    access.store(base + 0x36, 2, 0x0001)
    access.store(base + 0x52, 2, 0x0011)
    assert access.load(base + 0x30, 4) == 0x00018000  # what is not enabled is not remembered
    access.store(base + 0x50, 2, 0x0002)
    assert (access.load(base + 0x3C, 2), access.load(base + 0x32, 2)) == (0x0002, 0x0101)


def test_an_ide_channel_without_drives_reads_as_zeroes(plug: Callable[..., Card]) -> None:
    card = plug("i6300esb")
    assert [card.access.port_in(0x1F0, width) for width in (1, 2, 4)] == [0, 0, 0]


def test_a_timer_that_was_told_nothing_takes_low_bytes(plug: Callable[..., Card]) -> None:
    access = plug("i6300esb").access
    access.port_out(0x43, 1, 0xC2)  # status and count of the first counter; a count cannot be latched yet
    assert access.port_in(0x40, 1) & 0x7F == 0x06
    access.port_out(0x41, 1, 0x60)
    access.port_out(0x41, 1, 0x08)
    assert access.port_in(0x41, 1) == access.port_in(0x41, 1) == 0x08


def test_nobody_reads_the_answer_to_the_command_before(plug: Callable[..., Card]) -> None:
    access = plug("i6300esb").access
    access.port_out(0x60, 1, 0xF2)
    access.port_out(0x60, 1, 0xEE)
    assert [access.port_in(0x64, 1) & 1, access.port_in(0x60, 1), access.port_in(0x64, 1) & 1] == [1, 0xEE, 0]


def test_no_tick_waits_when_a_machine_begins(plug: Callable[..., Card]) -> None:
    assert plug("i6300esb").access.port_in(0x20, 1) & 1 == 0
