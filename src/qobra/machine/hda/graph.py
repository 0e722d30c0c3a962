"""What codecs are made of: widgets and their parameters (High Definition Audio 1.0a, section 7)."""

from __future__ import annotations

VENDOR_ID, SUBSYSTEM_ID, REVISION_ID, SUBORDINATES, GROUP_TYPE = 0x00, 0x01, 0x02, 0x04, 0x05
GROUP_CAPABILITIES, CAPABILITIES, RATES, FORMATS, PIN_CAPABILITIES = 0x08, 0x09, 0x0A, 0x0B, 0x0C
INPUT_AMPLIFIER, CONNECTIONS, OUTPUT_AMPLIFIER = 0x0D, 0x0E, 0x12

_QEMU = 0x1AF40000
_REVISION = 0x00100101
_AUDIO_GROUP, _PCM = 1, 1
_GROUP_CAPABILITIES = 0x808
_RATES = 0x000201FC
"""16 bits; 16, 22.05, 32, 44.1, 48, 88.2 and 96 kHz."""
FULL_GAIN = 0x4A
_AMPLIFIER = 0x80000000 | 3 << 16 | FULL_GAIN << 8 | FULL_GAIN
"""It mutes; 75 steps of 1 dB, the last of which changes nothing."""
_OUTPUT_CONVERTER, _INPUT_CONVERTER, _OUTPUT_PIN, _INPUT_PIN = 0x0000001D, 0x0010011B, 0x00400101, 0x00400001

ROOT, GROUP, OUTPUT, OUTPUT_PIN, INPUT, INPUT_PIN = range(6)


class Widget:
    """A node: parameters by number, the node that it takes its sound from, and of a pin what it is for."""

    __slots__ = ("configuration", "connection", "parameters", "pin_control")

    def __init__(
        self,
        parameters: dict[int, int],
        *,
        connection: int = 0,
        pin_control: int = 0,
        configuration: int = 0,
    ) -> None:
        self.parameters = parameters
        self.connection = connection
        self.pin_control = pin_control
        self.configuration = configuration


def build(kind: int, *, output: int, input: int | None, mixer: bool) -> list[Widget]:
    """The nodes of a codec by number. ``output`` and ``input`` are the default configurations of its pins."""
    identity = _QEMU | kind << 4 | (2 if mixer else 1)
    count = 2 if input is None else 4
    rates = {RATES: _RATES, FORMATS: _PCM}
    louder, hearing = ({OUTPUT_AMPLIFIER: _AMPLIFIER}, {INPUT_AMPLIFIER: _AMPLIFIER}) if mixer else ({}, {})
    widgets = [
        Widget({
            VENDOR_ID: identity, SUBSYSTEM_ID: identity, REVISION_ID: _REVISION, SUBORDINATES: GROUP << 16 | 1,
        }),
        Widget({
            SUBSYSTEM_ID: identity, SUBORDINATES: OUTPUT << 16 | count, GROUP_TYPE: _AUDIO_GROUP,
            GROUP_CAPABILITIES: _GROUP_CAPABILITIES, **rates,
        }),
        Widget({CAPABILITIES: _OUTPUT_CONVERTER, **rates, **louder}),
        Widget(
            {CAPABILITIES: _OUTPUT_PIN, PIN_CAPABILITIES: 0x10, CONNECTIONS: 1},
            connection=OUTPUT, pin_control=0x40, configuration=output,
        ),
    ]  # fmt: skip
    if input is not None:
        widgets.append(
            Widget({CAPABILITIES: _INPUT_CONVERTER, **rates, **hearing, CONNECTIONS: 1}, connection=INPUT_PIN)
        )
        widgets.append(
            Widget({CAPABILITIES: _INPUT_PIN, PIN_CAPABILITIES: 0x20}, pin_control=0x20, configuration=input)
        )
    return widgets
