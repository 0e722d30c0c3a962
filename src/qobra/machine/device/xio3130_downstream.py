"""``xio3130-downstream``: a port of a switch with a slot; its place is on the bus of an ``x3130-upstream``."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import express, regs, switch
from qobra.machine.pci.port import PcieSlot
from qobra.machine.vmstate import VmState


@registry.register("xio3130-downstream")
class Xio3130Downstream(PcieSlot):
    """The port. It has no interrupt pin: drivers hear of the slot by message."""

    type_name = "xio3130-downstream"
    description = "TI X3130 Downstream Port of PCI Express Switch"
    vendor_id = regs.TEXAS_INSTRUMENTS
    device_id = 0x8233
    revision = 1
    port_type = express.DOWNSTREAM
    closes_windows = False

    vmstate = VmState()

    def realize(self) -> None:
        self.check_place()
        self.realize_bridge(self.user_id)
        start, self._msi = switch.add_capabilities(self, slot=True)
        express.add_link(self, start, speed=0, width=0, port=self.port)
        self.realize_slot(start)
        self.board.bridge_added(self.secondary)

    def signal(self) -> None:
        self._msi.notify(0)

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        express.reset_if_asked(self, self._express)

    def reset(self) -> None:
        super().reset()
        self._msi.reset()
