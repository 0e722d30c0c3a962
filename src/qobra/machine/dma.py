"""How a bus master reaches guest memory: RAM only, so that no device can be made to drive itself or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qobra.machine.memory import AddressSpace

_PAGE = 4096
_TOP = 1 << 64


class GuestMemory:
    """The memory that a device reads and writes on its own. Called inside the control strand.

    ``allowed`` says whether the guest lets the device at memory. What is not RAM, and everything while it is not
    allowed, reads as zeroes and takes no writes.
    """

    def __init__(self, space: AddressSpace, allowed: Callable[[], bool] | None = None) -> None:
        self._space = space
        self._allowed = allowed

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from ``address``; the caller bounds the length."""
        if self._allowed is not None and not self._allowed():
            return bytes(length)
        view = self._space.ram(address, length)
        if view is not None:
            return bytes(view)
        parts: list[bytes] = []
        for start, size in _pages(address, length):
            piece = self._space.ram(start, size)
            parts.append(bytes(size) if piece is None else bytes(piece))
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put ``data`` at ``address``."""
        if self._allowed is not None and not self._allowed():
            return
        view = self._space.ram(address, len(data), writable=True)
        if view is not None:
            view[:] = data
            return
        position = 0
        for start, size in _pages(address, len(data)):
            piece = self._space.ram(start, size, writable=True)
            if piece is not None:
                piece[:] = data[position : position + size]
            position += size

    def number(self, address: int, width: int) -> int:
        """The little-endian number of ``width`` bytes at ``address``."""
        return int.from_bytes(self.read(address, width), "little")


def _pages(address: int, length: int) -> Any:
    # Memory of different kinds meets at page boundaries only. Addresses wrap around at the top.
    while length > 0:
        address %= _TOP
        size = min(length, _PAGE - address % _PAGE)
        yield address, size
        address += size
        length -= size


class ScatterList:
    """Pieces of guest memory that one transfer goes through in order.

    ``length`` is their sum in bytes, ``moved`` how many bytes were read and written so far.
    """

    __slots__ = ("_memory", "_pieces", "length", "moved")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._pieces: list[tuple[int, int]] = []
        self.length = self.moved = 0

    def add(self, address: int, length: int) -> None:
        """The next piece."""
        self._pieces.append((address, length))
        self.length += length

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` in the list on; fewer where it ends."""
        data = b"".join(self._memory.read(address, size) for address, size, _at in self._range(offset, length))
        self.moved += len(data)
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Put ``data`` from ``offset`` in the list on; returns how many bytes there was room for."""
        view, written = memoryview(data), 0
        for address, size, at in self._range(offset, len(data)):
            self._memory.write(address, view[at : at + size])
            written += size
        self.moved += written
        return written

    def _range(self, offset: int, length: int) -> Any:
        # (address, size, position in the data) of each piece that the range touches.
        position = 0
        for address, size in self._pieces:
            if length <= 0:
                return
            if offset >= size:
                offset -= size
                continue
            count = min(size - offset, length)
            yield address + offset, count, position
            position += count
            length -= count
            offset = 0
