"""``rtl8139``: Realtek's fast Ethernet card on PCI."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.rtl8139.card import RealtekCard
from qobra.machine.vmstate import VmState


@registry.register("rtl8139")
class Rtl8139(RealtekCard):
    """A card."""

    type_name = "rtl8139"
    vendor_id = 0x10EC
    device_id = 0x8139
    revision = 0x20

    vmstate = VmState()
