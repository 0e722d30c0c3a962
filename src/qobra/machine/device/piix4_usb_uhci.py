"""``piix4-usb-uhci``: the USB host controller of the PIIX4, which is that of the PIIX3 (Intel 290562, 3.3)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.uhci_function import UhciFunction
from qobra.machine.vmstate import VmState


@registry.register("piix4-usb-uhci")
class Piix4UsbUhci(UhciFunction):
    """The controller and its bus."""

    type_name = "piix4-usb-uhci"
    device_id = 0x7112
    revision = 1

    vmstate = VmState()
