"""Split virtqueues (virtio 1.2, section 2.7): a descriptor table, an available ring and a used ring."""

from __future__ import annotations

from struct import Struct

from qobra.machine.virtio.queue import (
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    QUEUE_MAX,
    WRITE,
    Buffer,
    Chain,
    Queue,
    Ring,
    View,
    VirtioError,
)

_U16 = Struct("<H")
_USED_ELEMENT = Struct("<II")
_AVAIL_NO_INTERRUPT = 1


class SplitRing(Ring):
    """The device's side of a split queue."""

    def __init__(self, queue: Queue, event_index: bool) -> None:
        size = self._size = queue.size
        self._memory = queue.memory
        self._table = queue.area(queue.descriptors, 16 * size)
        self._avail = queue.area(queue.driver_area, 6 + 2 * size)
        self._used = queue.area(queue.device_area, 6 + 8 * size, writable=True)
        self._event_index = event_index
        self._last_avail = 0
        self._used_index = 0
        self._signalled: int | None = None

    @property
    def position(self) -> list[int | None]:
        return [self._last_avail, self._used_index, self._signalled]

    def resume(self, position: list[int | None]) -> None:
        available, used, signalled = position if len(position) == 3 else (None, None, None)
        if available is None or used is None:
            raise VirtioError("the position in a split ring is not one")
        if (available - used) & 0xFFFF > self._size:
            raise VirtioError(f"VQ size {self._size:#x} < last_avail_idx {available:#x} - used_idx {used:#x}")
        self._last_avail, self._used_index, self._signalled = available, used, signalled

    def pop(self) -> Buffer | None:
        available = _U16.unpack_from(self._avail, 2)[0]
        waiting = (available - self._last_avail) & 0xFFFF
        if waiting > self._size:
            raise VirtioError(f"Guest moved used index from {self._last_avail} to {available}")
        if not waiting:
            if not self._event_index:
                return None
            # Ask to be told of the next one, then look again: it may have come in between.
            _U16.pack_into(self._used, 4 + 8 * self._size, self._last_avail)
            if _U16.unpack_from(self._avail, 2)[0] == self._last_avail:
                return None
        head = _U16.unpack_from(self._avail, 4 + 2 * (self._last_avail % self._size))[0]
        self._last_avail = (self._last_avail + 1) & 0xFFFF
        return self.again(head)

    def again(self, start: int) -> Buffer:
        if start >= self._size:
            raise VirtioError(f"Guest says index {start} is available")
        chain = Chain(self._memory)
        self._walk(chain, self._table, self._size, start, indirect=False)
        return Buffer(start, 1, chain.readable, chain.writable)

    def unpop(self, buffer: Buffer) -> None:
        self._last_avail = (self._last_avail - 1) & 0xFFFF

    def push(self, buffer: Buffer, written: int) -> None:
        _USED_ELEMENT.pack_into(self._used, 4 + 8 * (self._used_index % self._size), buffer.index, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        _U16.pack_into(self._used, 2, self._used_index)

    def wants_interrupt(self) -> bool:
        old, self._signalled = self._signalled, self._used_index
        if not self._event_index:
            return not _U16.unpack_from(self._avail, 0)[0] & _AVAIL_NO_INTERRUPT
        if old is None:
            return True
        event = _U16.unpack_from(self._avail, 4 + 2 * self._size)[0]
        return bool((self._used_index - event - 1) & 0xFFFF < (self._used_index - old) & 0xFFFF)

    def _walk(self, chain: Chain, table: View, size: int, index: int, *, indirect: bool) -> None:
        for _ in range(size):
            address, length, flags, following = DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & INDIRECT:
                if indirect or flags & NEXT:
                    raise VirtioError("Invalid use of an indirect descriptor")
                if not length or length % 16:
                    raise VirtioError("Invalid size for indirect buffer table")
                if length // 16 > QUEUE_MAX * 4:
                    raise VirtioError("Indirect buffer table is too long")
                inner = self._memory.ram(address, length)
                if inner is None:
                    raise VirtioError("Cannot map indirect buffer")
                self._walk(chain, inner, length // 16, 0, indirect=True)
                return
            chain.add(address, length, bool(flags & WRITE))
            if not flags & NEXT:
                return
            if following >= size:
                raise VirtioError(f"Desc next is {following}")
            index = following
        raise VirtioError("Looped descriptor")
