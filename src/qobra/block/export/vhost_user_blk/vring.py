"""A split virtqueue in shared memory, from the device's side (virtio 1.1, section 2.6)."""

from __future__ import annotations

import errno
import threading
from struct import Struct
from typing import NamedTuple

from qobra.block.export.vhost_user_blk.memory import Memory
from qobra.errors import QobraError

DESCRIPTOR = Struct("<QIHH")  # address, length, flags, next
USED_ELEMENT = Struct("<II")  # head, bytes written
U16 = Struct("<H")

F_NEXT = 1
F_WRITE = 2
F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

MAX_SIZE = 32768
MAX_SEGMENTS = 1024
"""Descriptors that one request may be made of."""


class Chain(NamedTuple):
    """One request: ``head`` identifies it, ``out`` is to be read, ``into`` to be written, in order."""

    head: int
    out: list[memoryview]
    into: list[memoryview]


class Vring:
    """The ring at three places in ``memory``. Raises QobraError from anywhere where the driver broke the rules."""

    def __init__(
        self, memory: Memory, size: int, descriptors: int, available: int, used: int, base: int, *, event_idx: bool
    ) -> None:
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise QobraError(f"vhost-user: queue of {size} descriptors", errno=errno.EPROTO)
        self.memory = memory
        self._size = size
        self._descriptors = memory.user(descriptors, DESCRIPTOR.size * size)
        self._available = memory.user(available, 4 + 2 * size + 2 * event_idx)
        self._used = memory.user(used, 4 + USED_ELEMENT.size * size + 2 * event_idx)
        self._event_idx = event_idx
        self.next = base
        """Count (modulo 65536) of the requests taken so far."""
        (self._used_count,) = U16.unpack_from(self._used, 2)
        self._signalled = self._used_count
        self._lock = threading.Lock()

    def take(self) -> Chain | None:
        """The next request, or None."""
        (available,) = U16.unpack_from(self._available, 2)
        waiting = (available - self.next) & 0xFFFF
        if not waiting:
            return None
        if waiting > self._size:
            raise QobraError("vhost-user: more requests than the queue holds", errno=errno.EPROTO)
        (head,) = U16.unpack_from(self._available, 4 + 2 * (self.next & (self._size - 1)))
        self.next = (self.next + 1) & 0xFFFF
        return self._chain(head)

    def expect_kicks(self, wanted: bool) -> None:
        """Ask the driver to say when it adds requests, or to save itself the trouble.

        After asking, :meth:`take` has to be tried once more: something may have come before.
        """
        if self._event_idx:
            if wanted:
                U16.pack_into(self._used, 4 + USED_ELEMENT.size * self._size, self.next)
        else:
            U16.pack_into(self._used, 0, 0 if wanted else USED_F_NO_NOTIFY)
        if wanted:
            self._fence()

    def put(self, head: int, written: int) -> None:
        """A request is done; ``written`` bytes of its memory were written."""
        slot = self._used_count & (self._size - 1)
        USED_ELEMENT.pack_into(self._used, 4 + USED_ELEMENT.size * slot, head, written)
        self._used_count = (self._used_count + 1) & 0xFFFF
        U16.pack_into(self._used, 2, self._used_count)

    def should_signal(self) -> bool:
        """Whether the driver wants to be told of what was put since this was last asked."""
        old, self._signalled = self._signalled, self._used_count
        if old == self._used_count:
            return False
        self._fence()
        if not self._event_idx:
            return not U16.unpack_from(self._available, 0)[0] & AVAIL_F_NO_INTERRUPT
        (event,) = U16.unpack_from(self._available, 4 + 2 * self._size)
        return bool((self._used_count - event - 1) & 0xFFFF < (self._used_count - old) & 0xFFFF)

    def _fence(self) -> None:
        """Have what we wrote seen before we look at what the driver wrote: each side may be about to fall asleep."""
        with self._lock:  # an atomic instruction, which is a full barrier
            pass

    def _chain(self, head: int) -> Chain:
        table, size, index = self._descriptors, self._size, head
        out: list[memoryview] = []
        into: list[memoryview] = []
        indirect = False
        count = 0
        while True:
            if index >= size:
                raise QobraError(f"vhost-user: descriptor {index} of {size}", errno=errno.EPROTO)
            address, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            if flags & F_INDIRECT:
                entries, odd = divmod(length, DESCRIPTOR.size)
                if indirect or odd or not 0 < entries <= MAX_SEGMENTS or flags & F_NEXT:
                    raise QobraError("vhost-user: malformed indirect descriptor", errno=errno.EPROTO)
                # A copy: the driver must not change it under us.
                table, size, index = memoryview(bytes(self.memory.guest(address, length))), entries, 0
                indirect = True
                continue
            count += 1
            if count > MAX_SEGMENTS:
                raise QobraError("vhost-user: descriptors in a loop", errno=errno.EPROTO)
            if length:
                view = self.memory.guest(address, length)
                if flags & F_WRITE:
                    into.append(view)
                elif into:
                    raise QobraError("vhost-user: readable after writable descriptors", errno=errno.EPROTO)
                else:
                    out.append(view)
            if not flags & F_NEXT:
                return Chain(head, out, into)
            index = following
