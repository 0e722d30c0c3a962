"""Calls of the host that Python's os module lacks, without ctypes, whose import takes as long as a short command."""

import os

from libc.errno cimport EINTR, errno
from posix.types cimport off_t

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<fcntl.h>" nogil:
    int _fallocate "fallocate"(int, int, off_t, off_t)


def fallocate(int fd, int mode, off_t offset, off_t length):
    """fallocate(2). Raises OSError."""
    cdef int failure = EINTR
    while failure == EINTR:
        with nogil:
            failure = errno if _fallocate(fd, mode, offset, length) else 0
    if failure:
        raise OSError(failure, os.strerror(failure))
