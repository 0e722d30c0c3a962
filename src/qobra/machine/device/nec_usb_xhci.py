"""``nec-usb-xhci``: a USB host controller for every speed up to USB 3's, NEC's uPD720200 by its identity."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb.xhci.pci import MAX_INTERRUPTERS, MAX_SLOTS, PciXhci
from qobra.machine.vmstate import VmState
from qobra.object.property import Enum, Int

_ON_OFF_AUTO = ("on", "off", "auto")


@registry.register("nec-usb-xhci")
class NecUsbXhci(PciXhci):
    """The controller, which interrupts by MSI-X or by MSI."""

    type_name = "nec-usb-xhci"
    vendor_id = 0x1033
    device_id = 0x0194
    revision = 3
    firmware = 0x3034

    msi = Enum("OnOffAuto", _ON_OFF_AUTO, "auto")
    msix = Enum("OnOffAuto", _ON_OFF_AUTO, "auto")
    slots = Int(MAX_SLOTS, type="uint32")
    intrs = Int(MAX_INTERRUPTERS, type="uint32")

    vmstate = VmState()

    def realize(self) -> None:
        self.has_msi, self.has_msix = self.msi != "off", self.msix != "off"
        self.slot_count = max(1, min(self.slots, MAX_SLOTS))
        # Messages come in powers of two.
        wanted = max(1, min(self.intrs, MAX_INTERRUPTERS))
        self.interrupters = 1 << wanted.bit_length() - 1
        super().realize()
