"""``hda-output``: a codec with one output."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.hda.codec import HdaCodec
from qobra.machine.vmstate import VmState


@registry.register("hda-output")
class HdaOutput(HdaCodec):
    """The codec."""

    type_name = "hda-output"
    description = "HDA Audio Codec, output-only (line-out)"

    vmstate = VmState()
