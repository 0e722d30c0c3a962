"""``nvme``: a solid-state disk on PCI Express (NVM Express 1.4)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.nvme.controller import Controller
from qobra.machine.nvme.memories import PERSISTENT_BAR, Memories
from qobra.machine.pci import express, regs
from qobra.machine.pci.device import Bar, PciDevice
from qobra.machine.pci.msix import Msix
from qobra.machine.vmstate import VmState, flag, part
from qobra.object.property import Int, Link

_TABLE, _PENDING = 0x2000, 0x3000
_POWER_MANAGEMENT, _EXPRESS, _MSIX = 0x60, 0x80, 0x40
_MAX_QUEUES, _MAX_VECTORS = 0xFFFF, 2048
_MAX_BUFFER_MB = 1024
_REGISTERS_END = 0x2000


@registry.register("nvme")
class Nvme(PciDevice, BlockFrontEnd):
    """A controller with one namespace, the drive; without a drive it has none."""

    type_name = "nvme"
    plugs_into = ("pci-express-device",)
    description = "Non-Volatile Memory Express"
    vendor_id = regs.RED_HAT
    device_id = 0x0010
    revision = 2
    class_id = 0x0108
    prog_if = 0x02
    interrupt_pin = 1
    always_express = True

    mdts = Int(7, type="uint8")
    max_ioqpairs = Int(64, type="uint32", name="max_ioqpairs")
    num_queues = Int(0, type="uint32", name="num_queues")
    msix_qsize = Int(65, type="uint16", name="msix_qsize")
    aerl = Int(3, type="uint8")
    cmb_size_mb = Int(0, type="uint32", name="cmb_size_mb")
    pmrdev = Link("memory-backend")
    smart_critical_warning = Int(0, type="uint8", name="smart_critical_warning", show_default=False)
    # Errors always go to the guest.
    rerror: Any = "report"
    werror: Any = "report"

    vmstate = VmState(flag("writeback"), part("_msix", "controller"))

    @property
    def working(self) -> bool:
        return self.controller.working

    def state_blocked(self) -> str | None:
        return "the memory that it offers cannot be moved" if self.cmb_size_mb or self.pmrdev is not None else None

    def realize(self) -> None:
        if self.num_queues:
            self.values["max_ioqpairs"] = self.num_queues - 1
        if not 1 <= self.max_ioqpairs <= _MAX_QUEUES // 32:
            raise QobraError(f"max_ioqpairs must be between 1 and {_MAX_QUEUES // 32}")
        if not 1 <= self.msix_qsize <= _MAX_VECTORS // 8:
            raise QobraError(f"msix_qsize must be between 1 and {_MAX_VECTORS // 8}")
        if not self.serial:
            raise QobraError("serial property not set")
        if self.cmb_size_mb > _MAX_BUFFER_MB:
            raise QobraError(f"cmb_size_mb must not be larger than {_MAX_BUFFER_MB}")
        self.memories = Memories(self)
        self.logical_size = self.granularity = 512
        if self.backend is not None:
            backend = self.realize_block()
            if backend.node is None:
                raise QobraError("could not get blockdev size: No medium found")
            backend.resized.append(self._resized)
            if self.discard_granularity == 0xFFFFFFFF:
                self.granularity = self.discard_granularity = max(4096, self.logical_size)
        self._add_capabilities()
        memory = GuestMemory(self.board.memory, self.may_master)
        self._msix = Msix(
            self, self.msix_qsize, bar=0, offset=_MSIX, own_bar=False, table_offset=_TABLE, pending_offset=_PENDING
        )
        self.controller = Controller(self, memory, self.msix_qsize, lambda: self._msix.enabled, self._msix.notify)
        self.add_bar(0, Registers("nvme", 0x4000, self._read, self._write, valid=(1, 8)), wide=True)
        self.memories.show()

    def _add_capabilities(self) -> None:
        express.add_power_management(self, offset=_POWER_MANAGEMENT, keeps_state=True)
        self._express = express.add_endpoint(self, offset=_EXPRESS, reports_errors=False)

    def unrealize(self) -> None:
        self.controller.close()
        if self.backend is not None and self._resized in self.backend.resized:
            self.backend.resized.remove(self._resized)
        super().unrealize()
        self.memories.close()

    def reset(self) -> None:
        super().reset()
        self._msix.reset()
        self.controller.reset()
        self.memories.reset()
        self.update_mappings()

    def bar_address(self, bar: Bar) -> int | None:
        if bar.number == PERSISTENT_BAR and not self.memories.persistent_shown:
            return None
        return super().bar_address(bar)

    @property
    def blocks(self) -> int:
        """The size of the namespace in logical blocks."""
        return self.backend.length // self.logical_size if self.backend is not None else 0

    def _resized(self) -> None:
        self.machine.control.post(self.controller.namespace_resized)

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        self._msix.config_written(offset, width)
        express.reset_if_asked(self, self._express)

    def _read(self, offset: int, width: int) -> int:
        if offset >= _REGISTERS_END:
            return self._msix.read(offset, width) if width == 4 else 0
        value = self.controller.read(offset & ~3) | self.memories.read(offset & ~3)
        return value >> 8 * (offset & 3)

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset >= _REGISTERS_END:
            if width == 4:
                self._msix.write(offset, width, value)
        elif not offset & 3:
            self.controller.write(offset, value & 0xFFFFFFFF)
            self.memories.write(offset, value & 0xFFFFFFFF)
