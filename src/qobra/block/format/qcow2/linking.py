"""What an image takes up from below while guests write to it: put aside first, and linked where there still is nothing.

What shows through from below stays the same while it does, so nobody has to be kept waiting for the copy. It goes to
new clusters that nothing refers to; then, under the lock, guest clusters that are still not held here get them. Where a
guest has written meanwhile, that stays, and the copy's cluster is free again.
"""

from __future__ import annotations

from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qobra.block.format.qcow2.image import Image
    from qobra.block.in_files import InFiles

_HELD = layout.OFFSET_MASK | layout.COMPRESSED_FLAG | layout.ZERO_FLAG
"""Of an entry of the mapping: what says that the image holds the cluster itself."""


class Linking:
    """Takes up clusters of an image with plain L2 entries, in a file of its own and not encrypted."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def takes_files(self) -> bool:
        """Whether the data may lie in files."""
        return self._image.node.takes_files()

    def takes_zeroes(self) -> bool:
        """Versions before 3 have no way to hold zeroes as such."""
        return self._image.header.version >= 3

    def take_up(self, ranges: Sequence[tuple[int, int]], data: InFiles | memoryview) -> None:
        """Hold ``data``, what whole clusters in the ``(offset, length)`` of ``ranges`` show, one after another."""
        image = self._image
        bits = image.cluster_bits
        image.writeback.commit_if_crowded()
        places = self._claim(len(data) >> bits)
        try:
            position = 0
            for place, count in places:
                image.file.debug_event("write_aio")
                image.data.write(place << bits, data[position : position + (count << bits)])  # type: ignore[arg-type]
                position += count << bits
        except BaseException:
            with image.lock:
                self._release(places)
            raise
        linked: list[int] = []
        try:
            with image.lock:
                for cluster, place, count in _pair(ranges, places, bits):
                    for number in range(count):
                        if self._is_free(cluster + number):
                            self._set(cluster + number, (place + number) << bits | layout.COPIED, linked)
                        else:
                            image.allocator.release(place + number, 1)
        finally:
            self._land(linked)

    def take_up_zeroes(self, offset: int, length: int) -> None:
        """The same of whole clusters that show zeroes."""
        image = self._image
        cluster, end = offset >> image.cluster_bits, (offset + length) >> image.cluster_bits
        linked: list[int] = []
        try:
            with image.lock:
                image.before_allocating()
                for each in range(cluster, end):
                    if self._is_free(each):
                        self._set(each, layout.ZERO_FLAG, linked)
        finally:
            self._land(linked)

    def _claim(self, want: int) -> list[tuple[int, int]]:
        """``want`` new clusters: (first, how many) of those in a row."""
        image = self._image
        places: list[tuple[int, int]] = []
        with image.lock:
            image.check_usable()
            image.before_allocating()
            try:
                while want:
                    places.append(image.allocator.claim_data(want))
                    first, count = places[-1]
                    image.overlap.guard(first << image.cluster_bits, count << image.cluster_bits)
                    want -= count
            except BaseException:
                self._release(places)
                raise
        return places

    def _release(self, places: list[tuple[int, int]]) -> None:
        for first, count in places:
            self._image.allocator.release(first, count)

    def _is_free(self, cluster: int) -> bool:
        """Whether the image does not hold a guest cluster, once no write to it is under way."""
        image = self._image
        while cluster in image.in_flight:  # it may fail, and then nobody holds the cluster
            image.wait_landed()
            image.check_usable()
        part = image.tables.find(cluster)
        return part is None or not part.words[cluster & image.tables.slice_mask] & _HELD

    def _set(self, cluster: int, word: int, linked: list[int]) -> None:
        tables = self._image.tables
        part = tables.writable(cluster)
        index = cluster & tables.slice_mask
        part.words[index] = word
        tables.mark(cluster, part, index, index)
        self._image.take_off(cluster, cluster)
        linked.append(cluster)

    def _land(self, linked: list[int]) -> None:
        """Let writes go to these clusters, in place, once nobody knows any more where their data came from."""
        if not linked:
            return
        image = self._image
        start = linked[0] << image.cluster_bits
        end = min((linked[-1] + 1) << image.cluster_bits, image.node.length)
        try:
            image.node.moved(start, end - start, may_look=True)
        finally:
            with image.lock:
                for cluster in linked:
                    image.land(cluster, cluster)


def _pair(
    ranges: Sequence[tuple[int, int]], places: list[tuple[int, int]], bits: int
) -> Iterator[tuple[int, int, int]]:
    """(guest cluster, host cluster, how many) of what lies in a row on both sides."""
    left = iter(places)
    place = count = 0
    for offset, length in ranges:
        cluster, wanted = offset >> bits, length >> bits
        while wanted:
            if not count:
                place, count = next(left)
            size = min(wanted, count)
            yield cluster, place, size
            cluster, wanted, place, count = cluster + size, wanted - size, place + size, count - size
