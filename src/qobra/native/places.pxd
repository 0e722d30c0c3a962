"""What other compiled loops use of :mod:`qobra.native.places`, all of it without the GIL."""

from cpython.pythread cimport PyThread_type_lock
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from qobra.native.folios cimport Folios, FolioTable
from qobra.native.in_step cimport StepTable
from qobra.native.marks cimport MarkTable
from qobra.native.old_blocks cimport OldTable


cdef enum:
    PAGE_BITS = 13
    PAGE_ENTRIES = 1 << PAGE_BITS
    MAX_PAGES = 512
    MAX_LEAVES = 256
    LINEAR = MAX_LEAVES - 1    # the number of the file that the whole root lies in
    MAX_MARKS = 32             # dirty bitmaps that a write is marked in
    MAX_KEEPERS = 8            # copies of a point in time that are made of what is written


cdef enum Outcome:
    DONE
    UNKNOWN    # some of the range is not in the table, or not to be written past the nodes
    HOLE       # nothing but zeroes, where the caller asked to be told of them
    COLD       # would have to wait for a disk
    DIRECT     # bypasses the page cache: see qobra.native.direct
    FAILED     # an error or a short transfer: the nodes' methods find out


cdef struct Piece:
    # A part of a range that lies in one place.
    int leaf           # 0: zeroes
    int fd
    bint writable
    size_t alignment   # more than 1 if the file bypasses the page cache
    FolioTable *folios
    int64_t host
    size_t length


cdef class Lock:
    cdef PyThread_type_lock lock


cdef class Gate:
    cdef int64_t _closed


cdef class Words:
    cdef int64_t _epoch, _draining, _generation


cdef class Slot:
    cdef int64_t _busy
    cdef readonly int64_t entries
    cdef object _flight
    cdef readonly Words words
    cdef readonly Gate gate
    cdef bint try_enter(self) noexcept nogil
    cdef void go(self) noexcept nogil
    cdef int64_t generation(self) noexcept nogil
    cdef bint is_wanted(self) noexcept nogil


# Writes data where nothing but zeroes is so far, to new space of its driver's (:mod:`qobra.native.reserve`).
ctypedef Outcome (*Allocate)(
    void *reserve, Places places, uint64_t offset, size_t length, const uint8_t *data
) noexcept nogil


cdef class Places:
    cdef int64_t *pages[MAX_PAGES]
    cdef int fds[MAX_LEAVES]
    cdef int nowait[MAX_LEAVES]
    cdef size_t alignments[MAX_LEAVES]
    cdef FolioTable *folios[MAX_LEAVES]
    cdef int leaves, linear, unit_bits
    cdef int64_t linear_base
    cdef int64_t _highest
    cdef readonly int64_t generation
    cdef readonly uint64_t length
    cdef readonly bint writable
    cdef MarkTable *marks[MAX_MARKS]
    cdef uint64_t mark_shifts[MAX_MARKS]    # what is to be added to the root's offset
    cdef int mark_count
    cdef StepTable *step        # a disk that is kept in step with this one; NULL: none
    cdef int step_mark          # which of the marks is for what is not
    cdef OldTable *keepers[MAX_KEEPERS]
    cdef int keeper_count
    cdef void *reserve          # NULL if new space is for the nodes to give
    cdef int reserve_leaf       # the file that it is in
    cdef Allocate allocate
    cdef object _reserve
    cdef Lock _linking          # taken by whoever puts entries where places may get data at any time
    cdef readonly int64_t linked    # counts what got data
    cdef list _owners
    cdef list _folios      # keeps what folios point to
    cdef object _marked    # keeps what marks and keepers point to
    cdef object _in_step   # and the step
    cdef void set_reserve(self, object owner, void *reserve, Allocate allocate, int leaf)
    cdef void _set_leaf(self, int number, int fd, size_t alignment, Folios folios)


cdef void link_entries(Places places, uint64_t offset, int64_t host, int64_t count) noexcept nogil
cdef bint inside(Places places, uint64_t offset, uint64_t length) noexcept nogil
cdef bint next_piece(Places places, uint64_t offset, size_t length, Piece *piece) noexcept nogil
cdef void mark_write(Places places, uint64_t offset, uint64_t length) noexcept nogil
cdef void note_write(Places places, uint64_t end) noexcept nogil
cdef bint may_change(Places places, uint64_t offset, size_t length) noexcept nogil
cdef Outcome read_range(
    Places places, uint64_t offset, size_t length, uint8_t *into, bint may_wait, bint tell_holes
) noexcept nogil
cdef Outcome write_range(Places places, uint64_t offset, size_t length, const uint8_t *data) noexcept nogil
cdef void read_ahead(Places places, uint64_t offset, size_t length) noexcept nogil
