"""``qemu-xhci``: a USB host controller for every speed up to USB 3's, which is nobody's product."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.usb.xhci.pci import PciXhci
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool

_STREAMS = 7


@registry.register("qemu-xhci")
class QemuXhci(PciXhci):
    """The controller, which interrupts by MSI-X."""

    type_name = "qemu-xhci"
    vendor_id = regs.RED_HAT
    device_id = 0x000D
    revision = 1

    streams = Bool(True)

    vmstate = VmState()

    @property
    def stream_limit(self) -> int:
        return _STREAMS if self.streams else 0
