"""The snapshot table of an image."""

from __future__ import annotations

import errno

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError
from qobra.report import report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array

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

    def load(self, read: ReadBytes) -> None:
        """Read the table, entry by entry. Raises QobraError where it is out of bounds."""
        offset = start = self._header.snapshot_offset
        entries = []
        for _number in range(self._header.snapshot_count):
            entry, length = _parse(read, offset, self._header.size)
            offset += length
            if offset - start > layout.MAX_SNAPSHOT_TABLE_BYTES:
                raise QobraError("Snapshot table is too big", errno=errno.EFBIG)
            entries.append(entry)
        self.entries = entries
        self.size = offset - start

    def areas(self) -> list[tuple[str, int, int]]:
        """(check, host offset, bytes) of what snapshots take of the image, for the overlap check."""
        areas = [("snapshot-table", self._header.snapshot_offset, self.size)]
        areas += [("inactive-l1", each.l1_offset, each.l1_entries * 8) for each in self.entries]
        return areas


def _parse(read: ReadBytes, offset: int, disk_size: int) -> tuple[Snapshot, int]:
    """The entry at ``offset`` and its length in the table."""
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
    if extra_length > layout.MAX_SNAPSHOT_EXTRA:
        raise QobraError("Too much extra metadata in snapshot table entry", errno=errno.EINVAL)
    rest = read(offset + layout.SNAPSHOT.size, extra_length + id_length + name_length)
    entry = Snapshot(
        rest[extra_length : extra_length + id_length].decode("utf-8", "surrogateescape"),
        rest[extra_length + id_length :].decode("utf-8", "surrogateescape"),
    )
    entry.l1_offset, entry.l1_entries = l1_offset, l1_entries
    entry.seconds, entry.nanoseconds, entry.vm_clock = seconds, nanoseconds, vm_clock
    extra = rest[:extra_length]
    entry.vm_state_size = int.from_bytes(extra[:8], "big") if extra_length >= 8 else vm_state_size
    entry.disk_size = int.from_bytes(extra[8:16], "big") if extra_length >= 16 else disk_size
    if extra_length >= 24:
        icount = int.from_bytes(extra[16:24], "big")
        entry.icount = icount if icount != (1 << 64) - 1 else None
        entry.unknown_extra = extra[24:]
    length = layout.SNAPSHOT.size + len(rest)
    return entry, length + (-length % 8)


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
