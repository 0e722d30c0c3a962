"""``usb-mouse``: a mouse with five buttons and a wheel."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb import hid
from qobra.machine.usb.pointer import UsbPointer
from qobra.machine.vmstate import VmState

_REPORT = bytes((
    0x05, 0x01, 0x09, 0x02, 0xA1, 0x01,  # generic desktop, mouse; a collection of the application
    0x09, 0x01, 0xA1, 0x00,  # pointer; a physical collection
    0x05, 0x09, 0x19, 0x01, 0x29, 0x05,  # buttons 1 to 5
    0x15, 0x00, 0x25, 0x01, 0x95, 0x05, 0x75, 0x01, 0x81, 0x02,  # 0 or 1: five times one bit, variables
    0x95, 0x01, 0x75, 0x03, 0x81, 0x01,  # three bits of padding
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x09, 0x38,  # x, y, wheel
    0x15, 0x81, 0x25, 0x7F, 0x75, 0x08, 0x95, 0x03, 0x81, 0x06,  # -127 to 127: three times eight bits, relative
    0xC0, 0xC0,
))  # fmt: skip


@registry.register("usb-mouse")
class UsbMouse(UsbPointer):
    """The mouse."""

    type_name = "usb-mouse"
    product = "QEMU USB Mouse"
    input_name = "QEMU HID Mouse"
    accepts = frozenset(("btn", "rel"))
    report_descriptor = _REPORT
    by_speed = hid.descriptors(
        product=2, serial=9, configuration=6, hid=0x0001, report=_REPORT, boot=(1, 2), size=4, interval=7
    )

    vmstate = VmState()
