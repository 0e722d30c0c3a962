"""``ramfb``: the guest's firmware says in a file of fw_cfg where in memory it draws (docs/specs/fw_cfg of QEMU)."""

from __future__ import annotations

import os
from struct import Struct
from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.fw_cfg import FwCfg
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vga import colours
from qobra.machine.vga.frame import Frame, Painter
from qobra.machine.vmstate import VmState, flag, raw

_FILE, _ROM = "etc/ramfb", "vgabios-ramfb.bin"
_PLACE = Struct(">QIIIII")
"""Address, pixel format, flags, width, height, and bytes from a row to the next (0: they lie side by side)."""
_DEPTHS = {int.from_bytes(code, "little"): depth for code, depth in ((b"XR24", 32), (b"AR24", 32), (b"RG24", 24))}
"""Bits of a pixel by its format's code, as Linux' direct rendering manager has them."""
_LEAST_SIDE, _MOST_WIDTH, _MOST_HEIGHT = 16, 16000, 12000


@registry.register("ramfb")
class RamFb(SysBusDevice):
    """A picture in the guest's memory."""

    type_name = "ramfb"
    description = "ram framebuffer standalone device"
    category = "Display"
    pluggable = True
    hotpluggable_class = False

    vmstate = VmState(raw("_place"), flag("_shown"))

    def realize(self) -> None:
        board: Any = self.board
        firmware: FwCfg | None = board.fw_cfg
        if firmware is None or not firmware.dma_enabled:
            raise QobraError("ramfb device requires fw_cfg with DMA")
        path = board.find_firmware(_ROM)
        if path is not None:
            with open(path, "rb") as stream:
                firmware.add_users_files([(f"vgaroms/{os.path.basename(path)}", stream.read())])
        self._place = bytearray(_PLACE.size)
        self._written_place = bytearray(_PLACE.size)
        self._shown = False
        firmware.add_file(_FILE, bytes(_PLACE.size), on_write=self._written)
        console = board.consoles.add(self)
        self._painter = Painter(console)
        console.refresh = self._refresh

    def reset(self) -> None:
        self._shown = False
        self._painter.darken()

    def _written(self, offset: int, data: bytes) -> None:
        self._written_place[offset : offset + len(data)] = data
        if self._rows(self._written_place) is not None:
            self._place[:] = self._written_place
            self._shown = True

    def _rows(self, place: bytearray) -> tuple[int, int, int, list[bytes]] | None:
        """Width, height, depth and the rows in memory, or None where there is no such picture."""
        address, code, _flags, width, height, step = _PLACE.unpack(place)
        depth = _DEPTHS.get(code)
        if depth is None or not (
            _LEAST_SIDE <= width <= _MOST_WIDTH and _LEAST_SIDE <= height <= _MOST_HEIGHT and step < 1 << 31
        ):
            return None
        length = width * depth // 8
        step = step or length
        if height * length > self.board.ram_size:
            return None  # rows may lie over each other, but a picture is no larger than the guest's memory
        view = self.board.memory.ram(address, (height - 1) * step + length)
        if view is None:
            return None
        return width, height, depth, [bytes(view[at : at + length]) for at in range(0, height * step, step)]

    def _refresh(self) -> None:
        found = self._rows(self._place) if self._shown else None
        if found is not None:
            width, height, depth, rows = found
            self._painter.paint(
                Frame(width, height, rows, lambda row: colours.direct(row, depth, big_endian=False), look=depth)
            )
