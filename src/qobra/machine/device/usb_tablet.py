"""``usb-tablet``: a pointing device that knows places, so that a guest's pointer follows its viewer's."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.usb import hid
from qobra.machine.usb.pointer import UsbPointer
from qobra.machine.vmstate import VmState, u16
from qobra.object.property import Int, String

_REPORT = bytes((
    0x05, 0x01, 0x09, 0x02, 0xA1, 0x01,  # generic desktop, mouse; a collection of the application
    0x09, 0x01, 0xA1, 0x00,  # pointer; a physical collection
    0x05, 0x09, 0x19, 0x01, 0x29, 0x03,  # buttons 1 to 3
    0x15, 0x00, 0x25, 0x01, 0x95, 0x03, 0x75, 0x01, 0x81, 0x02,  # 0 or 1: three times one bit, variables
    0x95, 0x01, 0x75, 0x05, 0x81, 0x01,  # five bits of padding
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31,  # x, y
    0x15, 0x00, 0x26, 0xFF, 0x7F, 0x35, 0x00, 0x46, 0xFF, 0x7F,  # 0 to 32767, in units of the same size
    0x75, 0x10, 0x95, 0x02, 0x81, 0x02,  # twice sixteen bits, absolute
    0x05, 0x01, 0x09, 0x38,  # wheel
    0x15, 0x81, 0x25, 0x7F, 0x35, 0x00, 0x45, 0x00, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06,  # -127 to 127, relative
    0xC0, 0xC0,
))  # fmt: skip


@registry.register("usb-tablet")
class UsbTablet(UsbPointer):
    """The tablet."""

    type_name = "usb-tablet"
    product = "QEMU USB Tablet"
    input_name = "QEMU HID Tablet"
    accepts = frozenset(("btn", "abs"))
    absolute = True
    has_protocols = False
    report_descriptor = _REPORT
    by_speed = hid.descriptors(
        product=3, serial=10, configuration=7, hid=0x0001, report=_REPORT, boot=(0, 0), size=8, interval=4
    )

    display = String(type="str", description="The display device whose users it belongs to")
    head = Int(0, type="uint32", description="Which output of that device")

    vmstate = VmState(u16("_x", "_y"))
