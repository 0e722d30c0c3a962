"""Guarding metadata: no write may go to a host cluster that holds it, whatever a damaged table says.

The check is one set lookup a cluster. The set is built from what is in memory when a request first wants to write.
"""

from __future__ import annotations

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.snapshots import read_l1
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from qobra.block.format.qcow2.image import Image

CHECKS = (
    "main-header",
    "active-l1",
    "active-l2",
    "refcount-table",
    "refcount-block",
    "snapshot-table",
    "inactive-l1",
    "inactive-l2",
    "bitmap-directory",
)
"""The members of Qcow2OverlapCheckFlags."""

_CONSTANT = frozenset({"main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"})
TEMPLATES = {
    "none": frozenset[str](),
    "constant": _CONSTANT,
    "cached": frozenset(CHECKS) - {"inactive-l2"},
    "all": frozenset(CHECKS),
}

_NAMES = {
    "main-header": "qcow2_header",
    "active-l1": "active L1 table",
    "active-l2": "active L2 table",
    "refcount-table": "refcount table",
    "refcount-block": "refcount block",
    "snapshot-table": "snapshot table",
    "inactive-l1": "inactive L1 table",
    "inactive-l2": "inactive L2 table",
    "bitmap-directory": "bitmap directory",
}


class Overlap:
    """The host clusters of an image that hold metadata. To be used under the image's lock."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.checks: frozenset[str] = TEMPLATES["cached"]
        self._clusters: set[int] | None = None
        self._double: set[int] = set()
        """Those that are refcount blocks or L2 tables, and something else at once."""
        self._unknown: QobraError | None = None
        """Why it cannot be known which clusters they are: then nothing is written."""
        self._signalled = False

    def note(self, cluster: int, count: int) -> None:
        """``count`` clusters, which must not hold any yet, hold metadata from now on."""
        self.guard(cluster << self._image.cluster_bits, count << self._image.cluster_bits)
        if self._clusters is not None:
            self._clusters.update(range(cluster, cluster + count))

    def forget(self, cluster: int, count: int) -> None:
        """They do not any more."""
        if self._clusters is not None:
            self._clusters.difference_update(range(cluster, cluster + count))

    def rebuild(self) -> None:
        """Collect anew at the next check (after a snapshot, a resize, ...)."""
        self._clusters = None

    def touches(self, cluster: int, count: int) -> bool:
        """Whether one of ``count`` host clusters from ``cluster`` holds, or might hold, metadata that is guarded."""
        clusters = self._clusters
        if clusters is None:
            self._unknown = None
            try:
                clusters = self._collect()
            except QobraError as error:
                self._unknown, clusters = error, set()
            self._clusters = clusters
        if self._unknown is not None:
            return True
        if count == 1:
            return cluster in clusters
        return not clusters.isdisjoint(range(cluster, cluster + count))

    def guard(self, offset: int, length: int) -> None:
        """Raise, and mark the image corrupt, if a write of ``length`` bytes at host ``offset`` would hit metadata.

        Raise just so if that cannot be known.
        """
        bits = self._image.cluster_bits
        first = offset >> bits
        if self.touches(first, ((offset + length - 1) >> bits) - first + 1):
            self.require_known()
            self._refuse(offset, length)

    def guard_own(self, offset: int, check: str) -> None:
        """Raise, and mark the image corrupt, if the metadata at host ``offset`` is more than what ``check`` guards.

        That is "refcount-block" or "active-l2".
        """
        bits = self._image.cluster_bits
        if self.touches(offset >> bits, 1) and offset >> bits in self._double:
            self._refuse(offset & -1 << bits, 1 << bits, check)

    def _refuse(self, offset: int, length: int, but: str = "") -> NoReturn:
        text = f"Preventing invalid write on metadata (overlaps with {self._name(offset, length, but)})"
        self._image.corrupt(text, fatal=True, offset=offset, size=length)

    def require_known(self) -> None:
        """Raise if it cannot be known which clusters hold metadata."""
        self.touches(0, 0)
        if self._unknown is not None:
            raise QobraError(self._unknown.desc, errno=self._unknown.errno)

    def _areas(self) -> list[tuple[str, int, int]]:
        """(check, host offset, bytes) of all that is guarded, in the order in which QEMU looks."""
        image = self._image
        header = image.header
        size = image.cluster_size
        areas = [
            ("main-header", 0, size),
            ("active-l1", header.l1_offset, header.l1_entries * 8),
        ]
        areas += [("active-l2", entry & layout.OFFSET_MASK, size) for entry in image.tables.l1 if entry]
        areas += [("refcount-block", entry & layout.REFTABLE_MASK, size) for entry in image.refcounts.table if entry]
        areas.append(("refcount-table", header.reftable_offset, header.reftable_clusters * size))
        areas += image.node.snapshots.areas()
        if "inactive-l2" in self.checks:
            areas += [("inactive-l2", table, size) for table in self._inactive_tables()]
        if header.bitmaps is not None:
            areas.append(("bitmap-directory", header.bitmaps[1], header.bitmaps[2]))
        return [area for area in areas if area[0] in self.checks and area[2] and (area[1] or area[0] == "main-header")]

    def _inactive_tables(self) -> set[int]:
        """The L2 tables of snapshots, read from disk. Raises QobraError where there can be no L1 table of one."""
        image = self._image
        tables: set[int] = set()
        for snapshot in image.node.snapshots.entries:
            tables.update(word & layout.OFFSET_MASK for word in read_l1(image, snapshot))
        return tables

    def _collect(self) -> set[int]:
        blocks: set[int] = set()
        tables: set[int] = set()
        others: set[int] = set()
        bits, cluster = self._image.cluster_bits, self._image.cluster_size
        # What a damaged table puts past the end of the file needs no guard, and might be anything in size.
        end = -(-self._image.file.length >> bits)
        for check, offset, size in self._areas():
            kind = blocks if check == "refcount-block" else tables if check == "active-l2" else others
            first = offset >> bits
            kind.add(first)
            if size > cluster or offset & cluster - 1:
                kind.update(range(first, min((offset + size - 1) >> bits, end) + 1))
        self._double = blocks & tables | blocks & others | tables & others
        return blocks | tables | others

    def _name(self, offset: int, length: int, but: str) -> str:
        mask = -self._image.cluster_size
        for check, start, size in self._areas():
            if check != but and start & mask < offset + length and offset & mask < start + size:
                return _NAMES[check]
        return "metadata"

    def signal(self, message: str, *, fatal: bool, offset: int = -1, size: int = -1) -> None:
        """Say once that the image is damaged; if ``fatal``, set the corrupt bit and stop using the image."""
        image = self._image
        node = image.node
        fatal = fatal and not (node.read_only or node.inactive)
        if not (fatal and not image.is_corrupt) and self._signalled:
            return
        self._signalled = True
        if fatal:
            text = f"qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed"
        else:
            text = f"qcow2: Image is corrupt: {message}; further non-fatal corruption events will be suppressed"
        node.warn(text)
        data = {"device": node.device_name(), "node-name": node.node_name, "msg": message, "fatal": fatal}
        if offset >= 0:
            data["offset"] = offset
        if size >= 0:
            data["size"] = size
        node.layer.emit_from_request("BLOCK_IMAGE_CORRUPTED", data)
        if fatal:
            image.is_corrupt = True
            node.moved(0, max(node.length, 1))  # what roots have found of it is not to be used either
            image.writeback.set_incompatible(layout.CORRUPT)
