"""Guest writes: in place where that is possible, else into new clusters, with copy-on-write around the edges.

A write is cut into *pieces*, each of which is one of the two. A piece that allocates does so in three steps: claim
the clusters and mark the guest's as in flight (under the lock), write the data (without it), change the mapping (under
it).
"""

from __future__ import annotations

from qobra.block.buffers import new_buffer
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.mapping import check_host, check_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.tables import Slice

_COPIED = layout.COPIED
_OFFSET = layout.OFFSET_MASK
_ZERO = layout.ZERO_FLAG
_DATA_MASK = layout.COPIED | layout.COMPRESSED_FLAG | layout.ZERO_FLAG

_JOIN_LIMIT = 256 << 10
"""A write of up to so many bytes is joined with what is copied around it."""
_MERGE_LIMIT = 16 << 10
"""What is before and behind a write of up to so many bytes is read with one request, as QEMU does."""


class Claim:
    """Clusters that a piece of a write has claimed: guest clusters ``first`` to ``last`` are to lie at ``host``."""

    __slots__ = (
        "clean", "end", "first", "head_kept", "head_zero", "host", "last", "owned", "start", "tail_kept", "tail_zero",
    )  # fmt: skip

    def __init__(self, first: int, last: int, host: int, *, owned: bool, clean: bool) -> None:
        self.first = first
        self.last = last
        self.host = host
        self.owned = owned
        """Newly allocated, so to be given back if the write fails."""
        self.clean = clean
        """The host clusters read as zeroes."""
        self.start = self.end = 0
        """The guest range that is written, with what is copied around the data."""
        self.head_kept = False
        """The first cluster holds data already, which stay where they are: nothing before the data is copied."""
        self.tail_kept = False
        """The same of the last cluster, and what is behind the data."""
        self.head_zero = False
        """What is before the data in that range reads as zeroes."""
        self.tail_zero = False


class Writer:
    """Writes to an image with plain L2 entries."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def write(self, offset: int, view: memoryview) -> None:
        """Write ``view`` at guest ``offset``."""
        image = self._image
        image.writeback.commit_if_crowded()
        position, total = 0, len(view)
        host = size = 0
        while position < total:
            here = offset + position
            with image.lock:
                # Not from one slice to the next, or what is free further down would never be used by large requests.
                inside = here >> image.cluster_bits & image.tables.slice_mask
                near = (host + size) >> image.cluster_bits if inside else 0
                size, host, claim = self._plan(here, total - position, near)
            part = view[position : position + size] if size < total else view
            if claim is None:
                self.write_data(here, host, part)
            else:
                self._write_claimed(here, part, claim)
            position += size

    def write_data(self, offset: int, host: int, data: memoryview) -> None:
        """Put guest data (for guest ``offset``) at ``host`` of the data file."""
        self._image.file.debug_event("write_aio")
        crypt = self._image.crypt
        self._image.data.write(host, data if crypt is None else crypt.encrypt(offset, host, data))

    def _plan(self, offset: int, length: int, near: int) -> tuple[int, int, Claim | None]:
        """(bytes, host offset, None) to write in place at ``offset``, or (bytes, host offset, claim).

        New clusters best begin with the host cluster ``near``, where what is before ``offset`` ends; 0 if nobody knows.
        """
        image = self._image
        image.check_usable()
        bits, tables = image.cluster_bits, image.tables
        cluster = offset >> bits
        while cluster in image.in_flight:
            image.wait_landed()
            image.check_usable()
        part = tables.find(cluster)
        index = cluster & tables.slice_mask
        word = part.words[index] if part is not None else 0
        limit = index + min(((offset + length - 1) >> bits) - cluster, tables.slice_mask - index) + 1
        inside = offset & image.cluster_mask
        stop = 0
        if part is not None and word & _DATA_MASK == _COPIED and (word & _OFFSET or image.external):
            stop = contiguous(part, index, limit, word, image.cluster_size)
            if stop < limit and part.words[stop] == word + (stop - index) * image.cluster_size | _ZERO:
                stop = 0  # a zero cluster has its place right behind: one write is better than two
        if stop:
            assert part is not None
            host = word & _OFFSET
            check_host(image, part, index, host, cluster, ("Data", offset))
            check_inside(image, host, (stop - index) << bits)
            size = min(((stop - index) << bits) - inside, length)
            if not image.external:
                image.overlap.guard(host + inside, size)
            return size, host + inside, None
        if part is not None and word & _DATA_MASK & ~_ZERO == _COPIED and (word & _OFFSET or image.external):
            what = "Preallocated zero" if word & _ZERO else "Data"
            check_host(image, part, index, word & _OFFSET, cluster, (what, offset))
        claim = self._claim(cluster, index, limit, word, near)
        size = min(((claim.last - cluster + 1) << bits) - inside, length)
        self._look_at_edges(claim, offset, size)
        image.take_off(claim.first, claim.last)
        return size, claim.host + inside, claim

    def _claim(self, cluster: int, index: int, limit: int, word: int, near: int) -> Claim:
        """Host clusters for the guest clusters at ``index`` up to ``limit`` of a slice, as many as lie in a row."""
        image = self._image
        image.before_allocating()
        part = image.tables.writable(cluster)
        words = part.words
        if word & _DATA_MASK & ~_ZERO == _COPIED and (word & _OFFSET or image.external):
            # Zero clusters that have places of their own, perhaps with data before and behind them.
            stop = contiguous(part, index, limit, word & ~_ZERO, image.cluster_size, ~_ZERO)
            stop = self._before_in_flight(cluster, index, stop)
            check_inside(image, word & _OFFSET, (stop - index) << image.cluster_bits)
            if not image.external:
                image.overlap.guard(word & _OFFSET, (stop - index) << image.cluster_bits)
            claim = Claim(cluster, cluster + stop - index - 1, word & _OFFSET, owned=False, clean=False)
            claim.head_kept = not word & _ZERO
            claim.tail_kept = not words[stop - 1] & _ZERO
            return claim
        stop = index + 1
        while stop < limit and not words[stop] & _COPIED:
            stop += 1
        stop = self._before_in_flight(cluster, index, stop)
        return self.claim_new(cluster, stop - index, near)

    def claim_new(self, cluster: int, count: int, near: int) -> Claim:
        """New host clusters for up to ``count`` guest clusters from ``cluster``; an external file has them already."""
        image = self._image
        if image.external:
            return Claim(cluster, cluster + count - 1, cluster << image.cluster_bits, owned=False, clean=False)
        virgin = image.allocator.virgin
        first, count = image.allocator.claim_data(count, near=near)
        host = first << image.cluster_bits
        image.overlap.guard(host, count << image.cluster_bits)
        return Claim(cluster, cluster + count - 1, host, owned=True, clean=first >= virgin)

    def _before_in_flight(self, cluster: int, index: int, stop: int) -> int:
        in_flight = self._image.in_flight
        if in_flight:
            for at in range(index + 1, stop):
                if cluster + at - index in in_flight:
                    return at
        return stop

    def _look_at_edges(self, claim: Claim, offset: int, size: int) -> None:
        """Set the range that is written for ``size`` bytes at ``offset``, and whether what is copied is zeroes."""
        image = self._image
        claim.start = offset if claim.head_kept else offset & ~image.cluster_mask
        claim.end = offset + size if claim.tail_kept else (offset + size + image.cluster_mask) & ~image.cluster_mask
        if claim.start < offset:
            claim.head_zero = image.reads_zero(claim.first)
        if claim.end > offset + size:
            claim.tail_zero = image.reads_zero(claim.last)

    def _write_claimed(self, offset: int, data: memoryview, claim: Claim) -> None:
        """Write ``data`` and what surrounds it in its clusters, then map them."""
        image = self._image
        try:
            self._write_around(offset, data, claim)
        except BaseException:
            with image.lock:
                if claim.owned:
                    image.allocator.release(claim.host >> image.cluster_bits, claim.last - claim.first + 1)
                image.land(claim.first, claim.last)
            raise
        try:
            with image.lock:
                self._map(claim)
            # Before others may write there in place: whoever reads that must not look where the data were before.
            size = (claim.last - claim.first + 1) << image.cluster_bits
            image.node.moved(claim.first << image.cluster_bits, size, may_look=True)
        finally:
            with image.lock:
                image.land(claim.first, claim.last)
                if image.reserve is not None and claim.owned:
                    image.reserve.replenish(claim.last)

    def _write_around(self, offset: int, data: memoryview, claim: Claim) -> None:
        image = self._image
        head = offset - claim.start
        tail = claim.end - offset - len(data)
        if image.crypt is None:
            if claim.clean and (not head or claim.head_zero):
                head = 0
            if claim.clean and (not tail or claim.tail_zero):
                tail = 0
        host = claim.host + (offset - (claim.first << image.cluster_bits))
        if not head and not tail:
            self.write_data(offset, host, data)
        elif head + len(data) + tail <= _JOIN_LIMIT:
            joined = memoryview(bytearray(head + len(data) + tail))
            if head and tail and len(data) <= _MERGE_LIMIT and not (claim.head_zero or claim.tail_zero):
                self._read_old(offset - head, joined, False)
            else:
                self._read_old(offset - head, joined[:head], claim.head_zero)
                self._read_old(offset + len(data), joined[head + len(data) :], claim.tail_zero)
            joined[head : head + len(data)] = data
            self.write_data(offset - head, host - head, joined)
        else:
            self._copy_old(offset - head, host - head, head, claim.head_zero)
            self.write_data(offset, host, data)
            self._copy_old(offset + len(data), host + len(data), tail, claim.tail_zero)

    def _read_old(self, offset: int, view: memoryview, zero: bool) -> None:
        """Fill ``view`` with what guest ``offset`` holds so far; zeroes past the end of the disk."""
        if zero or not len(view):
            return  # fresh memory is zeroes
        self._image.file.debug_event("cow_read")
        inside = max(0, min(len(view), self._image.node.length - offset))
        if inside:
            self._image.node.read_old(offset, view[:inside])

    def _copy_old(self, offset: int, host: int, length: int, zero: bool) -> None:
        if not length:
            return
        if zero and self._image.crypt is None:
            self._image.data.write_zeroes(host, length)
            return
        self._image.file.debug_event("cow_write")
        old = memoryview(new_buffer(length))
        self._read_old(offset, old, zero)
        self.write_data(offset, host, old)

    def _map(self, claim: Claim) -> None:
        image = self._image
        tables = image.tables
        part = tables.writable(claim.first)
        words = part.words
        index = claim.first & tables.slice_mask
        count = claim.last - claim.first + 1
        word = claim.host | _COPIED
        step = image.cluster_size
        for at in range(index, index + count):
            old = words[at]
            words[at] = word
            if old and (old & layout.COMPRESSED_FLAG or (old ^ word) & _OFFSET):
                image.free_entry(old)
            word += step
        tables.mark(claim.first, part, index, index + count - 1)


def contiguous(part: Slice, index: int, limit: int, word: int, step: int, mask: int = -1) -> int:
    """Where, at most at ``limit``, the entries end that go on from ``word`` at ``index``, as far as ``mask`` goes."""
    words = part.words
    stop = index + 1
    while stop < limit:
        word += step
        if words[stop] & mask != word:
            break
        stop += 1
    return stop
