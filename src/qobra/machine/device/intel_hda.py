"""``intel-hda``: the High Definition Audio controller of the ICH6."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.hda.controller import HdaController
from qobra.machine.vmstate import VmState


@registry.register("intel-hda")
class IntelHda(HdaController):
    """The controller."""

    type_name = "intel-hda"
    description = "Intel HD Audio Controller (ich6)"
    device_id = 0x2668
    revision = 1

    vmstate = VmState()
