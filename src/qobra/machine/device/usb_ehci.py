"""``usb-ehci``: an EHCI controller by itself: that of the 82801D (ICH4)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.ehci_function import EhciFunction
from qobra.machine.vmstate import VmState


@registry.register("usb-ehci")
class UsbEhci(EhciFunction):
    """The controller and its bus."""

    type_name = "usb-ehci"
    device_id = 0x24CD
    revision = 0x10

    vmstate = VmState()
