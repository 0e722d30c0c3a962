"""A dump in kdump's format, as crash and drgn read it: pages compressed one by one, zero pages once.

Written in makedumpfile's flattened form, front to back, so that it can go into a pipe: a header, then pieces with the
offset that they belong at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from qobra.machine.dump.compression import Compress
from qobra.machine.dump.memory import Run
from qobra.machine.dump.notes import body_of
from qobra.units import decimal

PAGE = 4096
_FLAT = Struct(">qq")
_FLAT_HEADER = 4096
_SIGNATURE = b"KDUMP   "
_VERSION = 6
_HEADER = Struct("<8si390s22s10I")
_SUB_HEADER = Struct("<QIIQQQQQQQQQQQ")
_DESCRIPTOR = Struct("<QIIQ")
_DUMP_LEVEL = 1
_ZERO_PAGE = bytes(PAGE)
_MACHINES = {"x86_64": b"x86_64", "riscv64": b"riscv64"}

Write = Callable[[bytes], None]


class Notes(NamedTuple):
    """What is known beside the memory: the CPUs' registers, and the note of the guest's kernel (or nothing)."""

    of_cpus: bytes
    of_kernel: bytes

    def kernel_info(self) -> tuple[int, int]:
        """Where among the notes the kernel's lines begin, and how long they are; zeroes where there are none."""
        if not self.of_kernel:
            return 0, 0
        at, length = body_of(self.of_kernel)
        return len(self.of_cpus) + at, length

    def said(self, key: bytes) -> bytes:
        """What the kernel says of ``key``; empty where it says nothing."""
        at, length = body_of(self.of_kernel) if self.of_kernel else (0, 0)
        lines = (line.partition(b"=") for line in self.of_kernel[at : at + length].split(b"\n"))
        return next((value for name, _equals, value in lines if name == key), b"")

    def physical_base(self) -> int:
        """Where the kernel says that it lies in physical memory."""
        return decimal(self.said(b"NUMBER(phys_base)").decode("latin-1")) or 0


def write_kdump(
    write: Write,
    runs: list[Run],
    notes: Notes,
    architecture: str,
    cpus: int,
    progress: Callable[[int], None],
    compression: tuple[int, Compress] | None,
) -> None:
    """Write the dump. ``progress`` hears of each page, in bytes; ``compression`` is the flag of pages, and the way."""
    flag, compress = compression or (0, bytes)
    flat = _Flat(write)
    last = max(run.address + len(run.view) for run in runs)
    frames = (last + PAGE - 1) // PAGE
    pages = sum((len(run.view) + PAGE - 1) // PAGE for run in runs)
    bitmap_blocks = -(-frames // (8 * PAGE))
    all_notes = notes.of_cpus + notes.of_kernel
    sub_blocks = -(-(_SUB_HEADER.size + len(all_notes)) // PAGE)
    flat.put(0, _header(architecture, frames, bitmap_blocks, sub_blocks, cpus, flag, notes))
    notes_at = PAGE + _SUB_HEADER.size
    info_at, info_length = notes.kernel_info()
    info_at += notes_at if info_length else 0
    sub_header = _SUB_HEADER.pack(
        notes.physical_base(), _DUMP_LEVEL, 0, 0, 0, info_at, info_length, notes_at, len(all_notes), 0, 0, 0, 0, frames
    )
    flat.put(PAGE, (sub_header + all_notes).ljust(sub_blocks * PAGE, b"\0"))
    bitmap_at = PAGE * (1 + sub_blocks)
    bitmap = _bitmap(runs, bitmap_blocks * PAGE)
    flat.put(bitmap_at, bitmap)
    flat.put(bitmap_at + len(bitmap), bitmap)
    _write_pages(flat, runs, bitmap_at + 2 * len(bitmap), pages, progress, flag, compress)
    write(_FLAT.pack(-1, -1))


class _Flat:
    def __init__(self, write: Write) -> None:
        self._write = write
        write((b"makedumpfile".ljust(16, b"\0") + _FLAT.pack(1, 1)).ljust(_FLAT_HEADER, b"\0"))

    def put(self, offset: int, data: bytes) -> None:
        """``data`` belongs at ``offset`` of the dump."""
        self._write(_FLAT.pack(offset, len(data)) + data)


def _header(
    architecture: str, frames: int, bitmap_blocks: int, sub_blocks: int, cpus: int, flag: int, notes: Notes
) -> bytes:
    # Readers believe in these names only if the kernel's release and version are among them.
    release = notes.said(b"OSRELEASE")[:64]
    names = (b"Linux", b"", release, b"#1" if release else b"", _MACHINES[architecture], b"")
    utsname = b"".join(name.ljust(65, b"\0") for name in names)
    stamp = int(time.time()).to_bytes(8, "little").ljust(22, b"\0")
    fields = (flag, PAGE, sub_blocks, 2 * bitmap_blocks, min(frames, 0xFFFFFFFF), 0, 0, 0, 0, cpus)
    return _HEADER.pack(_SIGNATURE, _VERSION, utsname, stamp, *fields).ljust(PAGE, b"\0")


def _bitmap(runs: list[Run], size: int) -> bytes:
    bitmap = bytearray(size)
    for run in runs:
        first, end = run.address // PAGE, -(-(run.address + len(run.view)) // PAGE)
        for frame in range(first, min(end, (first + 7) & ~7)):
            bitmap[frame >> 3] |= 1 << (frame & 7)
        whole = (first + 7) // 8
        if end // 8 > whole:
            bitmap[whole : end // 8] = b"\xff" * (end // 8 - whole)
        for frame in range(max(end & ~7, first), end):
            bitmap[frame >> 3] |= 1 << (frame & 7)
    return bytes(bitmap)


def _write_pages(
    flat: _Flat,
    runs: list[Run],
    table_at: int,
    pages: int,
    progress: Callable[[int], None],
    flag: int,
    compress: Compress,
) -> None:
    data_at = table_at + _DESCRIPTOR.size * pages
    # One zero page serves all.
    zero = compress(_ZERO_PAGE)
    zero_descriptor = _DESCRIPTOR.pack(data_at, len(zero), flag, 0)
    flat.put(data_at, zero)
    data_at += len(zero)
    for run in runs:
        for at in range(0, len(run.view), 256 * PAGE):
            chunk = run.view[at : at + 256 * PAGE]
            descriptors, bodies = [], []
            for start in range(0, len(chunk), PAGE):
                page = bytes(chunk[start : start + PAGE]).ljust(PAGE, b"\0")
                if page == _ZERO_PAGE:
                    descriptors.append(zero_descriptor)
                    continue
                body, flags = compress(page), flag
                if len(body) >= PAGE:
                    body, flags = page, 0
                descriptors.append(_DESCRIPTOR.pack(data_at, len(body), flags, 0))
                bodies.append(body)
                data_at += len(body)
            flat.put(table_at, b"".join(descriptors))
            table_at += _DESCRIPTOR.size * len(descriptors)
            if bodies:
                joined = b"".join(bodies)
                flat.put(data_at - len(joined), joined)
            progress(len(chunk))
