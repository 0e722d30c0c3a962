"""What every USB device does: the control pipe with its standard requests (USB 2.0, chapter 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qobra.errors import QobraError
from qobra.machine.qdev import Device
from qobra.machine.vmstate import Field, NumberSet, VmState, raw, u8
from qobra.object.property import Bool, String

if TYPE_CHECKING:
    from qobra.machine.usb.bus import UsbPort
    from qobra.object.tree import ObjectTree

LOW, FULL, HIGH, SUPER = range(4)
SPEED_NAMES = ("low", "full", "high", "super")
SPEED_MBIT = ("1.5", "12", "480", "5000")
"""What users are told of a speed, in Mbit/s."""

SETUP, IN, OUT = 0x2D, 0x69, 0xE1
"""Packet identifiers."""

MAX_CONTROL = 4096
_TO_HOST = 0x80
_GET_STATUS, _CLEAR_FEATURE, _SET_FEATURE, _SET_ADDRESS = 0x00, 0x01, 0x03, 0x05
_GET_DESCRIPTOR, _GET_CONFIGURATION, _SET_CONFIGURATION = 0x06, 0x08, 0x09
_GET_INTERFACE, _SET_INTERFACE = 0x0A, 0x0B
_DEVICE, _CONFIGURATION, _STRING, _QUALIFIER, _OTHER_SPEED, _OBJECTS = 1, 2, 3, 6, 7, 15
_POWER_MANAGEMENT_EXTENSION = bytes((7, 0x10, 2, 2, 0, 0, 0))
"""The capability of links to sleep lightly."""
_REMOTE_WAKEUP = 1
_IDLE, _DATA, _STATUS = range(3)
_MAX_CONTROL = 0xFFFF


class Nak(Exception):
    """The device has nothing to say yet: the host is to ask again."""


class Stall(Exception):
    """The device refuses; on the control pipe until the next request, on another until the host clears it."""


def _super_speed(speeds: frozenset[int]) -> bytes:
    # The capability: which speeds there are, all functions from the lowest on; microseconds to wake.
    return bytes((10, 0x10, 3, 0, sum(1 << speed for speed in speeds), 0, min(speeds), 10, 32, 0))


class UsbDevice(Device):
    """A device. Models give their descriptors and serve their own requests and endpoints.

    An endpoint that has nothing to say raises Nak; once it has, the device calls :meth:`endpoint_ready`. So no packet
    is ever under way: controllers ask again, and what is going on inside the device is its own state.
    """

    type_name = "usb-device"
    abstract = True
    bus_type = "usb-bus"
    product = ""

    port = String(type="str")
    serial_number = String(type="str", name="serial")
    attached_property = Bool(name="attached", get=lambda self: self.attached, writable=False, show_default=False)
    speeds: frozenset[int] = frozenset((FULL,))
    """What it can work at."""

    device_descriptor = b""
    configuration_descriptor = b""
    by_speed: ClassVar[dict[int, tuple[bytes, bytes]]] = {}
    """Both descriptors for each speed, where a device has several; they stand before those above."""
    strings: dict[int, str] = {}

    vmstate = VmState(
        u8("address", "configuration"),
        u8("_wakeup", maximum=1),
        u8("_stage", maximum=_STATUS),
        raw("_request", maximum=8),
        raw("_reply", "_control_data", maximum=_MAX_CONTROL),
        Field("_halted", NumberSet(256)),
        partial=True,
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.at: UsbPort | None = None
        """The port that is its."""
        self.speed = FULL
        self.stream = 0
        self.address = 0
        self.configuration = 0
        self._wakeup = 0
        self._stage = _IDLE
        self._request = b""
        self._reply = b""
        self._control_data = bytearray()
        self._halted: set[int] = set()

    @property
    def attaches_itself(self) -> bool:
        """Whether it is plugged in as soon as it is there."""
        return True

    @property
    def attached(self) -> bool:
        """Whether it is plugged into its port."""
        return self.at is not None and self.at.device is self

    def find(self, address: int) -> UsbDevice | None:
        """The device that the host has given an address: this one, or one behind it."""
        return self if self.address == address else None

    def endpoint_ready(self, endpoint: int, *, wakes: bool = True) -> None:
        """An endpoint (with 0x80: to the host) that had no answer may have one now.

        ``wakes``: that is an event for which a host that sleeps wants to be woken.
        """
        if not self.attached:
            return
        assert self.at is not None
        bus: Any = self.bus
        if wakes and self._wakeup:
            self.at.owner.wakeup(self.at)
        bus.endpoint_ready(self, endpoint)

    def state_loaded(self) -> None:
        super().state_loaded()
        if self._stage != _IDLE and len(self._request) < 8:
            raise QobraError("a control transfer goes on that has not begun")

    def reset(self) -> None:
        """The host resets the port, or the machine is reset."""
        self.address = self.configuration = self._wakeup = 0
        self._stage = _IDLE
        self._halted.clear()
        self.device_reset()

    # -- packets

    def packet(self, pid: int, endpoint: int, data: bytes, room: int, stream: int = 0) -> bytes:
        """One packet: ``data`` from the host (SETUP, OUT), at most ``room`` bytes to it (IN). Raises Nak or Stall.

        ``stream`` is for endpoints that have such (USB 3.0, 4.4.6.4): who has looks at :attr:`stream`.
        """
        if endpoint == 0:
            return self._control(pid, data, room)
        key = endpoint | (_TO_HOST if pid == IN else 0)
        self.stream = stream
        if not self.configuration or key in self._halted:
            raise Stall
        try:
            if pid == IN:
                return self.endpoint_in(endpoint, room)[:room]
            self.endpoint_out(endpoint, data)
            return b""
        except Stall:
            self._halted.add(key)
            raise

    def _control(self, pid: int, data: bytes, room: int) -> bytes:
        if pid == SETUP:
            return self._set_up(data)
        if self._stage == _DATA:
            if pid == IN and self._request[0] & _TO_HOST:
                part, self._reply = self._reply[:room], self._reply[room:]
                return part
            if pid == OUT and not self._request[0] & _TO_HOST:
                self._control_data += data[: self._control_length - len(self._control_data)]
                if len(self._control_data) >= self._control_length:
                    self._stage = _STATUS
                return b""
            self._stage = _STATUS  # the other direction: the host has had enough
        if self._stage == _STATUS:
            self._stage = _IDLE
            if not self._request[0] & _TO_HOST:
                self._carry_out()
            return b""
        raise Stall

    @property
    def _control_length(self) -> int:
        return int.from_bytes(self._request[6:8], "little")

    def _set_up(self, data: bytes) -> bytes:
        self._stage = _IDLE
        if len(data) != 8:
            raise Stall
        self._request, self._control_data, self._reply = data, bytearray(), b""
        if self._control_length > MAX_CONTROL:
            raise Stall
        if data[0] & _TO_HOST:
            self._reply = self._request_in(data)[: self._control_length]
        self._stage = _DATA if self._control_length else _STATUS
        return b""

    def _request_in(self, request: bytes) -> bytes:
        kind, code, value = request[0], request[1], int.from_bytes(request[2:4], "little")
        if kind == 0x80 and code == _GET_DESCRIPTOR:
            return self._descriptor(value >> 8, value & 0xFF)
        if kind == 0x80 and code == _GET_STATUS:
            return bytes((self._described[1][7] >> 6 & 1 | self._wakeup << 1, 0))
        if kind == 0x80 and code == _GET_CONFIGURATION:
            return bytes((self.configuration,))
        if kind == 0x81 and code in (_GET_STATUS, _GET_INTERFACE) and self.configuration:
            return bytes(2 if code == _GET_STATUS else 1)
        if kind == 0x82 and code == _GET_STATUS and (self.configuration or not request[4] & 0xF):
            return bytes((int(request[4] in self._halted), 0))
        return self.own_request(request, b"")

    def _carry_out(self) -> None:
        request, value = self._request, int.from_bytes(self._request[2:4], "little")
        kind, code = request[0], request[1]
        if kind == 0x00 and code == _SET_ADDRESS:
            self.address = value & 0x7F
        elif kind == 0x00 and code == _SET_CONFIGURATION and value <= 1:
            self.configuration = value
            self._halted.clear()
        elif kind == 0x02 and code == _CLEAR_FEATURE and value == 0:
            self._halted.discard(request[4])
        elif kind == 0x00 and code in (_CLEAR_FEATURE, _SET_FEATURE):
            if value == _REMOTE_WAKEUP:
                self._wakeup = int(code == _SET_FEATURE)
        elif kind == 0x01 and code == _SET_INTERFACE:
            pass
        else:
            self.own_request(request, bytes(self._control_data))

    @property
    def _described(self) -> tuple[bytes, bytes]:
        return self.by_speed.get(self.speed, (self.device_descriptor, self.configuration_descriptor))

    def _descriptor(self, kind: int, index: int) -> bytes:
        device, configuration = self._described
        if kind == _DEVICE:
            return device
        if kind == _CONFIGURATION and index == 0:
            return configuration
        if kind in (_QUALIFIER, _OTHER_SPEED) and {FULL, HIGH} <= self.speeds and self.speed <= HIGH:
            other, configuration = self.by_speed[FULL if self.speed == HIGH else HIGH]
            if kind == _QUALIFIER:
                return bytes((10, _QUALIFIER)) + other[2:8] + other[17:18] + b"\0"
            if index == 0:
                return configuration[:1] + bytes((_OTHER_SPEED,)) + configuration[2:]
        if kind == _OBJECTS and self.speeds & {HIGH, SUPER}:
            found = [_POWER_MANAGEMENT_EXTENSION, *((_super_speed(self.speeds),) if SUPER in self.speeds else ())]
            length = 5 + sum(map(len, found))
            return bytes((5, _OBJECTS, length & 0xFF, length >> 8, len(found))) + b"".join(found)
        if kind == _STRING:
            if index == 0:
                return b"\x04\x03\x09\x04"  # English
            text = self.string(index)
            if text is not None:
                encoded = text.encode("utf-16-le")[:252]
                return bytes((2 + len(encoded), _STRING)) + encoded
        raise Stall

    # -- for device models to fill in

    def string(self, index: int) -> str | None:
        """A string of the descriptors."""
        return self.strings.get(index)

    def place(self, kind: str) -> str:
        """What tells a device of a ``kind`` that has no serial number apart: where it is plugged in."""
        bus: Any = self.bus
        host = bus.owner
        return (
            f"{kind}-0000:{host.pci_bus.number:02x}:{host.slot:02x}.{host.function:x}-{self.at.path if self.at else ''}"
        )

    def device_reset(self) -> None:
        """Drop what is going on."""

    def own_request(self, request: bytes, data: bytes) -> bytes:
        """A request that is not standard. Raises Stall."""
        raise Stall

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        """Data for the host. Raises Nak or Stall."""
        raise Stall

    def endpoint_out(self, endpoint: int, data: bytes) -> None:
        """Data from the host. Raises Nak or Stall."""
        raise Stall
