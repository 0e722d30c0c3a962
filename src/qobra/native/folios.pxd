"""What other compiled loops use of :mod:`qobra.native.folios`, all of it without the GIL and from any number of threads."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef enum:
    MOST_WANTED = 256


cdef struct FolioTable:
    int fd
    int64_t attention       # so many small writes are timed, one after another
    int64_t count           # of those that were not
    uint64_t *regions       # NULL until a write was slow
    int vain, patience
    pthread_mutex_t mutex   # for all below
    pthread_cond_t changed
    int64_t wanted[MOST_WANTED]    # a ring
    int first, waiting
    int works               # the process whose thread splits, 0 if there is none
    bint closed, fails


cdef class Folios:
    cdef FolioTable table


cdef ssize_t write_at(FolioTable *table, int fd, const uint8_t *data, size_t size, int64_t host) noexcept nogil
