"""``e1000e``: Intel's 82574L, a gigabit Ethernet card on PCI Express."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.e1000e.card import E1000e
from qobra.machine.vmstate import VmState


@registry.register("e1000e")
class E1000eCard(E1000e):
    """A card."""

    type_name = "e1000e"
    description = "Intel 82574L GbE Controller"
    device_id = 0x10D3

    vmstate = VmState()
