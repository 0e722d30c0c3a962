"""The command response buffer interface of a TPM 2.0 (TCG PC Client Platform TPM Profile 1.03, section 6.4.2).

There is locality 0 alone. Commands are written to the buffer, responses are found there. It is never idle of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import Registers, RomDevice
from qobra.machine.tpm.front_end import DEVICE_ID, VENDOR_ID
from qobra.machine.vmstate import VmState, flag, raw
from qobra.tpm import messages

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.tpm.tpm import Tpm

BASE, REGISTERS_SIZE, BUFFER_SIZE = 0xFED40000, 0x80, 0xF80
BUFFER = BASE + REGISTERS_SIZE
CONTROL_AREA = BASE + 0x40

LOC_STATE, LOC_CTRL, LOC_STS, INTERFACE_ID = 0x00, 0x08, 0x0C, 0x30
REQUEST, STATUS, CANCEL, START = 0x40, 0x44, 0x48, 0x4C
COMMAND_SIZE, COMMAND_ADDRESS, RESPONSE_SIZE, RESPONSE_ADDRESS = 0x58, 0x5C, 0x64, 0x68

_NOT_ESTABLISHED, _ASSIGNED, _STATE_VALID = 0x01, 0x02, 0x80
_REQUEST_ACCESS, _RELINQUISH, _RESET_ESTABLISHMENT = 0x01, 0x02, 0x08
_GRANTED = 0x01
_READY, _GO_IDLE = 0x01, 0x02
_IDLE = 0x02
_IDENTITY = 0x00025811
"""A CRB interface of version 1, which a FIFO interface cannot be chosen instead of, for transfers of 64 bytes."""


class Crb:
    """The registers and the buffer, mapped."""

    vmstate = VmState(flag("_granted", "_idle"), raw("content"))

    def __init__(self, board: Board, backend: Tpm) -> None:
        self._backend = backend
        self._memory = RomDevice("tpm-crb-cmd", BUFFER_SIZE)
        registers = Registers("tpm-crb-mmio", REGISTERS_SIZE, self._read, self._write)
        places = ((BASE, registers), (BUFFER, self._memory))
        self._mappings = [board.memory.map(base, region, priority=1) for base, region in places]
        self.reset()

    def reset(self) -> None:
        """As after power-on, but for the buffer; what the back end was doing has ended."""
        self._granted = False
        self._idle = True

    def overwrite(self) -> None:
        """Leave nothing in the buffer."""
        self._memory.view[:] = bytes(BUFFER_SIZE)

    def close(self) -> None:
        """Take them out."""
        for mapping in self._mappings:
            mapping.remove()
        self._memory.close()

    @property
    def content(self) -> bytes:
        """The buffer."""
        return bytes(self._memory.view)

    @content.setter
    def content(self, content: bytes) -> None:
        self._memory.view[:] = content

    def _read(self, offset: int, _width: int) -> int:
        return self._register(offset & ~3) >> 8 * (offset & 3)

    def _register(self, offset: int) -> int:
        if offset == LOC_STATE:
            established = 0 if self._backend.established() else _NOT_ESTABLISHED
            return _STATE_VALID | established | (_ASSIGNED if self._granted else 0)
        if offset == STATUS:
            return _IDLE if self._idle else 0
        if offset == START:
            return int(self._backend.busy)
        return {
            LOC_STS: _GRANTED if self._granted else 0,
            INTERFACE_ID: _IDENTITY,
            INTERFACE_ID + 4: VENDOR_ID | (DEVICE_ID - 1) << 16,
            COMMAND_SIZE: BUFFER_SIZE,
            COMMAND_ADDRESS: BUFFER,
            RESPONSE_SIZE: BUFFER_SIZE,
            RESPONSE_ADDRESS: BUFFER,
        }.get(offset, 0)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == LOC_CTRL:
            if value == _REQUEST_ACCESS:
                self._granted = True
            elif value == _RELINQUISH:
                self._granted = False
            elif value == _RESET_ESTABLISHMENT:
                pass  # which locality 0 may not
        elif offset == REQUEST and value in (_READY, _GO_IDLE):
            self._idle = value == _GO_IDLE
        elif offset == CANCEL and value == 1:
            if self._backend.busy:
                self._backend.cancel()
        elif offset == START and value == 1 and self._granted and not self._backend.busy:
            content = self.content
            self._backend.execute(0, content[: messages.length(content)], self._completed)

    def _completed(self, response: bytes) -> None:
        data = response[:BUFFER_SIZE]
        self._memory.view[: len(data)] = data
