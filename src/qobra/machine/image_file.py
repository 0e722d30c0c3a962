"""Files that are put into a guest's memory before it starts: firmware, kernels, RAM disks."""

from __future__ import annotations

from struct import Struct, unpack_from

from qobra.errors import QobraError

_MAX_SIZE = 4 << 30
_ELF_CLASSES = {1: ("<I", 28, 42, Struct("<II4xIII8x")), 2: ("<Q", 32, 54, Struct("<I4xQ8xQQQ8x"))}
"""By the class of an ELF file (32 and 64 bits): how and where it says where its program headers are, where their size
and number are, and a program header: type, offset in the file, physical address, size in the file and in memory."""
_LITTLE_ENDIAN = 1
LOAD, NOTE = 1, 4


def read_image(path: str, failure: str) -> bytes:
    """The file's bytes. Raises QobraError with ``failure`` where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_SIZE + 1)
    except OSError:
        raise QobraError(failure)
    if len(data) > _MAX_SIZE:
        raise QobraError(failure)
    return data


def elf_headers(data: bytes, failure: str) -> list[tuple[int, int, int, int, int]]:
    """The program headers of a little-endian ELF file: type, offset, physical address, size there and in memory.

    What they name is in the file. Raises QobraError with ``failure`` where something is not.
    """
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[4] not in _ELF_CLASSES or data[5] != _LITTLE_ENDIAN:
        raise QobraError(failure)
    start_form, start_at, sizes_at, header = _ELF_CLASSES[data[4]]
    (start,) = unpack_from(start_form, data, start_at)
    size, count = unpack_from("<HH", data, sizes_at)
    if size != header.size or start + size * count > len(data):
        raise QobraError(failure)
    found = []
    for number in range(count):
        kind, offset, address, length, room = header.unpack_from(data, start + size * number)
        if kind in (LOAD, NOTE) and (offset + length > len(data) or (kind == LOAD and room < length)):
            raise QobraError(failure)
        found.append((kind, offset, address, length, room))
    return found


def elf_segments(data: bytes, failure: str) -> list[tuple[int, bytes, int]] | None:
    """What a 64-bit little-endian ELF program has in memory, as (physical address, bytes, how many zeroes follow).

    None if ``data`` is no such program. Raises QobraError with ``failure`` for a damaged one.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    return [
        (address, data[offset : offset + length], room - length)
        for kind, offset, address, length, room in elf_headers(data, failure)
        if kind == LOAD
    ]
