"""Scattered pieces that a dirty bitmap names, copied from one disk to another without the GIL.

Both disks are known by their flat tables (:mod:`qobra.native.places`), so a piece costs two lookups, a read and a write. What
is no plain hit on either side is left to whoever can find out.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free

from qobra.native.build cimport join_build
from qobra.native.files cimport new_room
from qobra.native.places cimport DONE, Places, read_range, write_range

join_build(__name__)

cdef enum:
    MOST_BITS = 1 << 30


def copy_marked(
    Places source not None, Places target not None, uint64_t offset, int shift, bits, uint64_t first, int64_t most,
    size_t longest, bint leaves_long,
):
    """Copy the pieces of ``1 << shift`` bytes from ``offset`` on whose bits in ``bits`` are set, and clear those bits.

    Begins with the bit ``first``, and goes on until ``most`` bytes were copied, or, with ``leaves_long``, to a run of
    ``longest`` bytes and more; without, such a run is copied in so large pieces. Returns the bytes that were copied and the bit that it came to; those before that are still set could not be
    copied here. To be called inside a slot of both disks. Raises ValueError for what cannot be.
    """
    cdef Py_buffer view
    cdef uint64_t count, at = first
    cdef int64_t copied = 0
    cdef uint8_t *buffer
    if not 9 <= shift <= 30 or not 0 < longest <= 1 << 30 or offset > (<uint64_t>1 << 62):
        raise ValueError("pieces that cannot be")
    buffer = new_room(longest)
    if buffer == NULL:
        raise MemoryError
    try:
        PyObject_GetBuffer(bits, &view, PyBUF_WRITABLE)
        try:
            count = <uint64_t>view.len << 3
            if count > <uint64_t>MOST_BITS:
                raise ValueError("more bits than can be")
            with nogil:
                at = copy_runs(
                    source, target, offset, shift, <uint8_t *>view.buf, first, count, most, longest, leaves_long,
                    buffer, &copied,
                )
        finally:
            PyBuffer_Release(&view)
    finally:
        free(buffer)
    return copied, at


cdef uint64_t copy_runs(
    Places source, Places target, uint64_t offset, int shift, uint8_t *bits, uint64_t at, uint64_t count, int64_t most,
    size_t longest, bint leaves_long, uint8_t *buffer, int64_t *copied,
) noexcept nogil:
    cdef uint64_t stop, start, length
    cdef uint64_t limit = min(source.length, target.length)
    while at < count and copied[0] < most:
        if not at & 7 and not bits[at >> 3]:
            at += 8
            continue
        if not bits[at >> 3] >> (at & 7) & 1:
            at += 1
            continue
        stop = at + 1
        while stop < count and (stop - at) << shift < longest and bits[stop >> 3] >> (stop & 7) & 1:
            stop += 1
        if leaves_long and (stop - at) << shift >= longest:
            return at
        start = offset + (at << shift)
        if start >= limit:
            return at
        length = min((stop - at) << shift, limit - start)
        # Holes are not told apart from what a table does not know: they are to stay holes.
        if (
            read_range(source, start, <size_t>length, buffer, True, True) == DONE
            and write_range(target, start, <size_t>length, buffer) == DONE
        ):
            copied[0] += <int64_t>length
            while at < stop:
                bits[at >> 3] &= <uint8_t>~(1 << (at & 7))
                at += 1
        at = stop
    return min(at, count)
