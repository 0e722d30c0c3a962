"""What USB keyboards, mice and tablets have in common (Device Class Definition for HID 1.11)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from qobra.errors import QobraError
from qobra.machine.input import display_console
from qobra.machine.usb.device import FULL, HIGH, Nak, Stall, UsbDevice
from qobra.machine.vmstate import Raw, VmState, i64, listed, u8
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

MAX_REPORT = 8
_WAITING_LIMIT = 16
_REPORT, _IDLE, _PROTOCOL = 0x01, 0x02, 0x03
_SET_REPORT, _SET_IDLE, _SET_PROTOCOL = 0x09, 0x0A, 0x0B
_GET_DESCRIPTOR, _REPORT_DESCRIPTOR = 0x06, 0x22
_TO_HOST_CLASS, _FROM_HOST_CLASS, _TO_HOST_INTERFACE, _TO_HOST_VENDOR = 0xA1, 0x21, 0x81, 0xC0
_IDLE_UNIT_NS = 4_000_000
_ENDPOINT = 1
_KEY = 0x80 | _ENDPOINT
_SYSTEM_STRING, _VENDOR_CODE, _COMPATIBLE, _PROPERTIES = 0xEE, 0x51, 4, 5
_NUMBER_TYPE = 4
"""Descriptors for Microsoft's systems (OS Descriptors 1.0): the string that leads to them, the request for them."""


def descriptors(
    *,
    product: int,
    serial: int,
    configuration: int,
    hid: int,
    report: bytes,
    boot: tuple[int, int],
    size: int,
    interval: int,
) -> dict[int, tuple[bytes, bytes]]:
    """The descriptors of the device and of its configuration, by speed.

    Numbers of strings; ``hid`` is a version in BCD; ``interval`` at high speed: 2 ** (n - 1) microframes.
    """
    interface = bytes((9, 4, 0, 0, 1, 3, *boot, 0))
    kind = bytes((9, 0x21, hid & 0xFF, hid >> 8, 0, 1, _REPORT_DESCRIPTOR, len(report) & 0xFF, len(report) >> 8))
    found = {}
    for speed, packet, period in ((FULL, 8, 10), (HIGH, 64, interval)):
        device = bytes((18, 1, 0, 2, 0, 0, 0, packet, 0x27, 0x06, 0x01, 0x00, 0, 0, 1, product, serial, 1))
        endpoint = bytes((7, 5, 0x80 | _ENDPOINT, 3, size, 0, period))
        head = bytes((9, 2, 34, 0, 1, 1, configuration, 0xA0, 50))
        found[speed] = (device, head + interface + kind + endpoint)
    return found


def _system_descriptor(index: int) -> bytes:
    # Raises Stall. No driver of its own; but the system may suspend the device while nobody uses it.
    if index == _COMPATIBLE:
        content, count = bytes((0, 1)).ljust(24, b"\0"), bytes((1, *bytes(7)))
    elif index == _PROPERTIES:
        name = "SelectiveSuspendEnabled\0".encode("utf-16-le")
        parts = (_NUMBER_TYPE.to_bytes(4, "little"), len(name).to_bytes(2, "little"), name, b"\4\0\0\0\1\0\0\0")
        content, count = b"".join(parts).ljust(68, b"\0"), b"\1\0"
        content = (4 + len(content)).to_bytes(4, "little") + content
    else:
        raise Stall
    length = 8 + len(count) + len(content)
    return length.to_bytes(4, "little") + bytes((0, 1, index, 0)) + count + content


class UsbHid(UsbDevice):
    """A device that reports what people do: one report for each group of events, which wait for the host."""

    type_name = "usb-hid"
    category = "Input"
    abstract = True
    strings = {
        1: "QEMU", 2: "QEMU USB Mouse", 3: "QEMU USB Tablet", 4: "QEMU USB Keyboard", 5: "42",
        6: "HID Mouse", 7: "HID Tablet", 8: "HID Keyboard", 9: "89126", 10: "28754", 11: "68284",
    }  # fmt: skip

    report_descriptor: ClassVar[bytes] = b""
    active_at_once: ClassVar[bool] = False
    """Whether it takes events before its host has asked for any."""
    has_protocols = True
    """Whether firmware can use the device without the report descriptor (the boot protocol)."""
    input_name: str = ""
    accepts: frozenset[str] = frozenset()

    usb_version = Int(2, type="uint32", name="usb_version")
    """1 is for a device that knows no high speed."""
    msos_desc = Bool(True)

    vmstate = VmState(
        listed("_waiting", kind=Raw(MAX_REPORT), maximum=_WAITING_LIMIT),
        u8("_idle", "_protocol"),
        i64("_reported_ns"),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._waiting: deque[bytes] = deque()
        self._idle, self._protocol = 0, 1
        self._reported_ns = 0

    def realize(self) -> None:
        if self.usb_version not in (1, 2):
            raise QobraError(f"Invalid usb version {self.usb_version} for usb hid device")
        self.speeds = frozenset((FULL, HIGH) if self.usb_version == 2 else (FULL,))
        self._idle_timer = self.board.clock.timer(lambda: self.endpoint_ready(_KEY, wakes=False))
        # A mouse cannot belong to a display, a keyboard to a display's first output alone.
        display, head = getattr(self, "display", None), getattr(self, "head", 0)
        console = display_console(self.board, display, head)
        self.board.input.add(self, active=self.active_at_once, console=console)

    def unrealize(self) -> None:
        self._idle_timer.cancel()
        self.board.input.remove(self)

    def device_reset(self) -> None:
        self._waiting.clear()
        self._idle, self._protocol = 0, 1

    def string(self, index: int) -> str | None:
        if index == _SYSTEM_STRING and self.msos_desc:
            return f"MSFT100{chr(_VENDOR_CODE)}"
        if index == self.by_speed[FULL][0][16]:
            return self.serial_number or self.place(self.strings[index])
        return super().string(index)

    # -- events

    def input_event(self, event: dict[str, Any]) -> None:
        """One InputEvent of the reference."""
        raise NotImplementedError

    def input_sync(self) -> None:
        """The events that belong together are there."""
        raise NotImplementedError

    def enqueue(self, report: bytes) -> None:
        """Have ``report`` wait for the host; what does not fit is lost."""
        if len(self._waiting) < _WAITING_LIMIT:
            self._waiting.append(report.ljust(MAX_REPORT, b"\0"))
        self.endpoint_ready(_KEY)

    def next_report(self) -> bytes:
        """The report that the host gets now: the oldest that waits, or how things stand."""
        raise NotImplementedError

    # -- requests

    def own_request(self, request: bytes, data: bytes) -> bytes:
        kind, code = request[0], request[1]
        if kind == _TO_HOST_VENDOR and code == _VENDOR_CODE and self.msos_desc:
            return _system_descriptor(request[4])
        if kind == _TO_HOST_INTERFACE and code == _GET_DESCRIPTOR and request[3] == _REPORT_DESCRIPTOR:
            return self.report_descriptor
        if kind == _TO_HOST_CLASS:
            if code == _REPORT:
                return self.next_report()
            if code == _IDLE:
                return bytes((self._idle,))
            if code == _PROTOCOL and self.has_protocols:
                return bytes((self._protocol,))
        if kind == _FROM_HOST_CLASS:
            if code == _SET_IDLE:
                self._idle = request[3]
                return b""
            if code == _SET_PROTOCOL and self.has_protocols:
                self._protocol = request[2]
                return b""
            if code == _SET_REPORT and self.takes_report(data):
                return b""
        raise Stall

    def takes_report(self, data: bytes) -> bool:
        """The host sends a report; whether the device knows such."""
        return False

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        if endpoint != _ENDPOINT:
            raise Stall
        now = self.board.clock.now_ns()
        due = self._idle and now >= self._reported_ns + self._idle * _IDLE_UNIT_NS
        if not self._waiting and not due:
            if self._idle:
                self._idle_timer.set(self._reported_ns + self._idle * _IDLE_UNIT_NS)
            raise Nak
        self._reported_ns = now
        return self.next_report()
