"""Guest memory in a stream: which blocks there are, and which pages changed since they were sent.

What changed is told by comparing: each page has a digest of the copy of it that was sent. So everything that writes to
memory is seen, in whatever way it does it - devices that hold views of it, tests, CPUs - and nothing that writes has to
say so; a pass over memory costs a pass of the hash. Pages that are zero, which most never-used memory is, have the
digest zero and take a comparison only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.pci.bus import PciBus
from qobra.machine.plug import all_buses
from qobra.machine.vmstate import StateSource, put_text
from qobra.migration.stream import PAGES, ZEROES, StreamWriter

if TYPE_CHECKING:
    from qobra.machine.board import Board

PAGE = 4096
_DIGEST = 16
_CHUNK_PAGES = 256
_ZERO_CHUNK = bytes(PAGE * _CHUNK_PAGES)
_ZERO_PAGE = bytes(PAGE)
_ZERO_DIGEST = bytes(_DIGEST)
_RUN = Struct("<HQI")
"""Number of the block, first page, how many."""


class RamBlock:
    """One piece of memory, known by ``name`` on both sides. ``shared``: both may see the same memory anyway."""

    def __init__(self, name: str, ram: Ram, shared: bool) -> None:
        self.name = name
        self.ram = ram
        self.shared = shared
        self.pages = -(-ram.size // PAGE)


def ram_blocks(board: Board) -> list[RamBlock]:
    """All memory that is mapped, or can be, in the order in which it was."""
    shared = {
        id(backend.ram)
        for backend in board.tree.resolve("/objects").children.values()
        if isinstance(backend, MemoryBackend) and backend.ram is not None and backend.share
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
                found[id(region.view)] = RamBlock(name, region, id(region) in shared)
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
            raise QobraError(f'Unknown ramblock "{name}", cannot accept migration', errno=errno.EINVAL)
        if block.ram.size != size:
            raise QobraError(f"Size mismatch: {name}: {size:#x} != {block.ram.size:#x}", errno=errno.EINVAL)
        order.append(block)
    if known:
        raise QobraError(f'Missing ramblock "{next(iter(known))}" in the migration stream', errno=errno.EINVAL)
    return order


class RamSender:
    """Sends memory in passes, each of which has only what changed.

    ``ignored`` blocks are only named. The counters are those of MigrationStats, in bytes and pages.
    """

    def __init__(self, blocks: list[RamBlock], ignored: Callable[[RamBlock], bool]) -> None:
        self.blocks = blocks
        self._sent = [(i, block) for i, block in enumerate(blocks) if not ignored(block)]
        self._digests = {i: bytearray(_DIGEST * block.pages) for i, block in self._sent}
        self.total = sum(block.ram.size for _i, block in self._sent)
        self.remaining = self.total
        self.zero_pages = self.normal_pages = self.passes = self.last_pass_bytes = 0

    def send_pass(self, out: StreamWriter, stop: Callable[[], None]) -> int:
        """Send what changed and return how many bytes of pages that was. ``stop`` may raise to end it."""
        self.passes += 1
        first = self.passes == 1
        sent_before = self.normal_pages
        expected = self.remaining = self.total if first else self.last_pass_bytes
        for number, block in self._sent:
            for start in range(0, block.pages, _CHUNK_PAGES):
                stop()
                count = min(_CHUNK_PAGES, block.pages - start)
                self._send_chunk(out, number, block, start, count, first)
                done = (self.normal_pages - sent_before) * PAGE
                self.remaining = self.remaining - count * PAGE if first else max(0, expected - done)
        self.remaining = 0
        self.last_pass_bytes = (self.normal_pages - sent_before) * PAGE
        return self.last_pass_bytes

    def _send_chunk(self, out: StreamWriter, number: int, block: RamBlock, start: int, count: int, first: bool) -> None:
        data = bytes(block.ram.view[start * PAGE : (start + count) * PAGE])
        digests = self._digests[number]
        at = start * _DIGEST
        if data == (_ZERO_CHUNK if len(data) == len(_ZERO_CHUNK) else bytes(len(data))):
            if first:
                # What was never written is zero on the other side as well.
                out.record(ZEROES, _RUN.pack(number, start, count))
                self.zero_pages += count
                return
            if not any(digests[at : at + count * _DIGEST]):
                return
        run: list[tuple[int, bool]] = []
        for i in range(count):
            page = data[i * PAGE : (i + 1) * PAGE]
            zero = page == _ZERO_PAGE
            digest = _ZERO_DIGEST if zero else blake2b(page, digest_size=_DIGEST).digest()
            here = at + i * _DIGEST
            if digests[here : here + _DIGEST] != digest or (first and zero):
                digests[here : here + _DIGEST] = digest
                if run and (run[-1][0] != start + i - 1 or run[-1][1] != zero):
                    self._send_run(out, number, start, data, run)
                    run = []
                run.append((start + i, zero))
        if run:
            self._send_run(out, number, start, data, run)

    def _send_run(self, out: StreamWriter, number: int, start: int, data: bytes, run: list[tuple[int, bool]]) -> None:
        first, zero = run[0]
        head = _RUN.pack(number, first, len(run))
        if zero:
            out.record(ZEROES, head)
            self.zero_pages += len(run)
        else:
            at = (first - start) * PAGE
            out.record(PAGES, head, memoryview(data)[at : at + len(run) * PAGE])
            self.normal_pages += len(run)


def take_pages(kind: int, payload: bytes, blocks: list[RamBlock]) -> None:
    """Put the pages of a record of type ``kind`` where they belong. Raises QobraError where that is nowhere."""
    if len(payload) < _RUN.size:
        raise QobraError("a record of memory ends too early", errno=errno.EINVAL)
    number, first, count = _RUN.unpack_from(payload)
    if number >= len(blocks) or first + count > blocks[number].pages:
        raise QobraError("Illegal RAM offset", errno=errno.EINVAL)
    ram = blocks[number].ram
    start, end = first * PAGE, min((first + count) * PAGE, ram.size)
    data: Any = memoryview(payload)[_RUN.size :]
    if kind == ZEROES:
        fill_zero(ram, start, end)
        data = b""
    elif len(data) == end - start:
        ram.view[start:end] = data
    else:
        raise QobraError("a record of memory has another length than its pages", errno=errno.EINVAL)


def fill_zero(ram: Ram, start: int, end: int) -> None:
    """Make memory zero without touching what is zero already, which may never have been used."""
    for at in range(start, end, len(_ZERO_CHUNK)):
        size = min(len(_ZERO_CHUNK), end - at)
        if bytes(ram.view[at : at + size]) != (_ZERO_CHUNK if size == len(_ZERO_CHUNK) else bytes(size)):
            ram.view[at : at + size] = bytes(size)
