"""Data moved from files into one file without the GIL, by a few threads: the hot loop of a plain conversion.

A *run* is a stretch of a source file with its place in the copy. Threads take *chunks*, as much as fits into a buffer
of one or several runs, in order, read them and look for zeroes in them side by side. In their order again the chunks
get their places in the target (a cluster for each that holds data, or what follows from the place in the copy), and
then they are written. So the target is laid out as if one thread had done it all. What is zero is left out: the target
has to read as zeroes there. A run may be *packed*: a cluster that zstd compressed, which is read in the chunk's thread.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EIO, ENOMEM, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memmove
from posix.stat cimport fstat, struct_stat
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport off_t

from qobra.native.build cimport join_build
from qobra.native.files cimport new_room, read_all, write_all

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
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int, int, off_t, off_t)
    int FALLOC_FL_KEEP_SIZE
    int posix_fadvise(int, off_t, off_t, int)
    int POSIX_FADV_WILLNEED

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs:
        int64_t f_type
    int fstatfs(int, statfs *)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int, const iovec *, int, off_t, int)
    int RWF_NOWAIT

cdef extern from "unzstd.h" nogil:
    int qobra_zstd_load()
    void *qobra_zstd_create()
    void qobra_zstd_destroy(void *)
    int qobra_zstd_read(void *, const void *, size_t, void *, size_t)

cdef enum:
    CHUNK = 512 << 10        # fits into a processor's own cache, and a call's cost does not count
    PARTS = 128              # runs that may have a part in a chunk
    WINDOW = 64              # chunks that may be under way at a time
    RESERVE = 64 << 10       # writes of so much are cheaper, by a fifth on ext4, where the space is reserved before
    TMPFS = 0x01021994       # f_type of statfs(2)
    LEAST = 512              # of a cluster, and of a unit of zero detection

cdef struct Run:
    int fd
    int64_t offset           # in the source's file
    int64_t start            # in the copy
    int64_t length
    int64_t packed           # bytes at most of what is packed; 0: the run lies raw in the file
    int64_t whole            # bytes of the packed cluster, of which the run is the beginning

cdef struct Place:           # in the target, for data
    int64_t host
    int64_t length

cdef struct Mapping:         # clusters of the copy that have places now
    int64_t number           # of the chunk
    int64_t start
    int64_t host
    int64_t length

cdef struct Piece:           # of a buffer
    int64_t at
    int64_t length
    int64_t place            # in the copy; in the target for one that is to be written


cdef struct Room:            # of a thread
    uint8_t *buffer
    uint8_t *packed          # as it is in the file
    void *zstd
    Run *parts
    Piece *pieces
    Piece *writes

cdef struct Queue:
    char *items
    size_t size              # of an item
    size_t head, count, room


cdef void *queue_add(Queue *queue) noexcept nogil:
    """Room for one more item at the end, NULL if there is no memory."""
    cdef size_t room
    cdef char *items
    if queue.head + queue.count == queue.room:
        if queue.head > queue.room // 2:
            memmove(queue.items, queue.items + queue.head * queue.size, queue.count * queue.size)
            queue.head = 0
        else:
            room = max(<size_t>64, 2 * queue.room)
            items = <char *>realloc(queue.items, room * queue.size)
            if items == NULL:
                return NULL
            queue.items, queue.room = items, room
    queue.count += 1
    return queue.items + (queue.head + queue.count - 1) * queue.size


cdef void *queue_first(Queue *queue) noexcept nogil:
    return queue.items + queue.head * queue.size


cdef void *queue_last(Queue *queue) noexcept nogil:
    return queue.items + (queue.head + queue.count - 1) * queue.size


cdef void queue_drop(Queue *queue) noexcept nogil:
    """Forget the first item."""
    queue.head += 1
    queue.count -= 1
    if not queue.count:
        queue.head = 0


cdef bint is_zero(const uint8_t *data, size_t size) noexcept nogil:
    return data[0] == 0 and memcmp(data, data + 1, size - 1) == 0


cdef bint unpacks = qobra_zstd_load()

can_unpack = bool(unpacks)


cdef class Mover:
    """See ``mover.pyi``."""

    cdef pthread_mutex_t _mutex
    cdef pthread_cond_t _changed      # something that a thread waits for
    cdef pthread_cond_t _written      # a chunk was written, for whoever waits for that
    cdef int _target
    cdef int64_t _reserves            # space from here on, before it is written to
    cdef int64_t _unit, _cluster, _base
    cdef Queue _runs, _places, _mappings
    cdef bint _closed, _stopped
    cdef int64_t _taken               # chunks that threads have taken
    cdef int64_t _turn                # the chunk whose turn it is to get its place
    cdef int64_t _done                # chunks before this one are written
    cdef bint _is_written[WINDOW]
    cdef int64_t _lengths[WINDOW]
    cdef int64_t _pushed, _moved      # bytes
    cdef int64_t _unplaced            # bytes that were taken and have no place yet
    cdef int64_t _last_cluster, _last_host
    cdef int _failure
    cdef Room _room                   # of whoever gives the work

    def __cinit__(self, int target, int64_t unit, int64_t cluster, int64_t base=0):
        cdef statfs system
        cdef struct_stat status
        cdef pthread_condattr_t attributes
        if (unit and unit < LEAST) or (cluster and (cluster < LEAST or cluster & (cluster - 1))) or base < 0:
            raise ValueError("a unit or cluster that cannot be")
        pthread_mutex_init(&self._mutex, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)  # a clock that is set is none to wait by
        pthread_cond_init(&self._changed, &attributes)
        pthread_cond_init(&self._written, &attributes)
        self._target, self._unit, self._cluster, self._base = target, unit, cluster, base
        self._runs.size, self._places.size, self._mappings.size = sizeof(Run), sizeof(Place), sizeof(Mapping)
        self._last_cluster = -1
        self._reserves = INT64_MAX
        # In memory, space that is reserved is also zeroed.
        if fstatfs(target, &system) == 0 and system.f_type != TMPFS and fstat(target, &status) == 0:
            # What a file without holes has needs no reserving.
            self._reserves = status.st_size if status.st_blocks * 512 >= status.st_size else 0

    def __dealloc__(self):
        free(self._runs.items)
        free(self._places.items)
        free(self._mappings.items)
        free_room(&self._room)
        pthread_cond_destroy(&self._changed)
        pthread_cond_destroy(&self._written)
        pthread_mutex_destroy(&self._mutex)

    # -- for whoever gives the work ----------------------------------------------------------------------------

    def push(self, int fd, int64_t offset, int64_t start, int64_t length):
        cdef Run *run
        if offset < 0 or start < 0 or length <= 0 or max(offset, start) > (<int64_t>1 << 62) - length:
            raise ValueError("a run that cannot be")
        with nogil:
            read_ahead(fd, offset, length)
            pthread_mutex_lock(&self._mutex)
            run = <Run *>queue_add(&self._runs)
            if run != NULL:
                run.fd, run.offset, run.start, run.length, run.packed = fd, offset, start, length, 0
                self._pushed += length
                pthread_cond_broadcast(&self._changed)
            pthread_mutex_unlock(&self._mutex)
        if run == NULL:
            raise MemoryError

    def push_packed(self, int fd, clusters, int64_t whole):
        cdef int64_t offset, packed, start, length
        cdef Run *run = NULL
        if not unpacks or not 0 < whole <= CHUNK:
            raise ValueError("clusters that cannot be unpacked here")
        for offset, packed, start, length in clusters:
            if offset < 0 or start < 0 or max(offset, start) > <int64_t>1 << 62:
                raise ValueError("a cluster that cannot be")
            if not 0 < length <= whole or not 0 < packed <= 2 * CHUNK:
                raise ValueError("a cluster that cannot be")
            with nogil:
                pthread_mutex_lock(&self._mutex)
                run = <Run *>queue_add(&self._runs)
                if run != NULL:
                    run.fd, run.offset, run.start, run.length = fd, offset, start, length
                    run.packed, run.whole = packed, whole
                    self._pushed += length
                pthread_mutex_unlock(&self._mutex)
            if run == NULL:
                raise MemoryError
        with nogil:
            pthread_mutex_lock(&self._mutex)
            pthread_cond_broadcast(&self._changed)
            pthread_mutex_unlock(&self._mutex)

    def provide(self, int64_t host, int64_t length):
        cdef Place *place
        if not self._cluster or host < 0 or length <= 0 or (host | length) & (self._cluster - 1):
            raise ValueError("a place that cannot be")
        with nogil:
            pthread_mutex_lock(&self._mutex)
            place = <Place *>queue_add(&self._places)
            if place != NULL:
                place.host, place.length = host, length
            pthread_mutex_unlock(&self._mutex)
        if place == NULL:
            raise MemoryError

    @property
    def pushed(self):
        return self._pushed

    @property
    def failed(self):
        return self._failure

    def help(self, int64_t pushed):
        cdef timespec until
        cdef bint is_done = False
        if self._room.buffer == NULL and not self._make_room(&self._room):
            raise MemoryError
        while not is_done:
            with nogil:
                pthread_mutex_lock(&self._mutex)
                if self._moved < pushed and not self._failure and not self._move_chunk(&self._room, False):
                    # A signal is looked for now and then.
                    clock_gettime(CLOCK_MONOTONIC, &until)
                    until.tv_nsec += 100_000_000
                    if until.tv_nsec >= 1_000_000_000:
                        until.tv_nsec -= 1_000_000_000
                        until.tv_sec += 1
                    pthread_cond_timedwait(&self._written, &self._mutex, &until)
                is_done = self._moved >= pushed or self._failure
                pthread_mutex_unlock(&self._mutex)
            PyErr_CheckSignals()

    def take(self):
        cdef Mapping found
        cdef bint any_left = True
        mappings = []
        while any_left:
            with nogil:
                pthread_mutex_lock(&self._mutex)
                any_left = self._mappings.count and (<Mapping *>queue_first(&self._mappings)).number < self._done
                if any_left:
                    found = (<Mapping *>queue_first(&self._mappings))[0]
                    queue_drop(&self._mappings)
                pthread_mutex_unlock(&self._mutex)
            if any_left:
                if mappings and found.start == start + length and found.host == host + length:
                    length += found.length
                    mappings[len(mappings) - 1] = (start, host, length)
                else:
                    start, host, length = found.start, found.host, found.length
                    mappings.append((start, host, length))
        return mappings

    def close(self):
        with nogil:
            pthread_mutex_lock(&self._mutex)
            self._closed = True
            pthread_cond_broadcast(&self._changed)
            pthread_mutex_unlock(&self._mutex)

    def stop(self):
        with nogil:
            pthread_mutex_lock(&self._mutex)
            self._stopped = True
            pthread_cond_broadcast(&self._changed)
            pthread_mutex_unlock(&self._mutex)

    # -- for the threads -----------------------------------------------------------------------------------------

    def work(self):
        with nogil:
            self._work()

    cdef void _work(self) noexcept nogil:
        cdef Room room
        cdef bint has_room = self._make_room(&room)
        pthread_mutex_lock(&self._mutex)
        if has_room:
            while self._move_chunk(&room, True):
                pass
        else:
            self._fail(ENOMEM)
        pthread_mutex_unlock(&self._mutex)
        free_room(&room)

    cdef bint _make_room(self, Room *room) noexcept nogil:
        cdef size_t most_pieces = PARTS + (CHUNK // self._unit + PARTS if self._unit else 0)
        cdef size_t most_writes = most_pieces + (CHUNK // self._cluster + PARTS if self._cluster else 0)
        # What is packed is unpacked whole, though only its beginning may count.
        room.buffer = new_room(2 * CHUNK)
        room.packed, room.zstd = NULL, NULL
        room.parts = <Run *>malloc(PARTS * sizeof(Run))
        room.pieces = <Piece *>malloc(most_pieces * sizeof(Piece))
        room.writes = <Piece *>malloc(most_writes * sizeof(Piece))
        return room.buffer != NULL and room.parts != NULL and room.pieces != NULL and room.writes != NULL

    cdef bint _move_chunk(self, Room *room, bint waits) noexcept nogil:
        """Move a chunk, with the lock held before and after. False if there is none, or, if it ``waits``, will be."""
        cdef int64_t number, length
        cdef size_t count = self._take_chunk(room.parts, &length, waits)
        cdef int failure
        if not count:
            return False
        number = self._taken
        self._taken += 1
        self._unplaced += length
        self._lengths[number % WINDOW] = length
        pthread_mutex_unlock(&self._mutex)
        failure = self._read(room, &count)
        pthread_mutex_lock(&self._mutex)
        if failure:
            self._fail(failure)
        while self._turn != number and not self._stopped:
            pthread_cond_wait(&self._changed, &self._mutex)
        if self._stopped:
            return False
        count = self._place(number, room.pieces, count, room.writes)
        self._unplaced -= length
        self._turn += 1
        if self._stopped:
            return False
        pthread_cond_broadcast(&self._changed)
        pthread_mutex_unlock(&self._mutex)
        failure = write_pieces(self._target, room.buffer, room.writes, count, self._reserves)
        pthread_mutex_lock(&self._mutex)
        if failure:
            self._fail(failure)
            return False
        self._finish(number)
        return True

    cdef void _fail(self, int number) noexcept nogil:
        if not self._failure:
            self._failure = number
        self._stopped = True
        pthread_cond_broadcast(&self._changed)
        pthread_cond_broadcast(&self._written)

    cdef size_t _take_chunk(self, Run *parts, int64_t *length, bint waits) noexcept nogil:
        """Take a chunk of the runs: its parts, and how many there are. 0 if there are none, or will be none."""
        cdef Run *run
        cdef size_t count = 0
        cdef int64_t position, room, size
        while not self._stopped:
            if self._runs.count and self._taken - self._done < WINDOW:
                # The page cache likes what is written to be large and aligned.
                position = (<Run *>queue_first(&self._runs)).start
                if self._places.count:
                    position = (<Place *>queue_first(&self._places)).host + self._unplaced
                room = CHUNK - position % CHUNK
                length[0] = 0
                while self._runs.count and room and count < PARTS:
                    run = <Run *>queue_first(&self._runs)
                    if run.packed and run.length > room:
                        if count:
                            break
                        room = run.length
                    size = min(run.length, room)
                    if self._unit and size < run.length and (run.start + size) % self._unit < size:
                        size -= (run.start + size) % self._unit
                    parts[count] = run[0]
                    parts[count].length = size
                    count += 1
                    length[0] += size
                    room = room - size if size == run.length else 0
                    if size == run.length:
                        queue_drop(&self._runs)
                    else:
                        run.offset += size
                        run.start += size
                        run.length -= size
                return count
            if not waits or (self._closed and not self._runs.count):
                return 0
            pthread_cond_wait(&self._changed, &self._mutex)
        return 0

    cdef int _read(self, Room *room, size_t *count) noexcept nogil:
        """Read the parts of a chunk, one after another; what is not zeroes in them, and how many pieces that is.

        Returns the number of the error, 0 if there was none.
        """
        cdef size_t found = 0, which
        cdef int64_t at = 0, begin, end, stop, shift
        cdef int failure
        cdef const Run *parts = room.parts
        cdef uint8_t *buffer = room.buffer
        cdef Piece *pieces = room.pieces
        for which in range(count[0]):
            if parts[which].packed:
                failure = read_packed(room, &parts[which], buffer + at)
            else:
                failure = read_all(parts[which].fd, buffer + at, parts[which].length, parts[which].offset)
            if failure:
                return failure
            begin, end = at, at + parts[which].length
            shift = parts[which].start - begin
            while at < end:
                stop = min(end, at + self._unit - (at + shift) % self._unit) if self._unit else end
                if not self._unit or not is_zero(buffer + at, stop - at):
                    if found and at > begin and pieces[found - 1].at + pieces[found - 1].length == at:
                        pieces[found - 1].length += stop - at
                    else:
                        pieces[found].at, pieces[found].length, pieces[found].place = at, stop - at, at + shift
                        found += 1
                at = stop
        count[0] = found
        return 0

    cdef size_t _place(self, int64_t number, const Piece *pieces, size_t count, Piece *writes) noexcept nogil:
        """Say where the pieces of a chunk go; how many writes they are. In the order of the chunks."""
        cdef size_t found = 0, which
        cdef int64_t at, size, end, start, cluster, host
        for which in range(count):
            at, end = pieces[which].at, pieces[which].at + pieces[which].length
            start = pieces[which].place
            while at < end:
                size, host = end - at, self._base + start
                if self._cluster:
                    cluster = start // self._cluster
                    if cluster != self._last_cluster and not self._place_cluster(number, cluster):
                        self._fail(EIO)
                        return 0
                    size = min(size, (cluster + 1) * self._cluster - start)
                    host = self._last_host + start % self._cluster
                if (
                    found
                    and writes[found - 1].at + writes[found - 1].length == at
                    and writes[found - 1].place + writes[found - 1].length == host
                ):
                    writes[found - 1].length += size
                else:
                    writes[found].at, writes[found].length, writes[found].place = at, size, host
                    found += 1
                at += size
                start += size
        return found

    cdef bint _place_cluster(self, int64_t number, int64_t cluster) noexcept nogil:
        """Give a cluster of the copy the next place. False if there is none, or no memory."""
        cdef Place *place
        cdef Mapping *mapping
        cdef int64_t start = cluster * self._cluster
        if not self._places.count:
            return False
        place = <Place *>queue_first(&self._places)
        self._last_cluster, self._last_host = cluster, place.host
        place.host += self._cluster
        place.length -= self._cluster
        if not place.length:
            queue_drop(&self._places)
        if self._mappings.count:
            mapping = <Mapping *>queue_last(&self._mappings)
            if (
                mapping.number == number
                and mapping.start + mapping.length == start
                and mapping.host + mapping.length == self._last_host
            ):
                mapping.length += self._cluster
                return True
        mapping = <Mapping *>queue_add(&self._mappings)
        if mapping == NULL:
            return False
        mapping.number, mapping.start, mapping.host, mapping.length = number, start, self._last_host, self._cluster
        return True

    cdef void _finish(self, int64_t number) noexcept nogil:
        """A chunk is written."""
        cdef int64_t before = self._done
        self._is_written[number % WINDOW] = True
        while self._done < self._taken and self._is_written[self._done % WINDOW]:
            self._is_written[self._done % WINDOW] = False
            self._moved += self._lengths[self._done % WINDOW]
            self._done += 1
        if self._done != before:
            pthread_cond_broadcast(&self._written)
            if self._taken - before >= WINDOW:
                pthread_cond_broadcast(&self._changed)


cdef void free_room(Room *room) noexcept nogil:
    free(room.buffer)
    free(room.packed)
    qobra_zstd_destroy(room.zstd)
    free(room.parts)
    free(room.pieces)
    free(room.writes)


cdef void read_ahead(int fd, int64_t offset, int64_t length) noexcept nogil:
    """Let the kernel begin to read what is not in the page cache, as its first byte tells."""
    cdef char first
    cdef iovec piece
    piece.iov_base, piece.iov_len = &first, 1
    if preadv2(fd, &piece, 1, offset, RWF_NOWAIT) < 0 and errno == EAGAIN:
        posix_fadvise(fd, offset, length, POSIX_FADV_WILLNEED)


cdef int read_packed(Room *room, const Run *run, uint8_t *buffer) noexcept nogil:
    """Unpack a whole cluster into ``buffer``; the number of the error, 0 if there was none."""
    cdef int failure
    if room.packed == NULL:
        room.packed = new_room(2 * CHUNK)
    if room.zstd == NULL:
        room.zstd = qobra_zstd_create()
    if room.packed == NULL or room.zstd == NULL:
        return ENOMEM
    failure = read_all(run.fd, room.packed, run.packed, run.offset)
    if failure:
        return failure
    return 0 if qobra_zstd_read(room.zstd, room.packed, run.packed, buffer, run.whole) else EIO


cdef int write_pieces(
    int fd, const uint8_t *buffer, const Piece *pieces, size_t count, int64_t reserves
) noexcept nogil:
    """Write the pieces of a buffer; the number of the error, 0 if there was none."""
    cdef size_t which
    cdef int failure
    for which in range(count):
        if pieces[which].length >= RESERVE and pieces[which].place + pieces[which].length > reserves:
            # Where there is no space, writing says so.
            fallocate(fd, FALLOC_FL_KEEP_SIZE, pieces[which].place, pieces[which].length)
        failure = write_all(fd, buffer + pieces[which].at, pieces[which].length, pieces[which].place)
        if failure:
            return failure
    return 0
