"""A codec: it answers verbs (High Definition Audio 1.0a, section 7.3) and plays what comes over the link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.audio.audiodev import Voice
from qobra.audio.sound import Form
from qobra.errors import QobraError
from qobra.machine.audio_card import audiodev_property, open_voice
from qobra.machine.hda import graph
from qobra.machine.qdev import Bus, Device
from qobra.machine.vmstate import Number, VmState, listed
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

ADDRESSES = 15
_ANY = 0xFFFFFFFF

_SET_FORMAT, _SET_GAIN, _GET_FORMAT, _GET_GAIN = 0x2, 0x3, 0xA, 0xB
_GET_PARAMETER, _GET_CONNECTIONS, _GET_STREAM, _SET_STREAM = 0xF00, 0xF02, 0xF06, 0x706
_GET_PIN_CONTROL, _GET_CONFIGURATION, _GET_SUBSYSTEM = 0xF07, 0xF1C, 0xF20
_STANDARD_FORMAT = 0x0011
"""48 kHz, 16 bits, two channels."""
_LEFT_GAIN, _RIGHT_GAIN, _FOR_LEFT, _FOR_RIGHT, _MUTED, _STEPS = 0, 1, 0x2000, 0x1000, 0x80, 0x7F
_ASKS_FOR_LEFT = 0x2000
_CONVERTERS = (graph.OUTPUT, graph.INPUT)


class HdaBus(Bus):
    """The link: up to 15 codecs by their addresses."""

    type_name = "HDA"

    def codec(self, address: int) -> HdaCodec | None:
        """The codec with that address."""
        for device in self.devices:
            assert isinstance(device, HdaCodec)
            if device.realized and device.cad == address:
                return device
        return None

    def codecs(self) -> list[HdaCodec]:
        """All codecs that work."""
        return [each for each in self.devices if isinstance(each, HdaCodec) and each.realized]

    def check(self, device: Device) -> None:
        assert isinstance(device, HdaCodec)
        taken = {each.cad for each in self.codecs()}
        if device.cad == _ANY:
            device.values["cad"] = next((each for each in range(ADDRESSES) if each not in taken), ADDRESSES)
        if device.cad >= ADDRESSES:
            raise QobraError("HDA audio codec address is full")
        if device.cad in taken:
            raise QobraError(f"HDA codec address {device.cad} is in use")


class HdaCodec(Device):
    """A codec with an output and, if ``input_configuration`` is given, an input, which hears nothing."""

    type_name = "hda-audio"
    ancestors = {"hda-codec": ()}
    abstract = True
    bus_type = "HDA"
    category = "Sound"
    kind = 1
    output_configuration = 0x00004010
    input_configuration: int | None = None

    cad = Int(_ANY, type="uint32")
    audiodev = audiodev_property()
    mixer = Bool(True)

    vmstate = VmState(
        listed("_formats", kind=Number(2)), listed("_streams", kind=Number(1)), listed("_gains", kind=Number(1))
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._voice = Voice()
        self._clear()

    def realize(self) -> None:
        self._widgets = graph.build(
            self.kind, output=self.output_configuration, input=self.input_configuration, mixer=self.mixer
        )
        self._voice = open_voice(self.machine, self.audiodev)
        self._clear()

    def unrealize(self) -> None:
        self._voice.close()

    def reset(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._voice.pause()
        # By converter; of the gains first those of the left side.
        self._formats = [_STANDARD_FORMAT, _STANDARD_FORMAT]
        self._streams = [0, 0]
        self._gains = [graph.FULL_GAIN, graph.FULL_GAIN, 0, 0]

    # -- verbs

    def command(self, node: int, verb: int) -> int:
        """What the codec answers to ``verb``, 20 bits with what belongs to it; 0 where it has nothing to say."""
        if node >= len(self._widgets):
            return 0
        widget = self._widgets[node]
        long, payload = verb >> 8, verb & 0xFF
        if long == _GET_PARAMETER:
            return widget.parameters.get(payload, 0)
        if long == _GET_CONNECTIONS:
            return widget.connection if not payload else 0
        if long == _GET_PIN_CONTROL:
            return widget.pin_control
        if long == _GET_CONFIGURATION:
            return widget.configuration
        if long == _GET_SUBSYSTEM:
            return self._widgets[graph.ROOT].parameters[graph.SUBSYSTEM_ID]
        return self._converter_command(_CONVERTERS.index(node), verb) if node in _CONVERTERS else 0

    def _converter_command(self, number: int, verb: int) -> int:
        short, long, payload = verb >> 16, verb >> 8, verb & 0xFFFF
        if long == _GET_STREAM:
            return self._streams[number]
        if long == _SET_STREAM:
            if number == 0 and (payload ^ self._streams[0]) & 0xF0:
                self._voice.pause()  # what it heard so far may go on without it
            self._streams[number] = payload & 0xFF
        elif short == _GET_FORMAT:
            return self._formats[number]
        elif short == _SET_FORMAT:
            self._formats[number] = payload
        elif short == _GET_GAIN:
            return self._gains[2 * number + (_LEFT_GAIN if payload & _ASKS_FOR_LEFT else _RIGHT_GAIN)]
        elif short == _SET_GAIN:
            for side, wanted in ((_LEFT_GAIN, _FOR_LEFT), (_RIGHT_GAIN, _FOR_RIGHT)):
                if payload & wanted:
                    self._gains[2 * number + side] = payload & 0xFF
        return 0

    # -- the link

    def hears(self, stream: int) -> bool:
        """Whether the codec plays the output stream of that number."""
        return self._streams[0] >> 4 == stream

    def play(self, data: bytes, form: Form) -> None:
        """Sound of the stream that it plays."""
        self._voice.play(data, form, (self._volume(_LEFT_GAIN), self._volume(_RIGHT_GAIN)))

    def pause(self) -> None:
        """The stream stands still."""
        self._voice.pause()

    def _volume(self, side: int) -> float:
        gain = self._gains[side]
        if gain & _MUTED:
            return 0.0
        decibels = min(gain & _STEPS, graph.FULL_GAIN) - graph.FULL_GAIN
        return 1.0 if not decibels else float(10 ** (decibels / 20))
