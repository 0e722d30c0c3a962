"""``smbus-ipmi``: a management controller on the System Management Bus (SSIF: IPMI 2.0, section 12)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.smbus import SmbusDevice
from qobra.machine.vmstate import VmState, flag, raw, u8, u32

_WRITE, _WRITE_START, _WRITE_MIDDLE, _WRITE_END = 0x02, 0x06, 0x07, 0x08
_READ, _READ_MIDDLE = 0x03, 0x09
_BLOCK = 32
_MULTIPART = b"\0\1"
_LAST_PART = 0xFF
_FIRST_LENGTH, _PART_LENGTH = _BLOCK - len(_MULTIPART), _BLOCK - 1


class _Port(ipmi.Port):
    """There is neither attention nor an interrupt on this bus."""


@registry.register("smbus-ipmi")
class SmbusIpmi(ipmi.Interface, SmbusDevice):
    """Requests and responses in blocks of 32 bytes, longer ones in several."""

    type_name = "smbus-ipmi"
    interfaces = ("ipmi-interface", "acpi-dev-aml-interface")
    kind = 4
    label = "ipmi_smbus"

    vmstate = VmState(
        raw("_request", "_response", maximum=ipmi.MAX_MESSAGE),
        raw("_shown", maximum=_BLOCK + 1),
        u32("_position", maximum=ipmi.MAX_MESSAGE),
        u8("_part", "_read_at"),
        flag("_collecting"),
    )

    def realize(self) -> None:
        self.take_controller(_Port())
        self._turn = 0
        """A response to an earlier request than this belongs to nobody."""
        self._clear()

    def _clear(self) -> None:
        self._turn += 1
        self._request, self._response, self._shown = bytearray(), bytearray(), bytearray()
        self._position = self._part = self._read_at = 0
        self._collecting = False

    # -- the bus

    def receive(self, data: bytes) -> None:
        if len(data) == 1:
            self._show(data[0])
            return
        command, block = data[0], data[2 : 2 + data[1]]
        if command in (_WRITE, _WRITE_START):
            self._request = bytearray(block)
            self._collecting = command == _WRITE_START
        elif command in (_WRITE_MIDDLE, _WRITE_END) and self._collecting:
            self._request += block[: ipmi.MAX_MESSAGE - len(self._request)]
            self._collecting = command == _WRITE_MIDDLE
        else:
            return
        if not self._collecting:
            self._hand_over()

    def send(self) -> int:
        if self._read_at >= len(self._shown):
            return 0
        self._read_at += 1
        return self._shown[self._read_at - 1]

    def _hand_over(self) -> None:
        request = bytes(self._request)
        if len(request) < 2:
            return
        self._turn += 1
        turn = self._turn
        self._response = bytearray()
        self.controller.handle(request, lambda response: self._answer(turn, response))

    def _answer(self, turn: int, response: bytes) -> None:
        if turn == self._turn:
            self._response = bytearray(response[: ipmi.MAX_MESSAGE])
            self._position = self._part = 0

    # -- reading

    def _show(self, command: int) -> None:
        block = b""
        if command == _READ:
            self._part = 0
            block = bytes(self._response)
            if len(block) > _BLOCK:
                block = _MULTIPART + block[:_FIRST_LENGTH]
            self._position = _FIRST_LENGTH if len(self._response) > _BLOCK else len(self._response)
        elif command == _READ_MIDDLE and self._position < len(self._response):
            rest = self._response[self._position :]
            part = rest[:_PART_LENGTH]
            number = _LAST_PART if len(rest) <= _PART_LENGTH else self._part
            block = bytes((number,)) + part
            self._part = self._part + 1 & 0xFF
            self._position += len(part)
        self._shown = bytearray((len(block),)) + block
        self._read_at = 0
