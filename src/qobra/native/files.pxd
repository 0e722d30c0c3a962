"""Whole stretches of files, without the GIL: what a system call leaves over is asked for again."""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset
from posix.types cimport off_t
from posix.unistd cimport pread, pwrite


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
