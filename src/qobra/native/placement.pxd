"""What other compiled loops use of :mod:`qobra.native.placement`, without the GIL."""

from libc.stdint cimport int64_t


cdef class Placement:
    cdef int _fd                            # of the thread's times
    cdef int64_t _looked_ns, _waited_ns     # when was looked, and how long the thread had waited by then
    cdef int64_t _rest_ns                   # until it looks again after it has left a processor in vain; 0: not so
    cdef int64_t _next_ns                   # when it looks again
    cdef bint _judge(self, int64_t now, int64_t waited) noexcept nogil
    cdef void look_now(self) noexcept nogil
