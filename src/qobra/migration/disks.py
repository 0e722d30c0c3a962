"""Disks in a stream: their contents, while the guest writes to them, and what it wrote meanwhile.

The destination has disks of the same names and lengths, on storage of its own. A disk goes in chunks; a bitmap notes
what is written to it after that, which is sent again until little is left, and for the last time while the guest
stands still.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.activation import activate
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.buffers import is_zero
from qobra.block.copy.ranges import allocated_above
from qobra.block.job.chain import skip_filters
from qobra.errors import QobraError
from qobra.machine.vmstate import StateSource, put_text
from qobra.migration.stream import DISKS, StreamWriter
from qobra.report import report_progress, visible

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

CHUNK = 1 << 20
"""Bytes of a disk in one record."""

_OF_PAGES = (
    *("duplicate", "skipped", "normal", "normal-bytes", "dirty-pages-rate", "mbps", "dirty-sync-count"),
    *("postcopy-requests", "page-size", "multifd-bytes", "pages-per-second"),
)
"""Members of MigrationStats that say nothing of disks."""

_DISK, _DATA, _ZEROES = 1, 2, 3
_HEAD = Struct("<BHQ")
"""Kind, number of the disk; its length or an offset."""


class _Sent:
    """One disk that goes along, as number ``number``."""

    def __init__(self, layer: BlockLayer, number: int, device: BlockBackend, node: BlockNode) -> None:
        self.number = number
        self.name = layer.device_or_node_name(node)
        self.length = node.length
        self._device = device
        self._node = node
        self.root = BlockBackend(layer, perm=permissions.CONSISTENT_READ, description="the migration")
        self.root.insert(node)
        self.written = DirtyBitmap(skip_filters(node), None, CHUNK)

    def own_ranges(self) -> Iterator[tuple[int, int]]:
        """What the image holds itself, without what its backing file has."""
        image = skip_filters(self._node)
        return allocated_above(image, image.backing)

    def check(self) -> None:
        """Raise QobraError unless the guest's device still has the disk as it was."""
        if self._device.node is not self._node or self._node.length != self.length:
            raise QobraError(f"Block device '{self.name}' was changed while it was migrated")

    def close(self) -> None:
        """It is over. In the strand."""
        self.written.remove()
        self.root.remove()


class DiskSender:
    """The disks of ``layer`` that are written to. Made and ended in the strand; raises QobraError.

    ``incremental``: the destination has the backing files already. ``with_zeroes``: zeroes are told of, not sent.
    """

    def __init__(self, layer: BlockLayer, *, incremental: bool, with_zeroes: bool) -> None:
        self._incremental = incremental
        self._with_zeroes = with_zeroes
        self._disks: list[_Sent] = []
        self._first_pass_left = 0
        self.transferred = 0
        """Bytes of disks that were sent."""
        known: set[BlockNode] = set()
        try:
            with layer.drained():  # what is under way now is in no bitmap
                for device in layer.visible_backends():
                    node = device.node
                    if node is not None and not node.read_only and node not in known:
                        known.add(node)
                        self._disks.append(_Sent(layer, len(self._disks), device, node))
        except BaseException:
            self.end()
            raise
        self._first_pass_left = self.total

    @property
    def total(self) -> int:
        """Bytes of all disks."""
        return sum(disk.length for disk in self._disks)

    @property
    def remaining(self) -> int:
        """Bytes that are still to be sent, as far as that is known."""
        return self._first_pass_left + sum(disk.written.count() for disk in self._disks)

    def announce(self, out: StreamWriter) -> None:
        """Write which disks there are."""
        for disk in self._disks:
            name = bytearray()
            put_text(name, disk.name)
            out.record(DISKS, _HEAD.pack(_DISK, disk.number, disk.length), name)

    def send_all(self, out: StreamWriter, stop: Callable[[], None]) -> None:
        """Write all of them once."""
        left = self.total
        for disk in self._disks:
            before = left
            for offset in self._chunks(disk):
                stop()
                self._send(out, disk, offset)
                self._first_pass_left = before - offset
            left = self._first_pass_left = before - disk.length

    def _chunks(self, disk: _Sent) -> Iterator[int]:
        if not self._incremental:
            yield from range(0, disk.length, CHUNK)
            return
        sent = 0
        for start, length in disk.own_ranges():
            first = max(sent, start // CHUNK * CHUNK)
            yield from range(first, start + length, CHUNK)
            sent = max(sent, -(-(start + length) // CHUNK) * CHUNK)

    def send_written(self, out: StreamWriter, stop: Callable[[], None]) -> None:
        """Write what was written to since it was sent."""
        for disk in self._disks:
            offset = 0
            while (offset := disk.written.next_dirty(offset)) < disk.length:
                stop()
                offset = offset // CHUNK * CHUNK
                disk.written.clear(offset, CHUNK)  # first: what is written while it is read comes again
                self._send(out, disk, offset)
                offset += CHUNK

    def check(self) -> None:
        """Raise QobraError if one is no longer what it was. In the strand, once the guest stands still."""
        for disk in self._disks:
            disk.check()

    def _send(self, out: StreamWriter, disk: _Sent, offset: int) -> None:
        length = min(CHUNK, disk.length - offset)
        try:
            data = disk.root.read(offset, length)
        except OSError as error:
            raise QobraError.from_os(f"Could not read block device '{disk.name}'", error)
        if self._with_zeroes and is_zero(data):
            out.record(DISKS, _HEAD.pack(_ZEROES, disk.number, offset))
        else:
            out.record(DISKS, _HEAD.pack(_DATA, disk.number, offset), data)
        self.transferred += length

    def end(self) -> None:
        """It is over. In the strand."""
        for disk in self._disks:
            disk.close()
        self._disks = []

    def describe(self) -> dict[str, Any]:
        """MigrationStats, of which only bytes have a meaning for disks."""
        sizes = {"transferred": self.transferred, "remaining": self.remaining, "total": self.total}
        return dict.fromkeys(_OF_PAGES, 0) | sizes


class DiskReceiver:
    """Writes what comes to the disks of ``layer``, which it activates. Not in the strand, but for what says so."""

    def __init__(self, layer: BlockLayer) -> None:
        self._layer = layer
        self._roots: list[BlockBackend] = []
        self._names: set[str] = set()
        self._received = self._percent = 0

    def take(self, payload: bytes, in_strand: Callable[[Callable[[], None]], None]) -> None:
        """One record; ``in_strand`` calls in the strand. Raises QobraError or OSError."""
        if len(payload) < _HEAD.size:
            raise QobraError("A record of a disk is too short", errno=errno.EINVAL)
        kind, number, place = _HEAD.unpack_from(payload)
        if kind == _DISK:
            name = StateSource(payload[_HEAD.size :]).text()
            in_strand(lambda: self._open(number, name, place))
            return
        if number >= len(self._roots):
            raise QobraError(f"Unknown block device number {number}", errno=errno.EINVAL)
        root = self._roots[number]
        length = len(payload) - _HEAD.size if kind == _DATA else min(CHUNK, root.length - place)
        if not 0 < length <= CHUNK or place + length > root.length or kind not in (_DATA, _ZEROES):
            raise QobraError("A record of a disk lies beyond its end", errno=errno.EINVAL)
        if kind == _ZEROES or is_zero(memoryview(payload)[_HEAD.size :]):  # images stay sparse
            root.write_zeroes(place, length, may_unmap=True, counted=False)
        else:
            root.write(place, memoryview(payload)[_HEAD.size :], counted=False)
        self._received += length
        self._tell(self._received * 100 // sum(each.length for each in self._roots))

    def _tell(self, percent: int) -> None:
        """Tell how far the disks are, in hundredths; what is written again counts no more."""
        if self._percent < (percent := min(percent, 100)):
            self._percent = percent
            report_progress(percent)

    def _open(self, number: int, name: str, length: int) -> None:
        if number != len(self._roots) or name in self._names:
            raise QobraError(f"Unexpected block device '{visible(name)}' in the stream", errno=errno.EINVAL)
        node = self._layer.find_device_or_node(name)
        if node.length != length:
            raise QobraError(f"Block device '{name}' has {node.length} bytes here, and {length} at the source")
        activate(self._layer, (node,))
        root = BlockBackend(
            self._layer, perm=permissions.CONSISTENT_READ | permissions.WRITE, description="the migration"
        )
        root.insert(node)
        self._roots.append(root)
        self._names.add(name)

    def flush(self) -> None:
        """All has come: see to it that it is there. Raises QobraError."""
        for root in self._roots:
            try:
                root.flush(counted=False)
            except OSError as error:
                raise QobraError.from_os("Could not write the disks out", error)
            self._tell(100)

    def close(self) -> None:
        """It is over. In the strand."""
        for root in self._roots:
            root.remove()
        self._roots = []
