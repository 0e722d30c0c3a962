"""Files that are put into a guest's memory before it starts: firmware, kernels, RAM disks."""

from __future__ import annotations

from struct import unpack_from

from qobra.errors import QobraError

_MAX_SIZE = 4 << 30
_ELF_HEADER, _PROGRAM_HEADER = 64, 56
_LOAD = 1


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


def elf_segments(data: bytes, failure: str) -> list[tuple[int, bytes, int]] | None:
    """What a 64-bit little-endian ELF program has in memory, as (physical address, bytes, how many zeroes follow).

    None if ``data`` is no such program. Raises QobraError with ``failure`` for a damaged one.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    if len(data) < _ELF_HEADER:
        raise QobraError(failure)
    (start,) = unpack_from("<Q", data, 32)
    size, count = unpack_from("<HH", data, 54)
    if size != _PROGRAM_HEADER or start + size * count > len(data):
        raise QobraError(failure)
    found = []
    for number in range(count):
        kind, _flags, offset, _virtual, address, length, room = unpack_from("<IIQQQQQ", data, start + size * number)
        if kind != _LOAD:
            continue
        if offset + length > len(data) or room < length:
            raise QobraError(failure)
        found.append((address, data[offset : offset + length], room - length))
    return found
