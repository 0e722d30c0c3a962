"""New clusters for loops without the GIL: the driver hands out a run of them ahead, and takes back what was not used.

The reserve has one user, the flat table of the root that the image is at, and only while no other table holds places of
the image. What its loops do with it is in ``native/reserve.pyx``; where clusters go, and when they are counted, is
decided here:

- The clusters are virgin ones in a row. They are counted like any others before a loop may take them, and the file is
  made long enough. While there are free clusters further down, there is no reserve: those are to be used first.
- A commit begins by taking back what was not taken, so that its count never gets to the disk, and by taking note of
  what was linked. From there on it finds all as if the writes had gone through the driver, and keeps the same order.
- The first write after a commit, or to another slice, goes through the driver, which then opens the reserve again.
"""

from __future__ import annotations

import time

from qobra.block import permissions
from qobra.block.protocol.file import FileNode
from qobra.errors import QobraError
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image
    from qobra.block.table import ResolvedTable
    from qobra.native.places import Places

RESERVE_BYTES = 4 << 20
"""What is handed out at a time."""
MAX_CLUSTERS = 1024
_PAUSE_S = 20e-6

_compiled = compiled("reserve")


class Reserve:
    """The reserve of an image whose data are in ``file``. All methods are to be called under the image's lock."""

    def __init__(self, image: Image, file: FileNode) -> None:
        assert _compiled is not None
        self._image = image
        self._file = file
        self.fd = file.fd
        self._reserve = _compiled.Reserve(image.lock, self.fd, image.cluster_bits, image.tables.slice_bits)
        self._want = max(1, min(RESERVE_BYTES >> image.cluster_bits, MAX_CLUSTERS))
        self.extended_to = 0
        """How long the file was made for the clusters that were handed out last."""

    def serve(self, places: Places | None, leaf: int = 0) -> None:
        """Let the loops of ``places``, whose file ``leaf`` it is, take clusters from now on, and nobody else."""
        self._reserve.serve(places, leaf)
        self.note_busy()

    def note_busy(self) -> None:
        """The image's ``in_flight`` has changed."""
        in_flight = self._image.in_flight
        if in_flight:
            self._reserve.set_busy(min(in_flight), max(in_flight))
        else:
            self._reserve.set_busy(0, -1)

    def replenish(self, cluster: int) -> None:
        """A guest cluster was allocated: let loops do the same near it."""
        reserve, tables = self._reserve, self._image.tables
        if not reserve.is_used:
            return
        if not reserve.left:
            self._take_back()
            if not self._supply():
                return
        key = cluster >> tables.slice_bits
        part = tables.slices.get(key)
        # Only a slice that waits to be written is sure to stay in the cache.
        if part is not None and part.last >= 0 and not reserve.knows(key):
            changed = reserve.add_slice(key, part.words)
            if changed is not None:
                self._mark(*changed)

    def close(self) -> None:
        """Take back what was not taken, and take note of what was linked. May let go of the lock before that."""
        self._take_back()
        while self._reserve.writing:
            self._image.lock.release()
            time.sleep(_PAUSE_S)
            self._image.lock.acquire()
            self._take_back()
        for changed in self._reserve.take_slices():
            self._mark(*changed)

    def _supply(self) -> bool:
        """Hand out new clusters; whether that was possible."""
        image = self._image
        allocator = image.allocator
        if allocator.has_holes():
            return False
        try:
            first, count = allocator.claim_data(self._want, virgin=True)
        except (OSError, QobraError):
            return False  # whoever needs clusters is told
        end = (first + count) << image.cluster_bits
        try:
            image.overlap.guard(first << image.cluster_bits, count << image.cluster_bits)
            self._file.extend(end)
        except (OSError, QobraError):
            allocator.release_virgin(first, count)
            return False
        self.extended_to = end
        self._reserve.supply(first, count)
        return True

    def _take_back(self) -> None:
        allocator = self._image.allocator
        for first, count in self._reserve.take_lost():
            allocator.release(first, count)
        first, count = self._reserve.take_rest()
        if count:
            allocator.release_virgin(first, count)

    def _mark(self, key: int, first: int, last: int) -> None:
        tables = self._image.tables
        tables.mark(key << tables.slice_bits, tables.slices[key], first, last)


def lend(image: Image, table: ResolvedTable, places: Places) -> None:
    """Let the loops of ``places`` take clusters, if that can be and their table alone holds places of the image."""
    file = _file_to_lend(image)
    leaf = table.leaf_number(file) if file is not None else 0
    with image.lock:
        reserve = image.reserve
        if reserve is not None and (file is None or reserve.fd != file.fd):
            reserve.close()
            reserve.serve(None)
            image.reserve = reserve = None
        if file is not None and leaf and image.node.tables == (table,) and table.unit_bits == image.cluster_bits:
            if reserve is None:
                image.reserve = reserve = Reserve(image, file)
            reserve.serve(places, leaf)
        elif reserve is not None:
            reserve.serve(None)


def _file_to_lend(image: Image) -> FileNode | None:
    """Where the data are, if new clusters read as zeroes there and nothing is below the image."""
    node, data = image.node, image.data
    if (
        _compiled is None
        or not isinstance(data, FileNode)
        or data.driver != "file"
        or data.request_alignment > 1
        or not data.perm & permissions.RESIZE
        or image.external
        or image.extended
        or image.is_corrupt
        or node.backing is not None
        or not (node.takes_files() and node.plain_writes())
    ):
        return None
    return data
