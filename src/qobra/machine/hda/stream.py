"""A stream of the controller: a list of buffers that is gone through again and again at the pace of its sound.

High Definition Audio 1.0a, sections 3.3.35 to 3.3.41 (registers), 3.6.3 (the list) and 3.7.1 (formats).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack
from typing import TYPE_CHECKING

from qobra.audio.sound import Form, frame_size
from qobra.machine.dma import GuestMemory
from qobra.machine.sound_pacer import SoundPacer
from qobra.machine.vmstate import VmState, flag, part, u8, u16, u32, u64

if TYPE_CHECKING:
    from qobra.machine.vclock import VirtualClock

CONTROL, NUMBER, STATUS, POSITION, LENGTH, LAST, FIFO, FORMAT, LIST, LIST_HIGH = (
    0x00, 0x02, 0x03, 0x04, 0x08, 0x0C, 0x10, 0x12, 0x18, 0x1C,
)  # fmt: skip
SIZE = 0x20
_RESET, _RUN = 0x01, 0x02
_CONTROL_MASK, _FORMAT_MASK = 0x1F, 0x7F7F
COMPLETE = 0x04
_CAUSES = 0x1C
"""Of the control register which causes may interrupt, of the status register which there are."""
_FIFO_READY, _FIFO_SIZE = 0x20, 0x100
_ENTRY, _TELLS = 16, 1
_MOST_ENTRIES = 128
"""How many buffers are gone through at once, as some may have no length."""
_BITS = {0: 8, 1: 16, 2: 32, 3: 32, 4: 32}


def form_of(number: int) -> Form:
    """What a format register says; what is reserved counts as 16 bits."""
    base = 44100 if number & 0x4000 else 48000
    rate = base * min((number >> 11 & 7) + 1, 4) // ((number >> 8 & 7) + 1)
    return Form(rate, (number & 0xF) + 1, _BITS.get(number >> 4 & 7, 16))


class Stream:
    """Stream ``index`` of the controller, which is one of the inputs or of the outputs."""

    vmstate = VmState(
        u8("_control", "_number", "_status", "_last", "_entry"),
        u32("position", "_length", "_left"),
        u16("_format"),
        u64("_list", "_address"),
        flag("_tells", "_held"),
        part("_pacer"),
    )

    def __init__(
        self,
        clock: VirtualClock,
        memory: GuestMemory,
        *,
        output: bool,
        changed: Callable[[], None],
        carry: Callable[[Stream, bytes], None],
        stopped: Callable[[Stream], None],
    ) -> None:
        """``carry`` takes what goes out over the link; ``changed`` is called when there may be an interrupt."""
        self.output = output
        self._memory = memory
        self._changed = changed
        self._carry = carry
        self._stopped = stopped
        self._pacer = SoundPacer(clock, self._due)
        self._control = 0
        self._held = False
        self.reset()

    def reset(self) -> None:
        """All registers as they begin."""
        if self._control & _RUN:
            self._stopped(self)
        self._pacer.stop()
        self._control = self._number = self._last = 0
        self._status = 0
        self.position = self._length = self._format = self._list = 0
        self._rewind()

    def _rewind(self) -> None:
        self._entry = self._left = self._address = 0
        self._tells = False
        self._pacer.forget()

    def close(self) -> None:
        """The controller is gone."""
        self._pacer.stop()

    @property
    def number(self) -> int:
        """By which number codecs know the stream."""
        return self._number >> 4

    @property
    def form(self) -> Form:
        """The form of its sound."""
        return form_of(self._format)

    @property
    def interrupts(self) -> bool:
        """Whether something that may interrupt has happened."""
        return bool(self._status & self._control & _CAUSES)

    def registers(self) -> bytes:
        """All of them, as they lie in memory."""
        found = bytes((self._control, 0, self._number, self._status | _FIFO_READY))
        found += self.position.to_bytes(4, "little") + self._length.to_bytes(4, "little") + bytes((self._last, 0, 0, 0))
        found += _FIFO_SIZE.to_bytes(2, "little") + self._format.to_bytes(2, "little") + bytes(4)
        return found + self._list.to_bytes(8, "little")

    def write(self, offset: int, value: int) -> None:
        """The guest writes a byte of a register."""
        if offset == CONTROL:
            self._set_control(value & _CONTROL_MASK)
        elif offset == NUMBER:
            if self._control & _RUN and value != self._number:
                self._stopped(self)  # for those who knew it by the number before
            self._number = value
        elif offset == STATUS:
            self._status &= ~(value & _CAUSES)
            self._changed()
        elif LENGTH <= offset < LENGTH + 4:
            self._length = _with_byte(self._length, offset - LENGTH, value)
        elif offset == LAST:
            self._last = value
        elif FORMAT <= offset < FORMAT + 2:
            self.catch_up()
            self._pacer.start()
            self._format = _with_byte(self._format, offset - FORMAT, value) & _FORMAT_MASK
        elif LIST <= offset < LIST + 8:
            self._list = _with_byte(self._list, offset - LIST, value) & ~0x7F

    def _set_control(self, value: int) -> None:
        ran = bool(self._control & _RUN)
        if value & _RESET:
            self.reset()
            self._control = _RESET
            self._changed()
            return
        if ran and not value & _RUN:
            self.catch_up()
        self._control = value
        if value & _RUN and not ran:
            self._rewind()
            self._pacer.start()
            if not self._held:
                self._arm()
        elif ran and not value & _RUN:
            self._pacer.stop()
            self._stopped(self)
        self._changed()

    # -- moving sound

    @property
    def _pace(self) -> int:
        """Bytes a second."""
        form = self.form
        return form.rate * frame_size(form)

    def _due(self) -> None:
        self._move()
        self._arm()

    def _arm(self) -> None:
        self._pacer.arm(self._left, self._pace)

    def catch_up(self) -> None:
        """Have moved what is due by now."""
        if self._control & _RUN and not self._held:
            self._move()

    def hold(self, held: bool) -> None:
        """Stand still, or go on, so that several streams start at the same time (section 3.3.21)."""
        if held == self._held:
            return
        self.catch_up()
        self._held = held
        self._pacer.stop()
        if not held and self._control & _RUN:
            self._pacer.start()
            self._arm()

    def _move(self) -> None:
        """Move what is due."""
        size = frame_size(self.form)
        count = self._pacer.take(self._pace, size)
        data = bytearray()
        told = False
        for _ in range(_MOST_ENTRIES):
            if count <= 0 or not self._length:
                break
            if not self._left:
                self._next_entry()
            piece = min(count, self._left, max(self._length - self.position, 0))
            if self.output:
                data += self._memory.read(self._address, piece)
            else:
                self._memory.write(self._address, bytes(piece))
            self._address = (self._address + piece) % (1 << 64)
            self._left -= piece
            count -= piece
            self.position += piece
            if self.position >= self._length:
                self.position = 0
            if not self._left:
                told = told or self._tells
                self._entry = 0 if self._entry >= self._last else self._entry + 1
        if data:
            self._carry(self, bytes(data[: len(data) // size * size]))
        if told:
            self._status |= COMPLETE
            self._changed()

    def _next_entry(self) -> None:
        entry = self._memory.read((self._list + _ENTRY * self._entry) % (1 << 64), _ENTRY)
        self._address, self._left, flags = unpack("<QII", entry)
        self._tells = bool(flags & _TELLS)


def _with_byte(number: int, position: int, value: int) -> int:
    return number & ~(0xFF << 8 * position) | value << 8 * position
