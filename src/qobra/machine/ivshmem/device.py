"""The PCI function: registers, and the memory at base address 2."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.blockdev import ON_OFF_AUTO
from qobra.machine.memory import Ram, Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, u32
from qobra.object.property import Enum

_SIZE = 256
_MASK, _STATUS, _POSITION, _DOORBELL = 0x00, 0x04, 0x08, 0x0C
_MEMORY_BAR = 2


class IvshmemDevice(PciDevice):
    """What both kinds have in common. A ``master`` takes the memory along when it migrates; others stay."""

    type_name = "ivshmem-common"
    abstract = True
    interfaces = ("conventional-pci-device",)
    category = "Misc"
    description = "Inter-VM shared memory"
    vendor_id = regs.QUMRANET
    device_id = 0x1110
    revision = 1
    class_id = 0x0500

    master = Enum("OnOffAuto", ON_OFF_AUTO, "off")

    interrupt_mask = interrupt_status = position = 0
    vmstate = VmState(u32("interrupt_mask", "interrupt_status"), partial=True)

    def show_memory(self, ram: Ram) -> None:
        """Map the registers, and ``ram``. Raises QobraError for sizes that PCI has not."""
        if ram.size & (ram.size - 1):
            raise QobraError("the size of the shared memory must be a power of two")
        self.config[regs.COMMAND] |= regs.COMMAND_IO | regs.COMMAND_MEMORY
        self.add_bar(0, Registers("ivshmem-mmio", _SIZE, self._read, self._write, valid=(4, 4)))
        self.add_bar(_MEMORY_BAR, ram, wide=True, prefetch=True)

    def reset(self) -> None:
        super().reset()
        self.interrupt_mask = self.interrupt_status = 0

    def migration_blocker(self) -> str | None:
        # The memory is other machines' too.
        if self.master == "on":
            return None
        return "Migration is disabled when using feature 'peer mode' in device 'ivshmem'"

    def ring(self, peer: int, vector: int) -> None:
        """The guest rings ``peer``."""

    def _read(self, offset: int, _width: int) -> int:
        if offset == _MASK:
            return self.interrupt_mask
        if offset == _STATUS:
            status, self.interrupt_status = self.interrupt_status, 0
            return status
        return self.position if offset == _POSITION else 0

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == _MASK:
            self.interrupt_mask = value
        elif offset == _STATUS:
            self.interrupt_status = value
        elif offset == _DOORBELL:
            self.ring(value >> 16 & 0xFFFF, value & 0xFFFF)
