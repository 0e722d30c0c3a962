"""``x3130-upstream``: the port of a switch towards the root complex; its other ports are on the bus behind it."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import express, regs, switch
from qobra.machine.pci.bus import PciBus, PcieBus
from qobra.machine.pci.port import PciePort
from qobra.machine.vmstate import VmState


@registry.register("x3130-upstream")
class X3130Upstream(PciePort):
    """The port."""

    type_name = "x3130-upstream"
    description = "TI X3130 Upstream Port of PCI Express Switch"
    vendor_id = regs.TEXAS_INSTRUMENTS
    device_id = 0x8232
    revision = 2
    port_type = express.UPSTREAM
    secondary_type: type[PciBus] = PcieBus

    vmstate = VmState()

    def realize(self) -> None:
        self.realize_bridge(self.user_id)
        self._express, self._msi = switch.add_capabilities(self, slot=False)
        express.add_link(self, self._express, port=self.port)
        self.board.bridge_added(self.secondary)

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        express.reset_if_asked(self, self._express)

    def reset(self) -> None:
        super().reset()
        self._msi.reset()
        express.reset_controls(self, self._express)
