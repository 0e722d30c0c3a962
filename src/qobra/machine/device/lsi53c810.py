"""``lsi53c810``: the adapter by the name of its oldest kind; it does all that the later one does, as QEMU's."""

from __future__ import annotations

from qobra.machine.device.lsi53c895a import Lsi53C895A
from qobra.machine.devices import registry
from qobra.machine.vmstate import VmState


@registry.register("lsi53c810")
class Lsi53C810(Lsi53C895A):
    """An adapter that says of itself that it is older."""

    type_name = "lsi53c810"
    device_id = 0x0001

    vmstate = VmState()
