"""Writing compressed clusters: many at once, compressed without the lock, placed side by side, written as one."""

from __future__ import annotations

import errno

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.compressed import MAX_LEVELS, compress_clusters
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image


class CompressedWriter:
    """Compressed writes to an image. Several threads may be here at once; only placing takes the lock."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._level: int | None = None
        """The compressor's level; None: what is quick and about as small as QEMU's."""

    def set_level(self, level: int) -> None:
        """Compress at ``level`` of zlib or zstd from now on. Raises QobraError where there is no such level."""
        kind = self._image.header.compression
        if not 1 <= level <= MAX_LEVELS[kind]:
            name = layout.COMPRESSION_TYPES[kind]
            raise QobraError(
                f"Compression level of {name} must be between 1 and {MAX_LEVELS[kind]}", errno=errno.EINVAL
            )
        self._level = level

    def write(self, offset: int, view: memoryview) -> None:
        """Write whole clusters; the last may be cut short by the end of the disk. None may be allocated yet."""
        image = self._image
        if image.external:
            raise QobraError("Compressed clusters need the data in the image file itself", errno=errno.ENOTSUP)
        if image.encrypted:
            raise QobraError("Compression and encryption not supported at the same time", errno=errno.ENOTSUP)
        if offset & image.cluster_mask:
            raise QobraError("Compressed writes must begin at a cluster", errno=errno.EINVAL)
        if len(view) & image.cluster_mask and offset + len(view) != image.node.length:
            raise QobraError("Compressed writes must cover whole clusters", errno=errno.EINVAL)
        size = image.cluster_size
        kind = image.header.compression
        whole = len(view) & -size
        packed = compress_clusters(view[:whole], size, kind, self._level) if whole else []
        if whole < len(view):
            packed += compress_clusters(bytes(view[whole:]).ljust(size, b"\0"), size, kind, self._level)
        start = 0
        while start < len(packed):
            if packed[start] is None:
                part = view[start * size : (start + 1) * size]
                self._require_absent((offset >> image.cluster_bits) + start)
                image.node.write_plain(offset + start * size, part)
                start += 1
                continue
            end = start
            pieces: list[bytes] = []
            while end < len(packed) and (piece := packed[end]) is not None:
                pieces.append(piece)
                end += 1
            self._write_pieces((offset >> image.cluster_bits) + start, pieces)
            start = end

    def _require_absent(self, cluster: int) -> None:
        with self._image.lock:
            self._check_absent(cluster)

    def _check_absent(self, cluster: int) -> None:
        """Compression never overwrites: what is there might be larger than its place."""
        tables = self._image.tables
        part = tables.find(cluster)
        word = part.words[(cluster & tables.slice_mask) << tables.word_bits] if part is not None else 0
        if word & (layout.OFFSET_MASK | layout.COMPRESSED_FLAG):
            raise OSError(errno.EIO, "Cluster is allocated already")

    def _write_pieces(self, first: int, pieces: list[bytes]) -> None:
        """Write the compressed clusters ``pieces`` of guest clusters from ``first``."""
        image = self._image
        image.writeback.commit_if_crowded()
        last = first + len(pieces) - 1
        places: list[int] = []
        with image.lock:
            image.check_usable()
            image.await_range(first, last)
            for cluster in range(first, last + 1):
                self._check_absent(cluster)
            image.before_allocating()
            bits = image.tables.table_bits
            for table in range(first >> bits, (last >> bits) + 1):
                image.tables.writable(max(first, table << bits))  # tables lie before what they map, as in QEMU
            try:
                for piece in pieces:
                    places.append(image.allocator.allocate_bytes(len(piece)))
            except BaseException:
                self._give_back(places, pieces)
                raise
            image.take_off(first, last)
        try:
            image.file.debug_event("write_compressed")
            for offset, data in _joined(places, pieces):
                image.file.write(offset, data)
        except BaseException:
            with image.lock:
                self._give_back(places, pieces)
                image.land(first, last)
            raise
        with image.lock:
            self._map(first, places, pieces)
            image.land(first, last)
        image.node.forget_computed()
        image.node.moved(first << image.cluster_bits, len(pieces) << image.cluster_bits)

    def _map(self, first: int, places: list[int], pieces: list[bytes]) -> None:
        image = self._image
        tables = image.tables
        for cluster, (place, piece) in enumerate(zip(places, pieces, strict=True), first):
            part = tables.writable(cluster)
            index = (cluster & tables.slice_mask) << tables.word_bits
            part.words[index] = layout.compressed_entry(place, len(piece), image.cluster_bits)
            if image.extended:
                part.words[index + 1] = 0
            tables.mark(cluster, part, index, index + tables.word_bits)

    def _give_back(self, places: list[int], pieces: list[bytes]) -> None:
        image = self._image
        for place, piece in zip(places, pieces, strict=False):
            first = place >> image.cluster_bits
            image.allocator.release(first, ((place + len(piece) - 1) >> image.cluster_bits) - first + 1)


def _joined(places: list[int], pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """The pieces with their places, those that touch made one."""
    joined: list[tuple[int, bytes]] = []
    start = end = -1
    run: list[bytes] = []
    for place, piece in zip(places, pieces, strict=True):
        if place != end:
            if run:
                joined.append((start, b"".join(run)))
            start, run = place, []
        run.append(piece)
        end = place + len(piece)
    joined.append((start, b"".join(run)))
    return joined
