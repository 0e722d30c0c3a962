"""``nvme``: a solid-state disk on PCI Express (NVM Express 1.4)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.device.nvme_ns import NvmeBus
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.nvme.controller import Controller
from qobra.machine.nvme.memories import PERSISTENT_BAR, Memories
from qobra.machine.nvme.namespace import MAX_NAMESPACES, Allocation, Namespace
from qobra.machine.pci import express, regs
from qobra.machine.pci.device import Bar, PciDevice
from qobra.machine.pci.msix import Msix
from qobra.machine.vmstate import Field, NumberSet, VmState, flag, part
from qobra.object.property import Int, Link

_TABLE, _PENDING = 0x2000, 0x3000
_POWER_MANAGEMENT, _EXPRESS, _MSIX = 0x60, 0x80, 0x40
_MAX_QUEUES, _MAX_VECTORS = 0xFFFF, 2048
_MAX_BUFFER_MB = 1024
_REGISTERS_END = 0x2000


def _attach_those(device: Nvme, numbers: set[int]) -> None:
    if not numbers <= device.allocation.namespaces.keys():
        raise QobraError("there are no such namespaces")
    device.controller.attached = {number: device.allocation.namespaces[number] for number in sorted(numbers)}


@registry.register("nvme")
class Nvme(PciDevice, BlockFrontEnd):
    """A controller with the drive as its only namespace, or with those on its bus and of its subsystem."""

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
    subsys = Link("nvme-subsys")
    smart_critical_warning = Int(0, type="uint8", name="smart_critical_warning", show_default=False)
    # Errors always go to the guest.
    rerror: Any = "report"
    werror: Any = "report"

    vmstate = VmState(
        flag("writeback"),
        part("_msix", "controller"),
        Field(
            "attached", NumberSet(MAX_NAMESPACES + 1), get=lambda self: set(self.controller.attached), put=_attach_those
        ),
    )
    controller_id = 0

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
        if self.serial is None:
            raise QobraError("serial property not set")
        if self.cmb_size_mb > _MAX_BUFFER_MB:
            raise QobraError(f"cmb_size_mb must not be larger than {_MAX_BUFFER_MB}")
        if self.subsys is not None:
            self._check_subsystem()
        self.memories = Memories(self)
        self.logical_size = self.granularity = 512
        if self.backend is not None:
            backend = self.realize_block()
            if backend.node is None:
                raise QobraError("could not get blockdev size: No medium found")
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
        self._join()
        if self.backend is not None:
            number = self.allocation.choose(1)
            self.allocation.namespaces[number] = namespace = Namespace(self, number)
            self.controller.attach(namespace)
            self.backend.resized.append(self._resized)
        bus = NvmeBus(self.tree)
        bus.controller = self
        self.add_bus(bus, self.user_id)

    def _check_subsystem(self) -> None:
        if self.backend is not None:
            raise QobraError("subsystem support is unavailable with legacy namespace ('drive' property)")
        if self.subsys.allocation.controllers and self.subsys.serial != self.serial:
            raise QobraError("invalid controller serial")
        self.subsys.serial = self.serial

    def _join(self) -> None:
        """Become one of the subsystem's controllers, with the namespaces that are for all of them."""
        self.allocation: Allocation = self.subsys.allocation if self.subsys is not None else Allocation()
        self.controller_id = self.allocation.join(self)
        for namespace in self.allocation.namespaces.values():
            if namespace.shared and namespace.attached_at_first:
                self.controller.attach(namespace)

    @property
    def subsystem_name(self) -> str:
        """The NVMe qualified name of the subsystem, or of the only controller of one that is not told of."""
        return self.subsys.subsystem_name if self.subsys is not None else f"nqn.2019-08.org.qemu:{self.serial}"

    def _add_capabilities(self) -> None:
        express.add_power_management(self, offset=_POWER_MANAGEMENT, keeps_state=True)
        self._express = express.add_endpoint(self, offset=_EXPRESS, reports_errors=False)

    def unrealize(self) -> None:
        self.allocation.leave(self)
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

    def _resized(self) -> None:
        self.machine.control.post(self.controller.namespace_resized, 1)

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
