"""Firmware configuration in memory, as boards without I/O space have it: data, selector and DMA, all big-endian."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.fw_cfg import FwCfg
from qobra.machine.memory import Registers
from qobra.object.property import Int


@registry.register("fw_cfg_mem")
class FwCfgMem(FwCfg):
    """Data at offset 0 (up to 8 bytes wide), selector at 8, DMA at 16."""

    type_name = "fw_cfg_mem"

    data_width = Int(0xFFFFFFFF, type="uint32", name="data_width")
    base = 0

    def realize(self) -> None:
        super().realize()
        region = Registers("fwcfg", 0x18, self._read, self._write, valid=(1, 8), impl=(1, 8))
        self._map(self.board.memory.map(self.base, region))

    def _read(self, offset: int, width: int) -> int:
        if offset < 8:
            value = self.read_data(0, width)
        elif offset >= 16 and self.dma_enabled:
            value = self.read_dma(offset - 16, width)
        else:
            return 0
        return int.from_bytes(value.to_bytes(width, "big"), "little")

    def _write(self, offset: int, width: int, value: int) -> None:
        value = int.from_bytes(value.to_bytes(width, "little"), "big")
        if offset == 8 and width == 2:
            self.write_selector(0, 2, value)
        elif offset >= 16 and self.dma_enabled:
            self.write_dma(offset - 16, width, value)
