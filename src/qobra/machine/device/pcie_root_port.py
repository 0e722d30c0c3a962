"""``pcie-root-port``: a port of the root complex, with one slot behind it."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.pci import express, regs
from qobra.machine.pci.msix import Msix
from qobra.machine.pci.port import ERROR_REPORTING, PcieSlot
from qobra.machine.pci.reserve import ReservingBridge
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Enum

_CAPABILITY, _RESERVATION = 0x54, 0x90
_SPEEDS = {"2_5": 1, "5": 2, "8": 3, "16": 4}


@registry.register("pcie-root-port")
class PcieRootPort(PcieSlot, ReservingBridge):
    """A generic root port."""

    type_name = "pcie-root-port"
    ancestors = {"pcie-root-port-base": ("pci-express-device",)}
    description = "PCI Express Root Port"
    vendor_id = regs.RED_HAT
    device_id = 0x000C
    interrupt_pin = 1
    bus_type = "PCIE"

    x_speed = Enum("PCIELinkSpeed", tuple(_SPEEDS), "16", name="x-speed")
    x_width = Enum("PCIELinkWidth", ("1", "2", "4", "8", "12", "16", "32"), "32", name="x-width")
    disable_acs = Bool(False)

    vmstate = VmState(part("_msix"))

    def realize(self) -> None:
        if self.pci_bus.parent_bridge is not None:
            raise QobraError("PCIE-root ports must be plugged into the root complex's bus")
        self.check_place()
        self.realize_bridge(self.user_id)
        start = self.add_capability(regs.CAP_SSVID, 8)
        self.put(start + 4, 4, regs.RED_HAT)
        self._msix = Msix(self, 1, bar=0, offset=0x48)
        start = express.add_capability(self, self.port_type, offset=_CAPABILITY, slot=True)
        self._add_link(start)
        self.realize_slot(start)
        express.add_port_error_reporting(self, ERROR_REPORTING, root=True)
        if not self.disable_acs:
            express.add_access_control(self, ERROR_REPORTING)
        self.add_reservation(_RESERVATION)
        self.board.bridge_added(self.secondary)

    def _add_link(self, start: int) -> None:
        speed = _SPEEDS[self.x_speed]
        express.add_link(self, start, speed=speed, width=int(self.x_width), port=self.port)
        capabilities = self.dword(start + express.LINK_CAPABILITIES)
        self.put(start + express.LINK_CAPABILITIES, 4, capabilities | express.LINK_ACTIVE_REPORTING)
        self.writable[start + express.ROOT_CONTROL] = 0x07
        self.put(start + express.LINK_CAPABILITIES_2, 4, sum(1 << n for n in range(1, speed + 1)))
        self.put(start + express.LINK_CONTROL_2, 2, speed)

    def signal(self) -> None:
        if self._msix.enabled:
            self._msix.notify(0)
        else:
            super().signal()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        self._msix.config_written(offset, width)

    def reset(self) -> None:
        super().reset()
        self._msix.reset()
        express.reset_root_error_reporting(self, ERROR_REPORTING)
