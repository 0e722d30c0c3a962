"""``ich9-intel-hda``: the High Definition Audio controller of the ICH9."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.hda.controller import HdaController
from qobra.machine.vmstate import VmState


@registry.register("ich9-intel-hda")
class Ich9IntelHda(HdaController):
    """The controller."""

    type_name = "ich9-intel-hda"
    description = "Intel HD Audio Controller (ich9)"
    device_id = 0x293E
    revision = 3

    vmstate = VmState()
