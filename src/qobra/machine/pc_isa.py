"""The devices that every PC has had since 1984, on its ISA bus, and the timer that came in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.device.hpet import LEGACY_CLOCK, LEGACY_TIMER, Hpet
from qobra.machine.device.isa_i8259 import I8259
from qobra.machine.device.isa_pcspk import PcSpeaker
from qobra.machine.device.isa_pit import Pit
from qobra.machine.device.mc146818rtc import Rtc
from qobra.machine.irq import LevelHandler, Line

if TYPE_CHECKING:
    from qobra.machine.isa import IsaBus
    from qobra.machine.pc import PcBoard

_MAX_SERIAL_PORTS = 4


def build(board: PcBoard, bus: IsaBus) -> None:
    """Give ``board`` its interrupt controllers and, on ``bus``, its standard devices."""
    board.isa = bus
    # Both controllers hear of each of the sixteen lines, the I/O APIC of eight more.
    board.gsi = [Line(_fan_out(board, number)) for number in range(24)]
    bus.lines = board.gsi[:16]
    _build_interrupt_controllers(board)
    if board.hpet:
        _build_hpet(board)
    _build_clock(board)
    for base, page_base, shift in ((0x00, 0x80, 0), (0xC0, 0x88, 1)):
        dma = board.new("i8257")
        dma.values |= {"base": base, "page-base": page_base, "pageh-base": -1, "dshift": shift}
        board.place(dma, bus=bus)
    if board.pit != "off":
        _build_timer(board)
    for number, chardev in enumerate(board.serial_chardevs[:_MAX_SERIAL_PORTS]):
        if chardev is not None:
            serial = board.new("isa-serial")
            serial.values |= {"index": number, "chardev": chardev}
            board.place(serial, bus=bus)
    for number, chardev in enumerate(board.parallel_chardevs):
        if chardev is not None:
            parallel = board.new("isa-parallel")
            parallel.values |= {"index": number, "chardev": chardev}
            board.place(parallel, bus=bus)
    if board.floppies:
        board.fdc = board.place(board.new("isa-fdc"), bus=bus)
    if board.i8042:
        board.place(board.new("i8042"), bus=bus)
    if board.vmport != "off":
        board.values["vmport"] = "on"
        board.place(board.new("vmport"), bus=bus)
    board.place(board.new("port92"), bus=bus)


def _fan_out(board: PcBoard, number: int) -> LevelHandler:
    def handler(level: int) -> None:
        if number < 16:
            board.pics[number >> 3].gpio_in[None][number & 7].set(level)
        if board.ioapic is not None:
            board.ioapic.gpio_in[None][number].set(level)

    return handler


def _build_interrupt_controllers(board: PcBoard) -> None:
    for base, elcr, mask in ((0x20, 0x4D0, 0xF8), (0xA0, 0x4D1, 0xDE)):
        pic: Any = I8259(board.tree)
        pic.values |= {"iobase": base, "elcr_addr": elcr, "elcr_mask": mask, "master": base == 0x20}
        board.place(pic, bus=board.isa)
        board.pics.append(pic)
    board.pics[1].output.connect(board.pics[0].gpio_in[None][2])


def _build_hpet(board: PcBoard) -> None:
    hpet = Hpet(board.tree)
    hpet.values["hpet-intcap"] = board.hpet_lines
    board.place(hpet)
    for output, line in zip(hpet.lines, board.gsi, strict=False):
        output.connect(line)
    board.hpet_device = hpet


def _build_clock(board: PcBoard) -> None:
    board.rtc = Rtc(board.tree)
    board.rtc.values["base_year"] = 0
    board.place(board.rtc, bus=board.isa)
    if board.hpet_device is not None:
        board.rtc.output = board.hpet_device.gpio_in[None][LEGACY_CLOCK]


def _build_timer(board: PcBoard) -> None:
    pit = Pit(board.tree)
    pit.values["iobase"] = 0x40
    board.place(pit, bus=board.isa)
    pit.output.connect(board.gsi[0])
    if board.hpet_device is not None:
        pit.output.connect(board.hpet_device.gpio_in[None][LEGACY_TIMER])
        board.hpet_device.legacy_off.connect(pit.gpio_in[None][0])
    speaker = PcSpeaker(board.tree)
    speaker.pit = pit
    board.place(speaker, bus=board.isa)
