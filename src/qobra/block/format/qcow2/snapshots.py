"""The snapshot table of an image."""

from __future__ import annotations

import errno
import os

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError
from qobra.report import report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from qobra.block.format.qcow2.check import Report
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.header import Header, ReadBytes
    from qobra.block.format.qcow2.image import Image


class Snapshot:
    """One internal snapshot; sizes in bytes, times in nanoseconds where not said otherwise."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.l1_offset = 0
        self.l1_entries = 0
        self.seconds = 0
        """Time of creation in seconds since the Epoch, ``nanoseconds`` the rest of it."""
        self.nanoseconds = 0
        self.vm_clock = 0
        self.vm_state_size = 0
        self.disk_size = 0
        self.icount: int | None = None
        """Instructions that the guest had run, None where that was not recorded."""
        self.unknown_extra = b""
        self.is_complete = True
        """The entry has all the extra data that images of version 3 must have."""

    def pack(self) -> bytes:
        """The entry in the snapshot table."""
        icount = (1 << 64) - 1 if self.icount is None else self.icount
        extra = layout.SNAPSHOT_EXTRA.pack(self.vm_state_size, self.disk_size, icount) + self.unknown_extra
        id, name = self.id.encode("utf-8", "surrogateescape"), self.name.encode("utf-8", "surrogateescape")
        entry = layout.SNAPSHOT.pack(
            self.l1_offset,
            self.l1_entries,
            len(id),
            len(name),
            self.seconds & 0xFFFFFFFF,
            self.nanoseconds,
            self.vm_clock,
            min(self.vm_state_size, 0xFFFFFFFF),
            len(extra),
        )
        data = entry + extra + id + name
        return data + bytes(-len(data) % 8)


class SnapshotTable:
    """The snapshots of an image, in the order of the table."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.entries: list[Snapshot] = []
        self.size = 0
        """Bytes of the table on disk."""
        self.differs = False
        """What is on disk holds more of an entry than was taken, or less than it must have."""

    def load(self, read: ReadBytes, discarded: Callable[[str, int], None] | None = None) -> None:
        """Read the table, entry by entry. Raises QobraError where it is out of bounds.

        With ``discarded``, what is out of bounds is left out instead, and ``discarded`` is told what and how many.
        """
        offset = start = self._header.snapshot_offset
        count = min(self._header.snapshot_count, layout.MAX_SNAPSHOTS)
        entries: list[Snapshot] = []
        dropped = 0
        self.differs = False
        for number in range(count):
            entry, length, extra = _parse(read, offset, self._header.size)
            if extra > layout.MAX_SNAPSHOT_EXTRA:
                if discarded is None:
                    raise QobraError(
                        f"Too much extra metadata in snapshot table entry {number}",
                        errno=errno.EFBIG,
                        hint="You can force-remove this extra metadata with qemu-img check -r all",
                    )
                about = f"({extra} > {layout.MAX_SNAPSHOT_EXTRA})"
                discarded(f"too much extra metadata in snapshot table entry {number} {about}", 1)
                dropped += extra - layout.MAX_SNAPSHOT_EXTRA
            if offset + length - dropped - start > layout.MAX_SNAPSHOT_TABLE_BYTES:
                left = count - number
                if discarded is None:
                    raise QobraError("Snapshot table is too big", errno=errno.EFBIG, hint=_removable(left))
                discarded(f"{left} overhanging snapshots (snapshot table is too big)", left)
                break
            offset += length
            entries.append(entry)
        self.entries = entries
        self.size = offset - start
        self.differs = bool(dropped) or (self._header.version >= 3 and not all(each.is_complete for each in entries))

    def areas(self) -> list[tuple[str, int, int]]:
        """(check, host offset, bytes) of what snapshots take of the image, for the overlap check."""
        areas = [("snapshot-table", self._header.snapshot_offset, self.size)]
        areas += [("inactive-l1", each.l1_offset, each.l1_entries * 8) for each in self.entries]
        return areas


def check_table(node: Qcow2Disk, report: Report, *, fix: bool) -> int:
    """Read the table of a node that was opened to be checked, and look at it: how many faults there are.

    With ``fix``, what cannot be read is left out, for :func:`.snapshot_ops.mend_table`. Raises OSError where it cannot
    be read otherwise.
    """
    table, header = node.snapshots, node.header
    faults = 0

    def discarded(text: str, count: int) -> None:
        nonlocal faults
        faults += count
        report(f"Discarding {text}")

    if node.checking:
        excess = header.snapshot_count - layout.MAX_SNAPSHOTS
        if excess > 0 and not fix:
            raise _failure(errno.EFBIG, f"ERROR snapshot table too large\n{_removable(excess)}")
        if excess > 0:
            discarded(f"{excess} overhanging snapshots", excess)
        try:
            table.load(node.read_file, discarded if fix else None)
        except QobraError as error:
            raise _failure(error.errno or errno.EINVAL, f"ERROR failed to read the snapshot table: {error}")
    for number, entry in enumerate(table.entries):
        if header.version >= 3 and not entry.is_complete:
            faults += 1
            report(f"{'Repairing' if fix else 'ERROR'} snapshot table entry {number} is incomplete")
    return faults


def _failure(number: int, reason: str) -> OSError:
    """What ends a check that cannot be done: a number, as QEMU tells it, and in a note the reason."""
    error = OSError(number, os.strerror(number))
    error.add_note(reason)
    return error


def _removable(count: int) -> str:
    return f"You can force-remove all {count} overhanging snapshots with qemu-img check -r all"


def _parse(read: ReadBytes, offset: int, disk_size: int) -> tuple[Snapshot, int, int]:
    """The entry at ``offset``, its length in the table, and that of its extra data, of which only so much is kept as
    there may be."""
    (
        l1_offset,
        l1_entries,
        id_length,
        name_length,
        seconds,
        nanoseconds,
        vm_clock,
        vm_state_size,
        extra_length,
    ) = layout.SNAPSHOT.unpack(read(offset, layout.SNAPSHOT.size))
    offset += layout.SNAPSHOT.size
    length = layout.SNAPSHOT.size + extra_length + id_length + name_length
    kept = min(extra_length, layout.MAX_SNAPSHOT_EXTRA)
    if kept == extra_length:
        rest = read(offset, kept + id_length + name_length)
    else:
        rest = read(offset, kept) + read(offset + extra_length, id_length + name_length)
    entry = Snapshot(_text(rest[kept : kept + id_length]), _text(rest[kept + id_length :]))
    entry.l1_offset, entry.l1_entries = l1_offset, l1_entries
    entry.seconds, entry.nanoseconds, entry.vm_clock = seconds, nanoseconds, vm_clock
    extra = rest[:kept]
    entry.is_complete = extra_length >= layout.MIN_SNAPSHOT_EXTRA
    entry.vm_state_size = int.from_bytes(extra[:8], "big") if extra_length >= 8 else vm_state_size
    entry.disk_size = int.from_bytes(extra[8:16], "big") if extra_length >= 16 else disk_size
    if extra_length >= 24:
        icount = int.from_bytes(extra[16:24], "big")
        entry.icount = icount if icount != (1 << 64) - 1 else None
        entry.unknown_extra = extra[24:]
    return entry, length + (-length % 8), extra_length


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def read_l1(image: Image, snapshot: Snapshot) -> array[int]:
    """The L1 table of a snapshot. Raises QobraError where there can be none."""
    if snapshot.l1_entries * 8 > layout.MAX_L1_BYTES:
        raise QobraError("Snapshot L1 table too large", errno=errno.EFBIG)
    if snapshot.l1_offset & image.cluster_mask or snapshot.l1_offset > image.file.length:
        raise QobraError("Snapshot L1 table offset invalid", errno=errno.EINVAL)
    return image.read_array(snapshot.l1_offset, snapshot.l1_entries)


def read_l1_or_report(image: Image, snapshot: Snapshot) -> array[int]:
    """As :func:`read_l1`, for callers that have no more than the number of an error to tell: why is printed, too."""
    try:
        return read_l1(image, snapshot)
    except QobraError as error:
        report_error(error)
        raise
