"""Where a range lies, by the root's flat table; what the batch loop asks beyond a single unit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qobra.block.table import PAGE_BITS, PAGE_ENTRIES
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.table import ResolvedTable

    Pieces = list[tuple[int, int, int]]
    """(file descriptor, offset there, length); the descriptor is -1 for zeroes."""

FILL_UNITS = (512, 64, 16, 1)
"""Units of the table that are resolved at a time around one that was asked for: as many as are not known yet."""
FRUITLESS, TRY_AGAIN = 16, 32
"""After so many times in a row that what was resolved was not plain, as in images whose clusters or subclusters are
smaller than the table's units, resolving takes longer than the requests: it is tried once in so many times."""
PAGE_MASK = PAGE_ENTRIES - 1


_NO_PLACE = -1, 0


def unit_place(table: ResolvedTable, offset: int, length: int, *, to_write: bool) -> tuple[int, int]:
    """Where a range is that lies in one unit: (file descriptor, offset there).

    The descriptor is -1, and :func:`resolved` knows more, where the range lies in several units, reads as zeroes, is
    not known to the table, or, ``to_write``, has no space of its own yet. With ``to_write`` the table must be writable.
    """
    if table.linear is not None:
        return table.linear[0], table.linear[1] + offset
    bits = table.unit_bits
    number = offset >> bits
    page = table.pages.get(number >> PAGE_BITS)
    entry = page[number & PAGE_MASK] if page is not None else 0
    inside = offset & (1 << bits) - 1
    if entry <= 1 or inside + length > 1 << bits or (to_write and not entry & 1):
        return _NO_PLACE
    return table.fds[entry >> 1 & 255], (entry & -512) + inside


def resolved(table: ResolvedTable, offset: int, length: int, *, to_write: bool) -> Pieces | None:
    """The pieces that a range is made of, resolving what the table lacks.

    None if some of it is not plain, or, ``to_write``, has no space of its own yet.
    """
    pieces = _locate(table, offset, length, to_write)
    if pieces is not None:
        return pieces
    if table.fruitless >= FRUITLESS:
        table.fruitless += 1
        if table.fruitless % TRY_AGAIN:
            return None
    page = table.pages.get(offset >> table.unit_bits + PAGE_BITS)
    for units in FILL_UNITS:
        window = units << table.unit_bits
        begin = offset & -window
        first = begin >> table.unit_bits & PAGE_MASK
        if page is None or not any(page[first : first + units]):
            break  # where neighbours are known, only what is less far away has moved
    try:
        table.fill(begin, -(-(offset + length - begin) // window) * window)
    except (OSError, QobraError):
        return None  # the general path says what is wrong
    pieces = _locate(table, offset, length, to_write)
    table.fruitless = table.fruitless + 1 if pieces is None else 0
    return pieces


def _locate(table: ResolvedTable, offset: int, length: int, to_write: bool) -> Pieces | None:
    """What :func:`resolved` says, from the table as it is."""
    if to_write and not table.writable:
        return None
    if table.linear is not None:
        return [(table.linear[0], offset + table.linear[1], length)]
    bits = table.unit_bits
    unit = 1 << bits
    pieces: Pieces = []
    last_fd, next_host = -2, -1
    while length:
        number = offset >> bits
        page = table.pages.get(number >> PAGE_BITS)
        entry = page[number & PAGE_MASK] if page is not None else 0
        if entry <= 0 or (to_write and not (entry & 1 and entry > 1)):
            return None
        inside = offset & (unit - 1)
        size = min(unit - inside, length)
        if entry == 1:
            fd, host = -1, 0
        else:
            fd, host = table.fds[entry >> 1 & 255], (entry & -512) + inside
        if fd == last_fd and (fd < 0 or host == next_host):
            _fd, first, before = pieces[-1]
            pieces[-1] = (fd, first, before + size)
        else:
            pieces.append((fd, host, size))
        last_fd, next_host = fd, host + size
        offset += size
        length -= size
    return pieces


def never_waits(fd: int) -> bool:
    """Whether the file lies in memory, so that reading it never waits for a disk."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo") as mounts:
            for line in mounts:
                fields = line.split()
                if len(fields) > 4 and fields[2] == number:
                    return fields[fields.index("-") + 1] in ("tmpfs", "ramfs", "hugetlbfs")
    except (OSError, ValueError):
        pass
    return False
