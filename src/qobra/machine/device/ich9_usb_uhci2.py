"""``ich9-usb-uhci2``: a USB host controller of the ICH9, for the slower devices at ports of an EHCI controller."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.ich9 import Ich9Uhci
from qobra.machine.vmstate import VmState


@registry.register("ich9-usb-uhci2")
class Ich9UsbUhci2(Ich9Uhci):
    """The controller."""

    type_name = "ich9-usb-uhci2"
    device_id = 0x2935
    interrupt_pin = 2

    vmstate = VmState()
