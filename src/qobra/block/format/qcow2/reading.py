"""Reading what does not lie raw in the file: compressed and encrypted clusters."""

from __future__ import annotations

import errno

from qobra.block.buffers import new_buffer
from qobra.block.extents import COMPUTED, DATA
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.compressed import ZSTD, ClusterCache, decompress
from qobra.block.format.qcow2.mapping import map_range
from qobra.block.node import read_or_zero
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk

Place = tuple[int, int]
"""Host offset and length in bytes."""
Packed = tuple[int, int, int, int]
"""Host offset, length in bytes at most, guest offset, and bytes of the disk, of a compressed cluster."""


class ComputedReader:
    """Reads COMPUTED extents of one image. Takes the image's lock only to look entries up."""

    def __init__(self, node: Qcow2Disk) -> None:
        self._node = node
        self._image = node.image
        self._clusters = ClusterCache(node.image.cluster_size)

    def forget(self) -> None:
        """Compressed data was written: places may hold other clusters than before."""
        self._clusters.clear()

    def read(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from guest ``offset``."""
        if self._image.encrypted:
            self._read_encrypted(offset, view)
        else:
            self._read_compressed(offset, view)

    def packed(self, offset: int, length: int) -> tuple[int, int, list[Packed]] | None:
        """The file and the size of clusters that zstd compressed, and where they lie, for who unpacks them himself.

        None if the range is not made of such clusters only.
        """
        image = self._image
        end = offset + length
        if (
            image.header.compression != ZSTD
            or image.encrypted
            or image.file.driver != "file"
            or image.file.cache_direct
        ):
            return None
        if offset & image.cluster_mask or (end & image.cluster_mask and end != self._node.length):
            return None
        clusters: list[Packed] = []
        for place in self._places(offset >> image.cluster_bits, (end - 1) >> image.cluster_bits):
            if place is None:
                return None
            clusters.append((*place, offset, min(image.cluster_size, end - offset)))
            offset += image.cluster_size
        return image.file.fd, image.cluster_size, clusters

    def _read_encrypted(self, offset: int, view: memoryview) -> None:
        position = 0
        for extent in map_range(self._image, offset, len(view), raw=True):
            part = view[position : position + extent.length]
            here = offset + position
            if extent.kind == COMPUTED:
                self._read_compressed(here, part)
            elif extent.kind == DATA:
                self._decrypt(here, extent.offset, part)
            else:
                self._node.read_old(here, part)  # it was changed just now
            position += extent.length

    def _decrypt(self, guest: int, host: int, view: memoryview) -> None:
        crypt = self._image.crypt
        if crypt is None:
            raise QobraError("The image is encrypted and was opened without its key", errno=errno.EACCES)
        low = guest & 511
        stored = new_buffer((low + len(view) + 511) & ~511)
        read_or_zero(self._image.data, host - low, memoryview(stored))
        view[:] = crypt.decrypt(guest - low, host - low, stored)[low : low + len(view)]

    def _read_compressed(self, offset: int, view: memoryview) -> None:
        image = self._image
        size = image.cluster_size
        places = self._places(offset >> image.cluster_bits, (offset + len(view) - 1) >> image.cluster_bits)
        stored, base = self._read_together(places)
        position = 0
        for place in places:
            inside = (offset + position) & image.cluster_mask
            part = view[position : position + size - inside]
            if place is None:
                self._node.read_old(offset + position, part)  # it was overwritten just now
            else:
                data = self._clusters.get(place)
                if data is None:
                    image.file.debug_event("read_compressed")
                    start, length = place
                    packed = stored[start - base : start - base + length] if stored else image.read_meta(start, length)
                    data = decompress(packed, size, image.header.compression)
                    if len(part) < size:
                        self._clusters.put(place, data)
                part[:] = data if len(part) == size else data[inside : inside + len(part)]
            position += len(part)

    def _places(self, first: int, last: int) -> list[Place | None]:
        """Where guest clusters ``first`` to ``last`` lie compressed; None for one that is not."""
        image = self._image
        tables = image.tables
        places: list[Place | None] = []
        with image.lock:
            for cluster in range(first, last + 1):
                part = tables.find(cluster)
                word = part.words[(cluster & tables.slice_mask) << tables.word_bits] if part is not None else 0
                compressed = word & layout.COMPRESSED_FLAG
                places.append(layout.compressed_place(word, image.cluster_bits) if compressed else None)
        return places

    def _read_together(self, places: list[Place | None]) -> tuple[memoryview | None, int]:
        """What is stored at ``places`` and from which offset on, if they are many and lie close together."""
        known = [place for place in places if place is not None]
        if len(known) < 2:
            return None, 0
        base = min(start for start, _length in known)
        end = max(start + length for start, length in known)
        if end - base > 2 * sum(length for _start, length in known):
            return None, 0
        return memoryview(self._image.read_meta(base, end - base)), base
