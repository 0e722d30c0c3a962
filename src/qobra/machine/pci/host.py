"""The ways to configuration space: the two ports of PCs (3.2.2.3.2) and the memory window of PCI Express (ECAM)."""

from __future__ import annotations

from qobra.machine.memory import AddressSpace, Registers
from qobra.machine.pci.bus import PciBus
from qobra.machine.vmstate import VmState, u32

_ENABLE = 0x80000000


class ConfigPorts:
    """Address at port 0xcf8, data at 0xcfc to 0xcff. ``address`` is what was written last."""

    vmstate = VmState(u32("address"))

    def __init__(self, ports: AddressSpace, bus: PciBus) -> None:
        self._bus = bus
        self.address = 0
        ports.map(0xCF8, Registers("pci-conf-idx", 4, self._read_address, self._write_address, valid=(1, 4)))
        ports.map(0xCFC, Registers("pci-conf-data", 4, self._read_data, self._write_data, valid=(1, 4)))

    def _read_address(self, offset: int, width: int) -> int:
        return self.address >> 8 * offset if width == 4 else 0

    def _write_address(self, offset: int, width: int, value: int) -> None:
        # Only a whole word is the address: single bytes belong to other devices (0xcf9).
        if width == 4:
            self.address = value & 0xFFFFFFFF

    def _read_data(self, offset: int, width: int) -> int:
        # Hardware takes the address as whole words. Guests that put the byte's number there and read at 0xcfc get the
        # byte as well, which is what QEMU does.
        if not self.address & _ENABLE:
            return (1 << 8 * width) - 1
        return self._bus.config_read(self.address >> 8 & 0xFFFF, self.address & 0xFF | offset, width)

    def _write_data(self, offset: int, width: int, value: int) -> None:
        if self.address & _ENABLE:
            self._bus.config_write(self.address >> 8 & 0xFFFF, self.address & 0xFF | offset, width, value)


class Ecam(Registers):
    """The window of PCI Express: 4 KiB for each function, ``buses`` buses of it."""

    __slots__ = ("_bus",)

    def __init__(self, name: str, bus: PciBus, buses: int = 256) -> None:
        super().__init__(name, buses << 20, self._read_config, self._write_config, valid=(1, 4))
        self._bus = bus

    def _read_config(self, offset: int, width: int) -> int:
        return self._bus.config_read(offset >> 12, offset & 0xFFF, width)

    def _write_config(self, offset: int, width: int, value: int) -> None:
        self._bus.config_write(offset >> 12, offset & 0xFFF, width, value)
