"""``e1000-82544gc``: Intel's 82544GC, a gigabit Ethernet card (Software Developer's Manual 317453)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.e1000.card import E1000
from qobra.machine.vmstate import VmState


@registry.register("e1000-82544gc")
class E1000Gc(E1000):
    """A card."""

    type_name = "e1000-82544gc"
    description = "Intel Gigabit Ethernet"
    device_id = 0x100C
    phy_id = 0x0C30

    vmstate = VmState()
