"""Small writes without the GIL, and without what large folios make them cost: the compiled form of
``qobra.block.protocol._folios``, which says how it works.

The words that all writers share are atomic and in no order: what a race loses is a count.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free
from posix.types cimport off_t
from posix.unistd cimport close, getpid, pwrite

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_condattr_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_create(pthread_t *, pthread_attr_t *, void *(*)(void *) noexcept nogil, void *)
    int pthread_detach(pthread_t)

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/mman.h>
    #include <unistd.h>
    #ifndef MADV_COLD
    #define MADV_COLD 20
    #endif
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #endif
    #define qobra_get(pointer) __atomic_load_n((pointer), __ATOMIC_RELAXED)
    #define qobra_put(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_RELAXED)
    /* The same file by an open of its own, -1 if there can be none. */
    static inline int qobra_open_again(int fd) {
        char name[32];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        return open(name, O_RDONLY | O_CLOEXEC);
    }
    """
    uint64_t get "qobra_get"(const uint64_t *)
    void put "qobra_put"(uint64_t *, uint64_t)
    int64_t get_count "qobra_get"(const int64_t *)
    void put_count "qobra_put"(int64_t *, int64_t)
    uint64_t *get_regions "qobra_get"(uint64_t **)
    int open_again "qobra_open_again"(int)
    int sync_file_range(int, off_t, off_t, unsigned)
    void *mmap(void *, size_t, int, int, int, off_t)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    long sysconf(int)
    int PROT_READ, MAP_SHARED, MADV_COLD, MADV_POPULATE_READ, _SC_PAGESIZE
    void *MAP_FAILED
    unsigned SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER

# What is said of these is in the pure form.
cdef enum:
    REGION_BITS = 21
    SMALL = 64 << 10
    SLOW_NS = 7_000
    KIB_NS = 250
    SAMPLE = 16
    ATTENTION = 1024
    FIRST = 4
    MOST_PATIENCE = 8
    MOST_VAIN = 16
    REGIONS = 1 << 16
    IDLE_NS = 100_000_000

# The word of a region: its number and one, a bit, how often it was wanted, how many writes were slow.
cdef enum:
    SLOW_MASK = 0xFFFF
    LEVEL_SHIFT = 16
    LEVEL_MASK = 15
    TRIED = 1 << 20
    NUMBER_SHIFT = 21


cdef class Folios:
    """See ``qobra.block.protocol._folios.PureFolios``."""

    def __cinit__(self, int fd):
        cdef pthread_condattr_t attributes
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_mutex_init(&self.table.mutex, NULL)
        pthread_cond_init(&self.table.changed, &attributes)
        self.table.fd = fd

    def __dealloc__(self):
        stop(&self.table)
        free(self.table.regions)
        pthread_cond_destroy(&self.table.changed)
        pthread_mutex_destroy(&self.table.mutex)

    def write(self, data, int64_t offset):
        """See the pure form."""
        cdef Py_buffer buffer
        cdef ssize_t done = -1
        cdef int failure = EINTR
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                while failure == EINTR:
                    done = write_at(&self.table, self.table.fd, <const uint8_t *>buffer.buf, buffer.len, offset)
                    failure = errno if done < 0 else 0
        finally:
            PyBuffer_Release(&buffer)
        if failure:
            raise OSError(failure, os.strerror(failure))
        return done

    def note(self, int64_t offset, int64_t took_ns):
        """See the pure form."""
        return note(&self.table, offset, took_ns)

    def take(self):
        """See the pure form."""
        cdef int64_t offset = -1
        with nogil:
            pthread_mutex_lock(&self.table.mutex)
            if self.table.waiting:
                offset = take(&self.table)
            pthread_mutex_unlock(&self.table.mutex)
        return offset if offset >= 0 else None

    def settle(self, int64_t offset):
        """See the pure form."""
        settle(&self.table, offset)

    def close(self):
        """See the pure form."""
        with nogil:
            stop(&self.table)


def split(int fd, int64_t offset):
    """See ``qobra.block.protocol._folios.pure_split``."""
    cdef bint worked
    with nogil:
        worked = split_at(fd, offset)
    return worked


cdef ssize_t write_at(FolioTable *table, int fd, const uint8_t *data, size_t size, int64_t host) noexcept nogil:
    """pwrite(2) to ``fd``. Where it is small, and turns out slow, its region is split in time; not if there is no ``table``."""
    cdef int64_t begun, took
    cdef ssize_t done
    cdef int failure
    if table == NULL or size >= SMALL or not is_due(table):
        return pwrite(fd, data, size, host)
    begun = monotonic()
    done = pwrite(fd, data, size, host)
    took = monotonic() - begun - <int64_t>(size * KIB_NS >> 10)
    if done >= 0 and note(table, host, took):
        begin(table)
    return done


cdef inline bint is_due(FolioTable *table) noexcept nogil:
    """Whether this write is to be timed."""
    cdef int64_t count
    if get_count(&table.attention) > 0:
        return True
    count = get_count(&table.count)
    put_count(&table.count, count + 1)
    return count % SAMPLE == 0


cdef bint note(FolioTable *table, int64_t host, int64_t took) noexcept nogil:
    cdef bint is_slow = took >= SLOW_NS, is_wanted = False
    cdef uint64_t number = <uint64_t>host >> REGION_BITS
    cdef uint64_t *place
    cdef uint64_t word, slow, level
    if host < 0:
        return False
    if is_slow:
        put_count(&table.attention, ATTENTION)
    elif get_count(&table.attention) > 0:
        put_count(&table.attention, get_count(&table.attention) - 1)
    if get_regions(&table.regions) == NULL and not (is_slow and make_regions(table)):
        return False
    place = &table.regions[number % REGIONS]
    word = get(place)
    if word >> NUMBER_SHIFT != number + 1:
        word = (number + 1) << NUMBER_SHIFT
    if word & TRIED:
        word ^= TRIED
        judge(table, not is_slow)
    slow, level = word & SLOW_MASK, word >> LEVEL_SHIFT & LEVEL_MASK
    if is_slow:
        slow += 1
        if slow >= <uint64_t>FIRST << max(level, <uint64_t>table.patience):
            is_wanted = want(table, host)
            slow, level = 0, min(level + 1, <uint64_t>MOST_PATIENCE)
    elif slow:
        slow -= 1
    put(place, word & ~<uint64_t>(SLOW_MASK | LEVEL_MASK << LEVEL_SHIFT) | level << LEVEL_SHIFT | slow)
    return is_wanted


cdef void judge(FolioTable *table, bint has_helped) noexcept nogil:
    """The first write after a region was split has been made."""
    if has_helped:
        table.vain, table.patience = 0, max(table.patience - 1, 0)
    else:
        table.vain += 1
        if table.vain >= MOST_VAIN:
            table.vain, table.patience = 0, min(table.patience + 1, <int>MOST_PATIENCE)


cdef bint make_regions(FolioTable *table) noexcept nogil:
    """Get the memory for the regions, which takes up room only where it is used."""
    pthread_mutex_lock(&table.mutex)
    if table.regions == NULL:
        table.regions = <uint64_t *>calloc(REGIONS, sizeof(uint64_t))
    pthread_mutex_unlock(&table.mutex)
    return table.regions != NULL


cdef bint want(FolioTable *table, int64_t host) noexcept nogil:
    """Have a region split, if there is room for it among those that wait."""
    cdef bint is_room
    pthread_mutex_lock(&table.mutex)
    is_room = table.waiting < MOST_WANTED
    if is_room:
        table.wanted[(table.first + table.waiting) % MOST_WANTED] = host
        table.waiting += 1
    pthread_mutex_unlock(&table.mutex)
    return is_room


cdef int64_t take(FolioTable *table) noexcept nogil:
    """The one that has waited for longest. With the lock held."""
    cdef int64_t host = table.wanted[table.first]
    table.first = (table.first + 1) % MOST_WANTED
    table.waiting -= 1
    return host


cdef void settle(FolioTable *table, int64_t host) noexcept nogil:
    cdef uint64_t number = <uint64_t>host >> REGION_BITS
    cdef uint64_t *place
    if host >= 0 and get_regions(&table.regions) != NULL:
        place = &table.regions[number % REGIONS]
        if get(place) >> NUMBER_SHIFT == number + 1:
            put(place, get(place) | TRIED)


# The thread that splits -----------------------------------------------------------------------------------------------


cdef void begin(FolioTable *table) noexcept nogil:
    """See that there is a thread at work."""
    cdef pthread_t thread
    pthread_mutex_lock(&table.mutex)
    if table.works or table.closed:
        pthread_cond_broadcast(&table.changed)
    elif not table.fails:
        table.works = getpid()
        if pthread_create(&thread, NULL, work, table):
            table.works, table.fails = 0, True
        else:
            pthread_detach(thread)
    pthread_mutex_unlock(&table.mutex)


cdef void *work(void *argument) noexcept nogil:
    """Split what is wanted, until nothing was for a while."""
    cdef FolioTable *table = <FolioTable *>argument
    cdef timespec until
    cdef int64_t host
    cdef int fd = open_again(table.fd)
    pthread_mutex_lock(&table.mutex)
    table.fails = fd < 0
    while not table.fails and not table.closed:
        if not table.waiting:
            clock_gettime(CLOCK_MONOTONIC, &until)
            until.tv_nsec += IDLE_NS
            if until.tv_nsec >= 1_000_000_000:
                until.tv_nsec -= 1_000_000_000
                until.tv_sec += 1
            pthread_cond_timedwait(&table.changed, &table.mutex, &until)
            if not table.waiting:
                break
            continue
        host = take(table)
        pthread_mutex_unlock(&table.mutex)
        split_at(fd, host)
        settle(table, host)
        pthread_mutex_lock(&table.mutex)
    if fd >= 0:
        close(fd)
    table.works = 0
    pthread_cond_broadcast(&table.changed)
    pthread_mutex_unlock(&table.mutex)
    return NULL


cdef void stop(FolioTable *table) noexcept nogil:
    """End the thread, and wait for that. A child that the process forked has none."""
    pthread_mutex_lock(&table.mutex)
    table.closed = True
    pthread_cond_broadcast(&table.changed)
    while table.works == getpid():
        pthread_cond_wait(&table.changed, &table.mutex)
    pthread_mutex_unlock(&table.mutex)


cdef bint split_at(int fd, int64_t host) noexcept nogil:
    cdef int64_t region = host & -(<int64_t>1 << REGION_BITS)
    cdef size_t page_size = <size_t>sysconf(_SC_PAGESIZE)
    cdef void *area
    cdef uint8_t *page
    cdef bint worked
    sync_file_range(
        fd, region, 1 << REGION_BITS,
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER,
    )
    area = mmap(NULL, 1 << REGION_BITS, PROT_READ, MAP_SHARED, fd, region)
    if area == MAP_FAILED:
        return False
    page = <uint8_t *>area + (<size_t>(host - region) & ~(page_size - 1))
    worked = not madvise(page, page_size, MADV_POPULATE_READ) and not madvise(page, page_size, MADV_COLD)
    munmap(area, 1 << REGION_BITS)
    return worked


cdef inline int64_t monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec
