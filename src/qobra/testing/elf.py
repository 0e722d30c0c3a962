"""Small ELF programs for tests: one part in memory, and a note about where a PVH kernel is entered."""

from __future__ import annotations

from struct import pack

_IDENT = b"\x7fELF%c\x01\x01" + bytes(9)
PHYS32_ENTRY = 18


def program(
    code: bytes,
    address: int,
    *,
    bits: int = 64,
    machine: int = 62,
    entry: int | None = None,
    zeroes: int = 0,
    note_type: int = PHYS32_ENTRY,
) -> bytes:
    """``code`` at a physical ``address`` with ``zeroes`` after it; ``entry`` is in a note, if it is given."""
    wide = bits == 64
    note = b"" if entry is None else pack("<III4s", 4, 8 if wide else 4, note_type, b"Xen\0")
    note += b"" if entry is None else entry.to_bytes(8 if wide else 4, "little")
    header_size, part_size = (64, 56) if wide else (52, 32)
    first = header_size + 2 * part_size
    parts = ((1, first, address, len(code), len(code) + zeroes), (4, first + len(code), 0, len(note), len(note)))
    if wide:
        header = pack("<HHIQQQIHHHHHH", 2, machine, 1, address, header_size, 0, 0, header_size, part_size, 2, 0, 0, 0)
        table = b"".join(pack("<IIQQQQQQ", kind, 7, at, to, to, *sizes, 4) for kind, at, to, *sizes in parts)
    else:
        header = pack("<HHIIIIIHHHHHH", 2, machine, 1, address, header_size, 0, 0, header_size, part_size, 2, 0, 0, 0)
        table = b"".join(pack("<8I", kind, at, to, to, *sizes, 7, 4) for kind, at, to, *sizes in parts)
    return _IDENT % (2 if wide else 1) + header + table + code + note
