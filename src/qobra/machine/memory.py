"""Physical memory: what is at an address, for the guest's CPUs, its devices and whoever looks from outside.

An :class:`AddressSpace` holds mappings of regions, which may overlap; from them it makes a flat view, in which each
address belongs to one region, and looks addresses up in it by bisection. The view is never changed, only replaced, so
that a vCPU thread may use it while another thread maps something. RAM is an mmap, read and written in place.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable

_MADV_REMOVE = 9  # frees the file's blocks too

ReadRegister = Callable[[int, int], int]
WriteRegister = Callable[[int, int, int], None]


class Region:
    """Something that can be mapped. Offsets are in bytes from its start; values are unsigned, ``width`` in bytes."""

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    def load(self, offset: int, width: int) -> int:
        """The value at ``offset``; the access lies inside the region."""
        raise NotImplementedError

    def store(self, offset: int, width: int, value: int) -> None:
        """Store ``value`` at ``offset``; the access lies inside the region."""
        raise NotImplementedError

    def chunk(self, address: int, length: int) -> int:
        """How many of ``length`` bytes at ``address`` one access takes."""
        raise NotImplementedError


class Window(Region):
    """Another address space, as far as something is mapped there; offsets are its addresses. It can be mapped only."""

    __slots__ = ("space",)

    def __init__(self, name: str, space: AddressSpace) -> None:
        super().__init__(name, 1 << 64)
        self.space = space


class Ram(Region):
    """Memory. ``view`` is all of it; ``fd`` the memfd or file behind it (-1: private and anonymous), which other
    processes that map it see if it is ``shared``.

    ``readonly`` makes it ROM to the guest; the board still writes through ``view``, unless it is shared with a file.
    ``awaited`` is empty, but while a migration still brings pages: then it has what to call, with offset and length,
    before they are touched.
    """

    __slots__ = ("_map", "awaited", "fd", "readonly", "shared", "view")

    def __init__(self, name: str, size: int, *, fd: int = -1, shared: bool = False, readonly: bool = False) -> None:
        super().__init__(name, size)
        self.fd = fd
        self.readonly = readonly
        self.shared = shared
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        if fd < 0:
            flags |= mmap.MAP_ANONYMOUS
        protection = mmap.PROT_READ if readonly and shared else mmap.PROT_READ | mmap.PROT_WRITE
        self._map = mmap.mmap(fd, size, flags=flags | getattr(mmap, "MAP_NORESERVE", 0x4000), prot=protection)
        self.view = memoryview(self._map)
        self.awaited: list[Callable[[int, int], None]] = []

    def load(self, offset: int, width: int) -> int:
        if self.awaited:
            self._await(offset, width)
        return int.from_bytes(self.view[offset : offset + width], "little")

    def store(self, offset: int, width: int, value: int) -> None:
        if not self.readonly:
            if self.awaited:
                self._await(offset, width)
            self.view[offset : offset + width] = value.to_bytes(width, "little")

    def _await(self, offset: int, length: int) -> None:
        # Another thread may clear the list once all is there: so it is gone through, not indexed.
        for need in self.awaited:
            need(offset, length)

    def piece(self, offset: int, length: int) -> memoryview:
        """A part of the memory, once it is there."""
        if self.awaited:
            self._await(offset, length)
        return self.view[offset : offset + length]

    def chunk(self, address: int, length: int) -> int:
        return length

    def read_only_view(self) -> Ram:
        """The same memory, which cannot be written by that way."""
        twin = object.__new__(Ram)
        Region.__init__(twin, self.name, self.size)
        twin.fd, twin.readonly, twin.view, twin._map, twin.shared = -1, True, self.view, self._map, self.shared
        twin.awaited = self.awaited
        return twin

    def advise(self, *, merge: bool, dump: bool) -> None:
        """Whether the host may merge equal pages, and has them in core dumps of this process, where it can choose."""
        for wanted, advice in ((merge, mmap.MADV_MERGEABLE), (not dump, mmap.MADV_DONTDUMP)):
            if wanted:
                try:
                    self._map.madvise(advice)
                except OSError:
                    pass  # a kernel without it: that is all that it is then

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; the guest finds zeroes there."""
        shared = self.fd >= 0 and self.shared
        self.piece(offset, length)
        try:
            self._map.madvise(_MADV_REMOVE if shared else mmap.MADV_DONTNEED, offset, length)
        except OSError:
            self.view[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """Give the memory back, unless someone still holds a part of the view: then when they let go."""
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            pass
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RomDevice(Ram):
    """Memory that a device watches over (flash): read like any, but no memory of the machine's."""

    __slots__ = ()


class Registers(Region):
    """A device's registers: ``read(offset, width)`` and ``write(offset, width, value)`` are called for each access.

    Accesses of a width outside ``valid`` are ignored and read as zeroes. Those outside ``impl`` are split, or widened.
    """

    __slots__ = ("_read", "_write", "impl", "valid")

    def __init__(
        self,
        name: str,
        size: int,
        read: ReadRegister,
        write: WriteRegister,
        *,
        valid: tuple[int, int] = (1, 4),
        impl: tuple[int, int] = (1, 4),
    ) -> None:
        super().__init__(name, size)
        self._read = read
        self._write = write
        self.valid = valid
        self.impl = impl

    def load(self, offset: int, width: int) -> int:
        low, high = self.valid
        if not low <= width <= high:
            return 0
        if offset + width > self.size:
            # An access that runs over the end reaches what is before it.
            inside = range(max(0, self.size - offset)) if low == 1 else ()
            return sum(self.load(offset + i, 1) << 8 * i for i in inside)
        low, high = self.impl
        if width <= high:
            return self._read(offset, max(width, low)) & ((1 << 8 * width) - 1)
        value = 0
        for i in range(0, width, high):
            value |= (self._read(offset + i, high) & ((1 << 8 * high) - 1)) << 8 * i
        return value

    def store(self, offset: int, width: int, value: int) -> None:
        low, high = self.valid
        if not low <= width <= high:
            return
        if offset + width > self.size:
            for i in range(max(0, self.size - offset)) if low == 1 else ():
                self.store(offset + i, 1, value >> 8 * i & 0xFF)
            return
        low, high = self.impl
        if width <= high:
            self._write(offset, max(width, low), value)
            return
        for i in range(0, width, high):
            self._write(offset + i, high, (value >> 8 * i) & ((1 << 8 * high) - 1))

    def chunk(self, address: int, length: int) -> int:
        # The widest access that the registers take, that is aligned and not too long.
        width = self.valid[1]
        if address & (width - 1):
            width = min(width, address & -address)
        while width > length:
            width >>= 1
        return width


class Mapping:
    """A region's place in an address space."""

    __slots__ = ("_space", "base", "enabled", "offset", "priority", "region", "size")

    def __init__(
        self, space: AddressSpace, base: int, region: Region, offset: int, size: int, priority: int, enabled: bool
    ) -> None:
        self._space = space
        self.base = base
        self.region = region
        self.offset = offset
        self.size = size
        self.priority = priority
        self.enabled = enabled

    def place(self, base: int | None) -> None:
        """Move to ``base``; None takes the region out of sight."""
        enabled = base is not None
        if enabled == self.enabled and (base is None or base == self.base):
            return
        self.enabled = enabled
        if base is not None:
            self.base = base
        self._space.changed()

    def remove(self) -> None:
        """Unmap for good."""
        self._space.remove(self)


_View = tuple[list[int], list[int], list[Region], list[int]]  # starts, ends, regions, address minus offset
_Range = tuple[int, int, Region, int]


class AddressSpace:
    """Regions by address. Where nothing is mapped, reads give ``unassigned`` in every byte and writes are lost."""

    def __init__(self, name: str, *, unassigned: int = 0) -> None:
        self.name = name
        self._unassigned = bytes([unassigned])
        self._mappings: list[Mapping] = []
        self._view: _View | None = None
        self.listeners: list[Callable[[], None]] = []
        """Called after the mappings changed."""

    # -- mapping

    def map(
        self,
        base: int,
        region: Region,
        *,
        priority: int = 0,
        offset: int = 0,
        size: int | None = None,
        enabled: bool = True,
    ) -> Mapping:
        """Show ``region`` (from ``offset`` on, ``size`` bytes of it) at ``base``.

        Where mappings overlap, the higher ``priority`` shows, and among equals the latest. What lies below a
        :class:`Window` shows where the window has nothing.
        """
        length = region.size - offset if size is None else size
        mapping = Mapping(self, base, region, offset, length, priority, enabled)
        self._mappings.append(mapping)
        if isinstance(region, Window):
            region.space.listeners.append(self.changed)
        self.changed()
        return mapping

    def remove(self, mapping: Mapping) -> None:
        """Take a mapping out."""
        self._mappings.remove(mapping)
        if isinstance(mapping.region, Window):
            mapping.region.space.listeners.remove(self.changed)
        self.changed()

    def regions(self) -> list[Region]:
        """Every region that is mapped, shown or not, in the order in which they were."""
        return [mapping.region for mapping in self._mappings]

    def mappings_of(self, region: Region) -> list[Mapping]:
        """Where ``region`` is mapped."""
        return [mapping for mapping in self._mappings if mapping.region is region]

    def changed(self) -> None:
        """A mapping changed: the next access makes a new view."""
        self._view = None
        for listener in self.listeners:
            listener()

    def mappings(self) -> list[Mapping]:
        """What is mapped, in order of address; of two at one address, the one that shows first."""
        return sorted(self._mappings, key=lambda mapping: (mapping.base, -mapping.priority))

    def flat(self) -> list[tuple[int, int, Region, int]]:
        """``(start, end, region, offset)`` of each range that shows something, in order of address."""
        starts, ends, regions, deltas = self._flat()
        return [(s, e, r, s - d) for s, e, r, d in zip(starts, ends, regions, deltas, strict=True)]

    def _flat(self) -> _View:
        view = self._view
        if view is None:
            view = self._view = self._flatten()
        return view

    def _flatten(self) -> _View:
        ranges: list[_Range] = []
        shown = [m for m in self._mappings if m.enabled and m.size > 0]
        shown.reverse()  # the latest first, which a stable sort keeps
        for mapping in sorted(shown, key=lambda m: -m.priority):
            # Fill the gaps that higher mappings left.
            gaps = [gap for piece in _pieces(mapping) for gap in _gaps(ranges, piece)]
            if gaps:
                ranges = sorted(ranges + gaps, key=lambda r: r[0])
        return [r[0] for r in ranges], [r[1] for r in ranges], [r[2] for r in ranges], [r[3] for r in ranges]

    # -- access

    def load(self, address: int, width: int) -> int:
        """The little-endian value of ``width`` bytes at ``address``."""
        starts, ends, regions, deltas = self._view or self._flat()
        i = bisect_right(starts, address) - 1
        if i >= 0 and address < ends[i]:
            region = regions[i]
            # Registers are told apart by the address alone: what follows them may be another device's.
            fits = address + width <= ends[i] if isinstance(region, Ram) else region.chunk(address, width) == width
            if fits:
                return region.load(address - deltas[i], width)
        return int.from_bytes(self.read(address, width), "little")

    def store(self, address: int, width: int, value: int) -> None:
        """Store ``value``, little-endian, ``width`` bytes, at ``address``."""
        starts, ends, regions, deltas = self._view or self._flat()
        i = bisect_right(starts, address) - 1
        if i >= 0 and address < ends[i]:
            region = regions[i]
            fits = address + width <= ends[i] if isinstance(region, Ram) else region.chunk(address, width) == width
            if fits:
                region.store(address - deltas[i], width, value)
                return
        self.write(address, value.to_bytes(width, "little"))

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from ``address``."""
        view = self.ram(address, length)
        if view is not None:
            return bytes(view)
        parts = []
        while length > 0:
            region, offset, run = self._lookup(address, length)
            if region is None:
                parts.append(self._unassigned * run)
            elif isinstance(region, Ram):
                parts.append(bytes(region.piece(offset, run)))
            else:
                run = region.chunk(address, length)
                parts.append(region.load(offset, run).to_bytes(run, "little"))
            address += run
            length -= run
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address``."""
        position, length = 0, len(data)
        while position < length:
            region, offset, run = self._lookup(address, length - position)
            if isinstance(region, Ram):
                if not region.readonly:
                    region.piece(offset, run)[:] = data[position : position + run]
            elif region is not None:
                run = region.chunk(address, length - position)
                region.store(offset, run, int.from_bytes(data[position : position + run], "little"))
            address += run
            position += run

    def ram(self, address: int, length: int, *, writable: bool = False) -> memoryview | None:
        """The bytes themselves, if they are all in one piece of RAM (that the guest may write, with ``writable``)."""
        starts, ends, regions, deltas = self._view or self._flat()
        i = bisect_right(starts, address) - 1
        if i < 0 or address + length > ends[i]:
            return None
        region = regions[i]
        if not isinstance(region, Ram) or (writable and region.readonly):
            return None
        offset = address - deltas[i]
        return region.piece(offset, length)

    def mapped(self, address: int, length: int) -> int:
        """How many of ``length`` bytes from ``address`` on lie in one region; 0 where there is none."""
        region, _offset, run = self._lookup(address, length)
        return run if region is not None else 0

    def at(self, address: int) -> tuple[Region, int] | None:
        """The region at ``address`` and the offset in it; None where there is none."""
        region, offset, _run = self._lookup(address, 1)
        return None if region is None else (region, offset)

    def _lookup(self, address: int, length: int) -> tuple[Region | None, int, int]:
        """The region at ``address``, the offset in it, and how many of ``length`` bytes it has."""
        starts, ends, regions, deltas = self._view or self._flat()
        i = bisect_right(starts, address) - 1
        if i >= 0 and address < ends[i]:
            return regions[i], address - deltas[i], min(length, ends[i] - address)
        following = starts[i + 1] if i + 1 < len(starts) else address + length
        return None, 0, min(length, following - address)


def _pieces(mapping: Mapping) -> list[_Range]:
    """What a mapping shows where nothing is above it."""
    base, end, delta = mapping.base, mapping.base + mapping.size, mapping.base - mapping.offset
    if not isinstance(mapping.region, Window):
        return [(base, end, mapping.region, delta)]
    inner = ((s + delta, e + delta, r, s + delta - o) for s, e, r, o in mapping.region.space.flat())
    return [(max(s, base), min(e, end), r, d) for s, e, r, d in inner if s < end and e > base]


def _gaps(ranges: list[_Range], piece: _Range) -> list[_Range]:
    """The parts of ``piece`` that none of ``ranges``, which are in order, covers."""
    position, end, region, delta = piece
    gaps = []
    for start, stop, _region, _delta in ranges:
        if stop <= position:
            continue
        if start >= end:
            break
        if start > position:
            gaps.append((position, start, region, delta))
        position = max(position, stop)
    if position < end:
        gaps.append((position, end, region, delta))
    return gaps
