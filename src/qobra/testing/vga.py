"""A driver of VGA cards, for tests: registers one by one, and usual modes (IBM's numbers) as their registers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import Access, BoardAccess, PciFunction

Mode = dict[str, tuple[int, ...]]

_CRTC_400 = (0x5F, 0x4F, 0x50, 0x82, 0x55, 0x81, 0xBF, 0x1F, 0x00)
TEXT: Mode = {
    "misc": (0x67,),
    "seq": (3, 0, 3, 0, 2),
    "crtc": (*_CRTC_400, 0x4F, 0x2D, 0x0E, 0, 0, 0, 0, 0x9C, 0x0E, 0x8F, 0x28, 0x1F, 0x96, 0xB9, 0xA3, 0xFF),
    "gfx": (0, 0, 0, 0, 0, 0x10, 0x0E, 0, 0xFF),
    "attr": (0, 1, 2, 3, 4, 5, 0x14, 7, *range(0x38, 0x40), 0x0C, 0, 0x0F, 8, 0),
}
"""Mode 3: 80 x 25 characters of 9 x 16 dots, without a cursor."""
PLANES: Mode = {
    "misc": (0xE3,),
    "seq": (3, 1, 15, 0, 6),
    "crtc": (
        0x5F, 0x4F, 0x50, 0x82, 0x54, 0x80, 0x0B, 0x3E, 0, 0x40, 0, 0, 0, 0, 0, 0,
        0xEA, 0x0C, 0xDF, 0x28, 0, 0xE7, 4, 0xE3, 0xFF,
    ),
    "gfx": (0, 0, 0, 0, 0, 0, 5, 15, 0xFF),
    "attr": (*range(16), 1, 0, 15, 0, 0),
}  # fmt: skip
"""Mode 12: 640 x 480 dots, a plane for each of four bits."""
BYTES: Mode = {
    "misc": (0x63,),
    "seq": (3, 1, 15, 0, 0x0E),
    "crtc": (*_CRTC_400, 0x41, 0, 0, 0, 0, 0, 0, 0x9C, 0x0E, 0x8F, 0x28, 0x40, 0x96, 0xB9, 0xA3, 0xFF),
    "gfx": (0, 0, 0, 0, 0, 0x40, 5, 15, 0xFF),
    "attr": (*range(16), 0x41, 0, 15, 0, 0),
}
"""Mode 13: 320 x 200 pixels of a byte, each shown twice in both directions."""
PAIRS: Mode = {
    "misc": (0x63,),
    "seq": (3, 9, 3, 0, 2),
    "crtc": (
        0x2D, 0x27, 0x28, 0x90, 0x2B, 0x80, 0xBF, 0x1F, 0, 0xC1, 0, 0, 0, 0, 0, 0,
        0x9C, 0x0E, 0x8F, 0x14, 0, 0x96, 0xB9, 0xA2, 0xFF,
    ),
    "gfx": (0, 0, 0, 0, 0, 0x30, 0x0F, 0, 0xFF),
    "attr": (0, 0x13, 0x15, 0x17, 2, 4, 6, 7, *range(0x10, 0x18), 1, 0, 3, 0, 0),
}  # fmt: skip
"""Mode 4: 320 x 200 pixels of two bits, rows with even and odd numbers apart."""

PLACE = 0xE0000000
"""Where a :class:`Card` has its memory; what its other base addresses show comes next."""
_SLOT = 5
Pixel = tuple[int, int, int]

WIDTH, HEIGHT, DEPTH, ENABLE, BANK, VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X, Y, MEMORY = range(1, 11)
"""Bochs' registers."""


class VgaDriver:
    """Drives the card at the places of a PC's."""

    def __init__(self, guest: Access) -> None:
        self.guest = guest

    def seq(self, number: int, value: int) -> None:
        """Write a register of the sequencer."""
        self.guest.port_out(0x3C4, 2, number | value << 8)

    def gfx(self, number: int, value: int) -> None:
        """Write a register of the graphics controller."""
        self.guest.port_out(0x3CE, 2, number | value << 8)

    def crtc(self, number: int, value: int) -> None:
        """Write a register of the CRT controller, with colour monitors."""
        self.guest.port_out(0x3D4, 2, number | value << 8)

    def attr(self, number: int, value: int) -> None:
        """Write a register of the attribute controller, and go on showing the picture."""
        self.guest.port_in(0x3DA, 1)
        for byte in (number, value, 0x20):
            self.guest.port_out(0x3C0, 1, byte)

    def show(self, on: bool) -> None:
        """Have the attribute controller show the picture, or nothing."""
        self.guest.port_in(0x3DA, 1)
        self.guest.port_out(0x3C0, 1, 0x20 if on else 0)

    def colours(self, channels: bytes, first: int = 0) -> None:
        """Set colours, red, green and blue each, from number ``first`` on."""
        self.guest.port_out(0x3C8, 1, first)
        for byte in channels:
            self.guest.port_out(0x3C9, 1, byte)

    def set_mode(self, mode: Mode) -> None:
        """Set all registers."""
        self.guest.port_out(0x3C2, 1, mode["misc"][0])
        for number, value in enumerate(mode["seq"]):
            self.seq(number, value)
        self.crtc(0x11, 0)  # which others are protected by
        for number, value in enumerate(mode["crtc"]):
            self.crtc(number, value)
        for number, value in enumerate(mode["gfx"]):
            self.gfx(number, value)
        for number, value in enumerate(mode["attr"]):
            self.attr(number, value)

    def bochs(self, number: int, value: int | None = None) -> int:
        """Write one of Bochs' registers, if there is a value; and read it."""
        self.guest.port_out(0x1CE, 2, number)
        if value is not None:
            self.guest.port_out(0x1CF, 2, value)
        return self.guest.port_in(0x1CF, 2)

    def set_bochs_mode(self, width: int, height: int, depth: int, enable: int = 0x81) -> None:
        """Set a mode of Bochs' and show it, by default keeping what is in memory."""
        self.show(True)
        self.bochs(ENABLE, 0)
        for number, value in ((WIDTH, width), (HEIGHT, height), (DEPTH, depth), (ENABLE, enable)):
            self.bochs(number, value)


class Card:
    """A card on a PC in this process, and its driver. ``places`` are the directories of the host's option ROMs."""

    def __init__(self, driver: str = "VGA", *, places: tuple[str, ...] = (), **options: Any) -> None:
        self.machine = simple_machine("x86_64", "pc", memory=16 << 20)
        board: Any = self.machine.board
        board.firmware_directories = places
        on_bus = {} if driver in ("isa-vga", "ramfb") else {"addr": _SLOT << 3}
        with self.machine.control:
            board.ready = False
            device: Any = add_device(self.machine, {"driver": driver, "id": "v"} | on_bus | options, keyval=False)
            board.reset_all()
            board.ready = True
        self.board, self.device = board, device
        self.guest = BoardAccess(self.machine)
        self.vga = VgaDriver(self.guest)
        if on_bus:
            self.function = PciFunction(self.guest, _SLOT << 3)
            self.function.enable(PLACE)

    def picture(self, path: Path) -> tuple[int, int, Callable[[int, int], Pixel]]:
        """Width, height and what is at a place of it, as a screendump to a file in ``path`` has them."""
        with self.machine.control:
            dispatch.call(self.machine, "screendump", {"filename": str(path / "dump"), "device": "v"})
        _kind, size, _most, data = (path / "dump").read_bytes().split(b"\n", 3)
        width, height = map(int, size.split())

        def pixel(x: int, y: int) -> Pixel:
            red, green, blue = data[3 * (y * width + x) :][:3]
            return red, green, blue

        return width, height, pixel
