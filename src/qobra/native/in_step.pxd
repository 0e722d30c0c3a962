"""What :mod:`qobra.native.places` uses of :mod:`qobra.native.in_step`, all of it without the GIL."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t

from qobra.native.marks cimport MarkTable


cdef enum:
    LANES = 16


cdef struct Lane:
    int64_t held
    int64_t apart[7]       # lanes of different threads do not share a line of the cache


cdef struct StepTable:
    Lane lanes[LANES]
    MarkTable *marks       # of the source's dirty bitmap
    uint64_t **pages       # by number; NULL where all is apart
    size_t page_count
    void *target           # a Places; NULL while writes go to the source alone
    int64_t resume         # when writes to the target are tried again


cdef class InStep:
    cdef StepTable table
    cdef object _marks, _target


cdef void *get_target(StepTable *table) noexcept nogil
cdef Lane *step_in(StepTable *table, uint64_t offset, uint64_t length) noexcept nogil
cdef void step_out(Lane *lane) noexcept nogil
cdef void set_apart(StepTable *table, uint64_t offset, uint64_t length) noexcept nogil
cdef int64_t begin_write() noexcept nogil
cdef void end_write(StepTable *table, int64_t begun) noexcept nogil
