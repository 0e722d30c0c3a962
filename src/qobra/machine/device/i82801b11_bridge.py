"""``i82801b11-bridge``: the bridge from PCI Express to conventional PCI of Intel's I/O controller hubs."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.vmstate import VmState

_SUBSYSTEM = 0x50


@registry.register("i82801b11-bridge")
class I82801B11Bridge(PciBridge):
    """The bridge, which has no hot-plug controller of its own."""

    type_name = "i82801b11-bridge"
    vendor_id = regs.INTEL
    device_id = 0x244E
    revision = 0x92
    prog_if = 1

    vmstate = VmState()

    def realize(self) -> None:
        self.realize_bridge(self.user_id)
        self.add_capability(regs.CAP_SSVID, 8, offset=_SUBSYSTEM)
        self.board.bridge_added(self.secondary)
