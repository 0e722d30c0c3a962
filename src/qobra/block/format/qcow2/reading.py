"""Reading what does not lie raw in the file: compressed and encrypted clusters."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qobra.block.extents import COMPUTED, DATA
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.compressed import ClusterCache, decompress
from qobra.block.format.qcow2.mapping import map_range
from qobra.block.node import read_or_zero
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk


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
        stored = bytearray((low + len(view) + 511) & ~511)
        read_or_zero(self._image.data, host - low, memoryview(stored))
        view[:] = crypt.decrypt(guest - low, host - low, stored)[low : low + len(view)]

    def _read_compressed(self, offset: int, view: memoryview) -> None:
        image = self._image
        position = 0
        while position < len(view):
            inside = (offset + position) & image.cluster_mask
            part = view[position : position + image.cluster_size - inside]
            data = self._cluster((offset + position) >> image.cluster_bits)
            if data is None:
                self._node.read_old(offset + position, part)  # it was overwritten just now
            else:
                part[:] = data[inside : inside + len(part)]
            position += len(part)

    def _cluster(self, cluster: int) -> bytes | None:
        """The contents of a compressed guest cluster, None if it is not one."""
        image = self._image
        tables = image.tables
        with image.lock:
            part = tables.find(cluster)
            word = part.words[(cluster & tables.slice_mask) << tables.word_bits] if part is not None else 0
        if not word & layout.COMPRESSED_FLAG:
            return None
        place = layout.compressed_place(word, image.cluster_bits)
        data = self._clusters.get(place)
        if data is None:
            image.file.debug_event("read_compressed")
            data = decompress(image.read_meta(*place), image.cluster_size, image.header.compression)
            self._clusters.put(place, data)
        return data
