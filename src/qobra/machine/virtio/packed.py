"""Packed virtqueues (virtio 1.2, section 2.8): one ring of descriptors that both sides write."""

from __future__ import annotations

from struct import Struct

from qobra.machine.virtio.queue import (
    INDIRECT,
    NEXT,
    QUEUE_MAX,
    WRITE,
    Buffer,
    Chain,
    Queue,
    Ring,
    VirtioError,
)

# Address, length, buffer id, flags.
_DESCRIPTOR = Struct("<QIHH")
_LENGTH_ID = Struct("<IH")
_U16 = Struct("<H")
_EVENT = Struct("<HH")
_AVAIL, _USED = 1 << 7, 1 << 15
_EVENTS_ENABLE, _EVENTS_DISABLE, _EVENTS_AT = 0, 1, 2


class PackedRing(Ring):
    """The device's side of a packed queue."""

    def __init__(self, queue: Queue, event_index: bool) -> None:
        size = self._size = queue.size
        self._memory = queue.memory
        self._ring = queue.area(queue.descriptors, 16 * size, writable=True)
        self._driver_event = queue.area(queue.driver_area, 4)
        self._device_event = queue.area(queue.device_area, 4, writable=True)
        self._event_index = event_index
        self._next = 0
        self._wrap = True
        self._used = 0
        self._used_wrap = True
        self._signalled: int | None = None

    @property
    def position(self) -> list[int | None]:
        return [self._next, int(self._wrap), self._used, int(self._used_wrap), self._signalled]

    def resume(self, position: list[int | None]) -> None:
        following, wrap, used, used_wrap, signalled = position if len(position) == 5 else (None,) * 5
        if following is None or used is None or max(following, used) >= self._size:
            raise VirtioError("the position in a packed ring is not one")
        self._next, self._wrap = following, bool(wrap)
        self._used, self._used_wrap, self._signalled = used, bool(used_wrap), signalled

    def pop(self) -> Buffer | None:
        if not self._is_available(self._next, self._wrap):
            if self._event_index:
                _EVENT.pack_into(self._device_event, 0, self._next | (int(self._wrap) << 15), _EVENTS_AT)
                if not self._is_available(self._next, self._wrap):
                    return None
            else:
                return None
        buffer = self.again(self._next)
        self._next += buffer.count
        if self._next >= self._size:
            self._next -= self._size
            self._wrap = not self._wrap
        return buffer

    def again(self, start: int) -> Buffer:
        if start >= self._size:
            raise VirtioError(f"Desc index is {start}")
        chain = Chain(self._memory)
        index, count = start, 0
        while True:
            address, length, buffer_id, flags = _DESCRIPTOR.unpack_from(self._ring, 16 * index)
            count += 1
            if flags & INDIRECT:
                if count > 1 or flags & NEXT:
                    raise VirtioError("Invalid use of an indirect descriptor")
                self._walk_indirect(chain, address, length)
                break
            chain.add(address, length, bool(flags & WRITE))
            if not flags & NEXT:
                break
            if count >= self._size:
                raise VirtioError("Looped descriptor")
            index = (index + 1) % self._size
        return Buffer(buffer_id, count, chain.readable, chain.writable, start=start)

    def unpop(self, buffer: Buffer) -> None:
        self._next -= buffer.count
        if self._next < 0:
            self._next += self._size
            self._wrap = not self._wrap

    def push(self, buffer: Buffer, written: int) -> None:
        offset = 16 * self._used
        _LENGTH_ID.pack_into(self._ring, offset + 8, written, buffer.index)
        flags = (_AVAIL | _USED if self._used_wrap else 0) | (WRITE if written else 0)
        # The flags last: they hand the descriptor over.
        _U16.pack_into(self._ring, offset + 14, flags)
        self._used += buffer.count
        if self._used >= self._size:
            self._used -= self._size
            self._used_wrap = not self._used_wrap
            self._signalled = None  # positions are not comparable over the end of the ring

    def wants_interrupt(self) -> bool:
        old, self._signalled = self._signalled, self._used
        where, flags = _EVENT.unpack_from(self._driver_event, 0)
        if flags == _EVENTS_DISABLE:
            return False
        if flags == _EVENTS_ENABLE or old is None:
            return True
        event = where & 0x7FFF
        if bool(where >> 15) != self._used_wrap:
            event -= self._size
        return bool((self._used - event - 1) & 0xFFFF < (self._used - old) & 0xFFFF)

    def _is_available(self, index: int, wrap: bool) -> bool:
        flags = _U16.unpack_from(self._ring, 16 * index + 14)[0]
        return bool(flags & _AVAIL) == wrap and bool(flags & _USED) != wrap

    def _walk_indirect(self, chain: Chain, address: int, length: int) -> None:
        if not length or length % 16:
            raise VirtioError("Invalid size for indirect buffer table")
        if length // 16 > QUEUE_MAX:
            raise VirtioError("Indirect buffer table is too long")
        table = self._memory.ram(address, length)
        if table is None:
            raise VirtioError("Cannot map indirect buffer")
        for offset in range(0, length, 16):
            inner, inner_length, _id, flags = _DESCRIPTOR.unpack_from(table, offset)
            if flags & INDIRECT:
                raise VirtioError("Invalid use of an indirect descriptor")
            chain.add(inner, inner_length, bool(flags & WRITE))
