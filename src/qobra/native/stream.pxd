"""What other compiled loops use of :mod:`qobra.native.stream`, all of it without the GIL."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from qobra.native.places cimport Lock

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef enum Received:
    SOME
    NOTHING    # and there was no waiting
    END        # of the stream
    ERROR      # see _errno


cdef class Stream:
    cdef Lock _lock
    cdef Py_buffer _inbox_buffer, _arena_buffer, _payload_buffer
    cdef object _payload_owner
    cdef uint8_t *_inbox
    cdef uint8_t *_arena
    cdef size_t _inbox_size, _arena_size
    cdef int _sock, _errno
    cdef int64_t _poll_ns            # how long a receive looks again and again before it waits
    cdef int _rest, _longest_rest    # receives until one does so again
    cdef int64_t _pace_ns, _gathered  # from one request to the next, and when that was looked at
    cdef bint _is_inside
    cdef readonly size_t position
    cdef public size_t start, end
    cdef void _release(self)
    cdef int _check(self) except -1
    cdef Received _receive(self, bint may_wait, size_t room) noexcept nogil
    cdef void _gather(self, int64_t requests, int64_t replied) noexcept nogil
    cdef int64_t _let_others_run(self) noexcept nogil
    cdef void _note_wait(self, int64_t took) noexcept nogil
    cdef Received _receive_payload(self, size_t have, size_t length) noexcept nogil
    cdef bint _send(self) noexcept nogil
    cdef bint _send_parts(self, iovec *parts, size_t count) noexcept nogil
    cdef bint _get_outside(self) noexcept nogil
