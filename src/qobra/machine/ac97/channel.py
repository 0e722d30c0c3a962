"""A bus master: up to 32 buffers in a ring, moved at the pace of their sound.

Intel's 82801AA datasheet (290655), section 13.2, "AC '97 Audio Controller, bus mastering registers".
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack
from typing import TYPE_CHECKING

from qobra.machine.sound_pacer import SoundPacer
from qobra.machine.vmstate import VmState, flag, part, u8, u16, u32

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.vclock import VirtualClock

SIZE = 0x10
_LIST, _CURRENT, _LAST, _STATUS, _LEFT, _NEXT, _CONTROL = 0x0, 0x4, 0x5, 0x6, 0x8, 0xA, 0xB
_BUFFERS = 32
_HALTED, _AT_LAST, _LAST_DONE, _BUFFER_DONE, _FIFO_ERROR = 0x01, 0x02, 0x04, 0x08, 0x10
_TAKEN_BACK = _LAST_DONE | _BUFFER_DONE | _FIFO_ERROR
_RUN, _RESET, _CONTROL_MASK = 0x01, 0x02, 0x1D
_SAMPLE, _FRAME = 2, 4
"""Bytes of a sample, and of one for each of two channels."""
_MOST_BUFFERS = 64
"""How many buffers are gone through at once, as some may have no length."""


class Channel:
    """One of the bus masters, which writes to memory unless it is an ``output``."""

    vmstate = VmState(
        u8("_current", "_last", "_next", maximum=_BUFFERS - 1),
        u8("_status", "_control"),
        u16("_left"),
        u32("_list", "_address"),
        flag("_tells"),
        part("_pacer"),
    )

    def __init__(
        self,
        clock: VirtualClock,
        memory: GuestMemory,
        *,
        output: bool,
        pace: Callable[[], int],
        carry: Callable[[bytes], None],
        changed: Callable[[], None],
        stopped: Callable[[], None],
    ) -> None:
        """``pace`` says how many bytes a second move, ``carry`` takes what goes out."""
        self._memory = memory
        self._output = output
        self.pace = pace
        self._carry = carry
        self._changed = changed
        self._stopped = stopped
        self._pacer = SoundPacer(clock, self._due)
        self._control = 0
        self.reset()

    def reset(self) -> None:
        """Everything as it begins, but for what may interrupt."""
        self._pacer.stop()
        self._pacer.forget()
        self._list = self._current = self._last = self._next = self._left = self._address = 0
        self._tells = False
        self._status = _HALTED
        self._control &= _CONTROL_MASK & ~_RUN
        self._stopped()

    def close(self) -> None:
        """The controller is gone."""
        self._pacer.stop()

    def power_on(self) -> None:
        """A reset of the whole controller."""
        self._control = 0
        self.reset()

    @property
    def interrupts(self) -> bool:
        """Whether something that may interrupt has happened: bits 2 to 4 of the control register say what may."""
        asks = (self._status & _BUFFER_DONE) << 1 | (self._status & _FIFO_ERROR) >> 1 | self._status & _LAST_DONE
        return bool(asks & self._control)

    def registers(self) -> bytes:
        """All of them, as they lie in the guest's ports."""
        self.catch_up()
        found = (
            self._list.to_bytes(4, "little") + bytes((self._current, self._last)) + self._status.to_bytes(2, "little")
        )
        return found + self._left.to_bytes(2, "little") + bytes((self._next, self._control)) + bytes(4)

    def write(self, offset: int, value: int) -> None:
        """The guest writes a byte of a register."""
        if offset < _LIST + 4:
            shift = 8 * (offset - _LIST)
            self._list = (self._list & ~(0xFF << shift) | value << shift) & ~3
        elif offset == _LAST:
            self._last = value % _BUFFERS
            if self._control & _RUN and self._status & _AT_LAST:
                self._status &= ~(_HALTED | _AT_LAST)
                self._go_on()
        elif offset == _STATUS:
            self._status &= ~(value & _TAKEN_BACK)
        elif offset == _CONTROL:
            self._set_control(value)
        self._changed()

    def _set_control(self, value: int) -> None:
        ran = bool(self._control & _RUN)
        if value & _RESET:
            if not ran:
                self.reset()
            return
        if ran and not value & _RUN:
            self.catch_up()
            self._status |= _HALTED
            self._pacer.stop()
            self._stopped()
        self._control = value & _CONTROL_MASK
        if value & _RUN and not ran:
            self._status &= ~_HALTED
            self._go_on()

    def _go_on(self) -> None:
        if not self._left:
            self._next_buffer()
        self._pacer.start()
        self._arm()

    # -- moving sound

    def change_pace(self) -> None:
        """There is another pace from now on; what was due before has moved."""
        self._pacer.start()

    @property
    def _moves(self) -> bool:
        return bool(self._control & _RUN and not self._status & _HALTED)

    def _due(self) -> None:
        self.catch_up()
        if self._moves:
            self._arm()

    def _arm(self) -> None:
        self._pacer.arm(self._left * _SAMPLE, self.pace())

    def catch_up(self) -> None:
        """Move what is due by now."""
        if not self._moves:
            return
        count = self._pacer.take(self.pace(), _FRAME)
        data = bytearray()
        for _ in range(_MOST_BUFFERS):
            if count <= 0 or not self._moves:
                break
            piece = min(count, self._left * _SAMPLE)
            if self._output:
                data += self._memory.read(self._address, piece)
            else:
                self._memory.write(self._address, bytes(piece))
            self._address = (self._address + piece) & 0xFFFFFFFF
            self._left -= piece // _SAMPLE
            count -= piece
            if not self._left:
                self._buffer_done()
        if data:
            self._carry(bytes(data[: len(data) // _FRAME * _FRAME]))
        if not self._moves:
            self._stopped()
        self._changed()

    def _buffer_done(self) -> None:
        if self._tells:
            self._status |= _BUFFER_DONE
        if self._current == self._last:
            self._status |= _LAST_DONE | _AT_LAST | _HALTED
        else:
            self._next_buffer()

    def _next_buffer(self) -> None:
        self._current, self._next = self._next, (self._next + 1) % _BUFFERS
        address, length = unpack("<II", self._memory.read(self._list + 8 * self._current & 0xFFFFFFFF, 8))
        self._address, self._left, self._tells = address & ~1, length & 0xFFFF, bool(length >> 31)
