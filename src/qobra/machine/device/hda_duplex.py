"""``hda-duplex``: a codec with an output and an input, for lines."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.hda.codec import HdaCodec
from qobra.machine.vmstate import VmState


@registry.register("hda-duplex")
class HdaDuplex(HdaCodec):
    """The codec."""

    type_name = "hda-duplex"
    description = "HDA Audio Codec, duplex (line-out, line-in)"
    kind = 2
    input_configuration = 0x00805020

    vmstate = VmState()
