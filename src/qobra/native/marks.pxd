"""What other compiled loops use of :mod:`qobra.native.marks`, without the GIL."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef struct MarkTable:
    uint64_t **pages       # by number; NULL where nothing was ever marked
    uint8_t *page_waits    # whether a page has marks that were not taken, for whole words of eight pages
    size_t page_count
    uint64_t granules
    int shift              # bytes of a granule, as a power of two
    int64_t waits          # whether any page has
    int64_t all            # there was no memory for a page: everything is marked


cdef class Marks:
    cdef MarkTable table


cdef void add_marks(MarkTable *table, uint64_t offset, uint64_t length) noexcept nogil
