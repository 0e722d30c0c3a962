"""``ich9-usb-ehci1``: the first EHCI controller of the ICH9: ``ich9-usb-uhci1`` to ``-uhci3`` are its companions."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.ehci_function import EhciFunction
from qobra.machine.vmstate import VmState


@registry.register("ich9-usb-ehci1")
class Ich9UsbEhci1(EhciFunction):
    """The controller and its bus."""

    type_name = "ich9-usb-ehci1"
    device_id = 0x293A
    revision = 0x03
    hotpluggable_class = False
    has_companions = True

    vmstate = VmState()
