"""The block transfer interface (IPMI 2.0, section 11): whole messages through a buffer."""

from __future__ import annotations

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.vmstate import VmState, flag, raw, u8, u32

_CLEAR_WRITE, _CLEAR_READ, _TO_BMC, _TO_HOST = 0x01, 0x02, 0x04, 0x08
_ATTENTION, _HOST_BUSY, _BMC_BUSY = 0x10, 0x40, 0x80
_IRQ_ENABLE, _IRQ, _HARD_RESET = 0x01, 0x02, 0x80
_GET_CAPABILITIES = (0x18, 0x36)
_RESPONSE_SECONDS, _RETRIES = 10, 0
_MAX_LENGTH = 0xFF
_REQUEST_HEAD = 4
"""Length, network function, sequence number, command."""


class Bt(ipmi.RegisterPort):
    """Its registers."""

    vmstate = VmState(
        u8("_control", "_mask", "_sequence"),
        flag("_waiting", "_interrupts"),
        raw("_request", "_response", maximum=ipmi.MAX_MESSAGE + 2),
        u32("_position", maximum=ipmi.MAX_MESSAGE + 2),
    )

    def reset(self) -> None:
        self._turn += 1
        self._control = self._mask = self._sequence = 0
        self._waiting = False
        self._request = bytearray()
        self._response = bytearray()
        self._position = 0
        self._interrupt(0)

    # -- driven by the controller

    def set_attention(self, on: bool, interrupt: bool) -> None:
        if on == bool(self._control & _ATTENTION):
            return
        self._control ^= _ATTENTION
        if on and interrupt:
            self._raise()

    def _raise(self) -> None:
        if self._interrupts and self._mask & _IRQ_ENABLE:
            self._mask |= _IRQ
            self._interrupt(1)

    # -- registers

    def read(self, register: int) -> int:
        """Control (0), data (1) or interrupt mask (2)."""
        if register == 0:
            return self._control
        if register == 2:
            return self._mask
        if self._position >= len(self._response):
            return 0xFF
        self._position += 1
        return self._response[self._position - 1]

    def write(self, register: int, value: int) -> None:
        """Of the same registers."""
        if register == 0:
            self._write_control(value)
        elif register == 1:
            if len(self._request) < ipmi.MAX_MESSAGE + 1:
                self._request.append(value)
        else:
            self._write_mask(value)

    def _write_control(self, value: int) -> None:
        if value & _CLEAR_WRITE:
            self._request = bytearray()
        if value & _CLEAR_READ:
            self._position = 0
        if value & _TO_HOST:
            self._control &= ~_TO_HOST
        if value & _ATTENTION:
            self._control &= ~_ATTENTION
        if value & _HOST_BUSY:
            self._control ^= _HOST_BUSY
        if value & _TO_BMC and not self._waiting:
            self._hand_over()

    def _write_mask(self, value: int) -> None:
        self._mask = self._mask & ~_IRQ_ENABLE | value & _IRQ_ENABLE
        if value & _IRQ and self._mask & _IRQ:
            self._mask &= ~_IRQ
            self._interrupt(0)
        if value & _HARD_RESET:
            self.reset()
            self._mask = value & _IRQ_ENABLE

    def _hand_over(self) -> None:
        request = bytes(self._request)
        self._request = bytearray()
        if len(request) < _REQUEST_HEAD or len(request) != request[0] + 1:
            return  # no message
        self._turn += 1
        self._waiting = True
        self._control |= _BMC_BUSY
        self._sequence = request[2]
        message = request[1:2] + request[3:]
        if tuple(message[:2]) == _GET_CAPABILITIES:
            sizes = (1, _MAX_LENGTH, _MAX_LENGTH, _RESPONSE_SECONDS, _RETRIES)
            self._answer(self._turn, ipmi.failure(message, ipmi.OK) + bytes(sizes))
            return
        turn = self._turn
        self._bmc.handle(message, lambda response: self._answer(turn, response))

    def _answer(self, turn: int, response: bytes) -> None:
        if turn != self._turn or not self._waiting:
            return
        self._waiting = False
        self._control &= ~_BMC_BUSY
        if len(response) >= _MAX_LENGTH:
            response = ipmi.failure(response, ipmi.CANNOT_RETURN)
        self._response = bytearray((len(response) + 1, response[0], self._sequence)) + response[1:]
        self._position = 0
        self._control |= _TO_HOST
        self._raise()
