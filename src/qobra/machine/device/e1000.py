"""``e1000``: Intel's 82540EM, a gigabit Ethernet card (Software Developer's Manual 317453)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.e1000.card import E1000
from qobra.machine.vmstate import VmState


@registry.register("e1000")
class E1000Em(E1000):
    """A card."""

    type_name = "e1000"
    description = "Intel Gigabit Ethernet"
    device_id = 0x100E

    vmstate = VmState()
