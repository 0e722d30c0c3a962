"""Guest writes to images with extended L2 entries, which allocate in 32nds of a cluster."""

from __future__ import annotations

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.mapping import check_host, check_inside, check_subclusters
from qobra.block.format.qcow2.writer import Claim, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.tables import Slice

_COPIED = layout.COPIED
_COMPRESSED = layout.COMPRESSED_FLAG
_OFFSET = layout.OFFSET_MASK


def bits_between(low: int, high: int) -> int:
    """The bits of subclusters ``low`` up to ``high``."""
    return (1 << high) - (1 << low)


class SubclusterWriter(Writer):
    """Writes in place where all touched subclusters are allocated; else allocates those, or a whole new cluster."""

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self._size = image.cluster_size // layout.SUBCLUSTERS

    def _plan(self, offset: int, length: int, near: int) -> tuple[int, int, Claim | None]:
        image = self._image
        image.check_usable()
        bits, tables = image.cluster_bits, image.tables
        cluster = offset >> bits
        while cluster in image.in_flight:
            image.wait_landed()
            image.check_usable()
        part = tables.find(cluster)
        if part is not None:
            size, host = self._in_place(part, offset, length)
            if size:
                check_inside(image, host & ~image.cluster_mask, image.cluster_size)
                check_inside(image, (host + size - 1) & ~image.cluster_mask, image.cluster_size)
                if not image.external:
                    image.overlap.guard(host, size)
                return size, host, None
        image.before_allocating()
        part = tables.writable(cluster)
        index = (cluster & tables.slice_mask) * 2
        word, bitmap = part.words[index], part.words[index + 1]
        if not word & _COMPRESSED:
            check_subclusters(image, part, index)
        inside = offset & image.cluster_mask
        size = min(image.cluster_size - inside, length)
        if word & _COPIED and not word & _COMPRESSED and (word & _OFFSET or image.external):
            check_host(image, part, index, word & _OFFSET, cluster)
            check_inside(image, word & _OFFSET, image.cluster_size)
            if not image.external:
                image.overlap.guard(word & _OFFSET, image.cluster_size)
            claim = Claim(cluster, cluster, word & _OFFSET, owned=False, clean=False)
            self._shape(claim, offset, size, bitmap)
        else:
            size = self._new_length(part, cluster, offset, length)
            count = ((offset + size - 1) >> bits) - cluster + 1
            claim = self.claim_new(cluster, count, near)
            size = min(((claim.last - cluster + 1) << bits) - inside, size)
            keep = bits_between(0, 32) if word & _COMPRESSED else bitmap & layout.ALL_ALLOCATED if word & _OFFSET else 0
            self._shape(claim, offset, size, bitmap, keep)
        image.take_off(claim.first, claim.last)
        return size, claim.host + inside, claim

    def _in_place(self, part: Slice, offset: int, length: int) -> tuple[int, int]:
        """How many bytes at ``offset`` may be written in place, in a row, and where."""
        image = self._image
        words = part.words
        bits = image.cluster_bits
        cluster = offset >> bits
        index = (cluster & image.tables.slice_mask) * 2
        inside = offset & image.cluster_mask
        place = words[index] & _OFFSET
        done = 0
        while done < length and index < len(words):
            word, bitmap = words[index], words[index + 1]
            usable = word & _COPIED and not word & _COMPRESSED and (word & _OFFSET or image.external)
            if not usable or (done and word & _OFFSET != place + inside + done):
                break
            sub = inside // self._size if not done else 0
            missing = ~(bitmap & layout.ALL_ALLOCATED) >> sub
            run = (missing & -missing).bit_length() - 1
            if not run:
                break
            check_subclusters(image, part, index)
            check_host(image, part, index, word & _OFFSET, cluster)
            start = inside if not done else 0
            done += (sub + min(run, layout.SUBCLUSTERS - sub)) * self._size - start
            if sub + run < layout.SUBCLUSTERS:
                break
            index += 2
            cluster += 1
        return min(done, length), place + inside

    def _new_length(self, part: Slice, cluster: int, offset: int, length: int) -> int:
        """How much of the write can go to new clusters in a row: past the first, only ones that hold nothing yet."""
        image = self._image
        bits = image.cluster_bits
        end = offset + length
        stop = cluster + 1
        words = part.words
        while stop << bits < end and (stop & image.tables.slice_mask) and stop not in image.in_flight:
            index = (stop & image.tables.slice_mask) * 2
            if words[index] or words[index + 1] & layout.ALL_ALLOCATED:
                break
            stop += 1
        return min(stop << bits, end) - offset

    def _shape(self, claim: Claim, offset: int, size: int, bitmap: int, keep: int = 0) -> None:
        """Set what is written for ``size`` bytes at ``offset``.

        ``bitmap`` is the first cluster's. ``keep`` are subclusters whose data must move to the new place.
        """
        image = self._image
        unit = self._size
        end = offset + size
        base = claim.first << image.cluster_bits
        claim.start, claim.end = offset, end
        first_sub, last_sub = (offset - base) // unit, (min(end, base + image.cluster_size) - 1 - base) // unit
        if keep:
            low = min(first_sub, (keep & -keep).bit_length() - 1)
            high = max(last_sub, keep.bit_length() - 1)
            claim.start = base + low * unit
            if claim.first == claim.last:
                claim.end = base + (high + 1) * unit
            else:
                claim.end = -(-end // unit) * unit
            return
        backing = image.node.backing
        bare = backing is None or backing.length <= base
        if not bitmap >> first_sub & 1:
            claim.start = base + first_sub * unit
            claim.head_zero = bool(bitmap >> (32 + first_sub) & 1) or bare
        if claim.first != claim.last:
            claim.end = -(-end // unit) * unit
            claim.tail_zero = backing is None
        elif not bitmap >> last_sub & 1:
            claim.end = base + (last_sub + 1) * unit
            claim.tail_zero = bool(bitmap >> (32 + last_sub) & 1) or bare

    def _map(self, claim: Claim) -> None:
        image = self._image
        tables = image.tables
        part = tables.writable(claim.first)
        words = part.words
        first_index = index = (claim.first & tables.slice_mask) * 2
        word = claim.host | _COPIED
        for cluster in range(claim.first, claim.last + 1):
            base = cluster << image.cluster_bits
            low = max(0, claim.start - base) // self._size
            high = min(-(-(claim.end - base) // self._size), layout.SUBCLUSTERS)
            written = bits_between(low, high)
            old = words[index]
            before = 0 if old & _COMPRESSED else words[index + 1]
            words[index] = word
            words[index + 1] = (before | written) & ~(written << 32)
            if old and (old & _COMPRESSED or (old ^ word) & _OFFSET):
                image.free_entry(old)
            word += image.cluster_size
            index += 2
        tables.mark(claim.first, part, first_index, index - 1)
