"""``usb-ccid``: a reader of chip cards (USB Device Class: Smart Card CCID 1.1), with one slot, which is empty."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.usb.device import Nak, Stall, UsbDevice
from qobra.machine.vmstate import Raw, VmState, listed, raw

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_NOTICES, _ANSWERS, _MESSAGES = 1, 2, 3
_POWER_ON, _POWER_OFF, _SLOT_STATUS, _TRANSFER = 0x62, 0x63, 0x65, 0x6F
_GET_PARAMETERS, _RESET_PARAMETERS, _SET_PARAMETERS = 0x6C, 0x6D, 0x61
_DATA_BLOCK, _STATUS, _PARAMETERS = 0x80, 0x81, 0x82
_ANSWER_KINDS = {
    _POWER_ON: _DATA_BLOCK, _TRANSFER: _DATA_BLOCK, _POWER_OFF: _STATUS, _SLOT_STATUS: _STATUS,
    _GET_PARAMETERS: _PARAMETERS, _RESET_PARAMETERS: _PARAMETERS, _SET_PARAMETERS: _PARAMETERS,
}  # fmt: skip
_NO_CARD, _FAILED = 0x02, 0x40
_NOT_SUPPORTED, _NO_SUCH_SLOT, _MUTE = 0x00, 0x05, 0xFE
_HEAD = 10
_PACKET = 64
_MAX_MESSAGE = 0x10012
_MAX_ANSWERS = 16

_READER = b"".join((
    bytes((54, 0x21, 0x10, 0x01, 0, 7)),  # one slot, for cards of every voltage
    (1).to_bytes(4, "little"),  # protocol T=0
    (4000).to_bytes(4, "little"), (65536).to_bytes(4, "little"), b"\0",  # clocks in kHz
    (9600).to_bytes(4, "little"), (115200).to_bytes(4, "little"), b"\0",  # bits per second
    (254).to_bytes(4, "little"), bytes(8), (0x104FE).to_bytes(4, "little"), _MAX_MESSAGE.to_bytes(4, "little"),
    bytes((0xFF, 0xFF, 0, 0, 1, 1)),
))  # fmt: skip


@registry.register("usb-ccid")
class UsbCcid(UsbDevice):
    """The reader. Whatever is asked of a card fails, as there is none."""

    type_name = "usb-ccid"
    interfaces = ("hotplug-handler",)
    category = "Input"
    description = "a reader of chip cards, with an empty slot"
    product = "QEMU USB CCID"
    device_descriptor = bytes((18, 1, 0x10, 0x01, 0, 0, 0, 64, 0xE6, 0x08, 0x33, 0x44, 0, 0, 1, 2, 3, 1))
    configuration_descriptor = b"".join((
        bytes((9, 2, 93, 0, 1, 1, 0, 0xE0, 50)),
        bytes((9, 4, 0, 0, 3, 0x0B, 0, 0, 4)),
        _READER,
        bytes((7, 5, 0x80 | _NOTICES, 3, _PACKET, 0, 255)),
        bytes((7, 5, 0x80 | _ANSWERS, 2, _PACKET, 0, 0)),
        bytes((7, 5, _MESSAGES, 2, _PACKET, 0, 0)),
    ))  # fmt: skip
    strings = {1: "QEMU", 2: "QEMU USB CCID", 4: "CCID Interface"}

    vmstate = VmState(raw("_message", maximum=_MAX_MESSAGE), listed("_told", kind=Raw(_HEAD), maximum=_MAX_ANSWERS))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._message = bytearray()
        self._told: deque[bytes] = deque()

    def string(self, index: int) -> str | None:
        if index == 3:
            return self.serial_number or self.place("1")
        return super().string(index)

    def device_reset(self) -> None:
        self._message.clear()
        self._told.clear()

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        if endpoint == _NOTICES or (endpoint == _ANSWERS and not self._told):
            raise Nak  # no card comes or goes
        if endpoint != _ANSWERS:
            raise Stall
        answer = self._told.popleft()
        self.endpoint_ready(_MESSAGES, wakes=False)
        return answer

    def endpoint_out(self, endpoint: int, data: bytes) -> None:
        if endpoint != _MESSAGES:
            raise Stall
        if len(self._told) >= _MAX_ANSWERS:
            raise Nak
        if len(self._message) + len(data) > _MAX_MESSAGE:
            self._message.clear()
            raise Stall
        self._message += data
        if len(self._message) >= _HEAD:
            expected = _HEAD + int.from_bytes(self._message[1:5], "little")
            if len(self._message) >= expected or len(data) % _PACKET:
                self._answer(self._message[0], self._message[5], self._message[6])
                self._message.clear()
        elif len(data) % _PACKET:
            self._message.clear()
            raise Stall

    def _answer(self, kind: int, slot: int, sequence: int) -> None:
        status, error = _NO_CARD | _FAILED, _MUTE
        if slot:
            error = _NO_SUCH_SLOT
        elif kind not in _ANSWER_KINDS:
            error = _NOT_SUPPORTED
        elif _ANSWER_KINDS[kind] == _STATUS:
            status, error = _NO_CARD, 0
        head = bytes((_ANSWER_KINDS.get(kind, _STATUS), 0, 0, 0, 0, slot, sequence, status, error, 0))
        self._told.append(head)
        self.endpoint_ready(0x80 | _ANSWERS, wakes=False)
