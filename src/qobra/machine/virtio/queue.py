"""What both kinds of virtqueue share: buffers, the checks of descriptors, and the error that breaks a device.

Everything here reads memory that the guest may change at any moment, so each number is read once and bounded.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.vmstate import Field, Listed, Maybe, Number, VmState, flag, u16, u64

if TYPE_CHECKING:
    from qobra.machine.memory import AddressSpace

QUEUE_MAX = 1024
"""Most descriptors of a queue, and of one chain."""

NEXT, WRITE, INDIRECT = 1, 2, 4
"""Flags of a descriptor (2.7.5)."""

DESCRIPTOR = Struct("<QIHH")
"""The layout of 16 bytes that both kinds begin from: address, length, and two more fields."""

View = memoryview


class VirtioError(Exception):
    """The driver broke the rules: the device needs a reset. The text says how."""


class Buffer:
    """One chain of descriptors: ``readable`` is what the driver sends, ``writable`` where the device answers."""

    __slots__ = ("count", "index", "readable", "start", "writable")

    def __init__(
        self, index: int, count: int, readable: list[View], writable: list[View], *, start: int | None = None
    ) -> None:
        self.index = index
        self.start = index if start is None else start
        """Where the chain begins, for :meth:`Ring.again`."""
        self.count = count
        self.readable = readable
        self.writable = writable

    @property
    def writable_length(self) -> int:
        """Bytes that the device may write."""
        return sum(map(len, self.writable))

    @property
    def readable_length(self) -> int:
        """Bytes that the driver sent."""
        return sum(map(len, self.readable))

    def gather(self, limit: int | None = None) -> bytes:
        """What the driver sent, at most ``limit`` bytes of it."""
        data = b"".join(self.readable)
        return data if limit is None else data[:limit]

    def scatter(self, data: bytes | View) -> int:
        """Answer with ``data``, as much as there is room for; returns how many bytes were written."""
        position = 0
        for view in self.writable:
            part = data[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
            if position >= len(data):
                break
        return position


def split_views(views: list[View], length: int) -> tuple[list[View], list[View]]:
    """The first ``length`` bytes of ``views``, and the rest."""
    head: list[View] = []
    for i, view in enumerate(views):
        if length < len(view):
            if length:
                head.append(view[:length])
            return head, [view[length:], *views[i + 1 :]]
        head.append(view)
        length -= len(view)
    return head, []


class Chain:
    """The buffer under construction: adds descriptors one by one and checks them."""

    __slots__ = ("_memory", "count", "readable", "writable")

    def __init__(self, memory: AddressSpace) -> None:
        self._memory = memory
        self.readable: list[View] = []
        self.writable: list[View] = []
        self.count = 0

    def add(self, address: int, length: int, writable: bool) -> None:
        """A descriptor of the chain."""
        self.count += 1
        if self.count > QUEUE_MAX:
            raise VirtioError("virtio: too many descriptors in a chain")
        if not length:
            raise VirtioError("virtio: zero sized buffers are not allowed")
        view = self._memory.ram(address, length, writable=writable)
        if view is None:
            raise VirtioError("virtio: bogus descriptor or out of resources")
        if writable:
            self.writable.append(view)
        elif self.writable:
            raise VirtioError("Incorrect order for descriptors")
        else:
            self.readable.append(view)


class Queue:
    """One virtqueue, as the transport sets it up. ``size`` is 0 while the device has no such queue.

    Subclasses know where the rings are and how to walk them.
    """

    vmstate = VmState(
        u16("size", "vector"),
        flag("ready"),
        u64("descriptors", "driver_area", "device_area"),
        Field("position", Maybe(Listed(Maybe(Number(2)), 5))),
    )

    def __init__(self, memory: AddressSpace, number: int, max_size: int) -> None:
        self.memory = memory
        self.number = number
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.size = self.max_size
        self.ready = False
        self.vector = 0xFFFF
        self.descriptors = 0
        self.driver_area = 0
        self.device_area = 0
        self.ring: Ring | None = None

    @property
    def position(self) -> list[int | None] | None:
        """How far the ring was walked, or None while it is not in use."""
        return self.ring.position if self.ring is not None else None

    @position.setter
    def position(self, value: list[int | None] | None) -> None:
        self.ring, self._loaded_position = None, value

    _loaded_position: list[int | None] | None = None

    def resume(self, *, packed: bool, event_index: bool) -> None:
        """The state was loaded: walk on from there. Raises QobraError where that cannot be."""
        if self.size > max(self.max_size, QUEUE_MAX):
            raise QobraError(f"VQ {self.number} size {self.size:#x} is more than {self.max_size:#x}")
        if self._loaded_position is None:
            return
        try:
            self.activate(packed=packed, event_index=event_index).resume(self._loaded_position)
        except VirtioError as error:
            raise QobraError(str(error))

    def activate(self, *, packed: bool, event_index: bool) -> Ring:
        """The ring to work on, looked up in guest memory when it is first needed. Raises VirtioError."""
        if self.ring is None:
            if packed:
                from qobra.machine.virtio.packed import PackedRing

                self.ring = PackedRing(self, event_index)
            else:
                from qobra.machine.virtio.split import SplitRing

                self.ring = SplitRing(self, event_index)
        return self.ring

    def area(self, address: int, length: int, *, writable: bool = False) -> View:
        """A part of guest memory that belongs to the queue."""
        view = self.memory.ram(address, length, writable=writable)
        if view is None:
            raise VirtioError(f"Cannot map queue {self.number}")
        return view


def held_places(held: list[tuple[Queue, Buffer]]) -> list[tuple[int, int]]:
    """Buffers that a device holds, as state: the number of the queue, and where the chain begins."""
    return [(queue.number, buffer.start) for queue, buffer in held]


def held_again(queues: list[Queue], places: list[tuple[int, int]]) -> list[tuple[Queue, Buffer]]:
    """The reverse of :func:`held_places`, once the queues are in use again. Raises QobraError."""
    held: list[tuple[Queue, Buffer]] = []
    for number, start in places:
        queue = queues[number] if number < len(queues) else None
        if queue is None or queue.ring is None:
            raise QobraError(f"a request is held of queue {number}, which is not in use")
        try:
            held.append((queue, queue.ring.again(start)))
        except VirtioError as error:
            raise QobraError(str(error))
    return held


class Ring:
    """The way of walking a queue that the driver has chosen."""

    @property
    def position(self) -> list[int | None]:
        """How far the ring was walked."""
        raise NotImplementedError

    def resume(self, position: list[int | None]) -> None:
        """Walk on from ``position``. Raises VirtioError where there is no such."""
        raise NotImplementedError

    def pop(self) -> Buffer | None:
        """The next buffer that the driver made available, or None. Raises VirtioError."""
        raise NotImplementedError

    def push(self, buffer: Buffer, written: int) -> None:
        """Give ``buffer`` back with ``written`` bytes in it."""
        raise NotImplementedError

    def wants_interrupt(self) -> bool:
        """Whether the driver asked to be told of what was pushed since the last call."""
        raise NotImplementedError

    def again(self, start: int) -> Buffer:
        """The buffer that begins at ``start`` and was popped before, by another machine. Raises VirtioError."""
        raise NotImplementedError

    def unpop(self, buffer: Buffer) -> None:
        """Take back the last pop: the buffer is used later."""
        raise NotImplementedError
