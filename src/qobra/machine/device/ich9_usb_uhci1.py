"""``ich9-usb-uhci1``: a USB host controller of the ICH9, for the slower devices at ports of an EHCI controller."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.ich9 import Ich9Uhci
from qobra.machine.vmstate import VmState


@registry.register("ich9-usb-uhci1")
class Ich9UsbUhci1(Ich9Uhci):
    """The controller."""

    type_name = "ich9-usb-uhci1"
    device_id = 0x2934
    interrupt_pin = 1

    vmstate = VmState()
