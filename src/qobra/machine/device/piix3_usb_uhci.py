"""``piix3-usb-uhci``: the USB host controller of the PIIX3, for full and low speed, with two ports."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.uhci_function import UhciFunction
from qobra.machine.vmstate import VmState


@registry.register("piix3-usb-uhci")
class Piix3UsbUhci(UhciFunction):
    """The controller and its bus."""

    type_name = "piix3-usb-uhci"
    device_id = 0x7020
    revision = 1

    vmstate = VmState()
