"""``e1000-82545em``: Intel's 82545EM, a gigabit Ethernet card (Software Developer's Manual 317453)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.e1000.card import E1000
from qobra.machine.vmstate import VmState


@registry.register("e1000-82545em")
class E1000Server(E1000):
    """A card."""

    type_name = "e1000-82545em"
    description = "Intel Gigabit Ethernet"
    device_id = 0x100F

    vmstate = VmState()
