"""The UART 16550A, as PCs have it on ISA and RISC-V boards in memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.irq import Line
from qobra.machine.vmstate import Number, VmState, flag, listed, timer, u8, u16

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.machine.board import Board

_FIFO = 16
_IER_RX, _IER_TX, _IER_LINE, _IER_MODEM = 1, 2, 4, 8
_LSR_READY, _LSR_OVERRUN, _LSR_BREAK, _LSR_TX_EMPTY, _LSR_IDLE = 0x01, 0x02, 0x10, 0x20, 0x40
_MCR_RTS, _MCR_DTR, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 0x02, 0x01, 0x04, 0x08, 0x10


class Uart:
    """The registers and the two FIFOs, in front of a character device. What is sent leaves at once."""

    hotswap = True

    vmstate = VmState(
        listed("_received", kind=Number(1), maximum=_FIFO + 1),
        u8("_ier", "_lcr", "_mcr", "_scr", "_fcr", "_lsr", "_msr"),
        u16("_divider"),
        flag("_tx_pending", "_timeout"),
        timer("_timeout_timer"),
    )

    def __init__(self, board: Board, irq: Line, chardev: Chardev | None) -> None:
        self._board = board
        self._irq = irq
        self.chardev = chardev
        self._timeout_timer = board.clock.timer(self._receive_timeout)
        self.reset()
        if chardev is not None:
            chardev.attach(self)

    def close(self) -> None:
        """Let the character device go."""
        self._timeout_timer.cancel()
        if self.chardev is not None:
            self.chardev.detach()

    def reset(self) -> None:
        """As after power-on."""
        self._received: deque[int] = deque()
        self._ier = self._lcr = self._mcr = self._scr = self._fcr = 0
        self._mcr = _MCR_OUT2
        self._lsr = _LSR_TX_EMPTY | _LSR_IDLE
        self._msr = 0xB0
        self._divider = 0x0C
        self._tx_pending = self._timeout = False
        self._irq.set(0)

    # -- registers

    def read(self, offset: int, _width: int = 1) -> int:
        """A register of the eight."""
        if offset == 0:
            if self._lcr & 0x80:
                return self._divider & 0xFF
            return self._read_byte()
        if offset == 1:
            return self._divider >> 8 if self._lcr & 0x80 else self._ier
        if offset == 2:
            identity = self._interrupt()
            if identity == 0x02:
                self._tx_pending = False
                self._update()
            return identity | (0xC0 if self._fcr & 1 else 0)
        if offset == 3:
            return self._lcr
        if offset == 4:
            return self._mcr
        if offset == 5:
            value = self._lsr
            if value & (_LSR_BREAK | _LSR_OVERRUN):
                self._lsr &= ~(_LSR_BREAK | _LSR_OVERRUN)
                self._update()
            return value
        if offset == 6:
            return self._read_modem()
        return self._scr

    def write(self, offset: int, _width: int, value: int) -> None:
        """A register of the eight."""
        value &= 0xFF
        if offset == 0:
            if self._lcr & 0x80:
                self._divider = self._divider & 0xFF00 | value
            else:
                self._send(value)
        elif offset == 1:
            if self._lcr & 0x80:
                self._divider = self._divider & 0xFF | value << 8
            else:
                if value & ~self._ier & _IER_TX and self._lsr & _LSR_TX_EMPTY:
                    self._tx_pending = True
                self._ier = value & 0x0F
                self._update()
        elif offset == 2:
            self._write_fifo_control(value)
        elif offset == 3:
            broke = value & ~self._lcr & 0x40
            self._lcr = value
            if broke and self.chardev is not None:
                self.chardev.send_break()
        elif offset == 4:
            self._mcr = value & 0x1F
        elif offset == 7:
            self._scr = value

    def _read_byte(self) -> int:
        value = self._received.popleft() if self._received else 0
        if not self._received:
            self._lsr &= ~(_LSR_READY | _LSR_BREAK)
            self._timeout_timer.cancel()
        self._timeout = False
        self._update()
        if not self._mcr & _MCR_LOOP and self.chardev is not None:
            self.chardev.accept_input()
        return value

    def _send(self, value: int) -> None:
        self._tx_pending = False
        if self._mcr & _MCR_LOOP:
            self._take(bytes((value,)))
        elif self.chardev is not None:
            self.chardev.write_all(bytes((value,)))
        # Nothing waits in the transmitter: it is empty again.
        self._tx_pending = True
        self._update()

    def _write_fifo_control(self, value: int) -> None:
        if (value ^ self._fcr) & 1:
            value |= 0x06
        if value & 0x02:
            self._received.clear()
            self._lsr &= ~(_LSR_READY | _LSR_BREAK)
            self._timeout = False
            self._timeout_timer.cancel()
        if value & 0x04:
            self._lsr |= _LSR_TX_EMPTY
            self._tx_pending = True
        self._fcr = value & 0xC9
        self._update()

    def _read_modem(self) -> int:
        if not self._mcr & _MCR_LOOP:
            value, self._msr = self._msr, self._msr & 0xF0
            return value
        mcr = self._mcr
        return (mcr & 0x0C) << 4 | (mcr & _MCR_RTS) << 3 | (mcr & _MCR_DTR) << 5

    # -- interrupts

    def _interrupt(self) -> int:
        if self._ier & _IER_LINE and self._lsr & (_LSR_BREAK | _LSR_OVERRUN):
            return 0x06
        if self._ier & _IER_RX and self._timeout:
            return 0x0C
        if (
            self._ier & _IER_RX
            and self._lsr & _LSR_READY
            and (not self._fcr & 1 or len(self._received) >= self._trigger)
        ):
            return 0x04
        if self._ier & _IER_TX and self._tx_pending:
            return 0x02
        if self._ier & _IER_MODEM and self._msr & 0x0F:
            return 0x00
        return 0x01

    @property
    def _trigger(self) -> int:
        return (1, 4, 8, 14)[self._fcr >> 6]

    def _update(self) -> None:
        self._irq.set(0 if self._interrupt() & 1 else 1)

    def _receive_timeout(self) -> None:
        if self._received:
            self._timeout = True
            self._update()

    # -- front end of the character device

    def can_receive(self) -> int:
        """Room in the receiver."""
        return max(0, (_FIFO if self._fcr & 1 else 1) - len(self._received))

    def receive(self, data: bytes) -> None:
        """Bytes from the line."""
        self._board.machine.control.call(self._take, data)

    def event(self, name: str) -> None:
        """A break on the line, or a peer that came or went."""
        if name == "break":
            self._board.machine.control.call(self._take_break)

    def _take_break(self) -> None:
        self._received.append(0)
        self._lsr |= _LSR_BREAK | _LSR_READY
        self._update()

    def _take(self, data: bytes) -> None:
        for byte in data:
            if len(self._received) < (_FIFO if self._fcr & 1 else 1):
                self._received.append(byte)
            else:
                self._lsr |= _LSR_OVERRUN
        self._lsr |= _LSR_READY
        # Four characters of silence at the programmed speed, or at 9600 before it is.
        speed = 115200 // self._divider if self._divider else 9600
        self._timeout_timer.set(self._board.clock.now_ns() + 40 * 10**9 // max(speed, 1))
        self._update()


def find_chardev(board: Board, id: str | None, type_name: str, name: str = "chardev") -> Chardev | None:
    """The character device that a device's property ``name`` names; QobraError where there is none to be had."""
    if not id:
        return None
    found: Chardev | None = board.machine.chardevs.find(id)
    if found is None:
        raise QobraError(f"Property '{type_name}.{name}' can't find value '{id}'")
    if not found.available:
        raise QobraError(f"Property '{type_name}.{name}' can't take value '{id}': Device '{id}' is in use")
    return found
