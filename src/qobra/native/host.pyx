"""Calls of the host that Python's os module lacks, without ctypes, whose import takes as long as a short command."""

import os

from libc.errno cimport EINTR, errno
from posix.types cimport off_t

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<fcntl.h>" nogil:
    int _fallocate "fallocate"(int, int, off_t, off_t)

cdef extern from * nogil:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static inline void qobra_give_back(void) { malloc_trim(0); }
    #else
    static inline void qobra_give_back(void) { }
    #endif
    """
    void give_back "qobra_give_back"()


def fallocate(int fd, int mode, off_t offset, off_t length):
    """fallocate(2). Raises OSError."""
    cdef int failure = EINTR
    while failure == EINTR:
        with nogil:
            failure = errno if _fallocate(fd, mode, offset, length) else 0
    if failure:
        raise OSError(failure, os.strerror(failure))


def give_back_memory():
    """Let the host have the memory that was freed, which the C library keeps for the next that asks."""
    with nogil:
        give_back()
