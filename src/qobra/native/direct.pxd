"""What other compiled loops use of :mod:`qobra.native.direct`, all of it without the GIL and from one thread."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from qobra.native.places cimport Piece


cdef extern from "ring.h" nogil:
    struct qobra_ring:
        int fd


cdef enum:
    MAX_IN_FLIGHT = 64
    BUFFER_SIZE = 128 << 10


cdef class Direct:
    cdef qobra_ring _ring
    cdef bint _opened, _works, _polling
    cdef uint8_t *_buffers
    cdef int _free[MAX_IN_FLIGHT]
    cdef int _free_count
    cdef size_t _skip[MAX_IN_FLIGHT]      # where in its buffer a request's bytes begin
    cdef size_t _needed[MAX_IN_FLIGHT]    # up to where they have to be there
    cdef int in_flight
    cdef bint is_full(self) noexcept nogil
    cdef bint opens(self) noexcept nogil
    cdef int read(self, const Piece *piece, size_t alignment) noexcept nogil
    cdef int write(self, const Piece *piece, const uint8_t *data, size_t alignment) noexcept nogil
    cdef int _begin(self, int opcode, int fd, int64_t host, size_t size, size_t skip, size_t needed) noexcept nogil
    cdef bint wait(self, bint some, int sock) noexcept nogil
    cdef int take(self, bint *worked) noexcept nogil
    cdef uint8_t *data(self, int number) noexcept nogil
    cdef void release(self, int number) noexcept nogil
