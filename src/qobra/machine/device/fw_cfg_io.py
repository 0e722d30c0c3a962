"""Firmware configuration of PCs: selector at port 0x510, data at 0x511, DMA at 0x514."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.fw_cfg import FwCfg
from qobra.machine.memory import Registers


@registry.register("fw_cfg_io")
class FwCfgIo(FwCfg):
    """The registers in I/O space."""

    type_name = "fw_cfg_io"

    def realize(self) -> None:
        super().realize()
        ports = self.board.ports
        self._map(ports.map(0x510, Registers("fwcfg", 2, self._read, self._write, valid=(1, 2))))
        if self.dma_enabled:
            self._map(
                ports.map(0x514, Registers("fwcfg.dma", 8, self._read_dma, self._write_dma, valid=(1, 8), impl=(1, 8)))
            )

    def _read(self, offset: int, width: int) -> int:
        return self.read_data(0, 1) if width == 1 else 0

    def _write(self, offset: int, width: int, value: int) -> None:
        if width == 2 and offset == 0:
            self.write_selector(0, 2, value)

    # The DMA register is big-endian.

    def _read_dma(self, offset: int, width: int) -> int:
        return int.from_bytes(self.read_dma(offset, width).to_bytes(width, "big"), "little")

    def _write_dma(self, offset: int, width: int, value: int) -> None:
        self.write_dma(offset, width, int.from_bytes(value.to_bytes(width, "little"), "big"))
