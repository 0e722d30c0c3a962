"""Whole stretches of files, without the GIL: what a system call leaves over is asked for again."""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset
from posix.stdlib cimport posix_memalign
from posix.types cimport off_t
from posix.unistd cimport pread, pwrite


cdef inline uint8_t *new_room(size_t size) noexcept nogil:
    """Memory to read files into, to be given to free(); NULL if there is none.

    It begins on the boundary of a page. Some processors (AMD's EPYC) copy a page to where it begins less than 32 bytes
    after a boundary at a quarter of the speed, and what malloc() gives for large sizes begins 16 bytes after one.
    """
    cdef void *room
    return NULL if posix_memalign(&room, 4096, size) else <uint8_t *>room


cdef inline int read_all(int fd, uint8_t *buffer, int64_t size, int64_t offset) noexcept nogil:
    """Read, with zeroes past the end of the file; the number of the error, 0 if there was none."""
    cdef int64_t done = 0
    cdef ssize_t moved
    while done < size:
        moved = pread(fd, buffer + done, <size_t>(size - done), <off_t>(offset + done))
        if moved > 0:
            done += moved
        elif moved == 0:
            memset(buffer + done, 0, <size_t>(size - done))
            break
        elif errno != EINTR:
            return errno
    return 0


cdef inline int write_all(int fd, const uint8_t *buffer, int64_t size, int64_t offset) noexcept nogil:
    """Write; the number of the error, 0 if there was none."""
    cdef int64_t done = 0
    cdef ssize_t moved
    while done < size:
        moved = pwrite(fd, buffer + done, <size_t>(size - done), <off_t>(offset + done))
        if moved > 0:
            done += moved
        elif moved == 0:
            return EIO
        elif errno != EINTR:
            return errno
    return 0
