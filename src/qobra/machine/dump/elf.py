"""A dump as an ELF core file (System V ABI, chapter 4): notes, then each run of memory as a segment."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from qobra.machine.dump.memory import Run

_EHDR = Struct("<16sHHIQQQIHHHHHH")
_PHDR = Struct("<IIQQQQQQ")
_SHDR = Struct("<IIQQQQIIQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_MACHINES = {"x86_64": 62, "riscv64": 243}
_MANY = 0xFFFF
_CHUNK = 1 << 20


def write_elf(
    write: Callable[[bytes | memoryview], None],
    runs: list[Run],
    notes: bytes,
    architecture: str,
    progress: Callable[[int], None],
) -> None:
    """Write the core file, front to back. ``progress`` hears of each piece of memory, in bytes."""
    count = 1 + len(runs)
    extended = count >= _MANY
    notes_at = _EHDR.size + _PHDR.size * count + (_SHDR.size if extended else 0)
    offset = notes_at + len(notes)
    sections = _EHDR.size + _PHDR.size * count if extended else 0
    header = _EHDR.pack(
        _IDENT, _ET_CORE, _MACHINES[architecture], 1, 0, _EHDR.size, sections, 0,
        _EHDR.size, _PHDR.size, _MANY if extended else count, _SHDR.size if extended else 0, int(extended), 0,
    )  # fmt: skip
    table = [_PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 0)]
    for run in runs:
        length = len(run.view)
        table.append(_PHDR.pack(_PT_LOAD, 0, offset, run.address, run.address, length, length, 0))
        offset += length
    write(header + b"".join(table))
    if extended:
        # More segments than the header can count: the first section says how many.
        write(_SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    write(notes)
    for run in runs:
        for at in range(0, len(run.view), _CHUNK):
            part = run.view[at : at + _CHUNK]
            write(part)
            progress(len(part))
