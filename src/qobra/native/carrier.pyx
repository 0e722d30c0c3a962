"""Data moved from files to a file for a job, without the GIL: the compiled form of ``qobra.block.copy.carrier``.

A *load* is what one call of :meth:`Carrier.move` moves, in *units* that whoever has time takes: the calling thread, and
threads that the kernel gives only time that nobody else wants. The caller returns when all units are written or one has
failed, so that what it holds (places, descriptors, old data) is held for as long as anyone needs it.
"""

import os

from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from qobra.native.build cimport join_build
from qobra.native.files cimport new_room, read_all, write_all
from qobra.native.folios cimport Folios, FolioTable, write_at
from qobra.native.old_blocks cimport OldBlocks, OldTable, clip, mend_range

join_build(__name__)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
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
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sched.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline void qobra_idle_priority(void) {
        struct sched_param none = {0};
        if (sched_setscheduler(0, SCHED_IDLE, &none))
            setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    }
    """
    void idle_priority "qobra_idle_priority"()
    int usleep(unsigned)
    int sched_yield()

cdef enum:
    ROOM = 512 << 10          # bytes of a buffer, and of a unit that nobody waits for
    SMALL = 32 << 10          # bytes of a unit while a guest may wait for the same file
    FIRST_COST = 400_000      # nanoseconds of a processor that a MiB is thought to take, at first
    MOST_PATIENCE = 100_000_000
    MOST_PARTS = 1 << 16
    PROMPT = 50_000           # nanoseconds after which a processor that was offered is not idle
    NAP = 2_000               # microseconds until a thread that found none idle looks again
    ZEROES = -1               # in the place of a descriptor

cdef struct Part:
    int fd
    int64_t offset
    int64_t length

cdef struct Load:
    Part *parts
    size_t part               # the one that the next unit begins in
    int64_t inside            # and how far in it
    int fd
    FolioTable *folios
    int64_t host
    int64_t length
    int64_t taken
    OldTable *old
    uint64_t start
    int busy                  # units under way
    int failure
    bint failed_reading
    Load *next

cdef struct Unit:
    size_t part
    int64_t inside
    int64_t at                # in the load
    int64_t length

cdef struct Room:
    Room *next


cdef class Carrier:
    """See ``carrier.pyi``."""

    cdef pthread_mutex_t _mutex
    cdef pthread_cond_t _work         # there is a load
    cdef pthread_cond_t _done         # a unit was written
    cdef Load *_first
    cdef Room *_rooms
    cdef int _workers
    cdef bint _stopped
    cdef readonly int64_t cost

    def __cinit__(self):
        cdef pthread_condattr_t attributes
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_mutex_init(&self._mutex, NULL)
        pthread_cond_init(&self._work, &attributes)
        pthread_cond_init(&self._done, &attributes)
        self.cost = FIRST_COST

    def __dealloc__(self):
        cdef Room *room
        while self._rooms != NULL:
            room, self._rooms = self._rooms, self._rooms.next
            free(room)
        pthread_cond_destroy(&self._work)
        pthread_cond_destroy(&self._done)
        pthread_mutex_destroy(&self._mutex)

    def move(self, parts, int fd, int64_t host, old=None, uint64_t start=0, int64_t share=1,
             Folios folios=None):
        cdef Load load
        cdef size_t count = len(parts), index
        cdef OldBlocks keeper
        cdef int64_t patience = 0
        if not 0 < count <= MOST_PARTS or host < 0 or share < 1:
            raise ValueError("a load that cannot be")
        memset(&load, 0, sizeof(Load))
        load.fd, load.host, load.start = fd, host, start
        if folios is not None:
            load.folios = &folios.table
        if old is not None:
            keeper = old
            load.old = &keeper.table
        load.parts = <Part *>malloc(count * sizeof(Part))
        if load.parts == NULL:
            raise MemoryError
        try:
            for index in range(count):
                source, offset, length = parts[index]
                if length <= 0 or offset < 0 or length > (<int64_t>1 << 40) or max(offset, host) > (<int64_t>1 << 61):
                    raise ValueError("a part that cannot be")
                load.parts[index].fd, load.parts[index].offset, load.parts[index].length = source, offset, length
                load.length += load.parts[index].length
            with nogil:
                # For less, to wait for another thread takes longer than to do it.
                if share > 1 and load.length >= SMALL and self._workers and not self._stopped:
                    patience = (share - 1) * ((load.length * self.cost) >> 20)
                    self._share_out(&load, min(patience, <int64_t>MOST_PATIENCE))
                else:
                    self._carry_alone(&load)
        finally:
            free(load.parts)
        if load.failure:
            return load.failure, load.failed_reading
        return None

    def work(self):
        with nogil:
            self._work_idle()

    def stop(self):
        with nogil:
            pthread_mutex_lock(&self._mutex)
            self._stopped = True
            pthread_cond_broadcast(&self._work)
            pthread_mutex_unlock(&self._mutex)

    # All below is called without the lock, unless it says so.

    cdef void _carry_alone(self, Load *load) noexcept nogil:
        cdef Unit unit
        cdef Room *room = self._get_room()
        if room == NULL:
            load.failure = ENOMEM
            return
        while not load.failure and take(load, ROOM, &unit):
            self._carry(load, &unit, <uint8_t *>room)
        self._put_room(room)

    cdef void _share_out(self, Load *load, int64_t patience) noexcept nogil:
        """Let idle threads do it, and do after some time what they have not begun."""
        cdef timespec until
        cdef Unit unit
        cdef Room *room = NULL
        cdef Load **place
        clock_gettime(CLOCK_MONOTONIC, &until)
        until.tv_sec += patience // 1_000_000_000
        until.tv_nsec += patience % 1_000_000_000
        if until.tv_nsec >= 1_000_000_000:
            until.tv_nsec -= 1_000_000_000
            until.tv_sec += 1
        pthread_mutex_lock(&self._mutex)
        place = &self._first
        while place[0] != NULL:
            place = &place[0].next
        place[0] = load
        pthread_cond_broadcast(&self._work)
        while has_more(load):
            if pthread_cond_timedwait(&self._done, &self._mutex, &until):
                break
        if has_more(load):
            pthread_mutex_unlock(&self._mutex)
            room = self._get_room()
            pthread_mutex_lock(&self._mutex)
            if room == NULL:
                load.failure = ENOMEM
            while has_more(load) and take(load, SMALL, &unit):
                load.busy += 1
                pthread_mutex_unlock(&self._mutex)
                self._carry(load, &unit, <uint8_t *>room)
                pthread_mutex_lock(&self._mutex)
                load.busy -= 1
        place = &self._first
        while place[0] != load:
            place = &place[0].next
        place[0] = load.next
        while load.busy:
            pthread_cond_wait(&self._done, &self._mutex)
        pthread_mutex_unlock(&self._mutex)
        if room != NULL:
            self._put_room(room)

    cdef void _work_idle(self) noexcept nogil:
        cdef Unit unit
        cdef Load *load
        cdef Room *room = self._get_room()
        cdef bint is_idle
        if room == NULL:
            return
        idle_priority()
        pthread_mutex_lock(&self._mutex)
        self._workers += 1
        while not self._stopped:
            if self._first != NULL:
                # A thread of this priority that is stopped may not run again for seconds where others want the processor,
                # so there must be no unit in its hands then that somebody waits for.
                pthread_mutex_unlock(&self._mutex)
                is_idle = nobody_else_runs()
                if not is_idle:
                    # Whoever serves a guest yields, too: one that is always ready to run would be run each time.
                    usleep(NAP)
                pthread_mutex_lock(&self._mutex)
                if not is_idle:
                    continue
            load = self._first
            while load != NULL and not (has_more(load) and take(load, SMALL, &unit)):
                load = load.next
            if load == NULL:
                pthread_cond_wait(&self._work, &self._mutex)
                continue
            load.busy += 1
            pthread_mutex_unlock(&self._mutex)
            self._carry(load, &unit, <uint8_t *>room)
            pthread_mutex_lock(&self._mutex)
            load.busy -= 1
            if not load.busy and not has_more(load):
                pthread_cond_broadcast(&self._done)
        self._workers -= 1
        pthread_mutex_unlock(&self._mutex)
        self._put_room(room)

    cdef void _carry(self, Load *load, const Unit *unit, uint8_t *buffer) noexcept nogil:
        """Move a unit; what goes wrong is noted in its load."""
        cdef size_t part = unit.part
        cdef int64_t inside = unit.inside, done = 0, size
        cdef uint64_t start = load.start + <uint64_t>unit.at
        cdef int failure = 0
        cdef int64_t begun = spent(), took
        cdef ssize_t written
        while done < unit.length and not failure:
            size = min(load.parts[part].length - inside, unit.length - done)
            if load.parts[part].fd == ZEROES:
                memset(buffer + done, 0, <size_t>size)
            else:
                failure = read_all(load.parts[part].fd, buffer + done, size, load.parts[part].offset + inside)
            done += size
            part, inside = part + 1, 0
        if failure:
            load.failed_reading = True
        else:
            if load.old != NULL:
                mend_range(load.old, start, buffer, clip(load.old, start, unit.length), True)
            written = write_at(load.folios, load.fd, buffer, <size_t>unit.length, load.host + unit.at)
            if written < unit.length:
                done = max(written, <ssize_t>0)
                failure = write_all(load.fd, buffer + done, unit.length - done, load.host + unit.at + done)
        if failure:
            load.failure = failure
        took = ((spent() - begun) << 20) // unit.length
        self.cost += (took - self.cost) >> 3

    cdef Room *_get_room(self) noexcept nogil:
        cdef Room *room
        pthread_mutex_lock(&self._mutex)
        room = self._rooms
        if room != NULL:
            self._rooms = room.next
        pthread_mutex_unlock(&self._mutex)
        return room if room != NULL else <Room *>new_room(ROOM)

    cdef void _put_room(self, Room *room) noexcept nogil:
        pthread_mutex_lock(&self._mutex)
        room.next = self._rooms
        self._rooms = room
        pthread_mutex_unlock(&self._mutex)


cdef bint nobody_else_runs() noexcept nogil:
    """Let whoever else wants this processor have it; whether that was nobody, or not for long."""
    cdef timespec before, after
    clock_gettime(CLOCK_MONOTONIC, &before)
    sched_yield()
    clock_gettime(CLOCK_MONOTONIC, &after)
    return (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec < PROMPT


cdef inline bint has_more(const Load *load) noexcept nogil:
    return load.taken < load.length and not load.failure


cdef bint take(Load *load, int64_t most, Unit *unit) noexcept nogil:
    """The next unit of at most ``most`` bytes; False if there is none. The page cache likes what ends where one would."""
    cdef int64_t left, size
    if load.taken >= load.length:
        return False
    unit.part, unit.inside, unit.at = load.part, load.inside, load.taken
    unit.length = min(most - (load.host + load.taken) % most, load.length - load.taken)
    left = unit.length
    while left:
        size = min(left, load.parts[load.part].length - load.inside)
        left -= size
        load.inside += size
        if load.inside == load.parts[load.part].length:
            load.part, load.inside = load.part + 1, 0
    load.taken += unit.length
    return True


cdef int64_t spent() noexcept nogil:
    """The calling thread's time of a processor, in nanoseconds."""
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec
