"""Files that bypass the page cache, for loops without the GIL: many reads and writes in flight by io_uring.

A request goes through one of a fixed number of aligned buffers, and is a *number* from when it was begun until its buffer
is released. Where the kernel has no io_uring, or forbids it, nothing is ever begun.
"""

from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "ring.h" nogil:
    int qobra_ring_open(qobra_ring *, unsigned)
    void qobra_ring_close(qobra_ring *)
    void qobra_ring_put(qobra_ring *, int, int, void *, unsigned, int64_t, uint64_t)
    int qobra_ring_enter(qobra_ring *, unsigned)
    bint qobra_ring_take(qobra_ring *, uint64_t *, int *)
    int QOBRA_RING_READ, QOBRA_RING_WRITE, QOBRA_RING_POLL

cdef enum:
    SOCKET = MAX_IN_FLIGHT    # the tag of the wait for a socket


cdef class Direct:
    """A ring and its buffers, made when they are first needed. One thread."""

    def __cinit__(self):
        cdef int number
        self._ring.fd = -1
        self._free_count = MAX_IN_FLIGHT
        for number in range(MAX_IN_FLIGHT):
            self._free[number] = number

    def __dealloc__(self):
        # Whoever used it has waited for all that was in flight, unless the ring broke; then the kernel may still write.
        qobra_ring_close(&self._ring)
        if self._buffers != NULL and not self.in_flight:
            munmap(self._buffers, MAX_IN_FLIGHT * BUFFER_SIZE)

    cdef bint is_full(self) noexcept nogil:
        """Whether something has to be released before more can begin."""
        return self._free_count == 0

    cdef bint opens(self) noexcept nogil:
        """Whether there is a ring."""
        cdef void *found
        if not self._opened:
            self._opened = True
            # One entry more, for the wait for a socket.
            if qobra_ring_open(&self._ring, MAX_IN_FLIGHT + 1) == 0:
                # Untouched memory takes up no room.
                found = mmap(
                    NULL, MAX_IN_FLIGHT * BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
                )
                if found != MAP_FAILED:
                    self._buffers = <uint8_t *>found
                    self._works = True
        return self._works

    cdef int read(self, const Piece *piece, size_t alignment) noexcept nogil:
        """Begin to read a piece; its number, or -1 if it does not fit into a buffer. Not when full."""
        cdef size_t skip = <size_t>piece.host & (alignment - 1)
        cdef size_t size = (skip + piece.length + alignment - 1) & ~(alignment - 1)
        if size > BUFFER_SIZE:
            return -1
        return self._begin(QOBRA_RING_READ, piece.fd, piece.host - <int64_t>skip, size, skip, skip + piece.length)

    cdef int write(self, const Piece *piece, const uint8_t *data, size_t alignment) noexcept nogil:
        """Begin to write a piece; its number, or -1 if it is not aligned or does not fit. Not when full."""
        if (<size_t>piece.host | piece.length) & (alignment - 1) or piece.length > BUFFER_SIZE:
            return -1
        memcpy(self._buffers + self._free[self._free_count - 1] * <size_t>BUFFER_SIZE, data, piece.length)
        return self._begin(QOBRA_RING_WRITE, piece.fd, piece.host, piece.length, 0, piece.length)

    cdef int _begin(self, int opcode, int fd, int64_t host, size_t size, size_t skip, size_t needed) noexcept nogil:
        cdef int number
        self._free_count -= 1
        number = self._free[self._free_count]
        self._skip[number], self._needed[number] = skip, needed
        self.in_flight += 1
        qobra_ring_put(&self._ring, opcode, fd, self._buffers + number * <size_t>BUFFER_SIZE, size, host, number)
        return number

    cdef bint wait(self, bint some, int sock) noexcept nogil:
        """Hand over what was begun; with ``some``, wait until something is done, or something came from ``sock`` if that
        is not -1. False if the ring broke."""
        if some and sock >= 0 and not self._polling:
            self._polling = True
            qobra_ring_put(&self._ring, QOBRA_RING_POLL, sock, NULL, 0, 0, SOCKET)
        return qobra_ring_enter(&self._ring, 1 if some else 0) == 0

    cdef int take(self, bint *worked) noexcept nogil:
        """The number of a request that is done, and whether all of it was; -1 if there is none."""
        cdef uint64_t tag
        cdef int result
        while qobra_ring_take(&self._ring, &tag, &result):
            if tag >= MAX_IN_FLIGHT:
                self._polling = False
                continue
            self.in_flight -= 1
            worked[0] = result >= 0 and <size_t>result >= self._needed[tag]
            return <int>tag
        return -1

    cdef uint8_t *data(self, int number) noexcept nogil:
        """The bytes of a request."""
        return self._buffers + number * <size_t>BUFFER_SIZE + self._skip[number]

    cdef void release(self, int number) noexcept nogil:
        """Nobody needs the bytes any more."""
        self._free[self._free_count] = number
        self._free_count += 1
