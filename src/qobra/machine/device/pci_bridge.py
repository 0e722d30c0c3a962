"""``pci-bridge``: a conventional PCI bridge with hot-plug by a controller of its own or by ACPI."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.msix import Msi
from qobra.machine.pci.shpc import Shpc
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Enum, Int

_CAP_SLOT_ID, _FIRST_IN_CHASSIS = 0x04, 0x20


@registry.register("pci-bridge")
class PciPciBridge(PciBridge):
    """A bridge; ``chassis_nr`` tells one from another."""

    type_name = "pci-bridge"
    description = "Standard PCI Bridge"
    vendor_id = regs.RED_HAT
    device_id = 0x0001
    interrupt_pin = 1

    chassis_nr = Int(0, type="uint8", name="chassis_nr")
    msi = Enum("OnOffAuto", ("auto", "on", "off"), "auto")
    shpc = Bool(True)

    vmstate = VmState(part("_shpc"))

    def realize(self) -> None:
        if self.chassis_nr == 0:
            raise QobraError(
                "Bridge chassis not specified. Each bridge is required to be assigned a unique chassis id > 0."
            )
        self.realize_bridge(self.user_id)
        self._shpc = Shpc(self, bar=0) if self.shpc else None
        start = self.add_capability(_CAP_SLOT_ID, 4)
        self.put(start + 2, 1, _FIRST_IN_CHASSIS)
        self.put(start + 3, 1, self.chassis_nr)
        self._msi = Msi(self, 1, maskable=True) if self.msi != "off" else None
        if self._shpc is not None:
            self._shpc.msi = self._msi
        self.board.bridge_added(self.secondary)

    def reset(self) -> None:
        super().reset()
        if self._msi is not None:
            self._msi.reset()
        if self._shpc is not None:
            self._shpc.reset()

    def config_read(self, offset: int, width: int) -> int:
        if self._shpc is not None:
            self.put(self._shpc.window, 4, self._shpc.config_value())
        return super().config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        if self._shpc is not None:
            self.put(self._shpc.window, 4, self._shpc.config_value())
        super().config_write(offset, width, value)
        if self._shpc is not None:
            self._shpc.config_written(offset, width)
