"""The ``blklogwrites`` filter: logs every write, zeroing, discard and flush for replay, in dm-log-writes' format.

The format is that of Linux' Documentation/admin-guide/device-mapper/log-writes.rst: a super block, then an entry with
its data for each request, all in units of the log's sector size: what is written of parts of sectors is filled up.
"""

from __future__ import annotations

import struct
import threading

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.copy.range_locks import RangeLocks
from qobra.block.filter._filter import FilterNode
from qobra.block.node import BlockNode, drivers, read_or_zero
from qobra.block.opening import Opening
from qobra.errors import QobraError

MAGIC = 0x6A736677736872
VERSION = 1
FLUSH_FLAG, FUA_FLAG, DISCARD_FLAG = 1, 2, 4
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
MAX_ENTRIES = 1 << 40


@drivers.register("blklogwrites")
class BlklogwritesNode(FilterNode):
    """``file`` is what is written to, ``log`` where it is noted down."""

    driver = "blklogwrites"
    can_reopen = False
    strong_options = ("log-sector-size", "log-append")

    def open(self, opening: Opening) -> None:
        options = opening.options
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        opening.child("log", permissions.ROLE_METADATA)
        self._lock = threading.Lock()
        self._interval: int = options.get("log-super-update-interval", 4096)
        if not self._interval:
            raise QobraError("Invalid log superblock update interval 0")
        self._sector: int = options.get("log-sector-size", 512)
        self._next = 1
        self._entries = 0
        if options.get("log-append", False):
            if "log-sector-size" in options:
                raise QobraError("log-append and log-sector-size are mutually exclusive")
            self._read_super()
        if self._sector < 512 or self._sector > 8 << 20 or self._sector & (self._sector - 1):
            raise QobraError(f"Invalid log sector size {self._sector}")
        self.request_alignment = self._sector
        self._ranges = RangeLocks(ordered=True)
        """As guest: what has to be filled up, which nothing may overlap; as job: whole sectors."""
        self.child_resized("file")

    _noted = False
    """Whether anything was added to the log."""

    @property
    def _log(self) -> BlockNode:
        return self.children["log"]

    def _read_super(self) -> None:
        if self._log.length < _SUPER.size:
            raise QobraError("Could not read log superblock")
        magic, version, entries, sector = _SUPER.unpack(self._log.read(0, _SUPER.size))
        if magic != MAGIC:
            raise QobraError("Invalid log superblock magic")
        if version != VERSION:
            raise QobraError(f"Unsupported log version {version}")
        if entries > MAX_ENTRIES or sector < 512:
            raise QobraError("Invalid log superblock")
        self._sector, self._entries = sector, entries
        position = 1
        for _ in range(entries):
            _place, sectors, flags, _length = _ENTRY.unpack(self._log.read(position * sector, _ENTRY.size))
            position += 1 + (0 if flags & DISCARD_FLAG else sectors)
            if position * sector > self._log.length + sector:
                raise QobraError("Log entry points past the end of the log")
        self._next = position

    def plain_writes(self) -> bool:
        return False

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return None

    def _write(self, offset: int, data: Buffer) -> None:
        end = offset + len(data)
        start = offset & -self._sector
        stop = min(-(-end // self._sector) * self._sector, max(end, self.length))
        if (start, stop) == (offset, end):
            with self._ranges.job(start, stop - start):
                self._write_whole(offset, data)
            return
        with self._ranges.guest(start, stop - start):
            whole = memoryview(bytearray(stop - start))
            read_or_zero(self.below, start, whole)
            whole[offset - start : end - start] = data
            self._write_whole(start, whole)

    def _write_whole(self, offset: int, data: Buffer) -> None:
        self.below.write(offset, data)
        self._note(offset, len(data), 0, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        start, stop = self._whole_sectors(offset, length)
        if start >= stop:
            self._write(offset, bytes(length))
            return True
        if offset < start:
            self._write(offset, bytes(start - offset))
        with self._ranges.job(start, stop - start):
            # No space is given back: who replays the log sees a write of zeroes, and would not do so either.
            super()._write_zeroes(start, stop - start, False, no_fallback)
            self._note(start, stop - start, 0, None)
        if stop < offset + length:
            self._write(stop, bytes(offset + length - stop))
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.below.discard(offset, length)
        start, stop = self._whole_sectors(offset, length)
        if start < stop:
            self._note(start, stop - start, DISCARD_FLAG, b"")

    def _whole_sectors(self, offset: int, length: int) -> tuple[int, int]:
        """Those within a range: where they begin and end. The end of the disk also ends a sector."""
        end = offset + length
        return -(-offset // self._sector) * self._sector, end if end == self.length else end & -self._sector

    def _flush(self) -> None:
        if not self.closed:
            self._note(0, 0, FLUSH_FLAG, b"")

    def _note(self, offset: int, length: int, flags: int, data: Buffer | None) -> None:
        """Add an entry, and after it ``data``; None: zeroes, which the log has no other way to tell of."""
        sector = self._sector
        with self._lock:
            place = self._next
            sectors = -(-length // sector)
            self._next += 1 + (0 if flags & DISCARD_FLAG else sectors)
            self._entries += 1
            self._noted = True
            entry = _ENTRY.pack(offset // sector, sectors, flags, 0).ljust(sector, b"\0")
            padded = bytes(data).ljust(sectors * sector, b"\0") if data else b""
            self._log.write(place * sector, entry + padded)
            if data is None:
                self._log.write_zeroes((place + 1) * sector, sectors * sector)
            if flags & FLUSH_FLAG or self._entries % self._interval == 0:
                self._write_super()

    def _write_super(self) -> None:
        self._log.write(0, _SUPER.pack(MAGIC, VERSION, self._entries, self._sector).ljust(self._sector, b"\0"))
        self._log.flush()

    def close(self) -> None:
        if self._noted:
            self._write_super()
