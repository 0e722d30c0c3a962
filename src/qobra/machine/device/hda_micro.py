"""``hda-micro``: a codec with an output and an input, for a speaker and a microphone."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.hda.codec import HdaCodec
from qobra.machine.vmstate import VmState


@registry.register("hda-micro")
class HdaMicro(HdaCodec):
    """The codec."""

    type_name = "hda-micro"
    description = "HDA Audio Codec, duplex (speaker, microphone)"
    kind = 3
    output_configuration = 0x00104010
    input_configuration = 0x00A05020

    vmstate = VmState()
