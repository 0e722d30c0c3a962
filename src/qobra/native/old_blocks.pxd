"""What other compiled loops use of :mod:`qobra.native.old_blocks`, without the GIL."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    BLOCK_BITS = 12
    BLOCK = 1 << BLOCK_BITS
    LONGEST_RUN = 64 << 10     # bytes that are asked for at a time


cdef struct Entry:             # a block that is kept; its data has the same number
    int64_t block
    int32_t next               # of the same bucket, or of the free ones; -1 at the end
    uint8_t given


cdef struct OldTable:
    pthread_mutex_t mutex
    uint64_t length
    int shift                  # bytes of a cluster, as a power of two
    size_t cluster_count
    uint8_t *clusters          # flags
    int64_t zero_count         # clusters that are kept as zeroes
    int32_t *heads             # of the buckets
    Entry *entries
    uint8_t *data
    int32_t capacity           # blocks that there is memory for
    int32_t fresh              # entries from here on were never used
    size_t ready               # bytes of data that there is memory for already, or is being got
    int32_t free               # the first of those that were, and are not any more
    int32_t count              # blocks that are kept
    int64_t limit              # bytes
    bint off                   # nothing is asked for any more


cdef class OldBlocks:
    cdef OldTable table


cdef bint next_missing(OldTable *table, uint64_t *at, uint64_t end, uint64_t *start, size_t *size) noexcept nogil
cdef bint keep_blocks(OldTable *table, uint64_t start, const uint8_t *data, size_t size) noexcept nogil
cdef uint64_t clip(OldTable *table, uint64_t offset, uint64_t length) noexcept nogil
cdef void mend_range(OldTable *table, uint64_t start, uint8_t *into, uint64_t end, bint given) noexcept nogil
