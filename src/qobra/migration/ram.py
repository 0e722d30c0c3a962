"""Guest memory in a stream: which blocks there are, and which pages changed since they were sent.

What changed is told by comparing: for each 64 KiB there is a digest of the copy that was sent. So everything that
writes to memory is seen, in whatever way it does it - devices that hold views of it, tests, CPUs - and nothing that
writes has to say so; a pass over memory costs a pass of the hash. What is zero has the digest zero and takes a
comparison only, and what was never used not even that.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from qobra.block.copy.zeroes import zero_pieces
from qobra.errors import QobraError
from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.pci.bus import PciBus
from qobra.machine.plug import all_buses
from qobra.machine.vmstate import StateSource, put_text
from qobra.migration.page_coding import AS_ZLIB, AS_ZSTD, PAGE, DeltaCache, apply_delta, unpack
from qobra.migration.page_set import PageSet
from qobra.migration.stream import DEFLATED, DELTA, PAGES, ZEROES, ZSTD
from qobra.report import visible

if TYPE_CHECKING:
    from qobra.machine.board import Board

_DIGEST = 16
_CHUNK_PAGES = 256
_UNIT_PAGES = 16
"""Pages that share a digest, and are sent together if one of them changed."""
_PAGEMAP_ENTRY = 8
_IN_USE = 0xC0
_ZERO_CHUNK = bytes(PAGE * _CHUNK_PAGES)
_ZERO_DIGEST = bytes(_DIGEST)
RUN = Struct("<HQI")
"""Number of the block, first page, how many."""


class RamBlock:
    """One piece of memory, known by ``name`` on both sides. ``shared``: both may see the same memory anyway.

    ``late``: it may come while the guest runs already, as all that touches it does so by :meth:`Ram.piece`.
    """

    def __init__(self, name: str, ram: Ram, *, shared: bool, late: bool) -> None:
        self.name = name
        self.ram = ram
        self.shared = shared
        self.late = late
        self.pages = -(-ram.size // PAGE)


def ram_blocks(board: Board) -> list[RamBlock]:
    """All memory that is mapped, or can be, in the order in which it was."""
    shares = {
        id(backend.ram): backend.share
        for backend in board.tree.resolve("/objects").children.values()
        if isinstance(backend, MemoryBackend) and backend.ram is not None
    }
    spaces: list[AddressSpace] = [board.memory]
    spaces += [bus.memory for bus in all_buses(board.system_bus) if isinstance(bus, PciBus)]
    found: dict[int, RamBlock] = {}
    names: dict[str, int] = {}
    for space in dict.fromkeys(spaces):
        for region in space.regions():
            if isinstance(region, Ram) and id(region.view) not in found:
                count = names[region.name] = names.get(region.name, 0) + 1
                name = region.name if count == 1 else f"{region.name}#{count}"
                shared = shares.get(id(region))
                # Other processes may touch what is shared, and the board writes into ROM.
                found[id(region.view)] = RamBlock(name, region, shared=bool(shared), late=shared is False)
    return list(found.values())


def put_blocks(out: bytearray, blocks: list[RamBlock]) -> None:
    """Write the list of blocks."""
    out += len(blocks).to_bytes(2, "little")
    for block in blocks:
        put_text(out, block.name)
        out += block.ram.size.to_bytes(8, "little")


def take_blocks(payload: bytes, blocks: list[RamBlock]) -> list[RamBlock]:
    """The blocks of this machine in the order of the stream's list. Raises QobraError where they differ."""
    source = StateSource(payload)
    known = {block.name: block for block in blocks}
    order: list[RamBlock] = []
    for _ in range(source.number(2)):
        name, size = source.text(), source.number(8)
        block = known.pop(name, None)
        if block is None:
            raise QobraError(f'Unknown ramblock "{visible(name)}", cannot accept migration', errno=errno.EINVAL)
        if block.ram.size != size:
            raise QobraError(f"Size mismatch: {name}: {size:#x} != {block.ram.size:#x}", errno=errno.EINVAL)
        order.append(block)
    if known:
        raise QobraError(f'Missing ramblock "{next(iter(known))}" in the migration stream', errno=errno.EINVAL)
    return order


class MemoryWriter(Protocol):
    """Where records with pages go."""

    def record(self, kind: int, head: bytes, *payload: bytes | memoryview) -> None:
        """Write a record: ``head`` is its run of pages. Raises OSError or QobraError."""
        ...


class RamSender:
    """Sends memory in passes, each of which has only what changed.

    ``ignored`` blocks are only named. The counters are those of MigrationStats, in bytes and pages.
    """

    def __init__(
        self,
        blocks: list[RamBlock],
        ignored: Callable[[RamBlock], bool],
        *,
        deltas: DeltaCache | None = None,
    ) -> None:
        """``deltas``: what is sent again is sent as a change."""
        self.blocks = blocks
        self.deltas = deltas
        self._sent = [(i, block) for i, block in enumerate(blocks) if not ignored(block)]
        self._digests = {i: bytearray(_DIGEST * -(-block.pages // _UNIT_PAGES)) for i, block in self._sent}
        self.total = sum(block.ram.size for _i, block in self._sent)
        self.remaining = self.total
        self.zero_pages = self.normal_pages = self.passes = self.last_pass_bytes = 0
        self._looked_at = (0, 0)
        """How far the first pass has come: the place in the list of blocks, and the page."""

    def send_pass(self, out: MemoryWriter, stop: Callable[[], None]) -> int:
        """Send what changed and return how many bytes of pages that was. ``stop`` may raise to end it."""
        self.passes += 1
        first = self.passes == 1
        sent_before = self.normal_pages
        expected = self.remaining = self.total if first else self.last_pass_bytes
        for place, (number, block) in enumerate(self._sent):
            used = UsedPages(block.ram)
            for start in range(0, block.pages, _CHUNK_PAGES):
                stop()
                count = min(_CHUNK_PAGES, block.pages - start)
                if first:
                    self._looked_at = (place, start + count)
                self._send_chunk(out, number, start, count, block.ram if used.any(start, count) else None, first)
                done = (self.normal_pages - sent_before) * PAGE
                self.remaining = self.remaining - count * PAGE if first else max(0, expected - done)
        self.remaining = 0
        self.last_pass_bytes = (self.normal_pages - sent_before) * PAGE
        return self.last_pass_bytes

    def leave_for_later(self, out: MemoryWriter, stop: Callable[[], None]) -> PageSet:
        """The last pass, the guest standing still: send what must not come late, and return the pages that may."""
        later = PageSet([block.pages for block in self.blocks])
        self.passes += 1
        place_reached, page_reached = self._looked_at
        for place, (number, block) in enumerate(self._sent):
            known = block.pages if place < place_reached else page_reached if place == place_reached else 0
            used = UsedPages(block.ram)
            for start in range(0, block.pages, _CHUNK_PAGES):
                stop()
                count = min(_CHUNK_PAGES, block.pages - start)
                ram = block.ram if used.any(start, count) else None
                if not block.late:
                    self._send_chunk(out, number, start, count, ram, start >= known)
                elif start >= known:
                    later.add(number, start, count)
                else:
                    for at, part, _zero in self._changes(number, start, self._content(start, count, ram)):
                        later.add(number, at, len(part) // PAGE)
        self.remaining = later.count * PAGE
        return later

    def send_late(self, out: MemoryWriter, number: int, first: int, count: int) -> None:
        """Send pages of a guest that runs on the other side already."""
        block = self.blocks[number]
        data = bytearray(self._content(first, count, block.ram))
        for at, size, zero in zero_pieces(data, len(data), PAGE):
            if zero:
                self._send_zeroes(out, number, first + at // PAGE, size // PAGE)
            else:
                self._send_pages(out, number, first + at // PAGE, memoryview(data)[at : at + size])
        self.remaining = max(0, self.remaining - count * PAGE)

    @staticmethod
    def _content(start: int, count: int, ram: Ram | None) -> bytes:
        if ram is None:
            return _ZERO_CHUNK if count == _CHUNK_PAGES else bytes(count * PAGE)
        return bytes(ram.view[start * PAGE : (start + count) * PAGE]).ljust(count * PAGE, b"\0")

    def _send_chunk(self, out: MemoryWriter, number: int, start: int, count: int, ram: Ram | None, first: bool) -> None:
        data = self._content(start, count, ram)
        for at, part, zero in self._changes(number, start, data, first):
            if zero and len(part) > _UNIT_PAGES * PAGE:
                self._send_zeroes(out, number, at, len(part) // PAGE)
            else:
                self._send_unit(out, number, at, bytearray(part))

    def _changes(self, number: int, start: int, data: bytes, first: bool = False) -> Iterator[tuple[int, bytes, bool]]:
        """What of ``data`` differs from what was sent, noted as sent now: first page, content, whether it is zero.

        What was never written is zero on the other side as well, but for what it loaded itself: so in the ``first``
        pass that is sent too, a whole chunk at once.
        """
        count = len(data) // PAGE
        zeroes = _ZERO_CHUNK if count == _CHUNK_PAGES else bytes(count * PAGE)
        digests = self._digests[number]
        low, high = start // _UNIT_PAGES, -(-(start + count) // _UNIT_PAGES)
        if data == zeroes and (first or not any(digests[low * _DIGEST : high * _DIGEST])):
            if first:
                yield start, data, True
            return
        for unit in range(low, high):
            at = (unit * _UNIT_PAGES - start) * PAGE
            part = data[at : at + _UNIT_PAGES * PAGE]
            zero = not any(part[:64]) and part == zeroes[: len(part)]
            digest = _ZERO_DIGEST if zero else sha256(part).digest()[:_DIGEST]
            place = slice(unit * _DIGEST, (unit + 1) * _DIGEST)
            if digests[place] != digest or (first and zero):
                digests[place] = digest
                yield unit * _UNIT_PAGES, part, zero

    def _send_unit(self, out: MemoryWriter, number: int, start: int, data: bytearray) -> None:
        for at, size, zero in zero_pieces(data, len(data), PAGE):
            first, count = start + at // PAGE, size // PAGE
            if zero:
                self._send_zeroes(out, number, first, count)
            elif self.deltas is not None and self.passes > 1:
                self._send_changes(out, number, first, memoryview(data)[at : at + size])
            else:
                self._send_pages(out, number, first, memoryview(data)[at : at + size])

    def _send_pages(self, out: MemoryWriter, number: int, first: int, data: memoryview) -> None:
        out.record(PAGES, RUN.pack(number, first, len(data) // PAGE), data)
        self.normal_pages += len(data) // PAGE

    def _send_changes(self, out: MemoryWriter, number: int, first: int, data: memoryview) -> None:
        assert self.deltas is not None
        for at in range(0, len(data), PAGE):
            page = first + at // PAGE
            delta = self.deltas.encode((number, page), bytes(data[at : at + PAGE]))
            if delta is None:
                self._send_pages(out, number, page, data[at : at + PAGE])
            elif delta:
                out.record(DELTA, RUN.pack(number, page, 1), delta)
                self.normal_pages += 1

    def _send_zeroes(self, out: MemoryWriter, number: int, first: int, count: int) -> None:
        out.record(ZEROES, RUN.pack(number, first, count))
        if self.deltas is not None:
            self.deltas.forget(number, first, count)
        self.zero_pages += count


class UsedPages:
    """Which pages of anonymous memory the host ever had to provide, as /proc/self/pagemap tells; the rest is zero.

    So memory that nobody uses is not looked at, and not even mapped. Of other memory, all counts as used.
    """

    def __init__(self, ram: Ram) -> None:
        self._flags: bytes | None = None
        if ram.fd >= 0 or ram.size < _CHUNK_PAGES * PAGE:
            return
        address = ctypes.addressof(ctypes.c_char.from_buffer(ram.view))
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as stream:
                stream.seek(address // PAGE * _PAGEMAP_ENTRY)
                entries = stream.read(-(-ram.size // PAGE) * _PAGEMAP_ENTRY)
        except OSError:
            return
        if len(entries) == -(-ram.size // PAGE) * _PAGEMAP_ENTRY and address % PAGE == 0:
            # The highest byte of an entry says whether the page is present or swapped out.
            self._flags = entries[_PAGEMAP_ENTRY - 1 :: _PAGEMAP_ENTRY]

    def any(self, start: int, count: int) -> bool:
        """Whether any of ``count`` pages from ``start`` may hold something."""
        return self._flags is None or any(flags & _IN_USE for flags in set(self._flags[start : start + count]))


def take_pages(kind: int, payload: bytes, blocks: list[RamBlock]) -> None:
    """Put the pages of a record of type ``kind`` where they belong. Raises QobraError where that is nowhere."""
    if len(payload) < RUN.size:
        raise QobraError("a record of memory ends too early", errno=errno.EINVAL)
    number, first, count = RUN.unpack_from(payload)
    if number >= len(blocks) or first + count > blocks[number].pages:
        raise QobraError("Illegal RAM offset", errno=errno.EINVAL)
    ram = blocks[number].ram
    start, end = first * PAGE, min((first + count) * PAGE, ram.size)
    data: Any = memoryview(payload)[RUN.size :]
    if kind == ZEROES:
        fill_zero(ram, start, end)
    elif kind == DELTA:
        apply_delta(ram.view[start:end], data)
    elif kind in (DEFLATED, ZSTD) and count <= _CHUNK_PAGES:
        # What is sent has whole pages, whatever the length of the block.
        packed_as = AS_ZLIB if kind == DEFLATED else AS_ZSTD
        ram.view[start:end] = unpack(packed_as, data, count * PAGE)[: end - start]
    elif len(data) == count * PAGE:
        ram.view[start:end] = data[: end - start]
    else:
        raise QobraError("a record of memory has another length than its pages", errno=errno.EINVAL)


def fill_zero(ram: Ram, start: int, end: int) -> None:
    """Make memory zero without touching what is zero already, which may never have been used."""
    for at in range(start, end, len(_ZERO_CHUNK)):
        size = min(len(_ZERO_CHUNK), end - at)
        if bytes(ram.view[at : at + size]) != (_ZERO_CHUNK if size == len(_ZERO_CHUNK) else bytes(size)):
            ram.view[at : at + size] = bytes(size)
