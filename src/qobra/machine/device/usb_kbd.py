"""``usb-kbd``: a keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine import scancodes
from qobra.machine.devices import registry
from qobra.machine.usb import hid
from qobra.machine.usb.hid import UsbHid
from qobra.machine.usb.usages import MODIFIERS, USAGES
from qobra.machine.vmstate import VmState, raw, u8
from qobra.object.property import String

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_REPORT = bytes((
    0x05, 0x01, 0x09, 0x06, 0xA1, 0x01,  # generic desktop, keyboard; a collection of the application
    0x75, 0x01, 0x95, 0x08, 0x05, 0x07, 0x19, 0xE0, 0x29, 0xE7,  # eight bits: the modifying keys
    0x15, 0x00, 0x25, 0x01, 0x81, 0x02,  # 0 or 1, variables
    0x95, 0x01, 0x75, 0x08, 0x81, 0x01,  # a byte that is reserved
    0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02,  # output: five lights
    0x95, 0x01, 0x75, 0x03, 0x91, 0x01,  # three bits of padding
    0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x25, 0xFF, 0x05, 0x07, 0x19, 0x00, 0x29, 0xFF, 0x81, 0x00,  # six keys
    0xC0,
))  # fmt: skip
_KEYS_AT_ONCE = 6
_TOO_MANY = b"\x01" * _KEYS_AT_ONCE
_MAX_KEYS = 255


@registry.register("usb-kbd")
class UsbKeyboard(UsbHid):
    """The keyboard. It can tell of six keys at once beside those that modify others."""

    type_name = "usb-kbd"
    product = "QEMU USB Keyboard"
    input_name = "QEMU HID Keyboard"
    accepts = frozenset(("key",))
    active_at_once = True
    report_descriptor = _REPORT
    by_speed = hid.descriptors(
        product=4, serial=11, configuration=8, hid=0x0111, report=_REPORT, boot=(1, 1), size=8, interval=7
    )

    display = String(type="str", description="The display device whose users it belongs to")

    vmstate = VmState(u8("_modifiers", "lights"), raw("_pressed", maximum=_MAX_KEYS))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._modifiers = self.lights = 0
        self._pressed = bytearray()

    def device_reset(self) -> None:
        super().device_reset()
        self._modifiers = self.lights = 0
        self._pressed.clear()

    def input_event(self, event: dict[str, Any]) -> None:
        key, down = event["data"]["key"], event["data"]["down"]
        name = key["data"] if key["type"] == "qcode" else scancodes.qcode_of(key["data"])
        if name in MODIFIERS:
            bit = MODIFIERS[name]
            self._modifiers = self._modifiers | bit if down else self._modifiers & ~bit
        elif name in USAGES:
            usage = USAGES[name]
            if down and usage not in self._pressed:
                self._pressed.append(usage)
            elif not down and usage in self._pressed:
                self._pressed.remove(usage)
        else:
            return
        self.enqueue(self._report())

    def input_sync(self) -> None:
        pass  # each key has its report

    def _report(self) -> bytes:
        keys = bytes(self._pressed) if len(self._pressed) <= _KEYS_AT_ONCE else _TOO_MANY
        return bytes((self._modifiers, 0)) + keys.ljust(_KEYS_AT_ONCE, b"\0")

    def next_report(self) -> bytes:
        return self._waiting.popleft() if self._waiting else self._report()

    def takes_report(self, data: bytes) -> bool:
        if len(data) != 1:
            return False
        self.lights = data[0]
        return True
