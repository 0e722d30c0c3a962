"""Interrupters: each fills a ring of events for the guest, and interrupts it (xHCI 1.1, 4.9.4, 4.17, 5.5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.usb.xhci import ring
from qobra.machine.vmstate import Raw, VmState, listed, u8, u32, u64

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory

MANAGEMENT, MODERATION, TABLE_SIZE, TABLE, DEQUEUE = 0x00, 0x04, 0x08, 0x10, 0x18
_PENDING, _ENABLE = 0x1, 0x2
_BUSY, _SEGMENT_INDEX = 0x8, 0x7
_MIN_EVENTS, _MAX_EVENTS = 16, 4096
_MAX_WAITING = 8192
_LOW, _HIGH = 0xFFFFFFFF, 0xFFFFFFFF00000000


class Interrupter:
    """One of several. ``signal(new)`` is called when the guest may want an interrupt, ``new`` if it has just become
    pending; ``broken()`` for a ring that is none. What the guest writes to IMOD is kept, but no interrupt is delayed by
    it: while EHB is set there is none anyway.

    Events for which there is no room wait; nobody produces more of them as long as any do (:attr:`full`), until
    ``drained()`` is called.
    """

    vmstate = VmState(
        u32("management", "moderation", "_table_size", "_length", "_enqueue"),
        u64("_table", "_dequeue", "_segment"),
        u8("_cycle", maximum=1),
        listed("_waiting", kind=Raw(ring.TRB_SIZE), maximum=_MAX_WAITING),
    )

    def __init__(
        self,
        memory: GuestMemory,
        signal: Callable[[bool], None],
        drained: Callable[[], None],
        broken: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._signal = signal
        self._drained = drained
        self._broken = broken
        self.reset()

    def reset(self) -> None:
        """No ring."""
        self.management = self.moderation = 0
        self._table_size = self._table = self._dequeue = 0
        self._segment = self._length = self._enqueue = 0
        self._cycle = 1
        self._waiting: deque[bytes] = deque()

    @property
    def full(self) -> bool:
        """Whether events wait for room."""
        return bool(self._waiting)

    @property
    def wanted(self) -> bool:
        """Whether an interrupt is pending, and the guest wants it."""
        return self.management & (_PENDING | _ENABLE) == _PENDING | _ENABLE

    def taken(self) -> None:
        """The interrupt was sent as a message."""
        self.management &= ~_PENDING

    # -- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        wide = {TABLE: self._table, DEQUEUE: self._dequeue}.get(offset & ~4)
        if wide is not None:
            return wide >> (32 if offset & 4 else 0) & _LOW
        return {MANAGEMENT: self.management, MODERATION: self.moderation, TABLE_SIZE: self._table_size}.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write it."""
        if offset == MANAGEMENT:
            self.management = self.management & ~(value & _PENDING) & ~_ENABLE | value & _ENABLE
            self._signal(False)
        elif offset == MODERATION:
            self.moderation = value
        elif offset == TABLE_SIZE:
            self._table_size = value & 0xFFFF
        elif offset == TABLE:
            self._table = self._table & _HIGH | value & 0xFFFFFFC0
        elif offset == TABLE + 4:
            self._table = self._table & _LOW | value << 32
            self._begin()
        elif offset == DEQUEUE:
            busy = self._dequeue & _BUSY & ~value
            self._dequeue = self._dequeue & _HIGH | value & ~_BUSY | busy
            self._consumed()
        elif offset == DEQUEUE + 4:
            self._dequeue = self._dequeue & _LOW | value << 32
            self._consumed()

    def _begin(self) -> None:
        self._length = self._enqueue = 0
        self._cycle = 1
        self._waiting.clear()
        if not self._table_size:
            return
        segment, size = self._memory.number(self._table, 8) & ~0x3F, self._memory.number(self._table + 8, 2)
        # The capabilities say that a table has one segment.
        if self._table_size > 1 or not _MIN_EVENTS <= size <= _MAX_EVENTS:
            self._broken()
            return
        self._segment, self._length = segment, size

    def _consumed(self) -> None:
        at = self._guest_index()
        if at is None:
            return
        was_full = self.full
        while self._waiting and self._room(at) >= 2:
            self._put(self._waiting.popleft())
        if self._waiting:
            self._tell_full(at)
        if at != self._enqueue:
            self._raise()
        if was_full and not self.full:
            self._drained()

    # -- events

    def post(self, kind: int, parameter: int, status: int, control: int, *, quietly: bool = False) -> None:
        """Tell the guest of something; ``quietly``: the next event is to interrupt it, not this one."""
        if not self._length:
            return
        event = ring.WORDS.pack(parameter, status, control & ~(ring.CYCLE | 0x3F << 10) | kind << 10)
        at = self._guest_index()
        if at is None:
            self._broken()
            return
        if self._waiting or self._room(at) < 2:
            if not self._waiting:
                self._tell_full(at)
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append(event)
        else:
            self._put(event)
        if not quietly:
            self._raise()

    def _guest_index(self) -> int | None:
        # Up to where the guest has read; None while it says that it is elsewhere.
        index = ((self._dequeue & ~0xF) - self._segment) // ring.TRB_SIZE
        return index if 0 <= index < self._length else None

    def _room(self, guest: int) -> int:
        return (guest - self._enqueue - 1) % self._length

    def _tell_full(self, guest: int) -> None:
        # The last place of the ring is for this.
        if self._room(guest) == 1:
            event = (0, ring.EVENT_RING_FULL << 24, ring.HOST_CONTROLLER << 10)
            self._put(ring.WORDS.pack(*event))

    def _put(self, event: bytes) -> None:
        at = self._segment + self._enqueue * ring.TRB_SIZE
        # The cycle bit is what the guest waits for: it comes last.
        self._memory.write(at, event[:12])
        self._memory.write(at + 12, bytes((event[12] & ~ring.CYCLE | self._cycle,)) + event[13:])
        self._enqueue += 1
        if self._enqueue == self._length:
            self._enqueue = 0
            self._cycle ^= 1

    def _raise(self) -> None:
        if not self._dequeue & _BUSY:
            self._dequeue |= _BUSY
            self.management |= _PENDING
            self._signal(True)
