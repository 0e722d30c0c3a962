"""The keyboard controller style interface (IPMI 2.0, section 9): a data and a status register, byte by byte."""

from __future__ import annotations

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.vmstate import VmState, flag, raw, u8, u32

_OBF, _IBF, _ATTENTION, _COMMAND = 0x01, 0x02, 0x04, 0x08
IDLE, READ, WRITE, ERROR = 0, 1, 2, 3
_ABORT, _WRITE_START, _WRITE_END, _READ = 0x60, 0x61, 0x62, 0x68
_NO_ERROR, _ABORTED, _ILLEGAL = 0x00, 0x01, 0x02


class Kcs(ipmi.RegisterPort):
    """Its registers."""

    vmstate = VmState(
        u8("_state", maximum=ERROR),
        flag("_output_full", "_attention", "_by_command", "_last", "_aborting", "_waiting"),
        flag("_interrupts", "_output_interrupt", "_attention_interrupt"),
        u8("_output", "_input", "_error"),
        raw("_request", "_response", maximum=ipmi.MAX_MESSAGE + 1),
        u32("_position", maximum=ipmi.MAX_MESSAGE + 1),
    )

    def reset(self) -> None:
        self._turn += 1
        self._state = IDLE
        self._output_full = self._attention = self._by_command = self._last = self._aborting = self._waiting = False
        self._output_interrupt = self._attention_interrupt = False
        self._output = self._input = self._error = 0
        self._request = bytearray()
        self._response = bytearray()
        self._position = 0
        self._interrupt(0)

    # -- driven by the controller

    def set_attention(self, on: bool, interrupt: bool) -> None:
        if on == self._attention:
            return
        self._attention = on
        self._attention_interrupt = on and interrupt and self._interrupts
        self._signal()

    def _signal(self) -> None:
        self._interrupt(int(self._output_interrupt or self._attention_interrupt))

    # -- registers

    def read(self, register: int) -> int:
        """Data (0), which takes what was shown, or status (1)."""
        if register:
            status = self._state << 6
            for condition, bit in (
                (self._output_full, _OBF),
                (self._waiting, _IBF),
                (self._attention, _ATTENTION),
                (self._by_command, _COMMAND),
            ):
                status |= bit if condition else 0
            if self._attention_interrupt:
                self._attention_interrupt = False
                self._signal()
            return status
        self._output_full = self._output_interrupt = False
        self._signal()
        return self._output

    def write(self, register: int, value: int) -> None:
        """Data (0) or a command (1)."""
        if self._waiting:
            return  # the controller has not taken what was written before
        if register:
            self._command(value)
        else:
            self._data(value)

    def _show(self, value: int) -> None:
        self._output = value
        self._output_full = True
        self._output_interrupt = self._interrupts
        self._signal()

    def _command(self, value: int) -> None:
        if value == _WRITE_START:
            self._turn += 1
            self._request, self._last, self._aborting = bytearray(), False, False
            self._state = WRITE
        elif value == _WRITE_END and self._state == WRITE and not self._last:
            self._last = True
        elif value == _ABORT:
            self._turn += 1
            if self._state in (READ, WRITE):
                self._error = _ABORTED
            self._aborting = True
            self._state = ERROR
        else:
            self._fail()
            return
        self._show(0)

    def _data(self, value: int) -> None:
        if self._aborting:
            self._abort_step(value)
        elif self._state == WRITE:
            if len(self._request) <= ipmi.MAX_MESSAGE:
                self._request.append(value)
            if self._last:
                self._hand_over()
            else:
                self._show(0)
        elif self._state == READ and value == _READ:
            self._next_byte()
        else:
            self._fail()

    def _fail(self) -> None:
        self._error = _ILLEGAL
        self._state = ERROR
        self._show(0)

    def _abort_step(self, value: int) -> None:
        if self._state == READ:  # the host has the status code
            self._aborting = False
            self._error = _NO_ERROR
            self._state = IDLE if value == _READ else ERROR
            self._show(0)
        else:
            self._state = READ
            self._show(self._error)

    def _hand_over(self) -> None:
        self._waiting = True
        turn, request = self._turn, bytes(self._request)
        if len(request) > ipmi.MAX_MESSAGE:
            self._answer(turn, ipmi.failure(request, ipmi.TOO_LONG))
        else:
            self._bmc.handle(request, lambda response: self._answer(turn, response))

    def _answer(self, turn: int, response: bytes) -> None:
        if turn != self._turn or not self._waiting:
            return
        self._waiting = False
        self._response = bytearray(response[: ipmi.MAX_MESSAGE])
        self._position = 0
        self._state = READ
        self._next_byte()

    def _next_byte(self) -> None:
        if self._position < len(self._response):
            value = self._response[self._position]
            self._position += 1
            self._show(value)
        else:
            self._state = IDLE
            self._show(0)
